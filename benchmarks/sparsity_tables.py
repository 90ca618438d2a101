"""The tables of `benchmarks.sparsity`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.common import Column, Report, Table
from onnxprune.report.layout import percent

_NOTES = (
    "Weights are set to zero and the others solved for, from unlabeled inputs; accuracy is measured on other samples. "
    "*Zeros* are counted in the weights of convolutions and matrix products. *Alternating* is what `sparsify --data` "
    "does. It, *obs*, *wanda* and *magnitude* end in least squares for the weights that stay, layer by layer on the "
    "outputs of the sparse layers before; the budget of each layer follows from sensitivities. *obs, not solved* is "
    "the column by column update alone, as SparseGPT does, with these budgets. *Magnitude, no data* takes layer "
    "budgets by LAMP and changes no weight that stays. *All samples* are 512, the default of `sparsify`; *uniform* "
    "is its `--allocation uniform`.",
    "Of the encoder, *cosine* is the mean similarity of its embeddings of English sentences to the dense model's.",
    "onnxsim's `apply_sparsegpt_pruning` and `apply_wanda_pruning` get the same inputs. They have no blocks.",
    "Intervals are 95 %. *Change* is against the dense model on the same samples, in points. *zlib* is the size of the "
    "file compressed at level 9, as a share of the dense file's bytes. Times are those of the processor, all threads "
    "together; sensitivities are measured once for each method and pattern, and their time is not in the table.",
)

Interval = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Result:
    """One model, made sparse in one way and judged.

    Attributes:
        model: the subject's name.
        point: the pattern and share of zeros.
        way: how.
        zeros: the share of zeros that it has.
        top1: accuracy in percent with its interval, by data set.
        change: the same minus the dense model's.
        agreement: percent of equal predictions, by data set.
        compressed: bytes of the file compressed by zlib, as a share of the dense file.
        seconds: processor time.
        failure: why it failed, if so.
        cosine: of an encoder, the similarity of its embeddings to the dense model's, by data set.
    """

    model: str
    point: str
    way: str
    zeros: float
    top1: Mapping[str, Interval]
    change: Mapping[str, Interval]
    agreement: Mapping[str, float]
    compressed: float
    seconds: float
    failure: str = ""
    cosine: Mapping[str, Interval] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Its name."""
        return f"{self.model}/{self.point}/{self.way}"


def report(results: Sequence[Result], settings: Mapping[str, Any]) -> Report:
    """Return the report: a table for each model and data set, with results in their order."""
    tables = []
    for model in dict.fromkeys(r.model for r in results):
        done = [r for r in results if r.model == model and not r.failure]
        for data in dict.fromkeys(name for r in done for name in r.top1):
            dense = done[0].top1[data][0] - done[0].change[data][0]
            tables.append(Table.of(f"{model} on {data}, dense {dense:.1f} %", _columns(_classified(data)), done))
        for data in dict.fromkeys(name for r in done for name in r.cosine):
            tables.append(Table.of(f"{model} on {data}", _columns(_encoded(data)), done))
    failed = [r for r in results if r.failure]
    if failed:
        columns: list[Column[Result]] = [
            Column("case", lambda r: r.key, text=True),
            Column("error", lambda r: r.failure, text=True),
        ]
        tables.append(Table.of("What could not be done", columns, failed))
    title = "Sparse models, without labels or gradients"
    values = {"cases": [asdict(r) for r in results]}
    return Report("sparsity", title, _NOTES, tables, settings, values)


def _columns(quality: Sequence[Column[Result]]) -> list[Column[Result]]:
    return [
        Column("zeros asked", lambda r: r.point, text=True),
        Column("way", lambda r: r.way, text=True),
        Column("zeros", lambda r: percent(r.zeros)),
        *quality,
        Column("zlib", lambda r: f"{r.compressed:.2f}"),
        Column("s", lambda r: f"{r.seconds:.0f}"),
    ]


def _classified(data: str) -> list[Column[Result]]:
    return [
        Column("top-1, %", lambda r: _spread(r.top1[data], ".1f")),
        Column("change, points", lambda r: _spread(r.change[data], "+.1f")),
        Column("agreement, %", lambda r: f"{r.agreement[data]:.1f}"),
    ]


def _encoded(data: str) -> list[Column[Result]]:
    return [Column("cosine", lambda r: _spread(r.cosine[data], ".3f"))]


def _spread(interval: Interval, form: str) -> str:
    value, low, high = (format(number, form) for number in interval)
    return f"{value} ({low} to {high})"
