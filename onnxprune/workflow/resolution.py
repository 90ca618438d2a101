"""The resolutions of images and lengths of sequences that are worth trying, and which of them meet the targets."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from onnx import ModelProto

from onnxprune.cost.cost import model_cost
from onnxprune.errors import ModelError, OnnxPruneError, PlanError
from onnxprune.model.stream import Batches
from onnxprune.resolution.images import Image, Size, find_images
from onnxprune.resolution.resize import resize, text
from onnxprune.settings import PlanSettings
from onnxprune.shapes import concretize
from onnxprune.workflow.analysis import TracedModel, at_resolution
from onnxprune.workflow.measurable import why_not_measured

log = logging.getLogger(__name__)

Sizes = Mapping[str, Size]

_SMALLEST = 32  # pixels or frames of an axis that is made smaller without being asked for
_CELLS = 3  # fewest positions along the shortest such axis of the last map that are tried
_COARSE = 8  # an axis is made smaller in steps of at least about this part of it
_STEPS = 14  # most sizes of a search within a drop, about
_NAMED = "name the size: 160, for example"
_DEEP = 8  # product of strides from which on sizes are tried that are multiples of half of it
_JOINT = 3  # most sizes that are tried together with channels


def sizes_of(analysis: TracedModel, size: Size) -> Sizes:
    """Return a size for every image or sequence of a model, by input; one number is the size of all axes.

    Raises:
        PlanError: no input is an image or a sequence, or they differ in size (OP319).
    """
    found = _images(analysis)
    if not found:
        cause = "no input is an image or a sequence that a window slides over or a recurrent layer steps through"
        raise PlanError("OP319", cause, where="resolution")
    if len({image.size for image in found}) > 1:
        shown = ", ".join(f'"{image.name}" {text(image.size)}' for image in found)
        raise PlanError("OP319", f"the model has images of different sizes: {shown}", where="resolution")
    whole = size * len(found[0].size) if len(size) == 1 else size
    return {} if found[0].size == whole else {image.name: whole for image in found}


def at_chosen(analysis: TracedModel, settings: PlanSettings) -> tuple[TracedModel, PlanSettings]:
    """Return a traced model at the size that the settings name, if they do, and settings for its channels.

    Raises:
        PlanError: the resolution can't be changed (OP319).
    """
    if settings.size is not None:
        analysis = at_resolution(analysis, sizes_of(analysis, settings.size))
    return analysis, replace(settings, resolution=None, axes=("channels",))


def largest_within(analysis: TracedModel, settings: PlanSettings) -> TracedModel:
    """Return a traced model at the largest resolution that meets the targets by itself.

    Raises:
        PlanError: no size does (OP301), or the resolution can't be changed (OP319).
    """
    if within(analysis, {}, settings):
        return analysis
    ladder = ladder_of(analysis, settings, fewest=1)
    if not ladder.fits:
        raise PlanError("OP301", "no smaller image meets the target", hint="let `axes` name channels, too")
    return at_resolution(analysis, ladder.fits)


def why_not(analysis: TracedModel, settings: PlanSettings, batches: Batches | None, data: Any) -> PlanError | None:
    """Return why no resolution can be chosen by measurement, if so, as an error."""
    quantities = {target.quantity for target in settings.targets}
    if not quantities or quantities & {"params", "size"}:
        cause = "choosing a resolution needs a limit on macs, memory or latency: it saves no weights"
        return PlanError("OP302", cause, where="resolution", hint=_NAMED)
    if (
        problem := why_not_measured("a resolution", settings, batches, data, where="resolution", otherwise=_NAMED)
    ) is not None:
        return problem
    images = _images(analysis)
    if not images or len({image.size for image in images}) > 1:
        return PlanError("OP319", "no input is an image, or several are, of different sizes", where="resolution")
    if settings.resolution is None and max(images[0].size) < _SMALLEST:
        return PlanError("OP319", f"images are smaller than {_SMALLEST} pixels", where="resolution")
    if settings.resolution is None and images[0].values == len(images[0].size) == 1:
        cause = "the input is a signal: fewer samples of it have other frequencies"
        return PlanError("OP319", cause, where="resolution", hint="ask for it: auto")
    return None


def sizes_to_try(analysis: TracedModel, settings: PlanSettings, batches: Batches, data: Any) -> list[Sizes]:
    """Return sizes of images for a search within a drop, the largest first; none where only channels may be removed.

    Args:
        analysis: the traced model.
        settings: how to plan, settled, with the costs that are limited or minimized as targets.
        batches: returns inputs for calibration.
        data: the samples as they were given.

    Raises:
        PlanError: the resolution is asked for, and there is no other size (OP319), it doesn't change the cost or can't
            be measured (OP302), or nothing real is there to measure it on (OP312).
    """
    if "resolution" not in settings.allowed or analysis.moves.resolution:
        return []
    problem: OnnxPruneError | None = why_not(analysis, settings, batches, data)
    if problem is None and settings.timed:
        cause = "with `max_drop`, images get smaller for macs or memory: their effect on the latency isn't measured"
        problem = PlanError("OP302", cause, where="resolution")
    if problem is None:
        image = _images(analysis)[0]
        half, short = max(image.stride // 2, 1), _shortest(image)
        step = -(-short // (_STEPS * half)) * half  # sizes in between lose as much, and cost hardly more
        fewest = _CELLS * image.stride
        found = [
            sizes_of(analysis, _scaled(image, s, half)) for s in range((short - 1) // step * step, fewest - 1, -step)
        ]
        try:
            if found and at_resolution(analysis, found[0]):
                return found
            problem = _too_small(image)
        except (ModelError, PlanError) as error:
            problem = error
    if settings.resolution == "auto" or settings.allowed == ("resolution",):
        raise problem
    log.debug("no resolution is tried: %s", problem.cause)
    return []


@dataclass(frozen=True, slots=True)
class Ladder:
    """Sizes worth trying: the largest that meets the targets alone, and larger ones, the smallest first.

    Among the larger ones is the next multiple of half the strides' product: windows then begin at the border in all
    maps but the last. MobileNetV2 at 0.35 of its MACs was right on 69.7 % of 300 photographs at 138 pixels alone, and
    on 74.0 % at 144 with a few channels less; EfficientNet-Lite0 at half on 75.3 % at 158, and on 80.0 % at 160.
    """

    fits: Sizes
    joint: tuple[Sizes, ...]


def ladder_of(analysis: TracedModel, settings: PlanSettings, *, fewest: int = _CELLS) -> Ladder:
    """Return sizes in steps of the strides' product, between which the largest that meets the targets is looked for.

    Raises:
        PlanError: the resolution can't be changed (OP319).
    """
    image = next(iter(_images(analysis)), None)
    if image is None:
        sizes_of(analysis, (1, 1))  # tells why
        raise AssertionError
    short = _shortest(image)
    step = image.stride * max(1, round(short / _COARSE / image.stride))
    joint, fits, problem = list[Sizes](), None, None
    for side in range((short - 1) // step * step, fewest * image.stride - 1, -step):
        sizes = sizes_of(analysis, _scaled(image, side, image.stride))
        try:
            enough = within(analysis, sizes, settings)
        except (ModelError, PlanError) as error:
            problem = problem or error
            if not joint:
                break  # what is in the way of one size is in the way of most
            continue
        if enough:
            fits = side
            break
        joint.append(sizes)
    if fits is None and not joint:
        raise problem or _too_small(image)
    if fits is None:
        return Ladder({}, tuple(reversed(joint))[:_JOINT])
    low, high = fits, fits + step  # the largest even side that fits lies in between: costs grow with it
    while high - low > 2:
        side = (low + high) // 4 * 2
        if side > low and _fits(analysis, sizes_of(analysis, _scaled(image, side, 2)), settings):
            low = side
        else:
            high = side if side > low else low
    best = sizes_of(analysis, _scaled(image, low, image.stride if low == fits else 2))
    half = image.stride // 2
    if image.stride >= _DEEP and (near := (low // half + 1) * half) < min(short, fits + step):
        joint.append(sizes_of(analysis, _scaled(image, near, half)))
    return Ladder(best, tuple(reversed(joint))[:_JOINT])


def _too_small(image: Image) -> PlanError:
    cause = f"no smaller size of an image of {text(image.size)} is worth trying: strides reduce it by {image.stride}"
    return PlanError("OP319", cause, where="resolution")


def _fits(analysis: TracedModel, sizes: Sizes, settings: PlanSettings) -> bool:
    """Whether a size is possible, and meets the targets."""
    try:
        return within(analysis, sizes, settings)
    except (ModelError, PlanError):
        return False


def _shortest(image: Image) -> int:
    """Return the size of the shortest axis that is made smaller: axes that are short stay beside one that isn't."""
    return min((n for n in image.size if n >= _SMALLEST), default=min(image.size))


