"""Batches of sets of views, and the errors of every probed layer on one of them.

example ─▶ backbone, once ─▶ pointmaps, layer by layer ─▶ errors of their points        one program on the device
                                        └─▶ a sample of each view after the first ─▶ its pose by PnP      on the host
"""

import functools
import itertools
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from und3rstand_jax.data.example import Example, assemble
from und3rstand_jax.data.loader import Delivery, Feed
from und3rstand_jax.data.records import Batch, Shape
from und3rstand_jax.data.specification import scenes_of
from und3rstand_jax.data.synthetic.config import SyntheticConfig
from und3rstand_jax.geometry.cameras import sampling
from und3rstand_jax.geometry.metrics import ViewErrors, mean_distance, set_errors
from und3rstand_jax.geometry.pose import camera_errors, has_baseline, sampled_camera
from und3rstand_jax.model.backbone import Backbone
from und3rstand_jax.model.heads import Pointmap
from und3rstand_jax.model.layer_ids import HEAD
from und3rstand_jax.model.module import MultiViewModel
from und3rstand_jax.model.output import BackboneOutput
from und3rstand_jax.probes.config import ProbeConfig, ProbeGroup
from und3rstand_jax.probes.probes import Probes, read_layer


def assembled(feed: Feed, deliveries: Iterator[Delivery], pairs: int, skipped: list[str]) -> Iterator[Example]:
    """The batches with the first `pairs` sets, without augmentation; any further sets in the last batch have no valid pixel.

    Args:
        feed: what the batches are made from; its first shape applies.
        deliveries: from the loader.
        pairs: how many sets.
        skipped: receives a message for each set that could not be read and was replaced.
    """
    for delivery in itertools.islice(deliveries, -(-pairs // feed.batch_size)):
        skipped.extend(message for _, message in delivery.skipped)
        yield _assembled(delivery.batch, feed.seed, pairs, feed.shapes[0], scenes_of(feed.specs))


@functools.partial(jax.jit, static_argnums=(3, 4))
def _assembled(batch: Batch, seed: int | Array, pairs: int | Array, shape: Shape, scenes: SyntheticConfig | None) -> Example:
    example = assemble(batch, seed, shape, scenes, colour_jitter=False)
    counts = (batch.position < pairs)[:, None, None]
    return example._replace(targets=tuple(target._replace(valid=target.valid & counts) for target in example.targets))


class Sample(NamedTuple):
    """A view's pointmap at the pixels of `sampled_pixels`; `confidence` is None if a probe yields none. L is absent for a single layer."""

    points: Float[Array, "*L B N 3"]
    confidence: Float[Array, "*L B N"] | None


class LayerErrors(NamedTuple):
    """Every view's errors, and for each view after the first the sample that its pose is estimated from; no samples unless asked for.

    Every array has a leading axis with one entry per layer, until `BatchErrors.by_layer` splits it.
    """

    errors: tuple[ViewErrors, ...]
    samples: tuple[Sample, ...]


class BatchErrors(NamedTuple):
    """What the device computes on a batch of B sets.

    Attributes:
        groups: for each group of probes, all its layers.
        head: the model's own head, as a single layer; None if it has none.
        scene_size: each set's mean distance from its true points to view 1's camera.
    """

    groups: tuple[LayerErrors, ...]
    head: LayerErrors | None
    scene_size: Float[Array, " B"]

    def by_layer(self, config: ProbeConfig) -> dict[str, LayerErrors]:
        """Each layer's errors under its id; the head's under HEAD."""
        found = {}
        for group, errors in zip(config.groups, self.groups, strict=True):
            for index, layer in enumerate(group.layer_ids):
                found[layer] = jax.tree.map(lambda leaf, index=index: leaf[index], errors)
        if self.head is not None:
            found[HEAD] = jax.tree.map(lambda leaf: leaf[0], self.head)
        return found


def batch_errors(backbone: Backbone, probes: Probes, example: Example, pose: bool) -> BatchErrors:
    """Every layer's errors on a batch of sets; with `pose`, also the samples that poses are estimated from.

    Returns without waiting for the device.
    """
    return _batch_errors(backbone.module, probes.config, pose, backbone.params, probes.params, example)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _batch_errors(
    module: MultiViewModel, config: ProbeConfig, pose: bool, params: dict, probe_params: dict, example: Example
) -> BatchErrors:
    has_head = bool(module.config.heads)
    features = cast(BackboneOutput, module.apply({"params": params}, *example.images, capture=config.layer_ids, head=has_head))

    def layer_errors(preds: tuple[Pointmap, ...]) -> LayerErrors:
        return LayerErrors(set_errors(preds, example.targets), tuple(map(_sample, preds[1:])) if pose else ())

    groups = []
    for index, group in enumerate(config.groups):

        def of_layer(layer: tuple[dict, tuple[Array, ...]], group: ProbeGroup = group) -> LayerErrors:
            return layer_errors(read_layer(*layer, features.image_sizes, group, config))

        tokens = tuple(jnp.stack([features.patches(layer)[view] for layer in group.layer_ids]) for view in range(len(example.images)))
        groups.append(lax.map(of_layer, (probe_params[f"group{index}"], tokens)))
    head = None
    if features.pointmaps:
        head = jax.tree.map(lambda leaf: leaf[None], layer_errors(features.pointmaps))
    return BatchErrors(tuple(groups), head, mean_distance(example.targets))


def _sample(pred: Pointmap) -> Sample:
    sets, height, width = pred["pts3d"].shape[:3]
    grid = (slice(None), sampling(height), sampling(width))
    confidence = pred["conf"][grid].reshape(sets, -1) if "conf" in pred else None
    return Sample(pred["pts3d"][grid].reshape(sets, -1, 3), confidence)


class PoseTruth(NamedTuple):
    """What the poses of a batch are measured against: each set's size, and for every view after the first the pose from its camera to
    camera 1, its intrinsics, and its image's (height, width).
    """

    scene_sizes: Float[np.ndarray, " B"]
    poses: tuple[Float[np.ndarray, "B 4 4"], ...]
    intrinsics: tuple[Float[np.ndarray, "B 3 3"], ...]
    image_sizes: tuple[tuple[int, int], ...]

    @property
    def without_baseline(self) -> int:
        """Number of cameras in the same place as view 1's, or whose set's ground truth is all invalid."""
        return sum(not has_baseline(pose, float(size)) for poses in self.poses for pose, size in zip(poses, self.scene_sizes, strict=True))


def pose_truth(example: Example, scene_sizes: Float[np.ndarray, " B"]) -> PoseTruth:
    """The true poses of an example's sets."""
    camera1, *others = (np.asarray(target.cam2world, np.float64) for target in example.targets)
    return PoseTruth(
        scene_sizes,
        tuple(np.linalg.inv(camera1) @ camera for camera in others),
        tuple(np.asarray(intrinsics, np.float64) for intrinsics in example.intrinsics[1:]),
        tuple((image.shape[1], image.shape[2]) for image in example.images[1:]),
    )


class PoseError(NamedTuple):
    """Degrees between a view's estimated and true pose; `direction`, of the translation, is NaN without a baseline."""

    rotation: float
    direction: float
    failed: bool


def layer_pose_errors(layers: Mapping[str, LayerErrors], truth: PoseTruth, pool: Executor) -> Iterator[tuple[str, PoseError]]:
    """Every layer's pose errors, set by set and view by view. OpenCV releases the GIL, so threads keep every core busy."""
    wanted = [(layer, index, view) for layer in layers for index in range(len(truth.scene_sizes)) for view in range(len(truth.poses))]

    def pose_error(of: tuple[str, int, int]) -> PoseError:
        layer, index, view = of
        sample = layers[layer].samples[view]
        confidence = None if sample.confidence is None else np.asarray(sample.confidence[index])
        estimated = sampled_camera(np.asarray(sample.points[index]), confidence, truth.image_sizes[view], truth.intrinsics[view][index])
        return PoseError(*camera_errors(estimated, truth.poses[view][index], float(truth.scene_sizes[index])), estimated is None)

    return zip((layer for layer, _, _ in wanted), pool.map(pose_error, wanted), strict=True)
