"""Accuracy and fidelity of a model on data, with confidence intervals, in one pass and bounded memory."""

from onnxprune.evaluation.intervals import Estimate, paired_proportions, wilson
from onnxprune.evaluation.measure import evaluate, recognize
from onnxprune.evaluation.score import Evaluation, Score
from onnxprune.settings.evaluation import METRICS

__all__ = ["METRICS", "Estimate", "Evaluation", "Score", "evaluate", "paired_proportions", "recognize", "wilson"]
