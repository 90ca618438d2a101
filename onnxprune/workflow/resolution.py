"""Choose the resolution of images: by measurement, together with channels."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import islice
from typing import Any

from onnxprune.cost.cost import model_cost
from onnxprune.data import is_noise
from onnxprune.errors import ModelError, OnnxPruneError, PlanError
from onnxprune.model.resumable import Records
from onnxprune.model.stream import Batches
from onnxprune.planning.plan import PrunePlan, apply_plan
from onnxprune.progress import Progress
from onnxprune.recover import recover
from onnxprune.resolution.images import Image, find_images
from onnxprune.resolution.resize import Size, resize, text
from onnxprune.rewrite.rewrite import rewrite
from onnxprune.sensitivity import Curve, judge_of, share_out
from onnxprune.settings import PlanSettings
from onnxprune.shapes import concretize
from onnxprune.workflow.analysis import TracedModel, at_resolution

log = logging.getLogger(__name__)

Sizes = Mapping[str, Size]
Planner = Callable[[TracedModel, Sequence[Curve] | None], PrunePlan]

_SMALLEST = 32  # pixels of an image's shorter side, below which no resolution is tried unless asked for
_CELLS = 3  # fewest positions along the shorter side of the last map that are tried
_STEPS = 14  # most sizes of a search within a drop, about
_JOINT = 3  # most sizes that are tried together with channels


@dataclass(frozen=True, slots=True)
class Trial:
    """A resolution that was tried.

    Attributes:
        sizes: the sizes that images are resized to, by input; empty for none.
        plan: what is removed then.
        error: how far the outputs on inputs held back are from the original's, see `judge_of`.
    """

    sizes: Sizes
    plan: PrunePlan
    error: float

    def __str__(self) -> str:
        """Return the moves and the error."""
        moves = [text(size) for size in dict.fromkeys(self.sizes.values())]
        moves += ["channels"] if self.plan.removed or not moves else []
        return f"{' with '.join(moves)} {self.error:.3g}"


def sizes_of(analysis: TracedModel, size: Size) -> Sizes:
    """Return a size for every image of a model, by input.

    Raises:
        PlanError: no input is an image, or they differ in size (OP319).
    """
    found = _images(analysis)
    if not found:
        raise PlanError("OP319", "no input is an image that a convolution or pooling slides over", where="resolution")
    if len({image.size for image in found}) > 1:
        shown = ", ".join(f'"{image.name}" {text(image.size)}' for image in found)
        raise PlanError("OP319", f"the model has images of different sizes: {shown}", where="resolution")
    return {} if found[0].size == size else {image.name: size for image in found}


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
    if _within(analysis, {}, settings):
        return analysis
    ladder = _ladder(analysis, settings, fewest=1)
    if not ladder.fits:
        raise PlanError("OP301", "no smaller image meets the target", hint="let `axes` name channels, too")
    return at_resolution(analysis, ladder.fits)


def why_not(analysis: TracedModel, settings: PlanSettings, batches: Batches | None, data: Any) -> PlanError | None:
    """Return why no resolution can be chosen by measurement, if so, as an error."""
    quantities = {target.quantity for target in settings.targets}
    if not quantities or quantities & {"params", "size"}:
        cause = "choosing a resolution needs a limit on macs, memory or latency: it saves no weights"
        return PlanError("OP302", cause, where="resolution", hint="name the size: 160, for example")
    if any(target.absolute for target in settings.timed):
        return PlanError("OP302", "choosing a resolution needs a latency relative to the original's", where="target")
    if batches is None or is_noise(data):
        cause = "no resolution can be chosen without real inputs to measure it on"
        return PlanError("OP312", cause, where="resolution", hint="set `data`, or name the size: 160, for example")
    if len(list(islice(batches(), 2))) < 2:
        return PlanError("OP312", "too few inputs to hold some back, by which a resolution is chosen", where="data")
    if settings.remove_blocks or settings.constraints.ratio_for or settings.allocation != "reconstruction":
        cause = "choosing a resolution works with channels and the allocation reconstruction only"
        return PlanError("OP302", cause, where="resolution", hint="name the size: 160, for example")
    images = _images(analysis)
    if not images or len({image.size for image in images}) > 1:
        return PlanError("OP319", "no input is an image, or several are, of different sizes", where="resolution")
    if settings.resolution is None and min(images[0].size) < _SMALLEST:
        return PlanError("OP319", f"images are smaller than {_SMALLEST} pixels", where="resolution")
    return None


def choose_resolution(
    analysis: TracedModel,
    settings: PlanSettings,
    batches: Batches,
    data: Any,
    measure: Callable[[Batches], Sequence[Curve]],
    planner: Planner,
    records: Records,
    progress: Progress,
) -> PrunePlan | None:
    """Return the plan whose repaired network changes the outputs least, with or without smaller images.

    The change is the divergence of predictions for classifiers, and the relative squared error of outputs for others.
    None if nothing is to be tried: the model meets the targets as it is, or no other size is possible. It may turn out
    to meet a latency only when that is measured, before anything else is.

    Tried are channels alone; the largest image that meets the targets alone; and larger ones together with channels,
    the smallest first, as long as they get better. What resizing alone does to the outputs is measured first: a size
    that is worse by itself than the best so far is skipped.

    Args:
        analysis: the traced model.
        settings: how to plan.
        data: the samples as they were given; they may say what outputs mean.
        batches: returns inputs. Every fourth batch is held back to judge by; the others serve to repair.
        measure: returns the sensitivities of channels, for inputs.
        planner: plans channels for a model at some resolution, with sensitivities if these fit; it measures them
            itself for the model as it is, if they are needed.
        records: the trials that are done already; filled as others are.
        progress: called for each trial.

    Raises:
        PlanError: nothing meets the targets (OP301), or no size is possible though one is asked for (OP319).
    """
    if _within(analysis, {}, settings):
        return None
    try:
        ladder = _ladder(analysis, settings, fewest=_CELLS)
    except PlanError as error:
        if settings.resolution == "auto":
            raise
        log.debug("no resolution is tried: %s", error.cause)
        return None
    fitted, held_back = share_out(batches)
    judge = judge_of(analysis.original, held_back, analysis.graph.front, data)
    trials, problems = list[Trial](), list[OnnxPruneError]()
    joint, total, last = list(ladder.joint), len(ladder.joint) + 1 + bool(ladder.fits), float("inf")

    @cache
    def curves() -> Sequence[Curve]:
        return measure(batches)

    def attempt(sizes: Sizes) -> float:
        progress("try resolutions", len(trials), total)
        try:
            trials.append(_recorded(records, sizes, partial(made_at, sizes)))
        except (ModelError, PlanError) as error:
            if not sizes and error.code not in ("OP301", "OP310"):
                raise
            problems.append(error)
            return float("inf")
        return trials[-1].error

    def made_at(sizes: Sizes, name: str) -> Trial:
        at = at_resolution(analysis, sizes)
        made = planner(at, curves() if sizes and alike(at, analysis) else None)
        kept = apply_plan(at.graph, made)
        proto = rewrite(kept)
        if made.removed:
            recover(kept, proto, fitted, seed=settings.seed, records=records, name=name)
        return Trial(sizes, made, judge(proto))

    def alone(sizes: Sizes) -> float:
        name = f"{_record(sizes)}/alone"
        if name not in records:
            try:
                error = judge(at_resolution(analysis, sizes).graph.proto)
            except (ModelError, PlanError):
                error = float("inf")
            records.keep(name, error)
            return error
        return float(records[name])

    best = attempt({})
    if trials and not (trials[0].plan.removed or trials[0].plan.blocks):
        return trials[0].plan
    if ladder.fits:
        best = min(best, attempt(ladder.fits))
    for sizes in joint:
        if alone(sizes) >= best:
            continue
        found = attempt(sizes)
        best = min(best, found)
        if found > last:
            break
        last = found
    if not trials:
        raise problems[0]
    chosen = min(trials, key=lambda trial: trial.error)
    log.info("%s on inputs held back: %s", judge.measures, ", ".join(map(str, trials)))
    log.info("taken: %s", chosen)
    tried = [{"resolution": {n: list(s) for n, s in t.sizes.items()}, "error": t.error} for t in trials]
    return replace(chosen.plan, settings={**chosen.plan.settings, "tried": tried})


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
    if settings.axes == ("channels",) or analysis.resized is not None:
        return []
    problem: OnnxPruneError | None = why_not(analysis, settings, batches, data)
    if problem is None and settings.timed:
        cause = "with `max_drop`, images get smaller for macs or memory: their effect on the latency isn't measured"
        problem = PlanError("OP302", cause, where="resolution")
    if problem is None:
        image = _images(analysis)[0]
        half, short = max(image.stride // 2, 1), min(image.size)
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
    if settings.resolution == "auto" or settings.axes == ("resolution",):
        raise problem
    log.debug("no resolution is tried: %s", problem.cause)
    return []


def _record(sizes: Sizes) -> str:
    """Return the name under which trials of some sizes are recorded."""
    return "resolution/" + ",".join(f"{name}={text(size)}" for name, size in sizes.items())


def _recorded(records: Records, sizes: Sizes, make: Callable[[str], Trial]) -> Trial:
    """Return a trial from the records, or make it, given the name of its parts, and record it."""
    name = f"{_record(sizes)}/trial"
    if name in records:
        made, error = records[name]
        return Trial(sizes, PrunePlan.from_json(made.encode(), str(records.path)), error)
    trial = make(name)
    records.drop(f"{name}/repair")
    records.keep(name, [trial.plan.to_json(), trial.error])
    return trial


@dataclass(frozen=True, slots=True)
class _Ladder:
    """Sizes worth trying: the largest that meets the targets alone, and larger ones, the smallest first."""

    fits: Sizes
    joint: tuple[Sizes, ...]


def _ladder(analysis: TracedModel, settings: PlanSettings, *, fewest: int) -> _Ladder:
    """Return sizes in steps of the strides' product, between which the largest that meets the targets is looked for.

    Raises:
        PlanError: the resolution can't be changed (OP319).
    """
    image = next(iter(_images(analysis)), None)
    if image is None:
        sizes_of(analysis, (1, 1))  # tells why
        raise AssertionError
    short, step = min(image.size), image.stride
    joint, fits, problem = list[Sizes](), None, None
    for cells in range((short - 1) // step, fewest - 1, -1):
        sizes = sizes_of(analysis, _scaled(image, cells * step, step))
        try:
            within = _within(analysis, sizes, settings)
        except (ModelError, PlanError) as error:
            problem = problem or error
            if not joint:
                break  # what is in the way of one size is in the way of most
            continue
        if within:
            fits = cells * step
            break
        joint.append(sizes)
    if fits is None and not joint:
        raise problem or _too_small(image)
    if fits is None:
        return _Ladder({}, tuple(reversed(joint))[:_JOINT])
    low, high = fits, fits + step  # the largest even side that fits lies in between: costs grow with it
    while high - low > 2:
        side = (low + high) // 4 * 2
        if side > low and _fits(analysis, sizes_of(analysis, _scaled(image, side, 2)), settings):
            low = side
        else:
            high = side if side > low else low
    best = sizes_of(analysis, _scaled(image, low, step if low == fits else 2))
    return _Ladder(best, tuple(reversed(joint))[:_JOINT])


def _too_small(image: Image) -> PlanError:
    cause = f"no smaller size of an image of {text(image.size)} is worth trying: strides reduce it by {image.stride}"
    return PlanError("OP319", cause, where="resolution")


def _fits(analysis: TracedModel, sizes: Sizes, settings: PlanSettings) -> bool:
    """Whether a size is possible, and meets the targets."""
    try:
        return _within(analysis, sizes, settings)
    except (ModelError, PlanError):
        return False


def _scaled(image: Image, short: int, step: int) -> Size:
    """Return the size with a given shorter side, the other one in proportion and a multiple of the step."""
    low = min(image.size)
    height, width = (short if n == low else max(step, round(n * short / low / step) * step) for n in image.size)
    return height, width


def _within(analysis: TracedModel, sizes: Sizes, settings: PlanSettings) -> bool:
    """Whether images of a size meet all targets by themselves; a relative latency is taken to follow the MACs."""
    graph, before = (analysis.whole or analysis).graph, analysis.cost.totals()
    proto = resize(graph.proto, graph.shapes, sizes).proto if sizes else graph.proto
    after = model_cost(proto, concretize(proto, graph.shapes.inputs)).totals()

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
