"""Pose probes: the camera of every later view from its camera token in one layer, by one linear map.

    camera token of a view ─▶ standardised ─▶ linear ─▶ pose encoding in view 1's frame

A pose encoding is that of `und3rstand_jax.model.pose_encoding`, its translation divided by the scale of the scene
(`und3rstand_jax.geometry.loss.true_scale`). Rows and norms are those of `und3rstand_jax.probes.rows`; CONSTANT gives one camera for all.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from und3rstand_jax.model.config import ModelConfig
from und3rstand_jax.model.head_choice import POSE_ENCODING
from und3rstand_jax.model.output import BackboneOutput
from und3rstand_jax.model.stack import Params
from und3rstand_jax.probes.rows import RowConfig, no_norm, normalise, read_rows, row_groups, stacked_rows
from und3rstand_jax.support.errors import LayerError
from und3rstand_jax.support.text import listed

CAMERA = "camera"
"""The name of the token that is read."""


def pose_config(backbone: ModelConfig, layers: Sequence[str]) -> RowConfig:
    """A probe for each layer, and CONSTANT.

    Raises:
        LayerError: there are no layers, or one has no camera token.
    """
    having = [layer for layer in backbone.layer_ids if CAMERA in backbone.special_tokens(layer)]
    if not having:
        raise LayerError("pose probes read a camera token, and no layer of this model has one; give a model with camera tokens (a VGGT)")
    if without := [layer for layer in layers if layer not in having]:
        raise LayerError(
            f"pose probes read a camera token; these layers have none: {listed(without)}; layers that have one: {having[0]} … {having[-1]}"
        )
    return RowConfig(row_groups(backbone, layers))


def camera_tokens(features: BackboneOutput, config: RowConfig, backbone: ModelConfig) -> dict[str, Float[Array, "L B V _C"]]:
    """What each group's probes read from a pass that captured the probed layers: the camera tokens of the views after the first.

    Raises:
        LayerError: a probed layer was not captured.
    """

    def of_layer(layer: str) -> Float[Array, "B V C"]:
        place = backbone.special_tokens(layer).index(CAMERA)
        return jnp.stack([jnp.asarray(tokens[:, place], jnp.float32) for tokens in features.special(layer)[1:]], axis=1)

    return read_rows(features, config, of_layer)


def read_pose(params: Params, tokens: Float[Array, "*B C"]) -> Float[Array, "*B 9"]:
    """One probe's pose encodings; their quaternions may have any length."""
    linear = params["linear0"]
    encodings: Array = jnp.matmul(normalise(params, tokens), linear["kernel"], precision=lax.Precision.HIGHEST) + linear["bias"]
    return encodings


def init_pose(config: RowConfig, start: Float[Array, "9"]) -> dict[str, Params]:
    """Parameters that read the encoding `start` from any token, stacked over the rows of each group."""

    def of_row(layer: str, width: int) -> Params:
        return {"norm": no_norm(width), "linear0": {"kernel": jnp.zeros((width, POSE_ENCODING)), "bias": jnp.asarray(start)}}

    return stacked_rows(config, of_row)
