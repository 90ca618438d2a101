"""What the metadata of a pruned model says of its origin: its plan, and which weights were changed after the rewriting.

A signature tells a check what to hold the model against.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from onnx import ModelProto

from onnxprune.errors import PlanError
from onnxprune.model.metadata import VERSION, read_note, write_notes
from onnxprune.model.tensors import raw_bytes
from onnxprune.planning.plan import PrunePlan
from onnxprune.version import __version__

_DIGEST = "onnxprune.plan"
_SOURCE = "onnxprune.source"
_SETTINGS = "onnxprune.settings"
_REMOVED = "onnxprune.removed"  # the rest of the plan, compressed
_CHANGED = "onnxprune.changed"  # weights that were repaired or trained
_KEYS = (VERSION, _DIGEST, _SOURCE, _SETTINGS, _REMOVED, _CHANGED)

_SMALL = 2**14  # bytes of a compressed plan that any model can hold; a larger one may be a twentieth of the weights
_LARGEST = 2**28  # bytes of a plan as text


@dataclass(frozen=True, slots=True)
class NotedChange:
    """What changed an initializer after the rewriting.

    Attributes:
        by: what was done, in order: "rank", "repair", "training", "sparsify".
        fingerprint: the initializer since then, see `fingerprints`.
    """

    by: tuple[str, ...]
    fingerprint: str


def sign(model: ModelProto, plan: PrunePlan) -> None:
    """Write a plan into the metadata of the model that was made with it, replacing an older one.

    A plan that is large beside the weights is left out; its digest is always there.
    """
    document = json.loads(plan.to_json())
    del document["settings"]
    text = json.dumps(document, separators=(",", ":"), sort_keys=True).encode()
    packed = base64.b64encode(zlib.compress(text, 9)).decode()
    notes = {
        VERSION: __version__,
        _DIGEST: plan.digest,
        _SOURCE: plan.model,
        _SETTINGS: json.dumps(plan.settings, sort_keys=True),
    }
    weights = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    if len(text) <= _LARGEST and len(packed) <= max(_SMALL, weights // 20):
        notes[_REMOVED] = packed
    write_notes(model, notes, without=_KEYS)


def carry_on(source: ModelProto, model: ModelProto) -> None:
    """Give a model the signature of the one that it was made from, unless it has one."""
    if read_note(model, _DIGEST) is None:
        found = {key: read_note(source, key) for key in _KEYS}
        write_notes(model, {key: value for key, value in found.items() if value is not None})


def plan_digest(model: ModelProto) -> str | None:
    """Return the digest of the plan that a model was made with, None if its metadata doesn't say."""
    return read_note(model, _DIGEST)


def signed_plan(model: ModelProto) -> PrunePlan | None:
    """Return the plan in a model's metadata, None if there is none.

    Raises:
        PlanError: the metadata is damaged (OP305).

    Examples:
        >>> import onnxprune as op
        >>> plan = op.plan("models/digits_resnet.onnx", ratio=0.5)
        >>> signed_plan(op.prune("models/digits_resnet.onnx", plan).proto).digest == plan.digest
        True
    """
    packed, where = read_note(model, _REMOVED), f"metadata {_REMOVED}"
    if packed is None:
        return None
    try:
        unpacker = zlib.decompressobj()
        text = unpacker.decompress(base64.b64decode(packed, validate=True), _LARGEST)
        document = {**json.loads(text), "settings": json.loads(read_note(model, _SETTINGS) or "{}")}
        plan = PrunePlan.from_json(json.dumps(document), where)
    except (ValueError, TypeError, RecursionError, zlib.error) as error:
        raise PlanError("OP305", f"not a pruning plan ({error})", where=where, hint="give the `plan`") from error
    if plan.digest != plan_digest(model):
        raise PlanError(
            "OP305", "the plan isn't the one whose digest is beside it", where=where, hint="give the `plan`"
        )
    return plan


def fingerprints(model: ModelProto) -> dict[str, str]:
    """Return a digest of each initializer's type, shape and values: 128 bits of BLAKE2b, hexadecimal."""
    found = {}
    for tensor in model.graph.initializer:
        form = hashlib.blake2b(f"{tensor.data_type} {list(tensor.dims)} ".encode(), digest_size=16)
        form.update(raw_bytes(tensor) if tensor.data_type != tensor.STRING else b"\0".join(tensor.string_data))
        found[tensor.name] = form.hexdigest()
    return found


def note_changes(model: ModelProto, before: Mapping[str, str], by: str) -> None:
    """Write into a signed model's metadata which initializers were changed, and by what.

    Args:
        model: the model as it is now. One without a plan isn't a pruned model, and stays as it is.
        before: the `fingerprints` of its initializers before the change.
        by: what was done.
    """
    if plan_digest(model) is None:
        return
    known = noted_changes(model)
    for name, now in fingerprints(model).items():
        if before.get(name) != now:
            old = known[name].by if name in known else ()
            known[name] = NotedChange(old if old[-1:] == (by,) else (*old, by), now)
    if known:
        write_notes(model, {_CHANGED: json.dumps({n: [*c.by, c.fingerprint] for n, c in known.items()})})


def noted_changes(model: ModelProto) -> dict[str, NotedChange]:
    """Return which initializers were changed after the rewriting, as far as the model's metadata says.

    Raises:
        PlanError: the metadata is damaged (OP305).
    """
    try:
        found = json.loads(read_note(model, _CHANGED) or "{}")
        return {name: NotedChange(tuple(map(str, by)), str(last)) for name, (*by, last) in found.items()}
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise PlanError("OP305", f"it doesn't list changed weights ({error})", where=f"metadata {_CHANGED}") from error
