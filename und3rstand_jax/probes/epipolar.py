"""Epipolar probes: the fundamental matrix of a pair, from the averaged tokens of one layer (after arXiv 2512.11508).

    tokens of view 1, of view 2 ─▶ mean of each ─▶ side by side, standardised ─▶ linear, GELU, linear ─▶ F of Frobenius norm 1

The mean leaves no place: what a probe reads, the network has gathered. Each channel is standardised over the training pairs, not over the
channels of a token: averaged tokens differ little from pair to pair, on a random backbone least of all, and a layer norm would leave the
differences as small as they are. F is for places normalised to the images (`und3rstand_jax.geometry.epipolar`).

One more row, CONSTANT, reads nothing but zeros: one F for all pairs, trained like the rest.
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
from und3rstand_jax.model.layer_ids import network_order
from und3rstand_jax.model.output import BackboneOutput
from und3rstand_jax.model.stack import Params
from und3rstand_jax.support.errors import ConfigError, LayerError

CONSTANT = "constant"
"""The row that reads no tokens."""

HIDDEN = 256

_LEAST_VARIANCE = 1e-8  # below it a channel's differences are rounding, and stay small
_FIRST = np.array([[0.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]], np.float32)
"""The F that training starts around: of a second camera straight to the side, whose epipolar lines are the rows of the image."""

Averages = Mapping[str, Float[Array, "L B _D"]]
"""Of each group, what its probes read: the averaged tokens of both views, side by side."""


@dataclasses.dataclass(frozen=True)
class EpipolarGroup:
    """Rows of equal shape, stacked: `width` is the channels of a token."""

    layer_ids: tuple[str, ...]
    width: int


@dataclasses.dataclass(frozen=True)
class EpipolarConfig:
    """The probes of some layers, grouped by their tokens' width; CONSTANT is in the first group."""

    groups: tuple[EpipolarGroup, ...]
    hidden: int = HIDDEN

    def __post_init__(self) -> None:
        if not self.groups or self.hidden < 1:
            raise ConfigError(f"epipolar probes need layers and a hidden width of at least 1; found {self.groups}, {self.hidden}")

    @property
    def layer_ids(self) -> tuple[str, ...]:
        """The probed layers in network order, without CONSTANT."""
        return tuple(sorted((layer for group in self.groups for layer in group.layer_ids if layer != CONSTANT), key=network_order))

    @property
    def rows(self) -> dict[str, tuple[str, ...]]:
        """Each group's name in the parameter tree -> its rows."""
        return {f"group{number}": group.layer_ids for number, group in enumerate(self.groups)}


def epipolar_config(backbone: ModelConfig, layers: Sequence[str], hidden: int = HIDDEN) -> EpipolarConfig:
    """A probe for each layer, and CONSTANT.

    Raises:
        LayerError: there are no layers.
        ConfigError: there is no such probe.
    """
    if not layers:
        raise LayerError("no layers to probe; give ids and patterns, such as decoder.*")
    ids: dict[int, list[str]] = {}
    for layer in layers:
        ids.setdefault(backbone.layer_width(layer), []).append(layer)
    next(iter(ids.values())).append(CONSTANT)
    return EpipolarConfig(tuple(EpipolarGroup(tuple(names), width) for width, names in ids.items()), hidden)


def averages(features: BackboneOutput, config: EpipolarConfig) -> dict[str, Float[Array, "L B _D"]]:
    """What each group's probes read from a pass that captured the probed layers.

    Raises:
        LayerError: a probed layer was not captured.
    """
    missing = [layer for layer in config.layer_ids if layer not in features]
    if missing:
        raise LayerError(f"these layers have a probe and were not captured: {', '.join(missing)}; pass them as capture")

    def of_layer(layer: str) -> Float[Array, "B D"]:
        return jnp.concatenate([jnp.mean(jnp.asarray(tokens, jnp.float32), axis=1) for tokens in features[layer]], axis=-1)

    found = {}
    for name, group in zip(config.rows, config.groups, strict=True):
        of_layers = [of_layer(layer) for layer in group.layer_ids if layer != CONSTANT]
        # CONSTANT is the last row of its group.
        found[name] = jnp.stack([*of_layers, *[jnp.zeros_like(of_layers[0])] * (CONSTANT in group.layer_ids)])
    return found


def read_fundamental(params: Params, tokens: Float[Array, "B D"]) -> Float[Array, "B 3 3"]:
    """One probe's F, of Frobenius norm 1, for places normalised to the images."""
    norm = lax.stop_gradient(params["norm"])
    x = (tokens - norm["mean"]) * norm["scale"]
    for name in ("linear0", "linear1"):
        x = x if name == "linear0" else gelu(x)
        x = jnp.matmul(x, params[name]["kernel"], precision=lax.Precision.HIGHEST) + params[name]["bias"]
    return (x * lax.rsqrt(jnp.sum(x**2, axis=-1, keepdims=True) + 1e-12)).reshape(-1, 3, 3)


def init_epipolar(config: EpipolarConfig, seed: int) -> dict[str, Params]:
    """Fresh parameters, stacked over the rows of each group: kernels LeCun normal, F around that of a camera straight to the side.

    A row's depend on the seed and its layer's id alone. Channels are not standardised yet: see `standardised`.
    """

    def of_row(layer: str, width: int) -> Params:
        keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), zlib.crc32(layer.encode())))
        draw = nn.initializers.lecun_normal()
        return {
            "norm": {"mean": jnp.zeros(width), "scale": jnp.ones(width)},
            "linear0": {"kernel": draw(keys[0], (width, config.hidden), jnp.float32), "bias": jnp.zeros(config.hidden)},
            "linear1": {"kernel": draw(keys[1], (config.hidden, 9), jnp.float32), "bias": jnp.asarray(_FIRST.ravel())},
        }

    return {
        name: jax.tree.map(lambda *leaves: jnp.stack(leaves), *(of_row(layer, 2 * group.width) for layer in group.layer_ids))
        for name, group in zip(config.rows, config.groups, strict=True)
    }


def standardised(params: Mapping[str, Params], tokens: Averages) -> dict[str, Params]:
    """The same parameters, each channel standardised to mean 0 and deviation 1 over these pairs; one that is constant becomes 0."""

    def norm(values: Float[Array, "L B D"]) -> Params:
        scale = lax.rsqrt(jnp.var(values, axis=1) + _LEAST_VARIANCE)
        return {"mean": jnp.mean(values, axis=1), "scale": scale}

    return {name: {**group, "norm": norm(jnp.asarray(tokens[name]))} for name, group in params.items()}


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


def read_all(config: EpipolarConfig, params: Mapping[str, Params], tokens: Averages) -> dict[str, Float[Array, "B 3 3"]]:
    """F of every row from its averaged tokens; pure."""
    found: dict[str, Array] = {}
    for name, layers in config.rows.items():
        matrices = jax.vmap(read_fundamental)(params[name], tokens[name])
        found |= {layer: matrices[index] for index, layer in enumerate(layers)}
    return {layer: found[layer] for layer in (*config.layer_ids, CONSTANT)}
