"""The training step of probes on tokens kept from a frozen backbone's passes, one row per layer, and their validation error.

    positions ─▶ what is kept of those sets ─▶ for each row: prediction, loss, gradient, update

A `Reading` defines what is kept, how a row reads it, and how far its prediction is from the truth.
"""

import abc
import dataclasses
import functools
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Key

from und3rstand_jax.data.example import Example
from und3rstand_jax.data.records import Batch
from und3rstand_jax.geometry.epipolar import SeenPlaces
from und3rstand_jax.model.output import BackboneOutput
from und3rstand_jax.model.stack import Params
from und3rstand_jax.probes.rows import RowConfig, standardised
from und3rstand_jax.train.step.loops import over_layers
from und3rstand_jax.train.step.optimizer import Loss, Recipe, Total, TrainState, initial_train_state, update


class Poses(NamedTuple):
    """True pose encodings of V cameras of each set, (B, V, 9); `known` (B,) says which sets have a unit of length."""

    encodings: Float[Array, "B V 9"]
    known: Bool[Array, " B"]


Truth = SeenPlaces | Poses
"""What rows are trained to predict for B sets."""

RowCounts = tuple[Float[Array, ""], ...]
"""The counts by which a batch's summed losses are divided."""


class Kept(NamedTuple):
    """What probes are trained on, for N sets: for each group the tokens (L, N, …), and the truth."""

    tokens: dict[str, Float[Array, "L N ..."]]
    truth: Truth

    def of(self, positions: Int[Array, " B"]) -> "Kept":
        """What is kept of a batch's sets; positions beyond the last set start again from the first."""
        chosen = positions % self.truth[-1].shape[0]
        tokens = {name: values[:, chosen] for name, values in self.tokens.items()}
        return Kept(tokens, jax.tree.map(lambda leaf: leaf[chosen], self.truth))


@dataclasses.dataclass(frozen=True)
class Reading(abc.ABC):
    """One kind of probes on kept tokens.

    Attributes:
        kind: type of the truth.
        config: the rows.
    """

    kind: ClassVar[type[SeenPlaces] | type[Poses]]

    config: RowConfig

    @abc.abstractmethod
    def keep(self, output: BackboneOutput, example: Example, keys: Key[Array, " B"]) -> Kept:
        """What is kept of a pass that captured the probed layers; random draws depend only on each set's key."""

    @abc.abstractmethod
    def init(self, seed: int, truth: Truth) -> dict[str, Params]:
        """Fresh parameters for this truth of the training sets, stacked over the rows of each group."""

    @abc.abstractmethod
    def counts(self, truth: Truth) -> RowCounts:
        """What this device's share of a batch adds to the counts."""

    @abc.abstractmethod
    def loss(self, params: Params, tokens: Float[Array, "B ..."], truth: Truth, counts: RowCounts) -> tuple[Float[Array, ""], Loss]:
        """This device's part of a row's loss: the parts add up to the batch's loss."""

    @abc.abstractmethod
    def errors(self, params: Params, tokens: Float[Array, "B ..."], truth: Truth) -> Float[Array, "B K"]:
        """A row's errors on each set, K kinds of them; NaN where one is undefined."""


class KeptState(NamedTuple):
    """The whole state: steps done, and each group's rows under its name in the parameter tree."""

    step: Int[Array, ""]
    groups: dict[str, TrainState]

    @property
    def params(self) -> dict[str, Params]:
        """The probes' parameter tree."""
        return {name: group.params for name, group in self.groups.items()}

    @property
    def frozen_at(self) -> dict[str, ArrayLike]:
        """For each group, the step at which each row was frozen, (L,); −1 while it trains."""
        return {name: group.frozen_at for name, group in self.groups.items()}


def initial_kept_state(reading: Reading, recipe: Recipe, kept: Kept, seed: int) -> KeptState:
    """The state before the first step: fresh probes, which standardise their input by the statistics of the kept sets' tokens."""
    params = standardised(reading.init(seed, kept.truth), kept.tokens)
    groups = {name: jax.vmap(lambda row: initial_train_state(recipe, row))(group) for name, group in params.items()}
    return KeptState(jnp.zeros((), jnp.int32), groups)


def kept_step(
    state: KeptState, kept: Kept, batch: Batch, *, reading: Reading, recipe: Recipe, total: Total
) -> tuple[KeptState, dict[str, Loss]]:
    """One step on this device's share of the batch.

    Args:
        state: the state of all probes, the same on every device.
        kept: what is kept of all training sets, the same on every device.
        batch: the batch, of which only the positions are read.
        reading: defines the probes.
        recipe: how they are updated.
        total: sums a tree's leaves over all devices.

    Returns:
        The next state, and for each group the losses over the whole batch, every entry (L,).
    """
    own = kept.of(batch.position.astype(jnp.int32))
    counts = total(reading.counts(own.truth))
    new, losses = {}, {}
    for name, group in state.groups.items():

        def train_row(row: TrainState, tokens: Float[Array, "B ..."]) -> tuple[TrainState, Loss]:
            of_loss = functools.partial(reading.loss, tokens=tokens, truth=own.truth, counts=counts)
            gradient, loss = total(jax.grad(of_loss, has_aux=True)(row.params))
            return update(recipe, row, gradient, loss, state.step), loss

        rows = group.frozen_at.shape[0]
        new[name], losses[name] = over_layers(train_row, group, own.tokens[name], side_by_side=rows)
    return KeptState(state.step + 1, new), losses


def kept_errors(params: dict[str, Params], kept: Kept, batch: Batch, *, reading: Reading) -> dict[str, Float[Array, "_L B K"]]:
    """For each group, the rows' errors on each set; only the batch's positions are read."""
    own = kept.of(batch.position.astype(jnp.int32))
    return {
        name: jax.vmap(lambda row, tokens: reading.errors(row, tokens, own.truth))(group, own.tokens[name])
        for name, group in params.items()
    }
