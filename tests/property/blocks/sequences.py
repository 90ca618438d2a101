"""Attention and recurrent layers."""

from __future__ import annotations

from tests.property.builder import Builder, block


@block(on="sequence", sized=True)
def multi_head_attention(b: Builder, x: str) -> str:
    """As PyTorch exports it: projections, a Reshape into heads, scores, values, a Reshape back, a projection."""
    net, (n, c, length) = b.net, b.shape(x)
    heads, width = b.number(2, 3), b.pick(2, 3, 4)
    tokens = net.op("Transpose", x, perm=[0, 2, 1])

    def split(y: str) -> str:
        y = net.reshape(y, b.batch_free([n, length, heads, width]))
        return net.op("Transpose", y, perm=[0, 2, 1, 3])

    if b.flag():
        packed = net.op("Add", net.linear(tokens, 3 * heads * width), net.weight(3 * heads * width))
        q, k, v = map(split, net.split(packed, [heads * width] * 3, 2))
    else:
        q, k, v = (split(net.linear(tokens, heads * width)) for _ in range(3))
    if width == 4 and b.flag():  # rotary embeddings

        def rotated(y: str) -> str:
            left, right = net.split(y, [2, 2], 3)
            turned = net.op("Concat", net.op("Neg", right), left, axis=3)
            cosine, sine = (net.between(-1, 1, length, width) for _ in range(2))
            return net.op("Add", net.op("Mul", y, cosine), net.op("Mul", turned, sine))

        q, k = rotated(q), rotated(k)
    scores = net.op("MatMul", net.op("Mul", q, net.const(0.5)), net.op("Transpose", k, perm=[0, 1, 3, 2]))
    y = net.op("MatMul", net.op("Softmax", scores, axis=3), v)
    y = net.reshape(net.op("Transpose", y, perm=[0, 2, 1, 3]), b.batch_free([n, length, heads * width]))
    return net.op("Add", x, net.op("Transpose", net.linear(y, c), perm=[0, 2, 1]))


@block(on="sequence")
def recurrent(b: Builder, x: str) -> str | None:
    net, (n, c, length) = b.net, b.shape(x)
    op, hidden = b.pick("RNN", "GRU", "LSTM"), b.number(2, 5)
    gates, directions = {"RNN": 1, "GRU": 3, "LSTM": 4}[op], b.number(1, 2)
    w = net.weight(directions, gates * hidden, c, fan_in=c)
    r = net.weight(directions, gates * hidden, hidden, fan_in=hidden)
    bias = [net.weight(directions, 2 * gates * hidden)] if b.flag() else []
    steps = net.op("Transpose", x, perm=[2, 0, 1])
    more = {"direction": "bidirectional"} if directions > 1 else {}
    shapes = [[length, directions, n, hidden], [directions, n, hidden]]
    y, last = net.ops(op, steps, w, r, *bias, count=2, hidden_size=hidden, shapes=shapes, **more)
    if b.flag():
        return net.squeeze(net.slice(last, [0], [1], [0]), [0])
    y = net.op("Transpose", y, perm=[2, 1, 3, 0])  # batch, directions, hidden, steps
    if directions == 1:
        return net.squeeze(y, [1])
    return net.reshape(y, [0, directions * hidden, -1]) if not b.resizable else None
