"""Errors of every probed layer, and of the model's own head, averaged over held-out pairs, or sets of more views.

The device measures a batch (`und3rstand_jax.analysis.batch_errors`) while the host finds the poses of the previous one.
"""

import dataclasses
import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
from jaxtyping import Bool

from und3rstand_jax.analysis.batch_errors import BatchErrors, PoseError, assembled, batch_errors, layer_pose_errors, pose_truth
from und3rstand_jax.data.example import Example, batch_size
from und3rstand_jax.data.loader import Feed, Sources, held_out, validation_batches
from und3rstand_jax.geometry.metrics import ViewErrors
from und3rstand_jax.model.backbone import Backbone
from und3rstand_jax.model.layer_ids import HEAD
from und3rstand_jax.probes.probes import Probes
from und3rstand_jax.support.errors import DataError
from und3rstand_jax.support.progress import progress_bar

ACCURATE_DEGREES = 15.0

_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class ViewResult:
    """Errors of one view (see `ViewErrors`): means over the sets in which it has a valid pixel, NaN if there are none.

    Infinite where the layer's prediction was not finite for a set.
    """

    invariant: float
    relative_mean: float
    relative_median: float


@dataclasses.dataclass(frozen=True)
class PoseResult:
    """Error of the poses of all views after the first, by PnP on their pointmaps; a pose that was not found counts as 180° off.

    Attributes:
        rotation_degrees: median over poses, one for each pair, or one for each view after the first of each set.
        translation_degrees: angle between true and estimated direction of the translation, median over the cameras that are not in the
            same place as view 1's; NaN if there are none.
        accuracy_15: share of poses with both below 15° (rotation alone for a camera without a baseline).
        failed: number of poses that were not found.
    """

    rotation_degrees: float
    translation_degrees: float
    accuracy_15: float
    failed: int


