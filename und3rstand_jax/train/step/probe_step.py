"""The training step of all probes, and their validation error.

    batch ─▶ example ─▶ backbone (once, no gradient) ─▶ tokens of every layer ─▶ for each layer: probe, loss, gradient, update

The step is written for one device's share of the batch. `total` sums over devices; with the identity in its place, the same function
trains on one device without any parallel machinery.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from und3rstand_jax.data.example import Example
from und3rstand_jax.data.records import Batch
from und3rstand_jax.geometry.loss import Counts, SetLoss, SetSums, Truth, confidence_sums, mean_loss, normalised_truth
from und3rstand_jax.geometry.metrics import set_errors
from und3rstand_jax.model.config import ModelConfig
from und3rstand_jax.model.module import MultiViewModel
from und3rstand_jax.model.output import BackboneOutput
from und3rstand_jax.model.stack import Params
from und3rstand_jax.probes.config import ProbeConfig, ProbeGroup
from und3rstand_jax.probes.probes import by_token, init_probes, read_layer, read_planes
from und3rstand_jax.train.step.loops import ExampleOf, accumulate, counted_example, in_rows, over_layers
from und3rstand_jax.train.step.optimizer import Recipe, Total, TrainState, initial_train_state, update

Tokens = tuple[Float[Array, "... B _N _C"], ...]
"""A layer's tokens of every view, (B, N, C) each; those of all layers of a group have a leading axis L."""

LayerGradient = tuple[Params, SetSums]
"""A probe's gradient, and the sums that make up its loss; stacked, every leaf (L, …). Both add up over micro-batches and devices."""


class ProbesState(NamedTuple):
    """The whole state: steps done, and each group's probes under its name in the parameter tree."""

    step: Int[Array, ""]
    groups: dict[str, TrainState]

    @property
    def params(self) -> dict[str, Params]:
        """The probes' parameter tree."""
        return {name: group.params for name, group in self.groups.items()}

    @property
    def frozen_at(self) -> dict[str, ArrayLike]:
        """For each group, the step at which each probe was frozen, (L,); −1 while it trains."""
        return {name: group.frozen_at for name, group in self.groups.items()}


def initial_state(config: ProbeConfig, recipe: Recipe, seed: int) -> ProbesState:
    """The state before the first step. A probe's parameters depend only on its layer and the seed."""
    groups = {
        name: jax.vmap(lambda params: initial_train_state(recipe, params))(params) for name, params in init_probes(config, seed).items()
    }
    return ProbesState(jnp.zeros((), jnp.int32), groups)


def probe_step(
    state: ProbesState,
    trunk: Params,
    batch: Batch,
    *,
    module: MultiViewModel,
    probes: ProbeConfig,
    recipe: Recipe,
    example_of: ExampleOf,
    total: Total,
    micro_batches: int = 1,
    side_by_side: int = 1,
    precision: lax.Precision = lax.Precision.HIGHEST,
) -> tuple[ProbesState, dict[str, SetLoss]]:
    """One step on this device's share of the batch.

    Args:
        state: the state of all probes, the same on every device.
        trunk: the backbone's parameters; those of its heads are not read.
        batch: this device's sets.
        module: the backbone.
        probes: the probes on it.
        recipe: how they are updated.
        example_of: makes model inputs and ground truth from a batch.
        total: sums a tree's leaves over all devices.
        micro_batches: number of parts in which the share is computed, one after the other.
        side_by_side: largest number of layers to compute at once.
        precision: precision of the probes' matrix products.

    Returns:
        The next state, and for each group the loss over the whole batch, every entry (L,).
    """
    truth: Truth | None = None
    inputs: Mapping[str, Tokens | LayerGradient]
    if micro_batches == 1:
        example, counts = counted_example(batch, example_of, total)
        inputs, truth = captured_tokens(module, probes, trunk, example), truth_by_token(probes, example)
    else:
        views = jax.eval_shape(lambda: example_of(batch)).images
        zeros = {
            name: (jax.tree.map(jnp.zeros_like, group.params), SetSums.zeros(len(views), group.frozen_at.shape))
            for name, group in state.groups.items()
        }
        add = functools.partial(
            _add_gradients, state.params, trunk, module=module, probes=probes, side_by_side=side_by_side, precision=precision
        )
        inputs, counts = accumulate(add, zeros, batch, micro_batches, example_of, total)

    new, losses = {}, {}
    for name, group in named_groups(probes).items():

        def train_layer(layer: TrainState, own: Tokens | LayerGradient, group: ProbeGroup = group) -> tuple[TrainState, SetLoss]:
            # Without micro-batches a layer's gradient is computed here, just before its update: only one is ever in memory.
            computed = own if truth is None else layer_gradient(group, probes, precision, layer.params, cast(Tokens, own), truth, counts)
            gradient, sums = total(cast(LayerGradient, computed))
            loss = mean_loss(sums, counts)
            return update(recipe, layer, in_rows(gradient), loss, state.step), loss

        new[name], losses[name] = over_layers(train_layer, state.groups[name], inputs[name], side_by_side)
    return ProbesState(state.step + 1, new), losses


