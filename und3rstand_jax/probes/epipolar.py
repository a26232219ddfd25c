"""Epipolar probes: the fundamental matrix of a pair, from the averaged tokens of one layer (after arXiv 2512.11508).

    tokens of view 1, of view 2 ─▶ mean of each ─▶ side by side, standardised ─▶ linear, GELU, linear ─▶ F of Frobenius norm 1

The mean removes all positions: whatever a probe reads, the network itself has gathered. F is for places normalised to the images
(`und3rstand_jax.geometry.epipolar`). Rows and their norm are those of `und3rstand_jax.probes.rows`; CONSTANT gives one F for all pairs.
"""

import dataclasses
import zlib
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

from und3rstand_jax.model.blocks import gelu
from und3rstand_jax.model.config import ModelConfig
from und3rstand_jax.model.output import BackboneOutput
from und3rstand_jax.model.stack import Params
from und3rstand_jax.probes.rows import (
    CONSTANT,
    RowConfig,
    RowGroup,
    RowTokens,
    no_norm,
    normalise,
    read_rows,
    row_groups,
    stacked_rows,
    standardised,
)
from und3rstand_jax.support.errors import ConfigError

__all__ = [
    "CONSTANT",
    "EpipolarConfig",
    "EpipolarGroup",
    "EpipolarProbes",
    "averages",
    "epipolar_config",
    "init_epipolar",
    "read_all",
    "read_fundamental",
    "standardised",
]

EpipolarGroup = RowGroup

HIDDEN = 256

_FIRST = np.array([[0.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]], np.float32)
"""The F around which training starts: that of a second camera straight to the side, whose epipolar lines are the image's rows."""


@dataclasses.dataclass(frozen=True)
class EpipolarConfig(RowConfig):
    """The probes of some layers; `hidden` is the width of their hidden layer.

    Raises:
        ConfigError: there are no layers, or `hidden` is below 1.
    """

    hidden: int = HIDDEN

    def __post_init__(self) -> None:
        if not self.groups or self.hidden < 1:
            raise ConfigError(f"epipolar probes need layers and a hidden width of at least 1; found {self.groups}, {self.hidden}")


def epipolar_config(backbone: ModelConfig, layers: Sequence[str], hidden: int = HIDDEN) -> EpipolarConfig:
    """A probe for each layer, and CONSTANT.

    Raises:
        LayerError: there are no layers.
        ConfigError: `hidden` is below 1.
    """
    return EpipolarConfig(row_groups(backbone, layers), hidden)


def averages(features: BackboneOutput, config: EpipolarConfig) -> dict[str, Float[Array, "L B _D"]]:
    """What each group's probes read from a pass that captured the probed layers: the patches' averaged tokens of both views, side by side.

    Raises:
        LayerError: a probed layer was not captured.
    """

    def of_layer(layer: str) -> Float[Array, "B D"]:
        return jnp.concatenate([jnp.mean(jnp.asarray(tokens, jnp.float32), axis=1) for tokens in features.patches(layer)], axis=-1)

    return read_rows(features, config, of_layer)


def read_fundamental(params: Params, tokens: Float[Array, "B D"]) -> Float[Array, "B 3 3"]:
    """One probe's F, of Frobenius norm 1, for places normalised to the images."""
    x = normalise(params, tokens)
    for name in ("linear0", "linear1"):
        x = x if name == "linear0" else gelu(x)
        x = jnp.matmul(x, params[name]["kernel"], precision=lax.Precision.HIGHEST) + params[name]["bias"]
    return (x * lax.rsqrt(jnp.sum(x**2, axis=-1, keepdims=True) + 1e-12)).reshape(-1, 3, 3)


def init_epipolar(config: EpipolarConfig, seed: int) -> dict[str, Params]:
    """Fresh parameters, stacked over the rows of each group: kernels LeCun normal, F around that of a camera straight to the side.

    A row's parameters depend only on the seed and its layer's id. Channels are not standardised yet: see `standardised`.
    """

    def of_row(layer: str, width: int) -> Params:
        keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), zlib.crc32(layer.encode())))
        draw = nn.initializers.lecun_normal()
        return {
            "norm": no_norm(2 * width),
            "linear0": {"kernel": draw(keys[0], (2 * width, config.hidden), jnp.float32), "bias": jnp.zeros(config.hidden)},
            "linear1": {"kernel": draw(keys[1], (config.hidden, 9), jnp.float32), "bias": jnp.asarray(_FIRST.ravel())},
        }

    return stacked_rows(config, of_row)


@dataclasses.dataclass(frozen=True, eq=False)
class EpipolarProbes:
    """Epipolar probes bound to their parameters."""

    config: EpipolarConfig
    params: Mapping[str, Params]

    @property
    def layer_ids(self) -> tuple[str, ...]:
        """The probed layers in network order, without CONSTANT."""
        return self.config.layer_ids

    def untrained(self, seed: int) -> "EpipolarProbes":
        """Freshly drawn probes that standardise as these do."""
        fresh = init_epipolar(self.config, seed)
        return EpipolarProbes(self.config, {name: {**group, "norm": self.params[name]["norm"]} for name, group in fresh.items()})

    def __call__(self, features: BackboneOutput) -> dict[str, Float[Array, "B 3 3"]]:
        """F of every probed layer and of CONSTANT, in network order; see `read_fundamental`.

        Raises:
            LayerError: a probed layer was not captured.
        """
        return read_all(self.config, self.params, averages(features, self.config))


def read_all(config: EpipolarConfig, params: Mapping[str, Params], tokens: RowTokens) -> dict[str, Float[Array, "B 3 3"]]:
    """F of every row from its averaged tokens; pure."""
    found: dict[str, Array] = {}
    for name, layers in config.rows.items():
        matrices = jax.vmap(read_fundamental)(params[name], tokens[name])
        found |= {layer: matrices[index] for index, layer in enumerate(layers)}
    return {layer: found[layer] for layer in (*config.layer_ids, CONSTANT)}
