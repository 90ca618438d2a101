"""Derive again, at another size of the image, what nodes have as constants: targets of Reshapes, windows, positions.

A rule says what a node's constants are at the sizes that reach it now. It gives what is there already at the sizes that
the file was exported for. What no rule derives stays, and must fit: sizes that contradict each other are refused, with
the node that is in the way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, numpy_helper
from onnx.helper import make_tensor_type_proto, np_dtype_to_tensor_dtype

from onnxprune.channels.values import Shape
from onnxprune.errors import PlanError
from onnxprune.model.graph import RECURRENT, GraphIndex, attribute, attributes, names_in, unique, with_inputs
from onnxprune.operators.node import Node
from onnxprune.resolution.images import POOLS, covers, steps_along
from onnxprune.resolution.interpolation import interpolated
from onnxprune.shapes import Shapes
from onnxprune.shapes.known import Known, NodeStep, step_of

Sizes = tuple[int, ...]

_CODE = "OP319"
_TOKENS = 2  # extra tokens in front of those of the image: for the class, for distillation
_BROADCAST = {"Add", "Sub", "Mul"}
_INDEXED = {
    *("Gather", "GatherElements", "GatherND", "ScatterElements", "ScatterND", "Scatter", "Compress"),
}


@dataclass(frozen=True, slots=True)
class Edit:
    """A node with other constants.

    Attributes:
        node: its name.
        what: what changed, such as "the target of a Reshape".
        entries: for a target of sizes, the positions that changed.
    """

    node: str
    what: str
    entries: tuple[int, ...] = ()


class Sizing:
    """The rules, with what they found so far; its method `adapt` is for `ShapeWalk.run`.

    Attributes:
        edits: the changed nodes.
        constants: the new constants, by name.
    """

    def __init__(
        self, proto: ModelProto, old: Shapes, same: Mapping[str, str], *, keep: frozenset[str] = frozenset()
    ) -> None:
        """Prepare for a model.

        Args:
            proto: the model, with a Resize in front.
            old: its shapes before.
            same: tensors of the Resize, with those in their place before.
            keep: nodes whose constants stay.
        """
        self.edits: dict[str, Edit] = {}
        self.constants: dict[str, NDArray[Any]] = {}
        self._old, self._same, self._keep = old, same, keep
        self._weights = GraphIndex(proto.graph).initializers
        self._taken = names_in(proto.graph)
        self._grown: dict[int, set[int]] = {}  # sizes of changed axes: old, and what they became
        self._flat: dict[int, set[tuple[Sizes, Sizes]]] = {}  # axes that were merged: their product, and their sizes

    def adapt(self, step: NodeStep, known: Known) -> NodeStep:
        """Return a node as it is at the sizes that reach it.

        Raises:
            PlanError: its constants can't be derived (OP319).
        """
        node = step.node
        if node.name in self.edits or node.name in self._keep or not node.input:
            return step
        before, now = self.before(node.input[0]), known.shapes.get(node.input[0])
        for name in step.reads:
            for n, m in zip(self.before(name) or (), known.shapes.get(name, ()), strict=False):
                if n != m:
                    self._grown.setdefault(n, set()).add(m)
        if before is None or now is None or len(before) != len(now) or not self._grown:
            return step
        rule = _RULES.get(node.op_type)
        try:
            made = None if rule is None else rule(self, node, before, now, known)
            if made is None and node.op_type in _BROADCAST:
                made = self._interpolate(node, known)
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise self._fixed(node, f"its constants aren't understood ({error})") from error
        return step if made is None else step_of(made)

    def before(self, tensor: str) -> Shape | None:
        """Return the shape that a tensor had."""
        return self._old.shapes.get(self._same.get(tensor, tensor))

    # The rules

    def reshape(self, node: NodeProto, before: Shape, now: Shape, known: Known) -> NodeProto | None:
        """Give each entry of the target the size of the axes that it is made of."""
        made, target = self.before(node.output[0]), known.values.get(node.input[1]) if len(node.input) > 1 else None
        if before == now or made is None:
            return None
        if target is None:
            raise self._fixed(node, "its target isn't a constant")
        wanted = self._regrouped(node, before, now, made, [int(n) for n in target])
        zero = not attribute(node, "allowzero", 0)
        found = [now[i] if n == 0 and zero and i < len(now) else int(n) for i, n in enumerate(target)]
        # ONNX Runtime derives a size of -1 from the others
        entries = tuple(i for i, (n, m) in enumerate(zip(found, wanted, strict=True)) if n not in (-1, m))
        if not entries:
            return None
        new = np.array(target, dtype=np.int64)
        if not self._is_static(node.input[1]) and entries and before[0] == made[0] and zero:
            new[0] = 0  # what is computed stays so: the size of the batch
        new[list(entries)] = [wanted[i] for i in entries]
        return self._with(node, known, {1: new}, Edit(node.name, "the target of a Reshape", entries))

    def pool(self, node: NodeProto, before: Shape, now: Shape, known: Known) -> NodeProto | None:
        """Let a window that covers the whole map still cover it."""
        if before == now or not covers(node, before):
            return None
        copy = with_inputs(node, node.input)
        for a in copy.attribute:
            if a.name == "kernel_shape":
                a.ints[:] = now[2:]
            if a.name == "strides":
                a.ints[:] = [1] * len(now[2:])
        self.edits[node.name] = Edit(node.name, "the window of a global pooling")
        return copy

    def resize(self, node: NodeProto, before: Shape, now: Shape, known: Known) -> NodeProto | None:
        """Enlarge to the size that maps of the old size have now, or by the same factor."""
        place = 3 if node.op_type == "Resize" else 1
        made = self.before(node.output[0])
        target = known.values.get(node.input[place]) if len(node.input) > place else None
        if made is None or target is None:
            return None
        axes = attribute(node, "axes", range(len(before)))
        if len(made) != len(before) or len(target) != len(axes):
            return None
        new = np.array(target, dtype=np.int64)
        for i, axis in enumerate(axes):
            n, m, out = before[axis], now[axis], made[axis]
            grown = self._grown.get(out, ()) if n != m or n == 1 else ()
            if n == m and (n == out or len(grown) != 1):
                continue
            if (m * out) % n and len(grown) != 1:
                raise self._fixed(node, f"no whole size is to {m} what {out} is to {n}")
            if new[i] == out:
                new[i] = next(iter(grown)) if len(grown) == 1 else m * out // n
        entries = tuple(np.flatnonzero(new != target).tolist())
        if not entries:
            return None
        if not self._is_static(node.input[place]):
            raise self._fixed(node, "it computes some of its sizes, and others are constants")
        return self._with(node, known, {place: new}, Edit(node.name, f"the sizes of a {node.op_type}", entries))

    def slices(self, node: NodeProto, before: Shape, now: Shape, known: Known) -> NodeProto | None:
        """Check that a part of a changed axis is all of it, or begins or ends at a border."""
        if before == now:
            return None
        if len(node.input) < 3:
            given = attributes(node)
            starts, ends, axes, steps = given.get("starts", ()), given.get("ends", ()), given.get("axes"), None
        else:
            values = [known.values.get(n) for n in node.input[1:]] + [None] * 2
            if values[0] is None or values[1] is None:
                return None
            starts, ends, axes, steps = values[0].tolist(), values[1].tolist(), values[2], values[3]
        places = range(len(starts)) if axes is None else [int(a) % len(before) for a in axes]
        strides = [1] * len(starts) if steps is None else [int(s) for s in steps]
        for start, end, axis, step in zip(starts, ends, places, strides, strict=False):
            n, m = before[axis], now[axis]
            if n == m:
                continue
            edge = min(_TOKENS, n - 1)
            inner = [p for p in (start, end) if edge < p < n or -n < p < -edge]
            if inner or (step > 0 and n <= end < m):
                raise self._fixed(node, f"it cuts an axis of {n}, now {m}, at position {(inner or [end])[0]}")
        return None

    def lengths(self, node: NodeProto, before: Shape, now: Shape, known: Known) -> NodeProto | None:
        """Let a recurrent layer that steps through whole sequences still do so."""
        step = steps_along(node)
        if before[2] != now[2]:
            raise self._fixed(node, f"it reads frames of {before[2]} values, now {now[2]}")
        given = known.values.get(node.input[4]) if len(node.input) > 4 and node.input[4] else None
        if before[step] == now[step] or given is None:
            return None
        if any(given != before[step]):
            raise self._fixed(node, f"it steps through {min(given)} of {before[step]} frames, now {now[step]}")
        return self._with(node, known, {4: np.full_like(given, now[step])}, Edit(node.name, "the lengths of sequences"))

    def split(self, node: NodeProto, before: Shape, now: Shape, known: Known) -> NodeProto | None:
        """Split into equal parts again."""
        axis = attribute(node, "axis", 0) % len(before)
        if before[axis] == now[axis]:
            return None
        count = len(node.output)
        sizes = known.values.get(node.input[1]) if len(node.input) > 1 else attribute(node, "split")
        if sizes is None:
            return None
        if len(set(map(int, sizes))) > 1 or now[axis] % count:
            raise self._fixed(node, f"it splits {before[axis]}, now {now[axis]}, into fixed parts")
        new = [now[axis] // count] * count
        edit = Edit(node.name, "the parts of a Split", tuple(range(count)))
        if len(node.input) > 1:
            return self._with(node, known, {1: np.array(new, dtype=np.int64)}, edit)
        copy = with_inputs(node, node.input)
        next(a for a in copy.attribute if a.name == "split").ints[:] = new
        self.edits[node.name] = edit
        return copy

    def indexed(self, node: NodeProto, before: Shape, now: Shape, known: Known) -> NodeProto | None:
        """Check that fixed positions are the first or the last ones."""
        if before == now:
            return None
        indices = known.values.get(node.input[1]) if len(node.input) > 1 else None
        if node.op_type == "Gather":
            axis = attribute(node, "axis", 0) % len(before)
            edges = indices is not None and bool(np.isin(indices, range(-1, _TOKENS)).all())
            if before[axis] == now[axis] or edges:
                return None
        if indices is None and node.input[1] not in self._weights:
            return None
        raise self._fixed(node, "it reads fixed positions of a map")

    def _interpolate(self, node: NodeProto, known: Known) -> NodeProto | None:
        """Interpolate a constant that has a value for each position, such as a positional embedding."""
        for place, name in enumerate(node.input):
            other = node.input[1 - place]
            before, now, tensor = self.before(other), known.shapes.get(other), self._weights.get(name)
            if tensor is None or before is None or now is None or before == now or len(tensor.dims) > len(before):
                continue
            offset = len(before) - len(tensor.dims)
            changed = {
                axis: now[axis + offset]
                for axis, n in enumerate(tensor.dims)
                if n > 1 and n == before[axis + offset] != now[axis + offset]
            }
            if not changed:
                continue
            array = numpy_helper.to_array(tensor)
            if array.dtype.kind != "f" or len(changed) > 2:
                raise self._fixed(node, f'"{name}" has a value for each position')
            if len(changed) == 1:
                ((axis, size),) = changed.items()
                new = self._tokens(array, axis, size)
                if new is None:
                    raise self._fixed(node, f'"{name}" has {array.shape[axis]} positions, in no known grid')
            else:
                new = interpolated(array, changed)
            return self._with(node, known, {place: new}, Edit(node.name, "a value for each position"), name)
        return None

    def _tokens(self, array: NDArray[Any], axis: int, size: int) -> NDArray[Any] | None:
        """Interpolate the part of an axis that is a flattened map, behind what isn't."""
        for extra in range(_TOKENS + 1):
            n, m = array.shape[axis] - extra, size - extra
            grids = {(a, b) for a, b in self._flat.get(n, ()) if prod(b) == m and len(a) == 2}
            if len(grids) == 1:
                ((old, new),) = grids
                front, rest = np.split(array, [extra], axis)
                grid = rest.reshape(*rest.shape[:axis], *old, *rest.shape[axis + 1 :])
                made = interpolated(grid, {axis: new[0], axis + 1: new[1]})
                return np.concatenate([front, made.reshape(*rest.shape[:axis], m, *rest.shape[axis + 1 :])], axis)
        return None

    # What rules share

    def _regrouped(self, node: NodeProto, before: Shape, now: Shape, made: Shape, target: Sequence[int]) -> Sizes:
        """Return the shape that a Reshape must give now: axes that merge or divide do so as before."""
        found: list[int] = []
        for old, new, out in _groups(before, now, made):
            start = len(found)
            if old == new:
                found += out
                continue
            free = [i for i in range(len(out)) if start + i < len(target) and target[start + i] == -1]
            plain = [i for i, n in enumerate(out) if n != 1]
            total, sizes = prod(new), list(out)
            solid = tuple(n for n in old if n != 1), tuple(m for n, m in zip(old, new, strict=True) if n != 1)
            if len(solid[0]) > 1:
                self._flat.setdefault(prod(old), set()).add(solid)
            if len(plain) == 1:
                sizes[plain[0]] = total
            else:
                grids = {b for a, b in self._flat.get(prod(old), ()) if a == tuple(out[i] for i in plain)}
                one = free[0] if len(free) == 1 else None
                if len(grids) == 1 and prod(next(iter(grids))) == total:
                    for i, size in zip(plain, next(iter(grids)), strict=True):
                        sizes[i] = size
                elif one is not None and total % (prod(out) // max(out[one], 1)) == 0:
                    sizes[one] = total // (prod(out) // max(out[one], 1))
                else:
                    shown = "x".join(map(str, out))
                    raise self._fixed(node, f"it divides {prod(old)} positions, now {total}, into {shown}")
            found += sizes
        return tuple(found)

    def _is_static(self, name: str) -> bool:
        return name in self._old.static

    def _with(
        self, node: NodeProto, known: Known, new: Mapping[int, NDArray[Any]], edit: Edit, base: str = ""
    ) -> NodeProto:
        """Return a node that reads new constants."""
        inputs = list(node.input)
        for place, value in new.items():
            inputs[place] = unique(f"{base or node.input[place]}_resized", self._taken)
            self.constants[inputs[place]] = value
            known.learn(inputs[place], make_tensor_type_proto(np_dtype_to_tensor_dtype(value.dtype), value.shape))
            known.values[inputs[place]] = value
            known.constant.add(inputs[place])
        self.edits[node.name] = edit
        return with_inputs(node, inputs)

    @staticmethod
    def _fixed(node: NodeProto, why: str) -> PlanError:
        cause = f"the resolution can't be changed: {why}"
        return PlanError(_CODE, cause, where=Node(node).label)


def _groups(before: Shape, now: Shape, made: Shape) -> Iterator[tuple[Sizes, Sizes, Sizes]]:
    """Yield the smallest runs of axes whose product a Reshape keeps: sizes before and now, and those it made before."""
    if 0 in (*before, *made):
        yield before, now, made
        return
    i = j = 0
    while i < len(before) or j < len(made):
        start, from_ = i, j
        left, right = 1, 1
        while (i, j) == (start, from_) or left != right:
            if (left <= right and i < len(before)) or j >= len(made):
                left, i = left * before[i], i + 1
            else:
                right, j = right * made[j], j + 1
        while i < len(before) and before[i] == 1 and (j >= len(made) or made[j] != 1):
            i += 1
        while j < len(made) and made[j] == 1 and (i >= len(before) or before[i] != 1):
            j += 1
        yield before[start:i], now[start:i], made[from_:j]


_Rule = Callable[[Sizing, NodeProto, Shape, Shape, Known], NodeProto | None]
_RULES: dict[str, _Rule] = {
    "Reshape": Sizing.reshape,
    "Resize": Sizing.resize,
    "Expand": Sizing.resize,
    "Slice": Sizing.slices,
    "Split": Sizing.split,
    **dict.fromkeys(POOLS, Sizing.pool),
    **dict.fromkeys(RECURRENT, Sizing.lengths),
    **dict.fromkeys(_INDEXED, Sizing.indexed),
}