def _add_gradients(
    params: Mapping[str, Params],
    trunk: Params,
    sums: dict[str, LayerGradient],
    example: Example,
    counts: Counts,
    *,
    module: MultiViewModel,
    probes: ProbeConfig,
    side_by_side: int,
    precision: lax.Precision,
) -> dict[str, LayerGradient]:
    """Adds every layer's gradient on a micro-batch to the sums, by group."""
    tokens, truth = captured_tokens(module, probes, trunk, example), truth_by_token(probes, example)
    added = {}
    for name, group in named_groups(probes).items():

        def add_layer(sums: LayerGradient, layer: tuple[Params, Tokens], group: ProbeGroup = group) -> tuple[LayerGradient, None]:
            return jax.tree.map(jnp.add, sums, layer_gradient(group, probes, precision, *layer, truth, counts)), None

        added[name], _ = over_layers(add_layer, sums[name], (params[name], tokens[name]), side_by_side)
    return added


def layer_errors(
    params: dict[str, Params],
    trunk: Params,
    batch: Batch,
    *,
    module: MultiViewModel,
    probes: ProbeConfig,
    example_of: ExampleOf,
    precision: lax.Precision = lax.Precision.HIGHEST,
) -> dict[str, Float[Array, "_L B V"]]:
    """For each group, the shift- and scale-invariant error of its layers on each set and view, in the ground truth's unit."""
    example = example_of(batch)
    tokens = captured_tokens(module, probes, trunk, example)
    sizes = tuple((target.valid.shape[1], target.valid.shape[2]) for target in example.targets)
    errors = {}
    for name, group in named_groups(probes).items():

        def measure(layer: tuple[Params, *tuple[Array, ...]], group: ProbeGroup = group) -> Float[Array, "B V"]:
            weights, *views = layer
            found = set_errors(read_layer(weights, views, sizes, group, probes, precision), example.targets)
            return jnp.stack([view.invariant for view in found], axis=-1)

        errors[name] = lax.map(measure, (params[name], *tokens[name]))
    return errors


def named_groups(probes: ProbeConfig) -> dict[str, ProbeGroup]:
    """The groups under their names in the parameter tree."""
    return {f"group{number}": group for number, group in enumerate(probes.groups)}


def trunk_params(params: Params, config: ModelConfig) -> Params:
    """A backbone's parameters without those of its heads: probes never read these, so they need not be on every device."""
    return {name: part for name, part in params.items() if name in config.trunk}


def captured_tokens(module: MultiViewModel, probes: ProbeConfig, trunk: Params, example: Example) -> dict[str, Tokens]:
    """For each group, the patches' tokens (L, B, N, C) of its layers, for every view, in the dtype in which the trunk computes.

    A VGGT's residual streams are always float32. With a bfloat16 trunk, keeping them so would take most of the step's memory, for digits
    that such a trunk does not have.
    """
    rounded = module.clone(capture_dtype=module.dtype)
    output = cast(BackboneOutput, rounded.apply({"params": trunk}, *example.images, capture=probes.layer_ids, head=False))

    def stacked(layers: Sequence[str], view: int) -> Float[Array, "L B N C"]:
        return jnp.stack([output.patches(layer)[view].astype(module.dtype) for layer in layers])

    return {
        name: tuple(stacked(group.layer_ids, view) for view in range(len(example.images))) for name, group in named_groups(probes).items()
    }


def truth_by_token(probes: ProbeConfig, example: Example) -> Truth:
    """The truth that probes' predictions are compared with, (B, N, p²): rearranged once into the probes' layout."""
    return jax.tree.map(lambda plane: by_token(plane, probes.patch_size), normalised_truth(example.targets))


def layer_gradient(
    group: ProbeGroup, probes: ProbeConfig, precision: lax.Precision, params: Params, tokens: Tokens, truth: Truth, counts: Counts
) -> LayerGradient:
    """One probe's gradient on these sets; `truth` comes from `truth_by_token`."""

    def loss(params: Params) -> tuple[Float[Array, ""], SetSums]:
        sums = confidence_sums(read_planes(params, tokens, group, probes, precision), truth)
        return mean_loss(sums, counts).total, sums

    return jax.grad(loss, has_aux=True)(params)
