"""The training step of the backbone itself, and its validation error.

    batch ─▶ example ─▶ backbone with heads ─▶ loss, gradient, update

The loss is that of the pointmaps. For a model with a head for cameras (VGGT), the loss of its cameras is added; see `model_loss`.

Like the probes' step, it is written for one device's share of the batch; `total` sums over devices.
"""

from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from und3rstand_jax.data.example import Example
from und3rstand_jax.data.records import Batch
from und3rstand_jax.geometry.loss import Counts, Targets, confidence_sums, normalised_truth, valid_counts
from und3rstand_jax.model.head_choice import CAMERAS, POINTMAP
from und3rstand_jax.model.heads import Pointmap, planes_of
from und3rstand_jax.model.module import MultiViewModel
from und3rstand_jax.model.output import BackboneOutput
from und3rstand_jax.model.stack import Params
from und3rstand_jax.train.step.loops import ExampleOf, accumulate
from und3rstand_jax.train.step.model_loss import ModelLoss, ModelSums, loss_sums, mean_model_loss, trained_heads
from und3rstand_jax.train.step.optimizer import Recipe, Total, TrainState, initial_train_state, update

MODEL = "model"
"""The one group of losses and errors: a backbone has one row, its own head."""


class BackboneState(NamedTuple):
    """The whole state: steps done, and the model with its optimiser's moments. Like a probe, it is frozen once its loss is not finite."""

    step: Int[Array, ""]
    model: TrainState

    @property
    def params(self) -> Params:
        """The model's parameter tree."""
        return self.model.params

    @property
    def frozen_at(self) -> dict[str, ArrayLike]:
        """The step at which the model was frozen; −1 while it trains."""
        return {MODEL: self.model.frozen_at}


def initial_backbone_state(params: Params, recipe: Recipe) -> BackboneState:
    """The state before the first step, from initial parameters."""
    return BackboneState(jnp.zeros((), jnp.int32), initial_train_state(recipe, params))


def backbone_step(
    state: BackboneState,
    batch: Batch,
    *,
    module: MultiViewModel,
    recipe: Recipe,
    example_of: ExampleOf,
    total: Total,
    micro_batches: int = 1,
) -> tuple[BackboneState, dict[str, ModelLoss]]:
    """One step on this device's share of the batch.

    Args:
        state: the same on every device.
        batch: this device's sets.
        module: the backbone.
        recipe: how it is updated.
        example_of: makes model inputs and ground truth from a batch.
        total: sums a tree's leaves over all devices.
        micro_batches: number of parts in which the share is computed, one after the other.

    Returns:
        The next state, and the loss over the whole batch, every entry (1,), under the name MODEL.
    """

    sets = total(jnp.float32(len(batch.position)))
    heads = trained_heads(module.config)

    def add(sums: tuple[Params, ModelSums], example: Example, counts: Counts) -> tuple[Params, ModelSums]:
        def loss(params: Params) -> tuple[Float[Array, ""], ModelSums]:
            output = cast(BackboneOutput, module.apply({"params": params}, *example.images, head=tuple(head.name for head in heads)))
            sums = loss_sums(output, example)
            return mean_model_loss(sums, counts, sets).total, sums

        return jax.tree.map(jnp.add, sums, jax.grad(loss, has_aux=True)(state.params))

    views = jax.eval_shape(lambda: example_of(batch)).images
    zeros = jax.tree.map(jnp.zeros_like, state.params), ModelSums.zeros(len(views), any(CAMERAS in head.outputs for head in heads))
    sums, counts = accumulate(add, zeros, batch, micro_batches, example_of, total)
    gradient, sums_of_loss = total(sums)
    loss = mean_model_loss(sums_of_loss, counts, sets)
    model = update(recipe, state.model, gradient, loss, state.step)
    return BackboneState(state.step + 1, model), {MODEL: jax.tree.map(lambda value: value[None], loss)}


def backbone_errors(params: Params, batch: Batch, *, module: MultiViewModel, example_of: ExampleOf) -> dict[str, Float[Array, "1 B V"]]:
    """The normalised point error of each set and view: DUSt3R's regression loss of that set alone; NaN where nothing is valid."""
    example = example_of(batch)
    predicted = pointmaps(module, params, example.images)

    def of_set(item: tuple[tuple[Pointmap, ...], Targets]) -> Float[Array, " V"]:
        preds, targets = jax.tree.map(lambda leaf: leaf[None], item)
        sums = confidence_sums(tuple(map(planes_of, preds)), normalised_truth(targets))
        return jnp.stack([total / count for total, count in zip(sums.regressions, valid_counts(targets), strict=True)])

    return {MODEL: jax.vmap(of_set)((predicted, example.targets))[None]}


def pointmaps(module: MultiViewModel, params: Params, images: tuple[Float[Array, "B _H _W 3"], ...]) -> tuple[Pointmap, ...]:
    """The model's own pointmaps for a batch."""
    output = cast(BackboneOutput, module.apply({"params": params}, *images, head=POINTMAP))
    return output.pointmaps
