"""The device's part of an evaluation: one program that runs the backbone once and decodes one layer after the other."""

import functools
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from train.data.example import Example
from train.evaluation.metrics import ViewErrors, mean_distance, pair_errors
from und3rstand_jax.dust3r import DUSt3R
from und3rstand_jax.model import Backbone, Probes
from und3rstand_jax.output import BackboneOutput
from und3rstand_jax.pixel_grid import sampling
from und3rstand_jax.pointmap import Pointmap
from und3rstand_jax.probe_config import ProbeConfig, ProbeGroup
from und3rstand_jax.probes import read_group


class Sample(NamedTuple):
    """View 2's pointmap at the pixels of `sampled_pixels`, with a leading layer axis; `confidence` is None where a probe yields none."""

    points: Float[Array, "L B N 3"]
    confidence: Float[Array, "L B N"] | None


class Reading(NamedTuple):
    """What layers got: every array with a leading layer axis. `sample` is None where poses were not asked for."""

    errors: tuple[ViewErrors, ViewErrors]
    sample: Sample | None


class Measured(NamedTuple):
    """What a batch of pairs gave: a reading for each group of probes, and one with a single layer for the model's own head.

    `scene_size` is each pair's mean distance of true points to view 1's camera.
    """

    groups: tuple[Reading, ...]
    head: Reading | None
    scene_size: Float[Array, " B"]


def measure(backbone: Backbone, probes: Probes, example: Example, pose: bool) -> Measured:
    """Every layer's errors on a batch of pairs and, with `pose`, what is needed to find the pose of view 2."""
    return _measure(backbone.module, probes.config, pose, backbone.params, probes.params, example)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _measure(module: DUSt3R, config: ProbeConfig, pose: bool, params: dict, probe_params: dict, example: Example) -> Measured:
    has_head = module.config.head_type is not None
    features = cast(BackboneOutput, module.apply({"params": params}, *example.images, capture=config.layer_ids, head=has_head))

    def reading(pred1: Pointmap, pred2: Pointmap) -> Reading:
        return Reading(pair_errors(pred1, pred2, *example.targets), _sample(pred2) if pose else None)

    groups = []
    for index, group in enumerate(config.groups):

        def of_layer(layer: tuple[dict, tuple[Array, Array]], group: ProbeGroup = group) -> Reading:
            # One layer at a time, as a stack of one.
            weights, tokens = jax.tree.map(lambda leaf: leaf[None], layer)
            preds = read_group(weights, tokens, features.image_sizes, group, config)
            return reading(*jax.tree.map(lambda leaf: leaf[0], preds))

        tokens = tuple(jnp.stack([features[layer][view] for layer in group.layer_ids]) for view in (0, 1))
        groups.append(lax.map(of_layer, (probe_params[f"group{index}"], tokens)))
    head = None
    if features.pred1 is not None and features.pred2 is not None:
        head = jax.tree.map(lambda leaf: leaf[None], reading(features.pred1, features.pred2))
    return Measured(tuple(groups), head, mean_distance(*example.targets))


def _sample(pred: Pointmap) -> Sample:
    height, width = pred["pts3d"].shape[1:3]
    chosen = (slice(None), sampling(height), sampling(width))
    points = pred["pts3d"][chosen].reshape(len(pred["pts3d"]), -1, 3)
    return Sample(points, pred["conf"][chosen].reshape(len(points), -1) if "conf" in pred else None)
