"""Runs probes over pairs with known geometry and averages what they get wrong, layer by layer.

    example ─▶ backbone, once ─▶ each layer's pointmaps ─▶ errors ─▶ averages
                                        └─▶ a sample of view 2 ─▶ pose ─┘

The device measures (`und3rstand_jax.analysis.probe_errors`), the host finds poses: while it solves one batch's, the device runs the
next batch.

Evaluates a checkpoint on held-out pairs of the data that `--data` names.
"""

import dataclasses
import functools
import itertools
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from und3rstand_jax.analysis.probe_errors import (
    FAILED_DEGREES,
    Evaluation,
    LayerResult,
    Measured,
    Reading,
    measure,
    pose_result,
    view_result,
)
from und3rstand_jax.data.example import Example, assemble, batch_size
from und3rstand_jax.data.loader import Feed, Place, Sources, held_out, validation_batches
from und3rstand_jax.data.specification import scenes_of
from und3rstand_jax.geometry.cameras import sampled_pixels
from und3rstand_jax.geometry.metrics import ViewErrors
from und3rstand_jax.geometry.pose import INLIER_THRESHOLD, camera_pose, has_baseline, most_confident_half, pose_errors
from und3rstand_jax.model.backbone import Backbone
from und3rstand_jax.model.layer_ids import HEAD
from und3rstand_jax.probes.config import ProbeConfig
from und3rstand_jax.probes.probes import Probes
from und3rstand_jax.support.errors import UserError


class _Truth(NamedTuple):
    """What the poses of a batch are compared with: view 2's camera to view 1's, and the size of the scene, of each pair."""

    poses: Float[np.ndarray, "B 4 4"]
    scene_sizes: Float[np.ndarray, " B"]
    intrinsics: Float[np.ndarray, "B 3 3"]
    image_size: tuple[int, int]


class _PoseError(NamedTuple):
    """Degrees between found and true pose of a pair; the direction is NaN where the cameras are not apart."""

    rotation: float
    direction: float
    failed: bool


class _Found(NamedTuple):
    """What was found of a layer, each entry a batch's or a pair's."""

    errors: list[tuple[ViewErrors, ViewErrors]]
    poses: list[_PoseError]


def evaluate(
    backbone: Backbone, probes: Probes, examples: Iterable[Example], total: int | None, pose: bool = True, show_progress: bool = False
) -> Evaluation:
    """Errors of every probed layer and of the model's own head, over all pairs.

    Args:
        backbone: the frozen model; its head is evaluated where it has one.
        probes: on layers of that model, of any shapes.
        examples: batches of pairs; a new batch shape is a new compilation.
        total: how many pairs there are, for the progress bar; None if that is not known.
        pose: whether to find the pose of view 2 by each layer's pointmap.
        show_progress: whether to show a bar on a terminal's stderr.

    Raises:
        UserError: there is no pair, or a probed layer is not the model's.
    """
    found: dict[str, _Found] = defaultdict(lambda: _Found([], []))
    pairs = without_baseline = 0
    hidden = None if show_progress else True  # None hides the bar where stderr is no terminal
    with ThreadPoolExecutor() as pool, tqdm(total=total, desc="evaluating", unit="pair", disable=hidden, leave=False) as bar:
        for measured, truth in _batches(backbone, probes, examples, pose):
            rows = dict(_by_layer(probes.config, measured))
            for layer, reading in rows.items():
                found[layer].errors.append(reading.errors)
            for layer, error in _pose_errors(pool, rows, truth) if pose else ():
                found[layer].poses.append(error)
            without_baseline += sum(not has_baseline(true, size) for true, size in zip(truth.poses, truth.scene_sizes, strict=True))
            pairs += len(truth.poses)
            bar.update(len(truth.poses))
    if not pairs:
        raise UserError("there is no pair to evaluate on; expected at least one: check the data's folder and split")
    results = {layer: _layer_result(layer, of_layer) for layer, of_layer in found.items()}
    layers = tuple(results[layer] for layer in probes.layer_ids)
    return Evaluation(layers, results.get(HEAD), pairs, _without_valid(found), without_baseline)


def _batches(backbone: Backbone, probes: Probes, examples: Iterable[Example], pose: bool) -> Iterator[tuple[Measured, _Truth]]:
    """Each batch's measurements on the host, the next batch already under way on the device."""
    ahead: list[tuple[Measured, Example]] = []
    for example in itertools.chain(examples, [None]):
        if example is not None and batch_size(example):
            ahead.append((measure(backbone, probes, example, pose), example))
        if ahead and (len(ahead) > 1 or example is None):
            measured, own = ahead.pop(0)
            measured = jax.device_get(measured)
            yield measured, _truth(own, measured)


