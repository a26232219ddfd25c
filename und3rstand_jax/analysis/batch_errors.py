"""Batches of pairs, and the errors of every probed layer on one of them.

example ─▶ backbone, once ─▶ pointmaps, layer by layer ─▶ errors of their points        one program on the device
                                        └─▶ a sample of view 2 ─▶ its pose by PnP      on the host
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
from und3rstand_jax.geometry.metrics import ViewErrors, mean_distance, pair_errors
from und3rstand_jax.geometry.pose import camera_errors, has_baseline, sampled_camera
from und3rstand_jax.model.backbone import Backbone
from und3rstand_jax.model.dust3r.module import DUSt3R
from und3rstand_jax.model.heads import Pointmap
from und3rstand_jax.model.layer_ids import HEAD
from und3rstand_jax.model.output import BackboneOutput
from und3rstand_jax.probes.config import ProbeConfig, ProbeGroup
from und3rstand_jax.probes.probes import Probes, read_layer


def assembled(feed: Feed, deliveries: Iterator[Delivery], pairs: int, skipped: list[str]) -> Iterator[Example]:
    """The batches that hold the first `pairs` pairs, without augmentation; pairs of the last batch beyond those have no valid pixel.

    Args:
        feed: what the batches are made of; its first shape counts.
        deliveries: from the loader.
        pairs: how many.
        skipped: takes a message for each pair that could not be read and was replaced.
    """
    for delivery in itertools.islice(deliveries, -(-pairs // feed.batch_size)):
        skipped.extend(message for _, message in delivery.skipped)
        yield _assembled(delivery.batch, feed.seed, pairs, feed.shapes[0], scenes_of(feed.specs))


@functools.partial(jax.jit, static_argnums=(3, 4))
def _assembled(batch: Batch, seed: int | Array, pairs: int | Array, shape: Shape, scenes: SyntheticConfig | None) -> Example:
    example = assemble(batch, seed, shape, scenes, colour_jitter=False)
    counts = (batch.position < pairs)[:, None, None]
    one, two = (target._replace(valid=target.valid & counts) for target in example.targets)
    return example._replace(targets=(one, two))


class Sample(NamedTuple):
    """View 2's pointmap at the pixels of `sampled_pixels`; `confidence` is None where a probe yields none. L is absent for one layer."""

    points: Float[Array, "*L B N 3"]
    confidence: Float[Array, "*L B N"] | None


class LayerErrors(NamedTuple):
    """Errors of both views, and the sample that the pose is found from: None where poses were not asked for.

    Every array has a leading axis, one entry a layer, until `BatchErrors.by_layer` takes it apart.
    """

    errors: tuple[ViewErrors, ViewErrors]
    sample: Sample | None


class BatchErrors(NamedTuple):
    """What the device finds on a batch of B pairs.

    Attributes:
        groups: of each group of probes, all its layers.
        head: of the model's own head, as a single layer; None where there is none.
        scene_size: each pair's mean distance of true points to view 1's camera.
    """

    groups: tuple[LayerErrors, ...]
    head: LayerErrors | None
    scene_size: Float[Array, " B"]

    def by_layer(self, config: ProbeConfig) -> dict[str, LayerErrors]:
        """Each layer's own errors by its id, the head's as HEAD."""
        found = {}
        for group, errors in zip(config.groups, self.groups, strict=True):
            for index, layer in enumerate(group.layer_ids):
                found[layer] = jax.tree.map(lambda leaf, index=index: leaf[index], errors)
        if self.head is not None:
            found[HEAD] = jax.tree.map(lambda leaf: leaf[0], self.head)
        return found