def _scaled(image: Image, short: int, step: int) -> Size:
    """Return the size with a given shortest axis, longer ones in proportion and a multiple of the step."""
    low = _shortest(image)
    return tuple(
        n if n < low else short if n == low else max(step, round(n * short / low / step) * step) for n in image.size
    )


def within(analysis: TracedModel, sizes: Sizes, settings: PlanSettings) -> bool:
    """Whether images of a size meet all targets by themselves; a relative latency is taken to follow the MACs."""
    graph = (analysis.whole or analysis).graph
    if not sizes:
        return meets(analysis, graph.proto, settings)
    resized = resize(graph.proto, graph.shapes, sizes, outputs=graph.policies.resize_outputs)
    return meets(analysis, resized.proto, settings)


def meets(analysis: TracedModel, proto: ModelProto, settings: PlanSettings) -> bool:
    """Whether a changed model meets all targets; a relative latency is taken to follow the MACs."""
    before = analysis.cost.totals()
    after = model_cost(proto, concretize(proto, analysis.graph.shapes.inputs)).totals()

    def holds(quantity: str, limit: Callable[[float], float]) -> bool:
        counted = "macs" if quantity == "latency" else quantity
        return after[counted] <= limit(before[counted])

    return all(holds(target.quantity, target.limit) for target in settings.targets)


def _images(analysis: TracedModel) -> tuple[Image, ...]:
    graph = (analysis.whole or analysis).graph
    return find_images(graph.proto, graph.shapes)


def alike(a: TracedModel, b: TracedModel) -> bool:
    """Whether two traced models have the same groups."""
    groups = [[(g.slots, len(g.units)) for g in analysis.graph.groups] for analysis in (a, b)]
    return groups[0] == groups[1]
