"""Calibration data for other tools: the samples that `--data` and `--preprocess` name, as they ask for them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from onnxprune.data import Dataset
from onnxprune.data.batch import Array
from onnxprune.model.file import Source, load
from onnxprune.model.states import fitted, state_inputs
from onnxprune.settings import DataSettings
from onnxprune.settings.pruning import LIMIT
from onnxprune.settings.reading import build
from onnxprune.workflow.inputs import Samples, open_samples


class CalibrationReader:
    """Inputs for a model, batch by batch: a `CalibrationDataReader` of `onnxruntime.quantization`.

    Attributes:
        samples: the data that are read.
    """

    def __init__(self, samples: Dataset, states: Any, batch: int) -> None:
        """Set the data, the model's states (which are zeros) and the batch size."""
        self.samples, self._states, self._batch = samples, states, batch
        self.rewind()

    def get_next(self) -> dict[str, Array] | None:
        """Return the next batch by input name; None after the last one.

        Raises:
            DataError: the data can't be read or don't fit the model.
        """
        return next(self._rest, None)

    def rewind(self) -> None:
        """Start again with the first batch."""
        self._rest = self._batches()

    def __iter__(self) -> Iterator[dict[str, Array]]:
        """Yield the batches that are left."""
        return self._rest

    def __len__(self) -> int:
        """Count the batches, if all samples have the same shape."""
        return -(-len(self.samples) // self._batch)

    def _batches(self) -> Iterator[dict[str, Array]]:
        for batch in self.samples.batches(self._batch):
            yield dict(fitted(self._states, batch.inputs, batch.count))


def calibration_reader(
    model: Source,
    data: Samples,
    *,
    preprocess: Any = None,
    limit: int = LIMIT,
    batch: int = 1,
    seed: int = 0,
    tokenizer: Any = None,
) -> CalibrationReader:
    """Return calibration data for the quantizers of `onnxruntime.quantization`.

    They see the inputs that pruning, repair and evaluation see. Quantize last: prune first, then calibrate with the
    pruned model.

    Args:
        model: the model that is to be quantized; its inputs say what the data become.
        data: what `--data` takes: a path, "module:function", arrays by input name, or a function that yields batches.
        preprocess: how data become inputs, as `--preprocess` takes it; guessed if None.
        limit: maximum number of samples, chosen at random.
        batch: number of samples in a batch; models with a fixed batch size get theirs.
        seed: random seed of the choice.
        tokenizer: for texts, the file of the tokenizer; that in the model's folder if None.

    Raises:
        DataError: the data can't be read or don't fit the model (OP701 to OP712).
        ModelError: the model can't be read.

    Examples:
        >>> import onnxprune as op
        >>> from onnxruntime.quantization import quantize_static
        >>> from tempfile import TemporaryDirectory
        >>> model = "models/digits_resnet.onnx"
        >>> reader = op.calibration_reader(model, "models/digits_test.npz", limit=64)
        >>> with TemporaryDirectory() as folder:
        ...     quantize_static(model, f"{folder}/int8.onnx", reader)
        ...     int8 = op.load(f"{folder}/int8.onnx")
        >>> any(node.op_type == "QuantizeLinear" for node in int8.proto.graph.node)
        True
        >>> reader.rewind()
        >>> reader.get_next()["image"].shape
        (1, 1, 8, 8)
    """
    settings = build(DataSettings, {"data": data, "preprocess": preprocess, "limit": limit, "tokenizer": tokenizer})
    loaded = load(model)
    return CalibrationReader(open_samples(settings, loaded, seed=seed), state_inputs(loaded.proto), batch)
