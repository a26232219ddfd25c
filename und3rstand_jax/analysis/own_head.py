"""Tokens of any layer, read by the model's own head as if they were its last: the logit lens of language models, for pointmaps.

captured layers ─▶ a start (`und3rstand_jax.model.start`) in which a layer takes the last one's place ─▶ [norm] ─▶ own head
"""

import functools
from collections.abc import Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from und3rstand_jax.analysis.inputs import Inputs
from und3rstand_jax.analysis.pair_measures import PairTruth, points_of
from und3rstand_jax.geometry.alignment import Alignment, aligned_errors
from und3rstand_jax.geometry.cameras import ViewGeometry, ViewTruth
from und3rstand_jax.geometry.metrics import point_errors
from und3rstand_jax.model.backbone import Backbone
from und3rstand_jax.model.config import ModelConfig
from und3rstand_jax.model.head_choice import POINTMAP, head_layers
from und3rstand_jax.model.heads import Pointmap
from und3rstand_jax.model.layer_ids import network_order
from und3rstand_jax.model.module import MultiViewModel
from und3rstand_jax.model.output import Activation, BackboneOutput
from und3rstand_jax.support.progress import with_progress

LENS = (
    "a layer's tokens take the place of the decoder's last ones: with norm, of those before decoder.norm; without, of its output. A DPT "
    "head also reads encoder.norm and two streams of the decoder: those that come after the layer are replaced by its tokens too, those "
    "before it stay. With norm this is the model without what all later steps add to the streams"
)

LENS_OF_SEVERAL = (
    "a block's streams that a head reads together take the place of those that it reads last, and of all that it reads of blocks between; "
    "what it reads of blocks before stays. The norm is part of the head and is applied"
)
"""The same for models whose heads read several streams of a block side by side."""


def lens_layers(config: ModelConfig) -> tuple[str, ...]:
    """The layers that are read (in DUSt3R, the decoder's input and its stream after every step); of several read together, the last."""
    return tuple(reading[-1] for reading in config.readings)


def lens_captures(layers: Sequence[str], config: ModelConfig) -> tuple[str, ...]:
    """What to capture so that `lens_start` can read layers."""
    together = (layer for reading in config.readings if reading[-1] in layers for layer in reading)
    return tuple(dict.fromkeys((*together, *_read_before_norm(config))))


def _read_before_norm(config: ModelConfig) -> list[str]:
    return [layer for layer in head_layers(config) if layer != config.last_norm]


def lens_of_set(
    model: Backbone, inputs: Inputs, layers: Sequence[str], reference: tuple[ViewTruth, ...], progress: bool = False
) -> dict[str, tuple[float, ...]]:
    """All views' errors of what the head reads from layers of one set, with norm (see `LENS`), as by `geometry.metrics.point_errors`.

    One pass, then the head alone for each layer.

    Args:
        model: a backbone with a head.
        inputs: the views.
        layers: ids; those that are not among `lens_layers` are left out.
        reference: what errors are measured against.
        progress: whether a terminal shows a progress bar.
    """
    config = model.config
    read = [layer for layer in layers if layer in lens_layers(config)]
    if not read:
        return {}
    output = model(*inputs.views, capture=lens_captures(read, config), head=False)
    found = {}
    for layer in with_progress(read, "lens", len(read), "layer", progress):
        seen = model(start=lens_start(output, layer, config, norm=True), capture=(), head=POINTMAP)
        found[layer] = point_errors(tuple(map(ViewGeometry.of, seen.pointmaps)), reference)
    return found


def lens_start(output: BackboneOutput, layer_id: str, config: ModelConfig, norm: bool) -> BackboneOutput:
    """The start of a pass whose head reads a layer's tokens as the model's last: `backbone(start=lens_start(…), head="pointmap")`.

    Where heads read single streams, the pass with norm is exactly the one in which every later `.update` of all views is knocked out:
    the streams then reach the norm, and the places that a DPT head reads on the way, unchanged from the layer. Without norm, the norm
    is left out as well.

    Args:
        output: with `lens_captures` captured.
        layer_id: one of `lens_layers`.
        config: of the backbone.
        norm: whether the norm after the blocks (`decoder.norm`) is applied to the tokens; one that is part of the head always is.
    """
    reading = next(reading for reading in config.readings if reading[-1] == layer_id)
    read, place = _read_before_norm(config), network_order(layer_id)
    layers: dict[str, Activation] = {}
    for first in range(0, len(read), len(reading)):
        together = read[first : first + len(reading)]
        is_later = network_order(together[-1]) > place
        layers |= {layer: output[here if is_later else layer] for layer, here in zip(together, reading, strict=True)}
    if config.last_norm is not None:
        layers[config.blocks[-1].steps[-1] if norm else config.last_norm] = output[layer_id]
    return BackboneOutput(layers, output.image_sizes)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def lens_errors(
    module: MultiViewModel,
    alignment: Alignment,
    with_points: bool,
    params: Any,
    start: BackboneOutput,
    scales: Float[Array | np.ndarray, " K"],
    truth: PairTruth,
    other: PairTruth,
) -> dict[str, Float[Array, "K ..."]]:
    """Errors of what the head reads from a start whose last tokens are multiplied by each of K factors.

    Args:
        module, params: of the backbone.
        alignment: of the points.
        with_points: whether the later views' points are returned too.
        start: from `lens_start`, of B pairs.
        scales: the factors; the other streams that a DPT head reads are not multiplied.
        truth: of these pairs.
        other: of other pairs, for the control.

    Returns:
        As from `errors_of`, with K along the first axis.
    """
    last = max(start.activations, key=network_order)

    def scaled(scale: Float[Array, ""]) -> dict[str, Array]:
        tokens = tuple(jnp.asarray(scale * jnp.asarray(view, jnp.float32), view.dtype) for view in start[last])
        at = BackboneOutput(dict(start.activations) | {last: tokens}, start.image_sizes)
        output = cast(BackboneOutput, module.apply({"params": params}, capture=(), head=POINTMAP, start=at))
        return errors_of(output.pointmaps, truth, other, alignment, with_points)

    return jax.lax.map(scaled, jnp.asarray(scales))


def errors_of(
    preds: tuple[Pointmap, ...], truth: PairTruth, other: PairTruth, alignment: Alignment, with_points: bool
) -> dict[str, Float[Array, "B ..."]]:
    """Every view's error against the true points, `view1`, `view2`, …, and against other pairs', `other1`, `other2`, …

    With points, also the later views' `points2` (B, H, W, 3), …, and `confidence2` (B, H, W), … if there is any, for their poses.
    """
    found: dict[str, Array] = {}
    for prefix, of in (("view", truth), ("other", other)):
        errors = aligned_errors(preds, of.truth, jnp.asarray(of.unit), alignment)
        found |= {f"{prefix}{number}": error for number, error in enumerate(errors, start=1)}
    if with_points:
        found |= {name: values for name, values in points_of(preds).items() if name != "points1"}
    return found
