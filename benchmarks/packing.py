"""Bytes of a download by several packers, of forms of trained models, and what each form loses.

What is measured is kept in a file (`--state`), so that an interrupted run goes on where it was.
"""

from __future__ import annotations

import lzma
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import click
import numpy as np
import onnx
from onnx import ModelProto, numpy_helper

import onnxprune as op
from benchmarks.common import Column, Kept, Report, Table, options, with_state
from benchmarks.recovery_cases import SEED, SUBJECTS, Subject
from onnxprune.data import Dataset
from onnxprune.evaluation.runner import Outputs
from onnxprune.normalize import normalize
from onnxprune.packing.clusters import cluster
from onnxprune.packing.direct import with_codebooks
from onnxprune.report.layout import percent
from onnxprune.workflow.inputs import calibration_batches

MODELS = ("cifar_resnet56_dynamo", "mlptiny_kws_dscnn")
SPARSITY = 0.8
_JUDGED = -1  # of a subject's sets of test data, the one that judges: the largest

NOTES = (
    "Sizes are shares of the float file. *zlib*, *zstd* and *xz* compress a file as it is, at levels 9, 19 and 9 "
    "extreme; *packed* is `onnxprune pack`, which `unpack` makes the same bytes of. *Top-1* is on samples that nothing "
    "was fitted to, with the change against the float model and its 95 % interval.",
    "*Sparse* sets the smallest 80 % of the weights of all convolutions and products to zero, without any repair: "
    "what it loses is no measure of sparsity, only its bytes count. *Sparsify* is `onnxprune sparsify` to 80 %. *INT8* "
    "is ONNX Runtime's `quantize_static`, per channel. *Clusters* are what `pack --clusters` does with 512 samples "
    "(250 of keyword spotting), *plain* without any, *bits free* with `--bit-price 0`. *Direct* is `pack --clusters "
    "--direct`, a file that ONNX Runtime loads as it is.",
)


@dataclass(frozen=True, slots=True)
class Found:
    """What was measured of a form of a model.

    Attributes:
        model: the model.
        form: the form.
        sizes: bytes by packer; "file" is without any.
        top1: accuracy.
        change: its change against the float model, with its interval.
        seconds: the time of packing, that of making the form left out.
    """

    model: str
    form: str
    sizes: Mapping[str, int]
    top1: float
    change: tuple[float, float, float]
    seconds: float


class Workshop:
    """A model with its data."""

    def __init__(self, subject: Subject) -> None:
        self.path = subject.path
        analysis = op.analyze(self.path)
        calibration, judged = subject.data(analysis)
        self.work: Dataset = calibration["own"]
        self.judged = list(judged.values())[_JUDGED]
        self.original = op.load(self.path).proto
        self.normalized = analysis.graph.proto
        self.known = Outputs()
        self._sparsified: ModelProto | None = None

    def sparse(self) -> ModelProto:
        """Set the smallest weights of all layers to zero."""
        model = ModelProto()
        model.CopyFrom(self.original)
        arrays = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer if len(t.dims) > 1}
        arrays = {name: a for name, a in arrays.items() if a.dtype == np.float32 and a.size >= 256}
        limit = np.quantile(np.abs(np.concatenate([a.ravel() for a in arrays.values()])), SPARSITY)
        for tensor in model.graph.initializer:
            if (array := arrays.get(tensor.name)) is not None:
                cut = np.where(np.abs(array) < limit, np.float32(0), array)
                tensor.CopyFrom(numpy_helper.from_array(cut, tensor.name))
        return model

    def int8(self, folder: Path, source: ModelProto | None = None) -> ModelProto:
        """Quantize by ONNX Runtime's static quantizer."""
        from onnxruntime.quantization import CalibrationDataReader, quantize_static

        batches = iter(calibration_batches(self.work.subset(range(min(128, len(self.work)))), self.normalized)())

        class Reader(CalibrationDataReader):  # type: ignore[misc]
            def get_next(self) -> Any:
                return next(batches, None)

        onnx.save(self.normalized if source is None else source, folder / "source.onnx")
        quantize_static(folder / "source.onnx", folder / "int8.onnx", Reader(), per_channel=True)
        return onnx.load(folder / "int8.onnx")

    def clustered(self, count: int, *, data: bool = True, direct: bool = False, **settings: Any) -> ModelProto:
        """Let weights share values, as `pack` does it."""
        source = normalize(settings.pop("source", self.normalized))
        model = ModelProto()
        model.CopyFrom(source)
        cluster(model, count, calibration_batches(self.work, source) if data else None, seed=SEED, **settings)
        return with_codebooks(model) if direct else model

    def sparsified(self) -> ModelProto:
        """Set weights to zero as `sparsify` does, and solve for the others; once for several forms."""
        if self._sparsified is None:
            found = op.sparsify(self.path, sparsity=SPARSITY, data=self.work, seed=SEED, threads=1)
            self._sparsified = found.model.proto
        return self._sparsified

    def measured(self, name: str, form: str, make: Callable[[Workshop, Path], ModelProto]) -> Found:
        """Make a form, pack and evaluate it."""
        with TemporaryDirectory() as given:
            folder = Path(given)
            made = make(self, folder)
            file = self.path if form == "float" else folder / "form.onnx"
            if form != "float":
                onnx.save(made, file)
            began = perf_counter()
            op.pack(file, folder / "form.onnxpack")
            seconds = perf_counter() - began
            op.unpack(folder / "form.onnxpack", folder / "again.onnx")
            assert (folder / "again.onnx").read_bytes() == file.read_bytes()
            sizes = {**_sizes(file.read_bytes()), "packed": (folder / "form.onnxpack").stat().st_size}
        found = op.evaluate(made, self.judged, against=self.original, metrics=("top1",), seed=SEED, known=self.known)[
            "top1"
        ]
        change = found.difference
        assert change is not None
        return Found(name, form, sizes, found.model.value, (change.value, change.low, change.high), seconds)


