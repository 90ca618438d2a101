"""Keep a genai_config.json in step with its model.

onnxruntime-genai runs decoders from a folder with such a file. Its `model.decoder` names the model file and the sizes
of the caches that the runtime allocates: the same number of heads, of the same width, for all layers
(https://onnxruntime.ai/docs/genai/reference/config.html).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onnxprune.errors import PlanError
from onnxprune.trace.pruned_graph import PrunedGraph

NAME = "genai_config.json"
_LIMIT = 2**24  # bytes
_HEADS, _WIDTH = 1, 3  # axes of a cache [batch, heads, time, width]


def config_beside(model: Path | None) -> Path | None:
    """Return the genai_config.json in a model's folder, or None."""
    path = None if model is None else model.with_name(NAME)
    return path if path is not None and path.is_file() else None


def config_for(output: Path, config: Path) -> Path:
    """Return where the new config goes: beside the output, under another name if the original is there."""
    target = output.with_name(NAME)
    return output.with_name(f"{output.stem}.{NAME}") if target.resolve() == config.resolve() else target


def read_config(path: Path) -> dict[str, Any]:
    """Read a config.

    Raises:
        PlanError: it can't be read, or doesn't describe a decoder (OP317).
    """
    try:
        if path.stat().st_size > _LIMIT:
            raise ValueError(f"it is larger than {_LIMIT >> 20} MiB")
        found = json.loads(path.read_bytes())
        decoder = found["model"]["decoder"]
        sizes = {key: decoder[key] for key in _SIZES if key in decoder}
        if not all(type(n) is int and n > 0 for n in sizes.values()):
            raise ValueError(f"sizes aren't positive whole numbers: {sizes}")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        cause = f"not a config of a decoder ({type(error).__name__}: {error})"
        raise PlanError(
            "OP317", cause, where=str(path), hint="mend the file, or move it away from the model"
        ) from error
    return dict(found)


_SIZES = ("num_key_value_heads", "num_attention_heads", "head_size", "hidden_size")


def config_after(
    config: Mapping[str, Any], kept: PrunedGraph, filename: str, new_ids: Mapping[int, int] | None = None
) -> str:
    """Return the config of a pruned model, as JSON text.

    Args:
        config: the original's.
        kept: the traced original and what was removed from it.
        filename: the name of the pruned model's file.
        new_ids: the new id of each token that is kept, if the vocabulary was trimmed.

    Raises:
        PlanError: layers keep different caches, or the config doesn't fit the original (OP317).
    """
    changed: dict[str, Any] = json.loads(json.dumps(config))
    decoder = changed["model"]["decoder"]
    decoder["filename"] = filename
    caches = _caches(decoder.get("inputs") or {}, kept)
    for axis, key in ((_HEADS, "num_key_value_heads"), (_WIDTH, "head_size")):
        sizes = {(kept.graph.shapes.shapes[name][axis], kept.shape(name)[axis]) for name in caches}
        if not sizes:
            continue
        if len(sizes) > 1:
            found = " and ".join(f"{after} of {before}" for before, after in sorted(sizes))
            hint = "make a plan with `kv_uniform`"
            raise PlanError("OP317", f"caches keep different sizes, and {key} is one number: {found}", hint=hint)
        ((before, after),) = sizes
        if decoder.get(key, before) != before:
            raise PlanError("OP317", f"{key} is {decoder[key]}, but the model's caches have {before}", where=NAME)
        if key == "num_key_value_heads" and "num_attention_heads" in decoder:  # they leave with their keys and values
            decoder["num_attention_heads"] = decoder["num_attention_heads"] * after // before
        decoder[key] = after
    width = _hidden_size(decoder, kept)
    if width is not None:
        decoder["hidden_size"] = width
    if new_ids is not None:
        _renumber(changed["model"], new_ids)
    return json.dumps(changed, indent=4, ensure_ascii=False) + "\n"


def _renumber(model: dict[str, Any], new_ids: Mapping[int, int]) -> None:
    """Give the special tokens of a config their new ids, and the vocabulary its new size."""
    if "vocab_size" in model:
        model["vocab_size"] = len(new_ids)
    for key, old in model.items():
        if key.endswith("_token_id"):
            ids = old if isinstance(old, list) else [old]
            if gone := [i for i in ids if i not in new_ids]:
                raise PlanError("OP317", f"{key} is {gone[0]}, which the trimmed vocabulary lacks", where=NAME)
            model[key] = [new_ids[i] for i in ids] if isinstance(old, list) else new_ids[old]


def _caches(inputs: Mapping[str, Any], kept: PrunedGraph) -> list[str]:
    """Return the inputs that are caches, by the patterns of the config."""
    names = (
        inputs.get("past_key_names", "past_key_values.%d.key"),
        inputs.get("past_value_names", "past_key_values.%d.value"),
    )
    patterns = [re.escape(str(name)).replace("%d", r"\d+") for name in names]
    shapes = kept.graph.shapes.shapes
    return [
        entry.name
        for entry in kept.graph.proto.graph.input
        if any(re.fullmatch(p, entry.name) for p in patterns) and len(shapes.get(entry.name, ())) == _WIDTH + 1
    ]


def _hidden_size(decoder: Mapping[str, Any], kept: PrunedGraph) -> int | None:
    """Return the new width of the embeddings, if the model looks them up itself and the config has it."""
    ids = (decoder.get("inputs") or {}).get("input_ids", "input_ids")
    shapes = kept.graph.shapes.shapes
    for node in kept.graph.proto.graph.node:
        if ids in node.input and node.output[0] in kept.graph.values:
            before, after = shapes[node.output[0]], kept.shape(node.output[0])
            if before and before[-1] == decoder.get("hidden_size"):
                return after[-1]
    return None
