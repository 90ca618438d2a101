"""Compare `shrink` with INT8 as documented, onnxslim with INT8, and pruning alone: ``python -m benchmarks.shrink``.

What is measured is kept in a file (`--state`), so that an interrupted run goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import click
import onnx
from onnx import ModelProto

import onnxprune as op
from benchmarks.common import ROOT, Column, Kept, Report, Table, options, with_state
from benchmarks.packages import minilm_tokenizer, packaged
from benchmarks.recovery_cases import SUBJECTS
from benchmarks.samples import sentences, words
from benchmarks.turns import turns
from onnxprune.benchmarking.rounds import ratio
from onnxprune.data import Data, read_recipe, split
from onnxprune.evaluation.fidelity import fidelity
from onnxprune.report.layout import percent
from onnxprune.settings.evaluation import METRICS, TaskName, TaskSettings
from onnxprune.workflow.inputs import calibration_batches

SHARED = ROOT.parent / "shared"
MAX_DROP = 0.01
_CALIBRATION, _SEED = 128, 0
_YOLOX = "resize=416 crop=416 channels=BGR scale=1 labels=none"
_YOLOV8 = "resize=320 crop=320 channels=RGB scale=1/255 labels=none"
_OCR = "resize=48x320 crop=48x320 channels=BGR scale=1/127.5 mean=1 labels=none"
_ROUNDS, _SECONDS = 25, 0.2

NOTES = (
    "Every way gets the same samples to work with, and is judged on others: *answers* are those that equal the "
    "file's, in the terms of the task: classes, boxes, characters. Of embeddings it is the error of the outputs, "
    "relative to their standard deviation. *Accuracy* is by labels where there are some. *Speed* is on ONNX Runtime's "
    "CPU provider, all ways measured in turns with the file; *took* is the time of making it. "
    "`shrink` and `prune` may lose one point.",
    "*INT8 as documented* is `quant_pre_process` and `quantize_static` of onnxruntime.quantization with their "
    "defaults; *onnxslim + INT8* has onnxslim in place of the former; *Olive* is its pass OnnxStaticQuantization, with "
    "its defaults. They are kept whatever they cost.",
)


@dataclass(frozen=True, slots=True)
class Subject:
    """A trained model and its data.

    Attributes:
        name: its name.
        model: its file.
        data: the data to work with.
        judged: data to judge by; a part of the others if empty.
        recipe: how data become inputs.
        task: what the model is for, where its outputs don't tell.
        tokenizer: what makes inputs of texts.
        limit: the most samples to open.
    """

    name: str
    model: Path
    data: Path
    judged: Path | None = None
    recipe: str = ""
    task: TaskName | None = None
    tokenizer: Path | None = None
    limit: int | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a way made of a model.

    Attributes:
        model: the subject.
        way: the way.
        size: bytes; None if it failed.
        speed: how many times as fast as the file, with its interval.
        answers: the share or error that `fidelity` gives.
        metric: what that is.
        accuracy: by labels, if there are some.
        seconds: the time of making it.
        remark: what was done, or why it failed.
    """

    model: str
    way: str
    size: int | None
    speed: tuple[float, float, float] | None
    answers: float | None
    metric: str
    accuracy: float | None
    seconds: float
    remark: str


def subjects(folder: Path) -> list[Subject]:
    """Return the models that are here; those of packages, and inputs for them, are written to a folder."""
    models, data = ROOT / "models", SHARED / "data"
    found = [Subject("digits", models / "digits_resnet.onnx", models / "digits_train.npz", models / "digits_test.npz")]
    for s in SUBJECTS:
        judged = data / s.judged[0] if s.judged else None
        found.append(Subject(s.name, s.path, data / s.calibration, judged, s.recipe))
    pictures = data / "imagenet500_224.zip"
    found.append(Subject("yolox_nano", SHARED / "models/yolox_nano.onnx", pictures, None, _YOLOX, limit=400))
    for name, _, model in packaged():
        onnx.save(model, path := folder / f"{name}.onnx")
        if name == "efficientnet_lite0":
            found.append(Subject(name, path, pictures, recipe="scale=1/127 mean=1"))
        elif name == "320n":
            found.append(Subject("yolov8n", path, pictures, None, _YOLOV8, "detection", limit=400))
        elif name == "ch_PP-OCRv4_rec_infer":
            found.append(Subject("ppocr_v4_rec", path, words(folder / "words", 400), None, _OCR, "ctc"))
        elif name == "all_minilm_l6_v2":
            text, tokenizer = sentences(folder / "sentences.txt", 1200), minilm_tokenizer(folder)
            found.append(Subject("minilm", path, text, recipe="length=64", tokenizer=tokenizer))
    return [s for s in found if s.model.is_file() and s.data.exists()]