def _truth(example: Example, measured: Measured) -> _Truth:
    first, second = (np.asarray(target.cam2world, np.float64) for target in example.targets)
    size = (example.images[1].shape[1], example.images[1].shape[2])
    intrinsics = np.asarray(example.intrinsics[1], np.float64)
    return _Truth(np.linalg.inv(first) @ second, np.asarray(measured.scene_size), intrinsics, size)


def _by_layer(config: ProbeConfig, measured: Measured) -> Iterator[tuple[str, Reading]]:
    """Each layer's own reading, without the leading axis."""
    named = list(zip((group.layer_ids for group in config.groups), measured.groups, strict=True))
    if measured.head is not None:
        named.append(((HEAD,), measured.head))
    for layers, reading in named:
        for index, layer in enumerate(layers):
            yield layer, jax.tree.map(lambda leaf, index=index: leaf[index], reading)


def _pose_errors(pool: ThreadPoolExecutor, rows: dict[str, Reading], truth: _Truth) -> Iterator[tuple[str, _PoseError]]:
    """Every layer's pose errors, pair by pair: OpenCV leaves the interpreter free, so that every core solves some."""
    pixels = sampled_pixels(*truth.image_size)
    jobs = [(layer, index) for layer in rows for index in range(len(truth.poses))]
    return zip((layer for layer, _ in jobs), pool.map(lambda job: _pose_error(rows[job[0]], pixels, truth, job[1]), jobs), strict=True)


def _pose_error(reading: Reading, pixels: Float[np.ndarray, "N 2"], truth: _Truth, index: int) -> _PoseError:
    """How far the pose is off that a pair's view 2 implies."""
    assert reading.sample is not None
    points = np.asarray(reading.sample.points[index])
    if reading.sample.confidence is not None:
        chosen = most_confident_half(np.asarray(reading.sample.confidence[index]))
        points, pixels = points[chosen], pixels[chosen]
    estimated = camera_pose(points, pixels, truth.intrinsics[index], INLIER_THRESHOLD * truth.image_size[1])
    true, size = truth.poses[index], float(truth.scene_sizes[index])
    if estimated is None:
        return _PoseError(FAILED_DEGREES, FAILED_DEGREES if has_baseline(true, size) else float("nan"), True)
    return _PoseError(*pose_errors(estimated, true, size), False)


def _layer_result(layer: str, found: _Found) -> LayerResult:
    views = [jax.tree.map(lambda *parts: np.concatenate(parts), *(batch[view] for batch in found.errors)) for view in (0, 1)]
    pose = pose_result(*zip(*found.poses, strict=True)) if found.poses else None
    return LayerResult(layer, view_result(views[0]), view_result(views[1]), pose)


def _without_valid(found: dict[str, _Found]) -> tuple[int, int]:
    """Of each view, the pairs without a valid pixel, which have no error in any layer."""
    errors = next(iter(found.values())).errors
    first, second = (sum(int(np.isnan(batch[view].invariant).sum()) for batch in errors) for view in (0, 1))
    return first, second


def evaluate_on(
    backbone: Backbone, probes: Probes, feed: Feed, sources: Sources, pairs: int, show_progress: bool
) -> tuple[Evaluation, int]:
    """Errors of probes on `pairs` held-out pairs, or all there are.

    Args:
        backbone: the frozen model.
        probes: on layers of it.
        feed: where pairs come from; its seed and its first shape count, augmentation does not.
        sources: of the feed, opened for "val".
        pairs: how many, in batches of at most the feed's size.
        show_progress: whether to show a bar on a terminal's stderr.

    Returns:
        The evaluation, and how many pairs could not be read and were replaced, which stderr is told as well.

    Raises:
        UserError: data cannot be read.
    """
    places = held_out(feed, sources, pairs)
    # Equal batches, so that one program does for all.
    size = max((divisor for divisor in range(1, feed.batch_size + 1) if len(places) % divisor == 0), default=1)
    skipped: list[tuple[str, str]] = []
    examples = _examples(dataclasses.replace(feed, batch_size=size), sources, places, skipped)
    evaluation = evaluate(backbone, probes, examples, len(places), show_progress=show_progress)
    for _, told in skipped:
        print(f"cannot read {told}: another pair took its place", file=sys.stderr)
    return evaluation, len(skipped)


def _examples(feed: Feed, sources: Sources, places: list[Place], skipped: list[tuple[str, str]]) -> Iterator[Example]:
    assembled = jax.jit(functools.partial(_assemble, shape=feed.shapes[0], scenes=scenes_of(feed.specs)))
    for delivery in validation_batches(feed, sources, places):
        skipped.extend(delivery.skipped)
        yield assembled(delivery.batch, feed.seed)


def _assemble(batch: Any, seed: Any, shape: Any, scenes: Any) -> Example:
    return assemble(batch, seed, shape, scenes, colour_jitter=False)
