"""Runs what is written for one layer over stacked layers, a few side by side and the rest one after the other."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

Carry = TypeVar("Carry")


Inputs = TypeVar("Inputs")


def over_layers(fn: Callable[[Carry, Inputs], tuple[Carry, Any]], carry: Carry, inputs: Inputs, side_by_side: int) -> tuple[Carry, Any]:
    """Maps `fn(carry of a layer, inputs of a layer) -> (new carry, output)` over the leading axis of both trees.

    The stacked carry is written in place, layer by layer: unlike with `vmap` or `lax.map`, neither a second copy of it nor more than
    `side_by_side` layers' intermediates are ever in memory. As many layers run at once as the largest number up to `side_by_side`
    that divides theirs.
    """
    layers = jax.tree.leaves(carry)[0].shape[0]
    width = max(divisor for divisor in range(1, max(side_by_side, 1) + 1) if layers % divisor == 0)
    mapped = jax.vmap(fn) if width > 1 else _unmapped(fn)

    def run(carry: Carry, start: jax.Array) -> tuple[Carry, Any]:
        def part(leaf: jax.Array) -> jax.Array:
            return lax.dynamic_slice_in_dim(leaf, start, width)

        own = jax.tree.map(part, carry), jax.tree.map(part, inputs)
        new, output = _walled(mapped, start >= 0, *own)
        return jax.tree.map(lambda whole, piece: lax.dynamic_update_slice_in_dim(whole, piece, start, 0), carry, new), output

    carry, outputs = lax.scan(run, carry, jnp.arange(0, layers, width))
    return carry, jax.tree.map(lambda leaf: leaf.reshape(layers, *leaf.shape[2:]), outputs)


def _unmapped(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`vmap` over a leading axis of one, without batched products."""

    def alone(*args: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf[None], fn(*jax.tree.map(lambda leaf: leaf[0], args)))

    return alone


def _walled(fn: Callable[..., Any], always: jax.Array, *args: Any) -> Any:
    """`fn(*args)`, not fused with what comes before and after.

    Fused, reading a layer's carry would mix with writing the next one, and XLA would copy the whole carry in every round. Its CPU
    compiler drops `lax.optimization_barrier` too early to help; it never fuses across a conditional.
    """
    shapes = jax.eval_shape(fn, *args)
    return lax.cond(always, fn, lambda *_: jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes), *args)
