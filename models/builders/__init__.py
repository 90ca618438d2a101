"""Full-size architectures with seeded random weights, for tests and benchmarks."""

from __future__ import annotations

from models.builders.densenet import densenet121
from models.builders.encoder import sentence_encoder, write_encoder
from models.builders.mobilenet import mobilenet_v2
from models.builders.resnet import resnet
from models.builders.synthetic import synthetic_chain
from models.builders.yolo import yolo_like

__all__ = ["densenet121", "mobilenet_v2", "resnet", "sentence_encoder", "synthetic_chain", "write_encoder", "yolo_like"]
