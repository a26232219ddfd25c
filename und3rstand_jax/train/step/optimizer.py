"""How parameters are updated: DUSt3R's recipe (Wang et al., CVPR 2024, supplementary), every part of it settable.

Muon (Jordan et al. 2024) is an alternative for training a backbone on few pairs.

What training the probes carries from step to step.
"""

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax.contrib
from jaxtyping import Array, Int

from und3rstand_jax.probes.config import ProbeConfig
from und3rstand_jax.probes.probes import init_probes
from und3rstand_jax.support.errors import UserError

_MUON_MOMENTUM = 0.95


_ADAM_UPDATE_RMS = 0.2  # so that learning rates mean the same for both (Liu et al. 2025, arXiv 2502.16982)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """AdamW, its learning rate a linear warm-up from 0 and half a cosine from `learning_rate` to `final_learning_rate`.

    Weight decay is taken on matrices alone, never on biases and norms. With `optimizer` "muon" the matrices of transformer blocks are
    updated by their orthogonalised momentum, of the size that AdamW's updates have, and all else by AdamW without decay.
    """

    steps: int
    warmup_steps: int
    learning_rate: float = 1e-4
    final_learning_rate: float = 1e-6
    beta1: float = 0.9
    beta2: float = 0.95
    weight_decay: float = 0.05
    optimizer: Literal["adamw", "muon"] = "adamw"

    def __post_init__(self) -> None:
        if self.steps < 1 or not 0 <= self.warmup_steps <= self.steps:
            raise UserError(f"steps must be at least 1 and warm-up steps between 0 and steps; found {self.steps} and {self.warmup_steps}")
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1):
            raise UserError(f"betas must be at least 0 and below 1; found {self.beta1}, {self.beta2}")
        rates = (self.learning_rate, self.final_learning_rate, self.weight_decay)
        if not all(0 <= rate < float("inf") for rate in rates):
            raise UserError(f"learning rates and weight decay must be finite and at least 0; found {', '.join(map(str, rates))}")


def schedule(recipe: Recipe) -> optax.Schedule:
    """Learning rate of each step, counted from 0. Step 0 of a warm-up already moves: it takes 1/warmup of the peak."""
    cosine = optax.cosine_decay_schedule(
        recipe.learning_rate,
        max(recipe.steps - recipe.warmup_steps, 1),
        recipe.final_learning_rate / recipe.learning_rate if recipe.learning_rate else 0.0,
    )
    if recipe.warmup_steps == 0:
        return cosine
    first = recipe.learning_rate / recipe.warmup_steps
    warmup = optax.linear_schedule(first, recipe.learning_rate, max(recipe.warmup_steps - 1, 1))
    return optax.join_schedules([warmup, cosine], [recipe.warmup_steps])


def optimizer(recipe: Recipe) -> optax.GradientTransformation:
    """The transformation for the parameters of one probe, or of a backbone."""
    rate = schedule(recipe)
    if recipe.optimizer == "adamw":
        return optax.adamw(rate, b1=recipe.beta1, b2=recipe.beta2, weight_decay=recipe.weight_decay, mask=matrices)
    return optax.contrib.muon(
        rate,
        beta=_MUON_MOMENTUM,
        weight_decay=recipe.weight_decay,
        weight_decay_mask=matrices,
        adam_b1=recipe.beta1,
        adam_b2=recipe.beta2,
        muon_weight_dimension_numbers=_block_matrices,
        consistent_rms=_ADAM_UPDATE_RMS,
    )


def matrices(params: Any) -> Any:
    """Which leaves are matrices: their name says it, since stacked biases have as many axes."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


def _block_matrices(params: Any) -> Any:
    """Which leaves Muon takes: the stacked matrices (block, in, out) of encoder and decoder blocks; None for the others."""

    def numbers(path: Any, _: Any) -> Any:
        inside = any(key.key.startswith("blocks") for key in path)
        return optax.contrib.MuonDimensionNumbers(1, 2) if inside and path[-1].key == "kernel" else None

    return jax.tree_util.tree_map_with_path(numbers, params)


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
