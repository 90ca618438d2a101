"""Random networks: blocks of the operators that convolutional networks are made of, put together at random."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from hypothesis import strategies as st
from onnx import ModelProto, printer

from tests.property import blocks
from tests.property.builder import BLOCKS, Builder
from tests.toolbox import Net, Shape

for _module in iter_modules(blocks.__path__):
    import_module(f"{blocks.__name__}.{_module.name}")

OPSETS = range(9, 22)


@dataclass(frozen=True)
class Sample:
    """A random model, the sizes to trace it with, and what it is made of."""

    model: ModelProto
    shapes: dict[str, Shape]
    blocks: tuple[str, ...]

    def __repr__(self) -> str:
        return f"<{', '.join(self.blocks)}; {self.shapes}>\n{printer.to_text(self.model)}"


@st.composite
def samples(draw: Callable[[st.SearchStrategy[Any]], Any], first: str | None = None, most: int = 6) -> Sample:
    """Draw a model of up to ``most`` blocks; or of one that is given, with what it needs around it."""
    since, on = (BLOCKS[first].since, BLOCKS[first].on) if first else (1, "any")
    net = Net(draw(st.sampled_from([o for o in OPSETS if o >= since])), seed=draw(st.integers(0, 2**16)))
    resizable = draw(st.sampled_from([False, False, True])) if not (first and BLOCKS[first].sized) else False
    b = Builder(draw, net, batch=draw(st.integers(1, 2)), symbolic=draw(st.booleans()), resizable=resizable)
    shapes: dict[str, Shape] = {}
    names: list[str] = []
    for index in range(draw(st.integers(1, 2))):
        spatial = {"vector": 0, "sequence": 1}.get(on, 2) if first else draw(st.sampled_from([2, 2, 2, 1, 3, 0]))
        _start(b, index, spatial, shapes)
    if first:
        x = b.live[0]  # and beside it another of the same shape, for blocks that read two
        b.live.append(net.op("Tanh", net.conv(x, b.channels(x)) if b.image(x) else net.linear(x, b.channels(x))))
        names += [first] * b.extend(BLOCKS[first], x)
    for _ in range(draw(st.integers(0, 1 if first else most))):
        name = draw(st.sampled_from(sorted(BLOCKS)))
        names += [name] * b.extend(BLOCKS[name], draw(st.sampled_from(b.live)))
    _heads(b)
    return Sample(_without_leftovers(net), shapes, tuple(names))


def _start(b: Builder, index: int, spatial: int, shapes: dict[str, Shape]) -> None:
    """Add an input and a layer on it, whose channels can leave."""
    side = b.number(4, 6)
    shape = (b.batch, 3, *[side] * spatial)
    symbols = {0: "N"} if b.symbolic else {}
    if b.resizable:
        symbols |= {a: f"S{index}{a}" for a in range(2, spatial + 2)}
    x = b.net.input(shape, symbols=symbols)
    shapes[x] = shape
    width = b.pick(4, 5, 6, 8)
    b.live.append(b.net.conv(x, width) if spatial else b.net.op("Relu", b.net.linear(x, width)))


def _heads(b: Builder) -> None:
    """Contract what nobody reads, and make it the model's outputs; now and then one is an output as it is."""
    for x in [y for y in b.live if y not in b.used]:
        rank = len(b.shape(x))
        if b.pick(*[False] * 7, True):
            y = b.net.op("Identity", x)
        else:
            y = b.net.conv(x, 2) if rank > 2 else b.net.linear(x, 2)
        b.net.output(y, {a: None for a in range(rank) if (b.symbolic and a == 0) or (b.resizable and a > 1)})


def _without_leftovers(net: Net) -> ModelProto:
    """Return the model without initializers that nothing reads."""
    read = {name for node in net.nodes for name in node.input}
    net.tensors = {name: t for name, t in net.tensors.items() if name in read}
    return net.model()
