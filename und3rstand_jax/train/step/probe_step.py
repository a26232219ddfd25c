"""The frozen backbone's parameters as the step takes them.

The training step of all probes.

    batch ─▶ example ─▶ backbone (once, no gradient) ─▶ tokens of every layer ─▶ for each layer: probe, loss, gradient, update

The step is written for one device's share of the batch. `total` adds up over devices; with the identity in its place, the same
function trains on one device without any parallel machinery.

The test metric of every layer's probe on a batch, for validation.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array

from und3rstand_jax.data.example import Example, assemble
from und3rstand_jax.data.records import Batch, Shape
from und3rstand_jax.data.synthetic.config import SyntheticConfig
from und3rstand_jax.geometry.loss import PairLoss, PairSums, Truth, confidence_sums, mean_loss, normalised_truth, valid_counts
from und3rstand_jax.geometry.metrics import pair_errors
from und3rstand_jax.model.dust3r import DUSt3R
from und3rstand_jax.model.output import BackboneOutput, ImageSizes, pair
from und3rstand_jax.probes.config import ProbeConfig, ProbeGroup
from und3rstand_jax.probes.probes import read_group
from und3rstand_jax.train.step.layer_loop import over_layers
from und3rstand_jax.train.step.optimizer import NOT_FROZEN, GroupState, ProbesState, Recipe, optimizer


def trunk_params(params: Mapping[str, Any]) -> dict[str, Any]:
    """Encoder and decoder of a DUSt3R's parameter tree. Probes read its layers, never the heads: these need not lie on every device."""
    return {name: part for name, part in params.items() if not name.startswith("head")}


Total = Callable[[Any], Any]


Tokens = tuple[Array, Array]
"""A layer's tokens of both views, (B, N, C) each; with a leading axis L those of a group's layers."""


@dataclasses.dataclass(frozen=True)
class ProbeTask:
    """Everything about the step that is fixed when it is compiled.

    Attributes:
        module: the backbone.
        probes: the probes on it.
        recipe: how they are updated.
        shape: (height, width) of both views.
        scenes: how scenes are rendered; None if every pair comes from files.
        colour_jitter: whether colours are changed at random.
        seed: of scenes and colours.
        accumulate: how many parts a device's share of the batch is taken in, one after the other.
        side_by_side: how many layers are computed at once.
        precision: of the probes' matrix products.
    """

    module: DUSt3R
    probes: ProbeConfig
    recipe: Recipe
    shape: Shape
    scenes: SyntheticConfig | None = SyntheticConfig()
    colour_jitter: bool = False
    seed: int = 0
    accumulate: int = 1
    side_by_side: int = 1
    precision: lax.Precision = lax.Precision.HIGHEST

    @property
    def named_groups(self) -> dict[str, ProbeGroup]:
        """Groups under their names in the parameter tree. Layers' names are left out: they play no part in the computation."""
        return {f"group{i}": dataclasses.replace(group, layer_ids=()) for i, group in enumerate(self.probes.groups)}


def probe_step(task: ProbeTask, total: Total, state: ProbesState, backbone: Any, batch: Batch) -> tuple[ProbesState, dict[str, PairLoss]]:
    """One step on this device's share of the batch.

    Args:
        task: static.
        total: adds a tree's leaves up over all devices.
        state: of all probes, the same on every device.
        backbone: the backbone's parameters.
        batch: this device's pairs, as many as `task.accumulate` divides.

    Returns:
        The next state, and of each group the loss over the whole batch, every entry (L,).
    """
    if task.accumulate == 1:
        example = assemble(batch, task.seed, task.shape, task.scenes, task.colour_jitter)
        counts = total(valid_counts(*example.targets))
        groups, losses = _fused(task, total, state, backbone, example, counts)
    else:
        groups, losses = _accumulated(task, total, state, backbone, batch)
    return ProbesState(state.step + 1, groups), losses


def _fused(task: ProbeTask, total: Total, state: ProbesState, backbone: Any, example: Example, counts: Any) -> Any:
    """Gradient and update of a layer before the next layer's: no more than one layer's gradient is ever held."""
    tokens, truth = captured_tokens(task, backbone, example), normalised_truth(*example.targets)
    groups, losses = {}, {}
    for name, group in task.named_groups.items():

        def train_layer(layer: GroupState, own: Tokens, group: ProbeGroup = group) -> tuple[GroupState, PairLoss]:
            gradient, sums = layer_gradient(task, group, layer.params, own, truth, counts)
            gradient, sums = total((gradient, sums))
            loss = mean_loss(sums, counts)
            return update_layer(task.recipe, layer, gradient, loss, state.step), loss

        groups[name], losses[name] = over_layers(train_layer, state.groups[name], tokens[name], task.side_by_side)
    return groups, losses


