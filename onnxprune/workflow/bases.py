"""Change the bases of a traced model's channels before they are chosen, where the axes allow that."""

from __future__ import annotations

import logging
from dataclasses import replace

from onnxprune.basis.directions import choose_bases
from onnxprune.errors import PlanError
from onnxprune.model.stream import Batches
from onnxprune.progress import Progress
from onnxprune.settings import PlanSettings
from onnxprune.workflow.analysis import TracedModel, moved

log = logging.getLogger(__name__)


def in_bases(analysis: TracedModel, settings: PlanSettings, batches: Batches | None, progress: Progress) -> TracedModel:
    """Return a traced model with bases of its channels in which the last ones matter least; itself if it has some.

    Args:
        analysis: the traced model.
        settings: how to plan, settled; `axes` say whether bases may change.
        batches: returns inputs, by which bases are chosen.
        progress: called before they are measured.

    Raises:
        PlanError: bases are to be changed, and there are no inputs (OP312), or channels are chosen otherwise than by
            what is left of outputs without them (OP302).
        ModelError: ONNX Runtime can't run the model on the inputs.
    """
    if "basis" not in settings.allowed or analysis.moves.bases:
        return analysis
    if batches is None or settings.criterion != "obs":
        if "basis" not in settings.axes:
            return analysis
        if batches is None:
            raise PlanError("OP312", "a basis can't be chosen without inputs", where="axes", hint="set `data`")
        cause = f"in another basis, channels are chosen by the criterion obs, not by {settings.criterion}"
        raise PlanError("OP302", cause, where="axes", hint="let `axes` not name basis")
    progress("choose bases", 0, None)
    bases = choose_bases(analysis.graph, batches, seed=settings.seed)
    log.debug("bases of %d groups of channels are chosen", sum(map(len, bases.values())))
    return moved(analysis, replace(analysis.moves, bases=bases))
