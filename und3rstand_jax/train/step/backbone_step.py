"""The training step of the backbone itself: its own pointmaps, DUSt3R's loss, and a gradient for trunk and heads.

    batch ─▶ example ─▶ backbone with heads ─▶ loss, gradient, update

Written, as that of the probes is, for one device's share of the batch; `total` adds up over devices.
"""

import dataclasses
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from und3rstand_jax.data.example import Example, assemble
from und3rstand_jax.data.records import Batch, Shape
from und3rstand_jax.data.synthetic.config import SyntheticConfig
from und3rstand_jax.geometry.loss import PairLoss, PairSums, confidence_sums, mean_loss, normalised_truth, valid_counts
from und3rstand_jax.model.dust3r import DUSt3R
from und3rstand_jax.model.output import BackboneOutput
from und3rstand_jax.model.pointmap import Pointmap
from und3rstand_jax.train.step.optimizer import NOT_FROZEN, GroupState, Recipe, optimizer
from und3rstand_jax.train.step.probe_step import Total, update_layer

MODEL = "model"


@dataclasses.dataclass(frozen=True)
class BackboneTask:
    """Everything about the step that is fixed when it is compiled; the fields are those of `ProbeTask`."""

    module: DUSt3R
    recipe: Recipe
    shape: Shape
    scenes: SyntheticConfig | None = SyntheticConfig()
    colour_jitter: bool = False
    seed: int = 0
    accumulate: int = 1


class BackboneState(NamedTuple):
    """The whole state: steps done, and the model with its optimiser's moments, frozen like a probe if its loss is ever not finite."""

    step: Int[Array, ""]
    model: GroupState

    @property
    def params(self) -> Any:
        """The model's parameter tree."""
        return self.model.params


def initial_backbone_state(params: Any, recipe: Recipe) -> BackboneState:
    """The state before the first step; `params` are those to begin with."""
    # Buffers of their own: the step donates its state, and one buffer cannot be given away twice.
    last_good = jax.tree.map(jnp.copy, params)
    return BackboneState(jnp.zeros((), jnp.int32), GroupState(params, last_good, optimizer(recipe).init(params), jnp.asarray(NOT_FROZEN)))


def backbone_step(task: BackboneTask, total: Total, state: BackboneState, batch: Batch) -> tuple[BackboneState, dict[str, PairLoss]]:
    """One step on this device's share of the batch.

    Args:
        task: static.
        total: adds a tree's leaves up over all devices.
        state: the same on every device.
        batch: this device's pairs, as many as `task.accumulate` divides.

    Returns:
        The next state, and the loss over the whole batch, every entry (1,), under the name MODEL.
    """
    gradient, sums, counts = _gradient(task, total, state.params, batch)
    gradient, sums = total((gradient, sums))
    loss = mean_loss(sums, counts)
    model = update_layer(task.recipe, state.model, gradient, loss, state.step)
    return BackboneState(state.step + 1, model), {MODEL: jax.tree.map(lambda value: value[None], loss)}


def _gradient(task: BackboneTask, total: Total, params: Any, batch: Batch) -> tuple[Any, PairSums, tuple[Array, Array]]:
    """This device's part of the gradient and of the loss's sums, and the valid pixels of the whole batch, which both are relative to."""

    def example_of(part: Batch) -> Example:
        return assemble(part, task.seed, task.shape, task.scenes, task.colour_jitter)

    if task.accumulate == 1:
        example = example_of(batch)
        counts = total(valid_counts(*example.targets))
        return *_gradient_of(task, params, example, counts), counts
    parts = jax.tree.map(lambda leaf: leaf.reshape(task.accumulate, -1, *leaf.shape[1:]), batch)
    counts = total(jax.tree.map(jnp.sum, lax.map(lambda part: valid_counts(*example_of(part).targets), parts)))

    def add_part(sofar: Any, part: Batch) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, sofar, _gradient_of(task, params, example_of(part), counts)), None

    nothing = (jax.tree.map(jnp.zeros_like, params), PairSums(*[jnp.zeros(())] * 4))
    (gradient, sums), _ = lax.scan(add_part, nothing, parts)
    return gradient, sums, counts


def _gradient_of(task: BackboneTask, params: Any, example: Example, counts: tuple[Array, Array]) -> tuple[Any, PairSums]:
    def loss(params: Any) -> tuple[Array, PairSums]:
        sums = confidence_sums(*pointmaps(task.module, params, example.images), normalised_truth(*example.targets))
        return mean_loss(sums, counts).total, sums

    return jax.grad(loss, has_aux=True)(params)


def pointmaps(module: DUSt3R, params: Any, images: tuple[Array, Array]) -> tuple[Pointmap, Pointmap]:
    """The model's own pointmaps of a batch."""
    output = cast(BackboneOutput, module.apply({"params": params}, *images))
    assert output.pred1 is not None and output.pred2 is not None  # the heads were run
    return output.pred1, output.pred2


def backbone_errors(task: BackboneTask, params: Any, batch: Batch) -> dict[str, Float[Array, "1 B 2"]]:
    """The normalised point error of each pair and view: DUSt3R's regression loss of that pair alone; NaN where nothing is valid."""
    example = assemble(batch, task.seed, task.shape, task.scenes, task.colour_jitter)
    pred1, pred2 = pointmaps(task.module, params, example.images)

    def of_pair(item: Any) -> Float[Array, " 2"]:
        one, two, targets = jax.tree.map(lambda leaf: leaf[None], item)
        sums, counts = confidence_sums(one, two, normalised_truth(*targets)), valid_counts(*targets)
        return jnp.stack([sums.regression1 / counts[0], sums.regression2 / counts[1]])

    return {MODEL: jax.vmap(of_pair)((pred1, pred2, example.targets))[None]}
