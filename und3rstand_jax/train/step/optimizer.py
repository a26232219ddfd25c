"""How parameters are updated, and the state that a step passes to the next one.

DUSt3R's recipe (Wang et al., CVPR 2024, supplementary), every part of it an option. Muon (Jordan et al., 2024) is an alternative for
training a backbone on few pairs.
"""

import dataclasses
from typing import Any, Literal, NamedTuple, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from jax.tree_util import DictKey
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from und3rstand_jax.model.stack import Params
from und3rstand_jax.support.errors import OptionError

NOT_FROZEN = -1

_MUON_MOMENTUM = 0.95
_ADAM_UPDATE_RMS = 0.2  # so that learning rates mean the same for both (Liu et al. 2025, arXiv 2502.16982)

T = TypeVar("T")


@runtime_checkable
class Total(Protocol):
    """Sums each leaf of a tree over all devices: `data_parallel.total`, or the identity on one device."""

    def __call__(self, values: T, /) -> T:
        """The sums."""
        ...


@runtime_checkable
class Loss(Protocol):
    """A named tuple of a batch's figures: what is minimised, and others for the log. Every entry is () or, for a stack of models, (L,)."""

    @property
    def total(self) -> Float[Array, "..."]:
        """What is minimised."""
        ...

    def named(self) -> dict[str, Any]:
        """Every figure by its name."""
        ...


@dataclasses.dataclass(frozen=True)
class Recipe:
    """AdamW. The learning rate warms up linearly from 0, then follows half a cosine from `learning_rate` to `final_learning_rate`.

    Weight decay applies to matrices only, never to biases and norms. With `optimizer` "muon", the matrices of transformer blocks are
    updated by their orthogonalised momentum, scaled to the size of AdamW's updates, and everything else by AdamW without decay.

    Raises:
        OptionError: a number is outside its range.
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
            raise OptionError(f"steps must be at least 1 and warm-up steps between 0 and steps; found {self.steps} and {self.warmup_steps}")
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1):
            raise OptionError(f"betas must be at least 0 and below 1; found {self.beta1}, {self.beta2}")
        rates = (self.learning_rate, self.final_learning_rate, self.weight_decay)
        if not all(0 <= rate < float("inf") for rate in rates):
            raise OptionError(f"learning rates and weight decay must be finite and at least 0; found {', '.join(map(str, rates))}")


def schedule(recipe: Recipe) -> optax.Schedule:
    """Learning rate of each step, counted from 0. Step 0 of a warm-up already trains, at 1/warmup_steps of the peak."""
    cosine = optax.cosine_decay_schedule(
        recipe.learning_rate,
        max(recipe.steps - recipe.warmup_steps, 1),
        recipe.final_learning_rate / recipe.learning_rate if recipe.learning_rate else 0.0,
    )
    rate = cosine
    if recipe.warmup_steps:
        first = recipe.learning_rate / recipe.warmup_steps
        warmup = optax.linear_schedule(first, recipe.learning_rate, max(recipe.warmup_steps - 1, 1))
        rate = optax.join_schedules([warmup, cosine], [recipe.warmup_steps])
    # From an integer, optax would compute float64 under JAX_ENABLE_X64.
    return lambda step: rate(jnp.asarray(step, jnp.float32))


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


def matrices(params: Params) -> Params:
    """Which leaves are matrices: decided by name, since stacked biases have as many axes."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


def _block_matrices(params: Params) -> Params:
    """Which leaves Muon takes: the stacked matrices (block, in, out) of transformer blocks; None for the others."""

    def numbers(path: tuple[DictKey, ...], leaf: ArrayLike) -> optax.contrib.MuonDimensionNumbers | None:
        # Kernels with three axes are stacks: a single matrix has two, a convolution four.
        return optax.contrib.MuonDimensionNumbers(1, 2) if path[-1].key == "kernel" and jnp.ndim(leaf) == 3 else None

    return jax.tree_util.tree_map_with_path(numbers, params)


class TrainState(NamedTuple):
    """The state of a backbone, or of the probes of one group; in the latter, every leaf has a leading axis L, one entry per layer.

    The next loss is computed with `params`; `last_good` gave the last finite loss. If a loss or gradient is not finite,
    training falls back to `last_good` and stays there. `frozen_at` is the step at which that happened, −1 while training goes on.
    """

    params: Params
    last_good: Params
    optimizer: optax.OptState
    frozen_at: Int[Array, "*L"]


def initial_train_state(recipe: Recipe, params: Params) -> TrainState:
    """The state before the first step of a single model; map it over a group's layers."""
    # `last_good` needs buffers of its own: the step donates its state, and a buffer cannot be donated twice.
    return TrainState(params, jax.tree.map(jnp.copy, params), optimizer(recipe).init(params), jnp.int32(NOT_FROZEN))


def update(recipe: Recipe, state: TrainState, gradient: Params, loss: Loss, step: Int[Array, ""]) -> TrainState:
    """The next state of a single model. A loss or gradient that is not finite freezes it for good, at the last good parameters."""
    finite = jnp.isfinite(loss.total) & jnp.isfinite(optax.tree.norm(gradient))
    trains = state.frozen_at == NOT_FROZEN
    updates, moved = optimizer(recipe).update(gradient, state.optimizer, state.params)

    def choose(new: T, not_finite: T, frozen: T) -> T:
        return jax.tree.map(lambda n, b, f: jnp.where(trains, jnp.where(finite, n, b), f), new, not_finite, frozen)

    return TrainState(
        params=choose(optax.apply_updates(state.params, updates), state.last_good, state.params),
        last_good=choose(state.params, state.last_good, state.last_good),
        optimizer=choose(moved, state.optimizer, state.optimizer),
        frozen_at=jnp.where(trains & ~finite, step, state.frozen_at),
    )
