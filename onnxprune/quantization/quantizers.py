"""ONNX Runtime's quantizers, each as a function from a model to a model.

What is quantized and how is theirs; which of it is worth having is found out in `onnxprune.quantization.search`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, version_converter

from onnxprune.autodiff.prepare import single_precision
from onnxprune.errors import ModelError
from onnxprune.model.bodies import rename_tensors
from onnxprune.model.graph import attribute, unique, with_nodes
from onnxprune.model.session import message_of
from onnxprune.model.stream import Inputs
from onnxprune.settings.quantization import Calibration

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""The operators that multiply by weights, which ONNX Runtime has INT8 kernels for."""

_OPSET = 13  # from which DequantizeLinear takes a scale for each channel
_PERCENTILE = 99.99
_BLOCK = 32


def _opset(model: ModelProto) -> int:
    return next((int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 1)


@contextmanager
def _quiet(what: str) -> Iterator[Path]:
    """Give a folder for files; hide what ONNX Runtime prints, and turn its failures into our error."""
    level, handlers = logging.root.manager.disable, list(logging.root.handlers)
    logging.disable(logging.WARNING)
    try:
        with TemporaryDirectory(ignore_cleanup_errors=True) as folder, redirect_stdout(StringIO()):
            yield Path(folder)
    except ModelError:
        raise
    except Exception as error:  # of many kinds: it checks little
        raise ModelError(
            "OP128", f"ONNX Runtime's quantizer can't make the {what} form: {message_of(error)}"
        ) from error
    finally:
        logging.disable(level)
        logging.root.handlers[:] = handlers  # it logs by the root logger, which then prints everybody's lines


def in_single_precision(model: ModelProto) -> ModelProto:
    """Return a model that computes in float32 what it computes in float16; inputs and outputs keep their types.

    The quantizers know float32 only. A model without float16 is returned as it is.
    """
    wide = single_precision(model, [TensorProto.FLOAT16])
    if wide is model:
        return model
    graph, half = wide.graph, TensorProto.FLOAT16
    taken = {name for node in graph.node for name in (*node.input, *node.output)}
    ends = [*model.graph.input, *model.graph.output]
    within = {v.name: unique(f"{v.name}/float32", taken) for v in ends if v.type.tensor_type.elem_type == half}
    rename_tensors(graph, within)
    for own, given in ((graph.input, model.graph.input), (graph.output, model.graph.output)):
        del own[:]
        own.extend(given)
    first = [_cast(v.name, within[v.name], TensorProto.FLOAT) for v in graph.input if v.name in within]
    last = [_cast(within[v.name], v.name, half) for v in graph.output if v.name in within]
    return with_nodes(wide, [*first, *graph.node, *last])


def _cast(tensor: str, result: str, kind: int) -> NodeProto:
    """Return a node that casts a tensor."""
    return helper.make_node("Cast", [tensor], [result], name=f"{result}/cast", to=kind)


def prepare(model: ModelProto) -> ModelProto:
    """Return a model as the quantizers take it: normalizations folded, shapes known, scales for each channel possible.

    Raises:
        ModelError: ONNX Runtime can't prepare it (OP128).
    """
    from onnxruntime.quantization import quant_pre_process

    model = in_single_precision(model)
    with _quiet("quantized") as folder:
        if _opset(model) < _OPSET:
            try:
                model = version_converter.convert_version(model, _OPSET)
            except RuntimeError:  # it knows no operators of other domains; a scale for each tensor is left
                logging.getLogger(__name__).debug("can't convert to opset %d", _OPSET)
        onnx.save(model, folder / "model.onnx")
        quant_pre_process(folder / "model.onnx", folder / "ready.onnx", skip_symbolic_shape=True)
        return onnx.load(folder / "ready.onnx")


class _Reader:
    """Inputs, as ONNX Runtime's calibration takes them."""

    def __init__(self, batch: Inputs) -> None:
        self._left: Inputs | None = dict(batch)

    def get_next(self) -> Inputs | None:
        batch, self._left = self._left, None
        return batch


def calibrate(prepared: ModelProto, batches: Iterable[Inputs], method: Calibration) -> Any:
    """Return the ranges of a prepared model's activations.

    Args:
        prepared: what `prepare` returns.
        batches: inputs; ranges are merged after each batch, so that memory is bounded.
        method: how a range follows from values.

    Raises:
        ModelError: ONNX Runtime can't run the model on them (OP128).
    """
    from onnxruntime.quantization import CalibrationMethod, create_calibrator

    methods = {"minmax": "MinMax", "percentile": "Percentile", "entropy": "Entropy"}
    options: dict[str, Any] = {"percentile": _PERCENTILE} if method == "percentile" else {}
    with _quiet("static") as folder:
        onnx.save(prepared, folder / "model.onnx")
        calibrator = create_calibrator(
            folder / "model.onnx",
            sorted({node.op_type for node in prepared.graph.node} - {"Cast"}),  # there are no histograms of float16
            augmented_model_path=str(folder / "observed.onnx"),
            calibrate_method=getattr(CalibrationMethod, methods[method]),
            extra_options=options,
        )
        for batch in batches:
            calibrator.collect_data(_Reader(batch))
        return calibrator.compute_data()


def static(
    prepared: ModelProto,
    ranges: Any,
    *,
    keep: Collection[str] = (),
    only: Collection[str] = (),
    everything: bool = True,
    reduced: bool = False,
) -> ModelProto:
    """Return a model with INT8 weights and activations, in the form of QuantizeLinear and DequantizeLinear nodes.

    Weights are symmetric, with a scale for each output channel; activations are unsigned, which is the pair that
    processors multiply fastest.

    Args:
        prepared: what `prepare` returns.
        ranges: what `calibrate` returns.
        keep: names of nodes that stay in float.
        only: names of the nodes to quantize; all if empty.
        everything: whether to quantize every operator that has an INT8 kernel, or layers only.
        reduced: whether weights use 7 bits, for processors whose 16-bit sums overflow.
    """
    from onnxruntime.quantization import QDQQuantizer, QuantType

    copy = ModelProto()
    copy.CopyFrom(prepared)
    kinds = sorted({node.op_type for node in prepared.graph.node}) if everything else list(LAYERS)
    with _quiet("static"):
        quantizer = QDQQuantizer(
            copy,
            _opset(prepared) >= _OPSET,
            reduced,
            QuantType.QInt8,
            QuantType.QUInt8,
            ranges,
            list(only),
            list(keep),
            [kind for kind in kinds if kind in _quantizable()],
            {},
        )
        quantizer.quantize_model()
        found: ModelProto = quantizer.model.model
    return found


def _quantizable() -> frozenset[str]:
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    return frozenset(QDQRegistry) | frozenset(QLinearOpsRegistry)


def dynamic(prepared: ModelProto, *, keep: Collection[str] = ()) -> ModelProto:
    """Return a model with INT8 weights, whose activations get their scales at run time."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _quiet("dynamic") as folder:
        onnx.save(prepared, folder / "model.onnx")
        quantize_dynamic(
            folder / "model.onnx",
            folder / "small.onnx",
            op_types_to_quantize=["MatMul", "Gemm", "Gather", "LSTM", "Attention", "EmbedLayerNormalization"],
            per_channel=True,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=list(keep),
        )
        return onnx.load(folder / "small.onnx")


def blockwise(prepared: ModelProto, bits: int, *, keep: Collection[str] = ()) -> ModelProto:
    """Return a model whose matrices of weights are stored in blocks of 32 values with a scale each (MatMulNBits)."""
    try:
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
    except ImportError as error:
        hint = "pip install 'onnxprune[quantize]'"
        raise ModelError("OP128", f"ONNX Runtime's quantizer of blocks needs a package: {error}", hint=hint) from error

    copy = ModelProto()
    copy.CopyFrom(prepared)
    with _quiet(f"int{bits}-weights"):
        quantizer = MatMulNBitsQuantizer(
            copy, block_size=_BLOCK, is_symmetric=True, bits=bits, accuracy_level=4, nodes_to_exclude=list(keep)
        )
        quantizer.process()
        found: ModelProto = quantizer.model.model
    return found


def float16(prepared: ModelProto, *, keep: Collection[str] = ()) -> ModelProto:
    """Return a model that stores and computes in float16; inputs and outputs keep their types."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    copy = ModelProto()
    copy.CopyFrom(prepared)
    with _quiet("float16"):
        found: ModelProto = convert_float_to_float16(copy, keep_io_types=True, node_block_list=list(keep))
    return found


WHOLE: dict[str, Callable[..., ModelProto]] = {
    "dynamic": dynamic,
    "int8-weights": lambda model, *, keep=(): blockwise(model, 8, keep=keep),
    "int4-weights": lambda model, *, keep=(): blockwise(model, 4, keep=keep),
    "float16": float16,
}
"""The forms that need no inputs."""


def layers(prepared: ModelProto) -> list[str]:
    """Return the names of the nodes that multiply by weights of real numbers."""
    real = {t.name for t in prepared.graph.initializer if t.data_type == TensorProto.FLOAT}
    return [n.name for n in prepared.graph.node if n.op_type in LAYERS and not real.isdisjoint(n.input)]


def refused(prepared: ModelProto) -> list[str]:
    """Return the names of the nodes that the static quantizer fails on.

    The weight of a grouped ConvTranspose gets a scale for each output of one group, which are too few for the bias.
    """
    nodes = (node for node in prepared.graph.node if node.op_type == "ConvTranspose" and len(node.input) > 2)
    return [node.name for node in nodes if attribute(node, "group", 1) > 1]
