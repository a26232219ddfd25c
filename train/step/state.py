"""What training the probes carries from step to step."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from train.probe_architecture import init_probes
from train.step.recipe import Recipe, optimizer
from und3rstand_jax.probe_config import ProbeConfig

NOT_FROZEN = -1


class GroupState(NamedTuple):
    """A group's probes: every leaf has a leading axis, one entry a layer.

    `params` give the next loss. `last_good` gave the last loss that was finite: should the next one not be, a probe goes back to
    them and stays there. `frozen_at` is the step in which that happened, −1 for a probe that trains.
    """

    params: Any
    last_good: Any
    optimizer: Any
    frozen_at: Int[Array, " L"]


class ProbesState(NamedTuple):
    """The whole state: steps done, and each group's probes under its name in the parameter tree."""

    step: Int[Array, ""]
    groups: dict[str, GroupState]

    @property
    def params(self) -> dict[str, Any]:
        """The probes' parameter tree, of every probe the last that is known to be good or that nothing speaks against."""
        return {name: group.params for name, group in self.groups.items()}


def initial_state(config: ProbeConfig, recipe: Recipe, seed: int) -> ProbesState:
    """The state before the first step."""

    def group_state(params: Any) -> GroupState:
        layers = jax.tree.leaves(params)[0].shape[0]
        # Buffers of their own: the step donates its state, and one buffer cannot be given away twice.
        last_good = jax.tree.map(jnp.copy, params)
        return GroupState(params, last_good, jax.vmap(optimizer(recipe).init)(params), jnp.full(layers, NOT_FROZEN))

    params = init_probes(config, seed)
    return ProbesState(jnp.zeros((), jnp.int32), {name: group_state(group) for name, group in params.items()})
