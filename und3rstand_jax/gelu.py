"""The exact GELU (Hendrycks and Gimpel 2016, arXiv 1606.08415) through erf, as PyTorch computes it."""

import math

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x·Φ(x), Φ the normal distribution; computed in at least float32 and returned in x's dtype."""
    # jax.nn.gelu goes through erfc, with which the pocket model's gradient took 634 ms in place of 474, on 2 CPU cores for 16 pairs.
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (0.5 * wide * (1 + lax.erf(wide * math.sqrt(0.5)))).astype(x.dtype)