def _accumulated(task: ProbeTask, total: Total, state: ProbesState, backbone: Any, batch: Batch) -> Any:
    """Gradients are added up over parts of the batch first. The loss is a mean over all parts' valid pixels, which are counted first."""
    parts = jax.tree.map(lambda leaf: leaf.reshape(task.accumulate, -1, *leaf.shape[1:]), batch)

    def example_of(part: Batch) -> Example:
        return assemble(part, task.seed, task.shape, task.scenes, task.colour_jitter)

    counts = total(jax.tree.map(jnp.sum, lax.map(lambda part: valid_counts(*example_of(part).targets), parts)))

    def add_part(sofar: Any, part: Batch) -> tuple[Any, None]:
        example = example_of(part)
        tokens, truth = captured_tokens(task, backbone, example), normalised_truth(*example.targets)
        added = {}
        for name, group in task.named_groups.items():

            def add_layer(held: Any, own: Any, group: ProbeGroup = group) -> tuple[Any, None]:
                params, views = own
                new = layer_gradient(task, group, params, views, truth, counts)
                return jax.tree.map(jnp.add, held, new), None

            inputs = (state.groups[name].params, tokens[name])
            added[name], _ = over_layers(add_layer, sofar[name], inputs, task.side_by_side)
        return added, None

    def nothing(group: GroupState) -> Any:
        return jax.tree.map(jnp.zeros_like, group.params), PairSums(*[jnp.zeros(group.frozen_at.shape)] * 4)

    sums, _ = lax.scan(add_part, {name: nothing(group) for name, group in state.groups.items()}, parts)
    groups, losses = {}, {}
    for name, group in state.groups.items():

        def update(layer: GroupState, own: Any) -> tuple[GroupState, PairLoss]:
            gradient, layer_sums = total(own)
            loss = mean_loss(layer_sums, counts)
            return update_layer(task.recipe, layer, gradient, loss, state.step), loss

        groups[name], losses[name] = over_layers(update, group, sums[name], task.side_by_side)
    return groups, losses


def captured_tokens(task: ProbeTask, backbone: Any, example: Example) -> dict[str, Tokens]:
    """Of each group, the tokens (L, B, N, C) of its layers, of both views."""
    applied = task.module.apply({"params": backbone}, *example.images, capture=task.probes.layer_ids, head=False)
    output = cast(BackboneOutput, applied)
    return {
        f"group{i}": (
            jnp.stack([output[layer][0] for layer in group.layer_ids]),
            jnp.stack([output[layer][1] for layer in group.layer_ids]),
        )
        for i, group in enumerate(task.probes.groups)
    }


def layer_gradient(
    task: ProbeTask, group: ProbeGroup, params: Any, tokens: Tokens, truth: Truth, counts: tuple[Array, Array]
) -> tuple[Any, PairSums]:
    """One probe's gradient, and the sums its loss is made of, from these pairs; over all devices and parts both add up."""

    def loss(params: Any) -> tuple[Array, PairSums]:
        stacked = jax.tree.map(lambda leaf: leaf[None], params)
        views = [view[None] for view in tokens]
        preds = read_group(stacked, views, _sizes(truth), group, task.probes, task.precision)
        pred1, pred2 = jax.tree.map(lambda leaf: leaf[0], preds)
        sums = confidence_sums(pred1, pred2, truth)
        return mean_loss(sums, counts).total, sums

    return jax.grad(loss, has_aux=True)(params)


def update_layer(recipe: Recipe, layer: GroupState, gradient: Any, loss: PairLoss, step: Array) -> GroupState:
    """One probe's next state. A loss or gradient that is not finite freezes it, for good, at the last parameters that gave one."""
    finite = jnp.isfinite(loss.total) & jnp.isfinite(optax.tree.norm(gradient))
    trains = layer.frozen_at == NOT_FROZEN
    updates, moved = optimizer(recipe).update(gradient, layer.optimizer, layer.params)

    def choose(new: Any, bad: Any, frozen: Any) -> Any:
        return jax.tree.map(lambda n, b, f: jnp.where(trains, jnp.where(finite, n, b), f), new, bad, frozen)

    params = choose(optax.apply_updates(layer.params, updates), layer.last_good, layer.params)
    last_good = choose(layer.params, layer.last_good, layer.last_good)
    frozen_at = jnp.where(trains & ~finite, step, layer.frozen_at)
    return GroupState(params, last_good, choose(moved, layer.optimizer, layer.optimizer), frozen_at)


def _sizes(truth: Truth) -> ImageSizes:
    return pair((mask.shape[1], mask.shape[2]) for mask in truth.valid)


def layer_errors(task: ProbeTask, params: Mapping[str, Any], backbone: Any, batch: Batch) -> dict[str, jax.Array]:
    """Of each group the test metric of its layers on each pair and view, (L, B, 2)."""
    example = assemble(batch, task.seed, task.shape, task.scenes, task.colour_jitter)
    tokens = captured_tokens(task, backbone, example)
    errors = {}
    for name, group in task.named_groups.items():

        def measure(own: Any, group: ProbeGroup = group) -> jax.Array:
            weights, *views = jax.tree.map(lambda leaf: leaf[None], own)
            preds = read_group(weights, views, (task.shape, task.shape), group, task.probes, task.precision)
            pred1, pred2 = jax.tree.map(lambda leaf: leaf[0], preds)
            view1, view2 = pair_errors(pred1, pred2, *example.targets)
            return jnp.stack([view1.invariant, view2.invariant], axis=-1)

        errors[name] = lax.map(measure, (params[name], *tokens[name]))
    return errors
