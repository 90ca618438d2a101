"""A function of the user's as a backend: it takes a model and data, and returns a model."""

from __future__ import annotations

from onnx import ModelProto

from onnxprune.data.functions import find_function, guarded
from onnxprune.errors import OnnxPruneError, TrainingError
from onnxprune.model import load
from onnxprune.train.backend import Job, Trained


class Function:
    """Hands the training to ``module:function``.

    It is called with the model (an onnx ModelProto) and the data (a `Dataset`, whose ``batches(size)`` gives inputs
    and labels), and returns the trained model as a ModelProto, bytes or a path.
    """

    def __init__(self, name: str) -> None:
        """Find the function.

        Raises:
            DataError: it can't be imported (OP710).
        """
        self.name = name
        self._function = find_function(name)

    def train(self, job: Job) -> Trained:
        """Call the function.

        Raises:
            DataError: the function failed (OP710).
            TrainingError: what it returned isn't the model with other weights (OP908).
        """
        model = ModelProto()
        model.CopyFrom(job.model)
        with guarded(self.name, "the training"):
            given = self._function(model, job.data)
        try:
            found = load(given).proto
        except (OnnxPruneError, TypeError, AttributeError) as error:
            cause = f"what it returned is no model: {error}".splitlines()[0]
            raise TrainingError("OP908", cause, where=self.name) from error
        for what in ("input", "output"):
            mine, its = ([v.name for v in getattr(m.graph, what)] for m in (found, job.model))
            constants = {t.name for m in (found, job.model) for t in m.graph.initializer}
            if set(mine).symmetric_difference(its) - constants:
                cause = f"the {what}s of what it returned are {', '.join(mine)}, not {', '.join(its)}"
                raise TrainingError("OP908", cause, where=self.name)
        return Trained(found)