@dataclasses.dataclass(frozen=True)
class LayerResult:
    """One layer, by its layer id, or the model's own head ("head"). `pose` is None where poses were not asked for."""

    layer_id: str
    views: tuple[ViewResult, ...]
    pose: PoseResult | None


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Results over a number of pairs, or of sets of more views.

    Attributes:
        layers: the probed layers, in network order.
        head: the model's own head, None if it has none.
        pairs: how many were measured.
        without_valid: for each view, the number of sets in which it has no valid pixel, and so no error in any layer.
        without_baseline: the number of cameras in the same place as view 1's, or whose set's ground truth is all invalid.
    """

    layers: tuple[LayerResult, ...]
    head: LayerResult | None
    pairs: int
    without_valid: tuple[int, ...]
    without_baseline: int

    @property
    def views(self) -> int:
        """The number of views in a set."""
        return len(self.without_valid)


def evaluate_on(backbone: Backbone, probes: Probes, feed: Feed, sources: Sources, pairs: int, progress: bool) -> tuple[Evaluation, int]:
    """Errors of probes on `pairs` held-out pairs of a data set, or on all if there are fewer.

    Args:
        backbone: the frozen model.
        probes: on layers of it.
        feed: where pairs come from. Its seed and its first shape apply, its augmentation does not.
        sources: of the feed, opened for "val".
        pairs: how many, in batches of at most the feed's size.
        progress: whether a terminal shows a progress bar.

    Returns:
        The evaluation, and how many pairs could not be read and were replaced by others; each is logged.

    Raises:
        DataError: pairs cannot be read, or there are none.
    """
    places = held_out(feed, sources, pairs)
    # Batches of one size, so that there is one compilation and the last batch is full.
    size = max((divisor for divisor in range(1, feed.batch_size + 1) if len(places) % divisor == 0), default=1)
    feed = dataclasses.replace(feed, batch_size=size)
    skipped: list[str] = []
    examples = assembled(feed, validation_batches(feed, sources, places), len(places), skipped)
    evaluation = evaluate(backbone, probes, examples, len(places), progress=progress)
    for message in skipped:
        _logger.warning("cannot read %s: another pair took its place", message)
    return evaluation, len(skipped)


def evaluate(
    backbone: Backbone, probes: Probes, examples: Iterable[Example], total: int | None, pose: bool = True, progress: bool = False
) -> Evaluation:
    """Errors of probes on pairs given as arrays.

    Args:
        backbone: the frozen model; its own head is evaluated too, if it has one.
        probes: on layers of that model, of any shapes.
        examples: batches of pairs; each new batch shape takes a compilation.
        total: the number of pairs, for the progress bar; None if unknown.
        pose: whether to estimate the poses of the views after the first from each layer's pointmaps.
        progress: whether a terminal shows a progress bar.

    Raises:
        DataError: there are no pairs.
        LayerError: a probed layer is not one of the model's.
    """
    errors: dict[str, list[tuple[ViewErrors, ...]]] = defaultdict(list)
    poses: dict[str, list[PoseError]] = defaultdict(list)
    pairs = without_baseline = 0
    with ThreadPoolExecutor() as pool, progress_bar("evaluating", total, "pair", progress) as advance:
        for example, measured in _one_ahead(backbone, probes, examples, pose):
            layers = measured.by_layer(probes.config)
            truth = pose_truth(example, np.asarray(measured.scene_size))
            for layer, found in layers.items():
                errors[layer].append(found.errors)
            for layer, error in layer_pose_errors(layers, truth, pool) if pose else ():
                poses[layer].append(error)
            without_baseline += truth.without_baseline
            pairs += len(truth.scene_sizes)
            advance(len(truth.scene_sizes))
    if not pairs:
        raise DataError("there is no pair to evaluate on; expected at least one: check the data's folder and split")
    results = {layer: _layer_result(layer, errors[layer], poses[layer]) for layer in errors}
    any_layer = next(iter(errors.values()))
    without_valid = tuple(sum(int(np.isnan(batch.invariant).sum()) for batch in of_view) for of_view in zip(*any_layer, strict=True))
    return Evaluation(
        layers=tuple(results[layer] for layer in probes.layer_ids),
        head=results.get(HEAD),
        pairs=pairs,
        without_valid=without_valid,
        without_baseline=without_baseline,
    )


def _one_ahead(backbone: Backbone, probes: Probes, examples: Iterable[Example], pose: bool) -> Iterator[tuple[Example, BatchErrors]]:
    """Each batch with its errors on the host, while the device works on the next batch."""
    waiting: tuple[Example, BatchErrors] | None = None
    for example in examples:
        if not batch_size(example):
            continue
        started = example, batch_errors(backbone, probes, example, pose)
        if waiting is not None:
            yield waiting[0], jax.device_get(waiting[1])
        waiting = started
    if waiting is not None:
        yield waiting[0], jax.device_get(waiting[1])


def _layer_result(layer: str, errors: Sequence[tuple[ViewErrors, ...]], poses: Sequence[PoseError]) -> LayerResult:
    def view_result(of_view: Sequence[ViewErrors]) -> ViewResult:
        means = []
        for batches in zip(*of_view, strict=True):
            values = np.concatenate(batches).astype(np.float64)
            known = values[~np.isnan(values)]
            means.append(float(known.mean()) if known.size else float("nan"))
        return ViewResult(*means)

    views = tuple(map(view_result, zip(*errors, strict=True)))
    return LayerResult(layer, views, pose_result(*zip(*poses, strict=True)) if poses else None)


def pose_result(rotation: Sequence[float], direction: Sequence[float], failed: Sequence[bool]) -> PoseResult:
    """Summarises one layer's pose errors, in degrees for each pose; the direction's are NaN for a camera without a baseline."""
    rotations, directions = np.asarray(rotation), np.asarray(direction)
    has_direction: Bool[np.ndarray, " B"] = ~np.isnan(directions)
    accurate = (rotations < ACCURATE_DEGREES) & ((directions < ACCURATE_DEGREES) | ~has_direction)
    translation = float(np.median(directions[has_direction])) if has_direction.any() else float("nan")
    return PoseResult(float(np.median(rotations)), translation, float(accurate.mean()), int(np.sum(failed)))
