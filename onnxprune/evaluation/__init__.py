"""Accuracy and fidelity of a model on data, with confidence intervals, in one pass and bounded memory."""

from onnxprune.evaluation.choice import METRICS
from onnxprune.evaluation.evaluation import Evaluation, evaluate
from onnxprune.evaluation.intervals import Estimate, paired_proportions, wilson
from onnxprune.evaluation.meter import Score

__all__ = ["METRICS", "Estimate", "Evaluation", "Score", "evaluate", "paired_proportions", "wilson"]
