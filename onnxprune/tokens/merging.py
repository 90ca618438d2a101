"""What becomes of nodes once tokens merge before them: other constants, weights for sizes of groups, or all tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper
from onnx.helper import make_tensor_type_proto, np_dtype_to_tensor_dtype, tensor_dtype_to_np_dtype

from onnxprune.channels.values import Shape
from onnxprune.errors import PlanError
from onnxprune.model.bodies import in_body
from onnxprune.model.checks import describe
from onnxprune.model.graph import OF_SHAPE, attribute, names_in, unique, with_inputs
from onnxprune.shapes import Shapes
from onnxprune.shapes.known import Known, NodeStep, plain_domain, step_of
from onnxprune.shapes.walk import ShapeWalk
from onnxprune.tokens.flow import Axes, Flow, Ids, Lost, Tokens, why

_CODE = "OP320"
_SIZED = {"Expand": 1, "Reshape": 1}  # the input that is the shape of the output


class Merging:
    """What becomes of the nodes; its method `adapt` is for `ShapeWalk.run`.

    Attributes:
        constants: the new constants, by name.
        replaced: what the changed nodes read before.
        means: the matrices that take means.
        whole: why nodes get every token again, in order.
    """

    def __init__(self, front: ModelProto, old: Shapes, groups: Mapping[str, NDArray[np.int64]]) -> None:
        """Prepare for a model.

        Args:
            front: the model with an Identity behind each stream.
            old: the shapes of the model without.
            groups: the group of each token, by the name of that Identity's node and output.
        """
        self.constants: dict[str, NDArray[Any]] = {}
        self.replaced, self.means, self.whole = set[str](), set[str](), list[str]()
        self._front, self._groups, self._taken = front, groups, names_in(front.graph)
        self._same = {node.output[0]: node.input[0] for node in front.graph.node if node.name in groups}
        shapes = {**old.shapes, **{new: old.shapes[n] for new, n in self._same.items()}}
        self._old = replace(old, shapes=shapes)
        self._flow = Flow(front, self._old, groups=True)
        self._along: dict[str, Axes] = {}
        self._before: dict[str, list[NodeProto]] = {}  # new nodes, by the node that they come before
        self._wholes: dict[str, str] = {}  # tensors with every token again, by that with fewer
        self._sized: set[str] = set()  # what depends on the number of tokens

    def adapt(self, step: NodeStep, known: Known) -> NodeStep:
        """Return a node as it is with fewer tokens.

        Raises:
            PlanError: it needs those that merged (OP320).
        """
        made = self._adapted(step, known)
        if plain_domain(step.node.domain):  # onnx can't infer what it makes
            for name in (name for name in step.outputs if name in self._old.shapes):
                known.learn(name, make_tensor_type_proto(self._element(name), self._now(name)))
        return made

    def _adapted(self, step: NodeStep, known: Known) -> NodeStep:
        node, along = step.node, {name: self._along[name] for name in step.reads if self._along.get(name)}
        if node.name in self._groups:
            return step_of(self._merged(node, known))
        if along and (in_body(node) or step.nested):
            raise self._fixed(node, "it is part of a loop or a branch")
        if not along:
            self._check_sizes(step, known)
            return step
        if node.op_type in OF_SHAPE:
            self._sized.update(step.outputs)
            return step
        try:
            made = self._flow.outputs(node, along)
            self._check_sizes(step, known, but=_SIZED.get(node.op_type))
            changed = self._changed(node, along, made, known)
        except Lost as lost:
            self._check_sizes(step, known)
            self.whole.append(why(node, lost))
            inputs = [self._whole(name, node, known) if name in along else name for name in node.input]
            changed, made = with_inputs(node, inputs), {}
        self._along.update(made)
        if changed is node:
            return step
        self.replaced.update(node.input)
        return step_of(changed)

    def check(self, walk: ShapeWalk) -> None:
        """Check that tensors have the shapes that they must.

        Raises:
            PlanError: one hasn't, or an output depends on the number of tokens (OP320).
        """
        if walk.conflict is not None:
            raise self._fixed(walk.steps[walk.conflict.step].node, walk.conflict.message)
        for step in walk.steps:
            for name in step.outputs:
                if name in self._old.shapes and name not in self._sized:
                    before, now = self._now(name), walk.known.shapes.get(name)
                    if before != now:
                        raise self._fixed(step.node, f"it makes a shape of {now} where {before} is needed")
        for output in walk.proto.graph.output:
            if output.name in self._sized and not self._is_same(output.name, walk.known):
                raise PlanError(_CODE, "it depends on the number of tokens", where=f'graph output "{output.name}"')

    def nodes(self, walk: ShapeWalk) -> Iterator[NodeProto]:
        """Yield the nodes of the result; outputs have every token."""
        ends = {
            o.name: unique(f"{o.name}_tokens", self._taken) for o in walk.proto.graph.output if self._along.get(o.name)
        }
        for step in walk.steps:
            for node in (*self._before.get(step.node.name, ()), step.node):
                if ends.keys() & {*node.input, *node.output}:
                    copy = NodeProto()
                    copy.CopyFrom(node)
                    for names in (copy.input, copy.output):
                        names[:] = [ends.get(name, name) for name in names]
                    yield copy
                else:
                    yield node
        for name, inner in ends.items():
            self.whole.append(f'graph output "{name}": it has a value for each token')
            yield from self._gathers(inner, name, self._along[name])

    def groups(self) -> dict[str, Ids]:
        """Return the group of each token, by the tensors that have those before the last axis, and no others."""
        found = {}
        for name, axes in self._along.items():
            rows = len(self._old.shapes[name]) - 2
            if [*axes] == [rows] and not axes[rows].shares and name not in self._same:
                found[name] = axes[rows].ids
        return found

    # What becomes of a node

    def _merged(self, node: NodeProto, known: Known) -> NodeProto:
        """Return the product with the matrix that takes the means."""
        name, groups = node.input[0], self._groups[node.name]
        shape = self._old.shapes[name]
        axis = len(shape) - 2
        start = self._along.get(name, {}).get(axis, Tokens(np.arange(shape[axis])))
        count, new = start.count, Tokens(groups)
        group_of = np.full(count, -1, dtype=np.int64)
        group_of[start.ids] = groups
        if not np.array_equal(group_of[start.ids], groups) or start.shares:
            raise self._fixed(node, "its blocks aren't made of those that merged before", place=name)
        matrix = np.zeros((new.count, count))
        matrix[group_of, np.arange(count)] = start.sizes / new.sizes[group_of]
        self._along[node.output[0]] = {axis: new}
        mean = self._constant(f"{node.name}_mean", matrix.astype(self._dtype(name)), known)
        self.means.add(mean)
        return helper.make_node("MatMul", [mean, name], node.output, name=node.name)

    def _changed(self, node: NodeProto, along: Mapping[str, Axes], made: Mapping[str, Axes], known: Known) -> NodeProto:
        """Return a node with other constants, or of changed operands, at the tokens that reach it; itself if none."""
        axes = along.get(node.input[0], {})
        match node.op_type:
            case "Softmax":
                axis = next((i for i, t in made[node.output[0]].items() if t.shares and not axes[i].shares), None)
                if axis is not None and len(set(axes[axis].sizes)) > 1:
                    logs = np.log(axes[axis].sizes)
                    return self._weighted(node, "Add", axis, logs, known)
            case "ReduceMean" | "ReduceSum":
                for axis in set(self._flow.reduced(node)) & axes.keys():
                    sizes = axes[axis].sizes
                    weights = sizes / sizes.mean() if node.op_type == "ReduceMean" else sizes
                    if not axes[axis].shares and (weights != 1).any():
                        return self._weighted(node, "Mul", axis, weights, known)
            case "Gather":
                axis = attribute(node, "axis", 0) % len(self._old.shapes[node.input[0]])
                if axis in axes:
                    at = self._old.values[node.input[1]]
                    new = axes[axis].ids[at % len(axes[axis].ids)]
                    if at.ndim:
                        new = np.unique(new)
                    if not np.array_equal(new, at):
                        return self._with(node, {1: new.astype(at.dtype)}, known)
            case "Slice":
                return self._slice(node, axes, known)
            case "Split":
                axis = attribute(node, "axis", 0) % len(self._old.shapes[node.input[0]])
                if axis in axes:
                    return self._split(node, [made[name][axis].count for name in node.output], known)
            case "Reshape" | "Expand":
                return self._retargeted(node, made[node.output[0]], known)
        return node

    def _weighted(self, node: NodeProto, op: str, axis: int, weights: NDArray[Any], known: Known) -> NodeProto:
        """Return a node whose data have something added or multiplied along an axis."""
        name = node.input[0]
        shape = [1] * len(self._old.shapes[name])
        shape[axis] = len(weights)
        by = self._constant(f"{name}_sizes", weights.reshape(shape).astype(self._dtype(name)), known)
        output = unique(f"{name}_weighted", self._taken)
        self._insert(node, helper.make_node(op, [name, by], [output], name=output), self._now(name), known)
        return with_inputs(node, [output, *node.input[1:]])

    def _slice(self, node: NodeProto, axes: Axes, known: Known) -> NodeProto:
        cuts = {axis: at for axis, at in self._flow.sliced(node).items() if axis in axes}
        if not cuts:
            return node
        if len(node.input) < 3:
            raise Lost("its ends are attributes")
        parts = [np.array(self._old.values[name]) for name in node.input[1:3]]
        named = [int(a) for a in self._old.values[node.input[3]]] if len(node.input) > 3 and node.input[3] else None
        for axis, at in cuts.items():
            place = axis if named is None else [a % len(self._now(node.input[0])) for a in named].index(axis)
            kept = np.unique(axes[axis].ids[at])
            parts[0][place], parts[1][place] = kept[0], kept[-1] + 1
            if (np.diff(at) != 1).any():
                raise Lost("it takes tokens in steps")
        return self._with(node, dict(enumerate(parts, 1)), known)

    def _split(self, node: NodeProto, sizes: list[int], known: Known) -> NodeProto:
        if len(node.input) > 1 and node.input[1]:
            return self._with(node, {1: np.array(sizes, dtype=np.int64)}, known)
        copy = with_inputs(node, node.input)
        given = next((a for a in copy.attribute if a.name == "split"), None)
        if given is not None:
            given.ints[:] = sizes
        elif len(set(sizes)) > 1:
            raise Lost("its parts differ")
        return copy

    def _retargeted(self, node: NodeProto, made: Axes, known: Known) -> NodeProto:
        """Return a Reshape or Expand to the sizes that its result must have."""
        target, wanted = known.values.get(node.input[1]), self._wanted(self._old.shapes[node.output[0]], made)
        if target is None:
            raise Lost("the shape that it makes isn't known")
        offset = len(wanted) - len(target)  # an Expand's target may be shorter
        zero = node.op_type == "Reshape" and not attribute(node, "allowzero", 0)
        new = np.array(target, dtype=np.int64)
        for axis in made:
            if axis >= offset and new[axis - offset] not in (-1, 1) and not (new[axis - offset] == 0 and zero):
                new[axis - offset] = wanted[axis]
        if np.array_equal(new, target):
            return node
        before, first = self._old.shapes[node.input[0]], self._old.shapes[node.output[0]]
        if node.input[1] not in self._old.static:
            if not (zero and before[0] == first[0]):
                raise Lost("it computes some of its sizes, and others are constants")
            new[0] = 0  # what is computed stays so: the size of the batch
        return self._with(node, {1: new}, known)

    # What depends on the number of tokens

    def _check_sizes(self, step: NodeStep, known: Known, but: int | None = None) -> None:
        """Follow what is computed from the number of tokens: only other sizes may be, and shapes of tensors.

        Args:
            step: a node.
            known: what is known at the tokens that reach it.
            but: the input that may depend on it, since the shape of the result is checked.
        """
        node = step.node
        free = {node.input[but]} if but is not None and but < len(node.input) else set()
        changed = [n for n in step.reads if n in self._sized and n not in free and not self._is_same(n, known)]
        if not changed:
            return
        if all(name in known.values for name in step.reads) or node.op_type == "Shape":
            self._sized.update(step.outputs)
            return
        raise self._fixed(node, "it depends on the number of tokens")

    def _is_same(self, name: str, known: Known) -> bool:
        before, now = self._old.values.get(name), known.values.get(name)
        return before is not None and now is not None and np.array_equal(before, now)

    # Every token again

    def _whole(self, name: str, node: NodeProto, known: Known) -> str:
        """Return a tensor with every token again: each has the value of its group."""
        if name not in self._wholes:
            axes = self._along[name]
            if any(tokens.shares for tokens in axes.values()):
                raise self._fixed(node, "it reads the weights of an attention")
            self._wholes[name] = output = unique(f"{name}_whole", self._taken)
            for gather in self._gathers(name, output, axes):
                self._insert(node, gather, None, known)
            known.learn(output, make_tensor_type_proto(self._element(name), self._old.shapes[name]))
        return self._wholes[name]

    def _gathers(self, name: str, output: str, axes: Axes) -> Iterator[NodeProto]:
        """Yield a Gather along each axis of tokens."""
        for number, (axis, tokens) in enumerate(axes.items(), 1):
            made = output if number == len(axes) else unique(f"{output}_part", self._taken)
            at = unique(f"{output}_tokens", self._taken)
            self.constants[at] = tokens.ids
            label = unique(f"{made}/Gather", self._taken)
            yield helper.make_node("Gather", [name, at], [made], name=label, axis=axis)
            name = made

    # Parts

    def _insert(self, node: NodeProto, new: NodeProto, shape: Shape | None, known: Known) -> None:
        self._before.setdefault(node.name, []).append(new)
        if shape is not None:
            known.learn(new.output[0], make_tensor_type_proto(self._element(node.input[0]), shape))

    def _with(self, node: NodeProto, new: Mapping[int, NDArray[Any]], known: Known) -> NodeProto:
        inputs = list(node.input)
        for place, value in new.items():
            inputs[place] = self._constant(f"{node.input[place]}_merged", value, known)
        return with_inputs(node, inputs)

    def _constant(self, name: str, value: NDArray[Any], known: Known) -> str:
        name = unique(name, self._taken)
        self.constants[name] = value
        known.learn(name, make_tensor_type_proto(np_dtype_to_tensor_dtype(value.dtype), value.shape))
        known.values[name] = value
        known.constant.add(name)
        return name

    def _wanted(self, before: Shape, axes: Axes) -> Shape:
        return tuple(axes[i].count if i in axes else n for i, n in enumerate(before))

    def _now(self, name: str) -> Shape:
        return self._wanted(self._old.shapes[name], self._along.get(name, {}))

    def _element(self, name: str) -> int:
        return self._old.types[self._same.get(name, name)]

    def _dtype(self, name: str) -> Any:
        return tensor_dtype_to_np_dtype(self._element(name))

    @staticmethod
    def _fixed(node: NodeProto, cause: str, place: str = "") -> PlanError:
        where = f'tensor "{place}"' if place else describe(node)
        return PlanError(_CODE, f"tokens can't be merged: {cause}", where=where)