def _int8(model: ModelProto, work: Data, prepare: Callable[[Path, Path], None]) -> ModelProto:
    """Quantize as the documentation of onnxruntime.quantization says, with its defaults."""
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._batches = iter(calibration_batches(work.subset(range(min(_CALIBRATION, len(work)))), model)())

        def get_next(self) -> Any:
            return next(self._batches, None)

    with TemporaryDirectory() as folder, chdir(folder):  # what fails leaves files in the current folder
        source, ready, small = (Path(folder, f"{name}.onnx") for name in ("source", "ready", "small"))
        onnx.save(model, source)
        prepare(source, ready)
        quantize_static(ready, small, Reader())
        return onnx.load(small)


def _documented(model: ModelProto, work: Data, subject: Subject) -> tuple[ModelProto, str]:
    from onnxruntime.quantization import quant_pre_process

    return _int8(model, work, lambda source, ready: quant_pre_process(source, ready)), ""


def _slimmed(model: ModelProto, work: Data, subject: Subject) -> tuple[ModelProto, str]:
    import onnxslim

    return _int8(model, work, lambda source, ready: onnx.save(onnxslim.slim(onnx.load(source)), ready)), ""


def _olive(model: ModelProto, work: Data, subject: Subject) -> tuple[ModelProto, str]:
    """Quantize by Microsoft Olive's pass OnnxStaticQuantization with its defaults."""
    from olive.data.registry import Registry
    from olive.workflows import run

    inputs = [
        {name: array[0] for name, array in batch.inputs.items()}
        for batch in work.subset(range(min(_CALIBRATION, len(work)))).batches(1)
    ]
    Registry.register_dataset("onnxprune_samples")(lambda **_: [(each, 0) for each in inputs])
    with TemporaryDirectory() as folder:
        onnx.save(model, source := Path(folder, "source.onnx"))
        cpu = {"device": "cpu", "execution_providers": ["CPUExecutionProvider"]}
        run(
            {
                "input_model": {"type": "OnnxModel", "model_path": str(source)},
                "systems": {"here": {"type": "LocalSystem", "accelerators": [cpu]}},
                "data_configs": [{"name": "data", "load_dataset_config": {"type": "onnxprune_samples"}}],
                "passes": {"quantize": {"type": "OnnxStaticQuantization", "data_config": "data"}},
                **{"host": "here", "target": "here", "output_dir": f"{folder}/out", "cache_dir": f"{folder}/cache"},
            }
        )
        return onnx.load(Path(folder, "out", "model.onnx")), ""


def _pruned(model: ModelProto, work: Data, subject: Subject) -> tuple[ModelProto, str]:
    found = op.prune_model(model, data=work, max_drop=MAX_DROP, threads=1)
    return found.model.proto, found.verdict or ""


def _shrunk(model: ModelProto, work: Data, subject: Subject) -> tuple[ModelProto, str]:
    found = op.shrink(model, data=work, max_drop=MAX_DROP, threads=1)
    return found.model.proto, "; ".join(f"{v.stage} {'' if v.kept else 'left out: '}{v.why}" for v in found.verdicts)


WAYS: Mapping[str, Callable[[ModelProto, Data, Subject], tuple[ModelProto, str]]] = {
    "INT8 as documented": _documented,
    "onnxslim + INT8": _slimmed,
    "Olive": _olive,
    "prune": _pruned,
    "shrink": _shrunk,
}