def batch_errors(backbone: Backbone, probes: Probes, example: Example, pose: bool) -> BatchErrors:
    """Errors of every layer on a batch of pairs; with `pose`, the samples that the pose of view 2 is found from too.

    Returns without waiting for the device.
    """
    return _batch_errors(backbone.module, probes.config, pose, backbone.params, probes.params, example)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _batch_errors(module: DUSt3R, config: ProbeConfig, pose: bool, params: dict, probe_params: dict, example: Example) -> BatchErrors:
    has_head = bool(module.config.heads)
    features = cast(BackboneOutput, module.apply({"params": params}, *example.images, capture=config.layer_ids, head=has_head))

    def layer_errors(pred1: Pointmap, pred2: Pointmap) -> LayerErrors:
        errors = pair_errors(pred1, pred2, *example.targets)
        if not pose:
            return LayerErrors(errors, None)
        pairs, height, width = pred2["pts3d"].shape[:3]
        grid = (slice(None), sampling(height), sampling(width))
        confidence = pred2["conf"][grid].reshape(pairs, -1) if "conf" in pred2 else None
        return LayerErrors(errors, Sample(pred2["pts3d"][grid].reshape(pairs, -1, 3), confidence))

    groups = []
    for index, group in enumerate(config.groups):

        def of_layer(layer: tuple[dict, tuple[Array, Array]], group: ProbeGroup = group) -> LayerErrors:
            return layer_errors(*read_layer(*layer, features.image_sizes, group, config))

        tokens = tuple(jnp.stack([features[layer][view] for layer in group.layer_ids]) for view in (0, 1))
        groups.append(lax.map(of_layer, (probe_params[f"group{index}"], tokens)))
    head = None
    if features.pointmaps:
        head = jax.tree.map(lambda leaf: leaf[None], layer_errors(*features.preds))
    return BatchErrors(tuple(groups), head, mean_distance(*example.targets))


class PoseTruth(NamedTuple):
    """What the poses of a batch are measured against: of each pair camera 2 to camera 1, the scene's size, and view 2's intrinsics.

    `image_size` is view 2's (height, width).
    """

    poses: Float[np.ndarray, "B 4 4"]
    scene_sizes: Float[np.ndarray, " B"]
    intrinsics: Float[np.ndarray, "B 3 3"]
    image_size: tuple[int, int]

    @property
    def without_baseline(self) -> int:
        """Number of pairs whose cameras stand in one place or whose ground truth is all invalid."""
        return sum(not has_baseline(pose, float(size)) for pose, size in zip(self.poses, self.scene_sizes, strict=True))


def pose_truth(example: Example, scene_sizes: Float[np.ndarray, " B"]) -> PoseTruth:
    """The true poses of an example's pairs."""
    camera1, camera2 = (np.asarray(target.cam2world, np.float64) for target in example.targets)
    size = (example.images[1].shape[1], example.images[1].shape[2])
    return PoseTruth(np.linalg.inv(camera1) @ camera2, scene_sizes, np.asarray(example.intrinsics[1], np.float64), size)


class PoseError(NamedTuple):
    """Degrees between estimated and true pose of a pair; `direction`, of the translation, is NaN without a baseline."""

    rotation: float
    direction: float
    failed: bool


def layer_pose_errors(layers: Mapping[str, LayerErrors], truth: PoseTruth, pool: Executor) -> Iterator[tuple[str, PoseError]]:
    """Every layer's pose errors, pair by pair. OpenCV releases the interpreter's lock, so that threads keep every core busy."""
    layers_and_pairs = [(layer, index) for layer in layers for index in range(len(truth.poses))]

    def pose_error(layer_and_pair: tuple[str, int]) -> PoseError:
        layer, index = layer_and_pair
        sample = layers[layer].sample
        assert sample is not None, "poses were asked for"
        confidence = None if sample.confidence is None else np.asarray(sample.confidence[index])
        estimated = sampled_camera(np.asarray(sample.points[index]), confidence, truth.image_size, truth.intrinsics[index])
        return PoseError(*camera_errors(estimated, truth.poses[index], float(truth.scene_sizes[index])), estimated is None)

    return zip((layer for layer, _ in layers_and_pairs), pool.map(pose_error, layers_and_pairs), strict=True)
