"""Accuracy and fidelity of a model on data, with confidence intervals, in one pass and bounded memory."""

from onnxprune.evaluate.choice import METRICS
from onnxprune.evaluate.evaluation import Evaluation, evaluate
from onnxprune.evaluate.intervals import Estimate, paired_proportions, wilson
from onnxprune.evaluate.meter import Score

__all__ = ["METRICS", "Estimate", "Evaluation", "Score", "evaluate", "paired_proportions", "wilson"]
