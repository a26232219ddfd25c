"""The loops inside a step: one over micro-batches, which accumulates gradients, and one over stacked layers, a few side by side.

Each gives the same result as computing everything at once, but needs the memory of one part only.
"""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Bool

from und3rstand_jax.data.example import Example
from und3rstand_jax.data.records import Batch
from und3rstand_jax.geometry.loss import Counts, valid_counts
from und3rstand_jax.train.step.optimizer import Total

ExampleOf = Callable[[Batch], Example]
"""Renders a batch and changes its colours: `data.example.assemble` with everything but the batch given."""

Sums = TypeVar("Sums")
Carry = TypeVar("Carry")
Inputs = TypeVar("Inputs")
Outputs = TypeVar("Outputs")
Gradient = TypeVar("Gradient")

_LANES = 128
"""A TPU stores arrays in tiles of 8 × 128 numbers."""


def counted_example(batch: Batch, example_of: ExampleOf, total: Total) -> tuple[Example, Counts]:
    """This device's examples, and the counts of all devices."""
    example = example_of(batch)
    return example, total(valid_counts(example.targets))


def accumulate(
    add: Callable[[Sums, Example, Counts], Sums], zeros: Sums, batch: Batch, micro_batches: int, example_of: ExampleOf, total: Total
) -> tuple[Sums, Counts]:
    """Sums over this device's micro-batches.

    The loss is a mean over the valid pixels of the whole batch, so these are counted first. That makes every example twice, which takes
    time but no memory.

    Args:
        add: (sums so far, examples of a micro-batch, counts) -> sums with that micro-batch.
        zeros: sums of nothing.
        batch: this device's share, whose number of sets is a multiple of `micro_batches`.
        micro_batches: number of micro-batches; with one, examples are made once.
        example_of: see `ExampleOf`.
        total: sums over devices.

    Returns:
        The sums of this device, and the counts of all devices.
    """
    if micro_batches == 1:
        example, counts = counted_example(batch, example_of, total)
        return add(zeros, example, counts), counts
    parts = jax.tree.map(lambda leaf: leaf.reshape(micro_batches, -1, *leaf.shape[1:]), batch)
    counts = total(jax.tree.map(jnp.sum, lax.map(lambda part: valid_counts(example_of(part).targets), parts)))
    sums, _ = lax.scan(lambda sums, part: (add(sums, example_of(part), counts), None), zeros, parts)
    return sums, counts


def over_layers(
    fn: Callable[[Carry, Inputs], tuple[Carry, Outputs]], carry: Carry, inputs: Inputs, side_by_side: int
) -> tuple[Carry, Outputs]:
    """Maps `fn(carry of a layer, inputs of a layer) -> (new carry, output)` over the leading axis of both trees.

    The stacked carry is updated in place: unlike with `vmap` or `lax.map`, there is never a second copy of it in memory, nor the
    intermediates of more than `side_by_side` layers. The number of layers computed at once is the largest divisor of their total
    number that is at most `side_by_side`.
    """
    layers = jax.tree.leaves(carry)[0].shape[0]
    width = max(divisor for divisor in range(1, max(side_by_side, 1) + 1) if layers % divisor == 0)
    mapped = jax.vmap(fn) if width > 1 else _one_at_a_time(fn)

    def run(carry: Carry, start: jax.Array) -> tuple[Carry, Outputs]:
        def part(leaf: jax.Array) -> jax.Array:
            return lax.dynamic_slice_in_dim(leaf, start, width)

        own = jax.tree.map(part, carry), jax.tree.map(part, inputs)
        new, output = _unfused(mapped, start >= 0, *own)
        return jax.tree.map(lambda whole, piece: lax.dynamic_update_slice_in_dim(whole, piece, start, 0), carry, new), output

    carry, outputs = lax.scan(run, carry, jnp.arange(0, layers, width))
    return carry, jax.tree.map(lambda leaf: leaf.reshape(layers, *leaf.shape[2:]), outputs)


def in_rows(gradient: Gradient) -> Gradient:
    """The same gradient, its matrices laid out in memory row by row, as a TPU stores parameters whose sides are multiples of 128.

    Where the number of tokens is not such a multiple, XLA prefers a transposed gradient, and with it a transposed state, which it would
    have to copy before the loop over layers and after it: twice the memory.
    """

    def constrained(matrix: Array) -> Array:
        return with_layout_constraint(matrix, Layout(major_to_minor=tuple(range(matrix.ndim))))

    def laid_out(leaf: Array) -> Array:
        if leaf.ndim < 2 or any(side % _LANES for side in leaf.shape[-2:]):
            return leaf
        return lax.platform_dependent(leaf, tpu=constrained, default=lambda matrix: matrix)

    return jax.tree.map(laid_out, gradient)


def _one_at_a_time(fn: Callable[[Carry, Inputs], tuple[Carry, Outputs]]) -> Callable[[Carry, Inputs], tuple[Carry, Outputs]]:
    """Like `vmap` over a leading axis of one, but without batched matrix products."""

    def alone(carry: Carry, inputs: Inputs) -> tuple[Carry, Outputs]:
        return jax.tree.map(lambda leaf: leaf[None], fn(*jax.tree.map(lambda leaf: leaf[0], (carry, inputs))))

    return alone


def _unfused(
    fn: Callable[[Carry, Inputs], tuple[Carry, Outputs]], always: Bool[Array, ""], carry: Carry, inputs: Inputs
) -> tuple[Carry, Outputs]:
    """`fn(carry, inputs)`, not fused with what comes before and after.

    Fused, reading one layer's carry would overlap with writing the next one's, and XLA would copy the whole carry in every iteration.
    Its CPU compiler drops `lax.optimization_barrier` too early to help, but it never fuses across a conditional.
    """
    shapes = jax.eval_shape(fn, carry, inputs)
    return lax.cond(always, fn, lambda *_: jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes), carry, inputs)
