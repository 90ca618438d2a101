"""A sentence encoder of the BERT family (Devlin et al., 2018; Reimers and Gurevych, 2019), and its tokenizer."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, numpy_helper
from onnx.parser import parse_model

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")

_HEAD = """<ir_version: 8, opset_import: ["": 17]>
encoder (int64[batch, length] input_ids, int64[batch, length] attention_mask) => (float[batch, {width}] embedding)
<int64[4] split = {{0, 0, {heads}, {head}}}, int64[3] join = {{0, 0, {width}}}, float one = {{1.0}},
 float far = {{-10000.0}}, float root = {{{root}}}, int64[1] last = {{-1}}, int64[2] middle = {{1, 2}},
 int64[1] length_axis = {{1}}, float small = {{1e-9}}>
{{
  words = Gather(embeddings, input_ids)
  x0 = LayerNormalization<axis = -1>(words, scale, shift)
  mask = Cast<to = 1>(attention_mask)
  masked = Sub(one, mask)
  bias0 = Mul(masked, far)
  bias = Unsqueeze(bias0, middle)
"""
_LAYER = """
  q{n}m = MatMul(x{n}, wq{n})
  q{n}r = Reshape(q{n}m, split)
  q{n} = Transpose<perm = [0, 2, 1, 3]>(q{n}r)
  k{n}m = MatMul(x{n}, wk{n})
  k{n}r = Reshape(k{n}m, split)
  k{n} = Transpose<perm = [0, 2, 3, 1]>(k{n}r)
  v{n}m = MatMul(x{n}, wv{n})
  v{n}r = Reshape(v{n}m, split)
  v{n} = Transpose<perm = [0, 2, 1, 3]>(v{n}r)
  products{n} = MatMul(q{n}, k{n})
  scaled{n} = Div(products{n}, root)
  biased{n} = Add(scaled{n}, bias)
  weights{n} = Softmax<axis = -1>(biased{n})
  heads{n} = MatMul(weights{n}, v{n})
  side{n} = Transpose<perm = [0, 2, 1, 3]>(heads{n})
  joined{n} = Reshape(side{n}, join)
  mixed{n} = MatMul(joined{n}, wo{n})
  sum{n} = Add(x{n}, mixed{n})
  y{n} = LayerNormalization<axis = -1>(sum{n}, scale, shift)
  up{n} = MatMul(y{n}, wu{n})
  raised{n} = Add(up{n}, bu{n})
  active{n} = Relu(raised{n})
  down{n} = MatMul(active{n}, wd{n})
  more{n} = Add(y{n}, down{n})
  x{after} = LayerNormalization<axis = -1>(more{n}, scale, shift)
"""
_TAIL = """
  weight = Unsqueeze(mask, last)
  kept = Mul(x{layers}, weight)
  total = ReduceSum<keepdims = 0>(kept, length_axis)
  count0 = ReduceSum<keepdims = 0>(weight, length_axis)
  count = Add(count0, small)
  mean = Div(total, count)
  norm = ReduceL2<axes = [1], keepdims = 1>(mean)
  embedding = Div(mean, norm)
}}
"""


def sentence_encoder(
    vocabulary: int, *, width: int = 64, heads: int = 4, hidden: int = 256, layers: int = 3, seed: int = 0
) -> ModelProto:
    """Build an encoder: ids and mask [batch, length]; the mean over tokens, of length one, [batch, width]."""
    rng = np.random.default_rng(seed)
    sizes = {"width": width, "heads": heads, "head": width // heads, "root": (width / heads) ** 0.5, "layers": layers}
    body = "".join(_LAYER.format(n=n, after=n + 1) for n in range(layers))
    model = parse_model(_HEAD.format(**sizes) + body + _TAIL.format(**sizes))
    weights = {
        "embeddings": rng.standard_normal((vocabulary, width)),
        "scale": np.ones(width),
        "shift": np.zeros(width),
    }
    for n in range(layers):
        for name, shape in (("q", (width, width)), ("k", (width, width)), ("v", (width, width)), ("o", (width, width))):
            weights[f"w{name}{n}"] = rng.standard_normal(shape) / width**0.5
        weights[f"wu{n}"] = rng.standard_normal((width, hidden)) / width**0.5
        weights[f"bu{n}"] = rng.standard_normal(hidden) * 0.1
        weights[f"wd{n}"] = rng.standard_normal((hidden, width)) / hidden**0.5
    for name, value in weights.items():
        model.graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), name))
    for node in model.graph.node:
        node.name = node.output[0]
    onnx.checker.check_model(model, full_check=True)
    return model


def write_encoder(folder: str | Path, sentences: Iterable[str]) -> None:
    """Write encoder.onnx, tokenizer.json with a vocabulary of the sentences' words, and sentences.txt."""
    folder, texts = Path(folder), list(sentences)
    words = sorted({word for text in texts for word in text.lower().split()})
    vocabulary = {word: number for number, word in enumerate([*_SPECIAL, *words])}
    ends = [{"SpecialToken": {"id": token, "type_id": 0}} for token in ("[CLS]", "[SEP]")]
    tokenizer = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [ends[0], {"Sequence": {"id": "A", "type_id": 0}}, ends[1]],
            "pair": [
                ends[0],
                {"Sequence": {"id": "A", "type_id": 0}},
                {"Sequence": {"id": "B", "type_id": 1}},
                ends[1],
            ],
            "special_tokens": {
                token: {"id": token, "ids": [vocabulary[token]], "tokens": [token]} for token in ("[CLS]", "[SEP]")
            },
        },
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"},
    }
    onnx.save(sentence_encoder(len(vocabulary)), folder / "encoder.onnx")
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    (folder / "sentences.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
