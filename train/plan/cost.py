"""What a step does and, from a chip's published peaks, how long that takes at least."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from train.plan.chips import Chip
from train.plan.count import Count, count
from train.plan.shapes import Arguments, example_of, intermediates, tree_bytes
from train.step.probe_step import ProbeTask, captured_tokens, layer_gradient, update_layer
from und3rstand_jax.loss import PairLoss, Truth, normalised_truth

_SCALAR: Any = jax.ShapeDtypeStruct((), jnp.float32)


@dataclasses.dataclass(frozen=True)
class Part:
    """One part of one device's step. `exchanged` are the bytes it sends to other devices."""

    name: str
    count: Count
    exchanged: float = 0.0


def step_parts(task: ProbeTask, arguments: Arguments, devices: int) -> list[Part]:
    """A device's step in parts, each counted in its own program, all rounds of it.

    The updates' traffic is the state, read and written once. Gradients are added up in a ring of all devices, which sends each of them
    twice but for the devices' own share.
    """
    # Every implementation of attention makes the same products, and this one has no kernel that hides them.
    task = dataclasses.replace(task, module=task.module.clone(attention="xla"))
    made = intermediates(task, arguments)
    pairs = count(lambda part: _truth(task, part), made.part)
    if task.accumulate > 1:
        # Taken in parts, examples are made twice: the valid pixels of all parts are counted before the first gradient.
        pairs += count(functools.partial(example_of, task), made.part)
    backbone = count(functools.partial(captured_tokens, task), arguments.backbone, made.example)
    probes, updates = Count(), Count(traffic=2 * tree_bytes(arguments.state))
    for name, group in task.named_groups.items():
        state, tokens = arguments.state.groups[name], made.tokens[name]
        layers = state.frozen_at.shape[0]
        layer, own = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), (state, tokens))
        read = functools.partial(layer_gradient, task, group)
        probes += count(read, layer.params, own, made.truth, (_SCALAR, _SCALAR)).times(layers)
        update = functools.partial(update_layer, task.recipe)
        updates += count(update, layer, layer.params, PairLoss(*[_SCALAR] * 5), arguments.state.step).times(layers)
    gradients = tree_bytes([group.params for group in arguments.state.groups.values()])
    parts = [
        Part("examples: rendering, colours", pairs.times(task.accumulate)),
        Part("backbone, forward", backbone.times(task.accumulate)),
        Part("probes, forward and backward", probes.times(task.accumulate)),
        Part("updates of the probes", updates),
    ]
    return [*parts, Part("gradients of all devices", Count(), 2 * (devices - 1) / devices * gradients)] if devices > 1 else parts


def seconds(part: Part, chip: Chip) -> float:
    """The least time a part takes: the longest of its products, its traffic and its exchange. Elementwise arithmetic is left out:
    no rate of it is published for TPUs.
    """
    products = sum(flops / chip.rate(*kind) for kind, flops in part.count.products.items())
    return max(products, part.count.traffic / chip.bandwidth, part.exchanged / chip.interconnect)


def _truth(task: ProbeTask, part: Any) -> tuple[Any, Truth]:
    example = example_of(task, part)
    return example.images, normalised_truth(*example.targets)