def measured(subject: Subject, way: str) -> Outcome:
    """Make a model by one way, and measure it."""
    analysis = op.analyze(subject.model)
    original = op.load(subject.model).proto
    recipe = read_recipe(subject.recipe) if subject.recipe else None

    def opened(path: Path) -> Data:
        found = op.open_data(
            path,
            analysis.graph.proto,
            recipe=recipe,
            limit=subject.limit,
            seed=_SEED,
            reading=TaskSettings(task=subject.task or "auto"),
            tokenizer=subject.tokenizer,
        )
        assert isinstance(found, Data)
        return found

    work = opened(subject.data)
    if subject.judged is not None:
        judged: Any = opened(subject.judged)
    else:
        part, judged = split(work, len(work) // 3, seed=_SEED)
        assert isinstance(part, Data)
        work = part
    began = perf_counter()
    try:
        made, remark = WAYS[way](original, work, subject)
        seconds = perf_counter() - began
        found = op.evaluate(made, judged, against=original, seed=_SEED)
    except Exception as error:  # a tool may raise anything
        cause = getattr(error, "cause", None) or (str(error).splitlines() or [type(error).__name__])[0][:120]
        return Outcome(subject.name, way, None, None, None, "", None, perf_counter() - began, f"failed: {cause}")
    example = dict(next(iter(calibration_batches(judged.subset([0]), original)())))
    times = turns({"file": original, "made": made}, example, rounds=_ROUNDS, threads=1, seconds=_SECONDS)
    fast, close = ratio(times["file"], times["made"]), fidelity(found)
    accuracy = None if close is None or close.accuracy is None else close.accuracy.model.value
    return Outcome(
        model=subject.name,
        way=way,
        size=made.ByteSize(),
        speed=(fast.value, fast.low, fast.high),
        answers=None if close is None else close.value.value,
        metric="" if close is None else close.metric,
        accuracy=accuracy,
        seconds=seconds,
        remark=remark,
    )


def tables(found: list[Outcome], sizes: Mapping[str, int]) -> list[Table]:
    """Return a table for each model."""
    columns: list[Column[Outcome]] = [
        Column("way", lambda o: o.way, True),
        Column("file", lambda o: "" if o.size is None else percent(o.size / sizes[o.model])),
        Column("speed", _speed),
        Column("answers", _answers),
        Column("accuracy", lambda o: "" if o.accuracy is None else percent(o.accuracy)),
        Column("took", lambda o: f"{o.seconds:.0f} s"),
        Column("remark", lambda o: o.remark, True),
    ]
    names = dict.fromkeys(o.model for o in found)
    return [Table.of(name, columns, [o for o in found if o.model == name]) for name in names]


def _speed(outcome: Outcome) -> str:
    return "" if outcome.speed is None else "{:.2f}x ({:.2f} to {:.2f})".format(*outcome.speed)


def _answers(outcome: Outcome) -> str:
    if outcome.answers is None:
        return ""
    known = METRICS[outcome.metric]
    if not known.share:
        return f"error {outcome.answers:.3g}"
    return percent(outcome.answers if known.higher else max(0.0, 1 - outcome.answers))


@click.command()
@options
@with_state
@click.option("--minutes", type=float, default=float("inf"), help="Time after which nothing else is measured.")
def main(output: Path, only: str, repeats: int, clock: str, state: Path | None, minutes: float) -> None:
    """Compare ways from a file to a smaller and faster one on trained models."""
    with TemporaryDirectory() as folder:
        _main(output, only, state, perf_counter() + 60 * minutes, subjects(Path(folder)))


def _main(output: Path, only: str, state: Path | None, end: float, present: list[Subject]) -> None:
    everything = {f"{s.name}/{way}": (s, way) for s in present for way in WAYS}
    kept = Kept(Outcome, state)
    found = kept.measure(list(everything), only, lambda name: measured(*everything[name]), end=end)
    sizes = {s.name: s.model.stat().st_size for s in present}
    settings: dict[str, Any] = {"clock": "wall", "threads": 1, "max_drop": MAX_DROP}
    title = "From a file to a smaller one"
    report = Report("shrink", title, NOTES, tables(found, sizes), settings, {"outcomes": found})
    report.publish(output, whole=only == "*")


if __name__ == "__main__":
    main()