FORMS: Mapping[str, Callable[[Workshop, Path], ModelProto]] = {
    "float": lambda shop, folder: shop.original,
    "clusters 32, plain": lambda shop, folder: shop.clustered(32, data=False),
    "clusters 32": lambda shop, folder: shop.clustered(32),
    "clusters 16, plain": lambda shop, folder: shop.clustered(16, data=False),
    "clusters 16": lambda shop, folder: shop.clustered(16),
    "clusters 16, bits free": lambda shop, folder: shop.clustered(16, price=0.0),
    "clusters 16, direct": lambda shop, folder: shop.clustered(16, direct=True),
    "clusters 8": lambda shop, folder: shop.clustered(8),
    "INT8": lambda shop, folder: shop.int8(folder),
    "sparse": lambda shop, folder: shop.sparse(),
    "sparse, INT8": lambda shop, folder: shop.int8(folder, shop.sparse()),
    "sparse, clusters 16": lambda shop, folder: shop.clustered(16, source=shop.sparse()),
    "sparsify": lambda shop, folder: shop.sparsified(),
    "sparsify, clusters 16": lambda shop, folder: shop.clustered(16, source=shop.sparsified()),
}


def _sizes(data: bytes) -> dict[str, int]:
    import zstandard

    return {
        "file": len(data),
        "zlib": len(zlib.compress(data, 9)),
        "zstd": len(zstandard.ZstdCompressor(level=19).compress(data)),
        "xz": len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)),
    }


def tables(found: list[Found]) -> list[Table]:
    """Return a table for each model."""
    whole = {f.model: f.sizes["file"] for f in found if f.form == "float"}

    def share(packer: str) -> Column[Found]:
        return Column(packer, lambda f: percent(f.sizes[packer] / whole[f.model]) if f.model in whole else "")

    columns: list[Column[Found]] = [
        Column("form", lambda f: f.form, True),
        *map(share, ("file", "zlib", "zstd", "xz", "packed")),
        Column("1/", lambda f: f"{whole[f.model] / f.sizes['packed']:.1f}" if f.model in whole else ""),
        Column("top-1", lambda f: percent(f.top1)),
        Column("change", lambda f: "{:+.1f} pt ({:+.1f} to {:+.1f})".format(*(100 * v for v in f.change))),
        Column("packing took", lambda f: f"{f.seconds:.1f} s"),
    ]
    return [
        Table.of(name, columns, [f for f in found if f.model == name]) for name in dict.fromkeys(f.model for f in found)
    ]


@click.command()
@options
@with_state
def main(output: Path, only: str, repeats: int, clock: str, state: Path | None) -> None:
    """Pack forms of trained models by several packers."""
    subjects = {s.name: s for s in SUBJECTS if s.name in MODELS and s.path.is_file()}
    everything = [f"{name}/{form}" for name in MODELS if name in subjects for form in FORMS]
    workshop = cache(lambda name: Workshop(subjects[name]))

    def measured(case: str) -> Found:
        name, _, form = case.partition("/")
        return workshop(name).measured(name, form, FORMS[form])

    found = Kept(Found, state).measure(everything, only, measured)
    settings = {"clock": "wall", "sparsity": SPARSITY}
    report = Report("packing", "Bytes of a download", NOTES, tables(found), settings, {"forms": found})
    report.publish(output, whole=only == "*")


if __name__ == "__main__":
    main()
