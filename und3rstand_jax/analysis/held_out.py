"""Held-out pairs as studies take them, on the host; and twins of rendered pairs: the same room and view 1, another view 2."""

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from und3rstand_jax.analysis.batch_errors import assembled
from und3rstand_jax.analysis.inputs import GroundTruth
from und3rstand_jax.analysis.pair_measures import Pairs, PairTruth
from und3rstand_jax.data.example import Example
from und3rstand_jax.data.loader import Feed, held_out, open_sources, validation_batches
from und3rstand_jax.geometry.cameras import ViewTruth
from und3rstand_jax.geometry.loss import in_camera1, normalised_truth
from und3rstand_jax.geometry.metrics import mean_distance
from und3rstand_jax.support.errors import DataError
from und3rstand_jax.support.progress import with_progress

_logger = logging.getLogger(__name__)


def pairs_of(examples: Sequence[Example], count: int) -> Pairs:
    """The first `count` pairs of some batches."""

    def joined(parts: Sequence[Any]) -> np.ndarray:
        return np.concatenate([np.asarray(part) for part in parts])[:count]

    count_of_views = range(len(examples[0].images))
    views = tuple(joined([example.images[view] for example in examples]) for view in count_of_views)
    targets = tuple(jax.tree.map(lambda *parts: joined(parts), *(example.targets[view] for example in examples)) for view in count_of_views)
    intrinsics = [joined([example.intrinsics[view] for example in examples]).astype(np.float64) for view in count_of_views]
    points = [np.asarray(view) for view in in_camera1(targets)]
    cameras = [np.asarray(target.cam2world, np.float64) for target in targets]
    to_first = np.linalg.inv(cameras[0])
    poses = [np.broadcast_to(np.eye(4), to_first.shape), *(to_first @ camera for camera in cameras[1:])]
    truths = tuple(
        GroundTruth(
            tuple(ViewTruth(points[view][i], np.asarray(targets[view].valid[i])) for view in count_of_views),
            tuple(pose[i] for pose in poses),
            tuple(intrinsics[view][i] for view in count_of_views),
        )
        for i in range(len(to_first))
    )
    on_device = jax.tree.map(jnp.asarray, targets)
    truth = jax.tree.map(np.asarray, PairTruth(normalised_truth(on_device), mean_distance(on_device)))
    return Pairs(views, truth, truths)


def held_out_pairs(feed: Feed, count: int, progress: bool = False) -> Pairs:
    """The first `count` held-out pairs of a feed, or all if there are fewer, at its first shape and without augmentation.

    Raises:
        DataError: there is none, or pairs cannot be read.
    """
    sources = open_sources(feed.specs, "val")
    places = held_out(feed, sources, count)
    if not places:
        raise DataError("there is no held-out pair to measure on; check the data's folder and split")
    skipped: list[str] = []
    batches = assembled(feed, validation_batches(feed, sources, places), len(places), skipped)
    examples = list(with_progress(batches, "pairs", -(-len(places) // feed.batch_size), "batch", progress))
    for message in skipped:
        _logger.warning("cannot read %s: another pair took its place", message)
    return pairs_of(examples, len(places))


def twins_of(feed: Feed, pairs: Pairs, progress: bool = False) -> Pairs | None:
    """The twin of each held-out pair of rendered scenes: the same scene with its next second camera.

    Args:
        feed: the feed that the pairs came from.
        pairs: from `held_out_pairs`.
        progress: whether a terminal shows a progress bar.

    Returns:
        As many pairs, with the same images and truth of view 1 as `pairs`; None unless all are rendered: a data set's have no twins.
    """
    if any(spec.scenes is None for spec in feed.specs):
        return None
    specs = tuple(
        dataclasses.replace(spec, scenes=dataclasses.replace(spec.scenes, second=spec.scenes.second + 1))
        for spec in feed.specs
        if spec.scenes is not None
    )
    twins = held_out_pairs(dataclasses.replace(feed, specs=specs), len(pairs.truths), progress)
    assert np.array_equal(twins.views[0], pairs.views[0]), "a second camera changes nothing of view 1"
    return twins
