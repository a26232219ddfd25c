"""What probes that read a few numbers per set share: one row per layer, rows of equal width stacked, and CONSTANT.

Each channel is standardised over the training sets, not over the channels of a token. The values read differ little from set to set, least
of all on a random backbone, and a layer norm would leave these differences as small as they are.

CONSTANT is a row that reads nothing but zeros: it gives one answer for all sets, and is trained like the rest.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from und3rstand_jax.model.config import ModelConfig
from und3rstand_jax.model.layer_ids import network_order
from und3rstand_jax.model.output import BackboneOutput
from und3rstand_jax.model.stack import Params
from und3rstand_jax.support.errors import ConfigError, LayerError

CONSTANT = "constant"
"""The row that reads no tokens."""

_LEAST_VARIANCE = 1e-8  # below it a channel's differences are rounding, and stay small

RowTokens = Mapping[str, Float[Array, "L B ..."]]
"""For each group, what its rows read from B sets, channels last."""


@dataclasses.dataclass(frozen=True)
class RowGroup:
    """Rows of equal shape, stacked; `width` is the number of channels of a token."""

    layer_ids: tuple[str, ...]
    width: int


@dataclasses.dataclass(frozen=True)
class RowConfig:
    """The rows of some layers, grouped by their tokens' width; CONSTANT is in the first group.

    Raises:
        ConfigError: there are no layers.
    """

    groups: tuple[RowGroup, ...]

    def __post_init__(self) -> None:
        if not self.groups:
            raise ConfigError("probes need layers; found none")

    @property
    def layer_ids(self) -> tuple[str, ...]:
        """The probed layers in network order, without CONSTANT."""
        return tuple(sorted((layer for group in self.groups for layer in group.layer_ids if layer != CONSTANT), key=network_order))

    @property
    def rows(self) -> dict[str, tuple[str, ...]]:
        """Each group's name in the parameter tree -> its rows."""
        return {f"group{number}": group.layer_ids for number, group in enumerate(self.groups)}


def row_groups(backbone: ModelConfig, layers: Sequence[str]) -> tuple[RowGroup, ...]:
    """A row for each layer, and CONSTANT.

    Raises:
        LayerError: there are no layers.
    """
    if not layers:
        raise LayerError("no layers to probe; give ids and patterns, such as decoder.*")
    ids: dict[int, list[str]] = {}
    for layer in layers:
        ids.setdefault(backbone.layer_width(layer), []).append(layer)
    next(iter(ids.values())).append(CONSTANT)
    return tuple(RowGroup(tuple(names), width) for width, names in ids.items())


def read_rows(features: BackboneOutput, config: RowConfig, of_layer: Callable[[str], Float[Array, "B ..."]]) -> dict[str, Array]:
    """What each group's rows read from a pass that captured the probed layers, (L, B, …); `of_layer` takes it from one layer.

    Raises:
        LayerError: a probed layer was not captured.
    """
    missing = [layer for layer in config.layer_ids if layer not in features]
    if missing:
        raise LayerError(f"these layers have a probe but were not captured: {', '.join(missing)}; pass them as capture")
    found = {}
    for name, group in zip(config.rows, config.groups, strict=True):
        of_layers = [of_layer(layer) for layer in group.layer_ids if layer != CONSTANT]
        # CONSTANT is the last row of its group.
        found[name] = jnp.stack([*of_layers, *[jnp.zeros_like(of_layers[0])] * (CONSTANT in group.layer_ids)])
    return found


def stacked_rows(config: RowConfig, of_row: Callable[[str, int], Params]) -> dict[str, Params]:
    """Parameters, stacked over the rows of each group; `of_row` makes one row's from its layer and width."""
    return {
        name: jax.tree.map(lambda *leaves: jnp.stack(leaves), *(of_row(layer, group.width) for layer in group.layer_ids))
        for name, group in zip(config.rows, config.groups, strict=True)
    }


def no_norm(width: int) -> Params:
    """The norm of a row before `standardised`: the identity."""
    return {"mean": jnp.zeros(width), "scale": jnp.ones(width)}


def normalise(params: Params, tokens: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
    """One row's tokens after its norm, which is not trained."""
    norm = lax.stop_gradient(params["norm"])
    normalised: Array = (tokens - norm["mean"]) * norm["scale"]
    return normalised


def standardised(params: Mapping[str, Params], tokens: RowTokens) -> dict[str, Params]:
    """The same parameters with norms that give each channel mean 0 and deviation 1 over these sets; a constant channel becomes 0."""

    def norm(values: Float[Array, "L B ..."]) -> Params:
        axes = tuple(range(1, values.ndim - 1))
        return {"mean": jnp.mean(values, axis=axes), "scale": lax.rsqrt(jnp.var(values, axis=axes) + _LEAST_VARIANCE)}

    return {name: {**group, "norm": norm(jnp.asarray(tokens[name]))} for name, group in params.items()}
