"""Scaled dot-product attention, in the implementations that JAX offers for each platform, and its weights."""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from und3rstand_jax.errors import UserError

AttentionImplementation = Literal["auto", "per_head", "xla", "cudnn"]


def attend(
    query: Float[Array, "B N H D"],
    key: Float[Array, "B M H D"],
    value: Float[Array, "B M H D"],
    implementation: AttentionImplementation,
    precision: lax.Precision,
) -> Float[Array, "B N H D"]:
    """softmax(q kᵀ / √D) v for every head.

    `implementation` is "xla" (one batched program), "per_head" (heads one after the other, so that on a CPU a head's
    attention weights stay in the cache), "cudnn" (fused; NVIDIA GPUs, float16 or bfloat16 only) or "auto": per_head
    on a CPU, xla elsewhere.

    Raises:
        UserError: cuDNN is asked for in float32, which it does not compute.
    """
    if implementation not in get_args(AttentionImplementation):
        raise UserError(f"attention must be one of {', '.join(get_args(AttentionImplementation))}; found {implementation!r}")
    if implementation == "cudnn" and query.dtype == jnp.float32:
        raise UserError("attention='cudnn' computes in bfloat16; load the model with dtype='bfloat16', or use attention='xla'")
    if implementation == "auto":
        return lax.platform_dependent(
            query,
            key,
            value,
            cpu=lambda q, k, v: _per_head(q, k, v, precision),
            default=lambda q, k, v: _batched(q, k, v, "xla", precision),
        )
    if implementation == "per_head":
        return _per_head(query, key, value, precision)
    return _batched(query, key, value, implementation, precision)


def attention_weights(
    query: Float[Array, "B N H D"], key: Float[Array, "B M H D"], heads: slice, precision: lax.Precision
) -> Float[Array, "B h N M"]:
    """softmax(q kᵀ / √D) of the h heads that `heads` keeps, in float32 whatever the dtype of q and k.

    For looking at: `attend` mixes with weights of its own, most of which never exist as one array.
    """
    logits = jnp.einsum("bnhd,bmhd->bhnm", query[:, :, heads], key[:, :, heads], precision=precision, preferred_element_type=jnp.float32)
    return jax.nn.softmax(logits * query.shape[-1] ** -0.5, axis=-1)


def _batched(query: Array, key: Array, value: Array, implementation: Literal["xla", "cudnn"], precision: lax.Precision) -> Array:
    # jax.nn.dot_product_attention has no precision argument; it takes the one in force while it is traced.
    with jax.default_matmul_precision(precision.name.lower()):
        return jax.nn.dot_product_attention(query, key, value, implementation=implementation)


def _per_head(query: Array, key: Array, value: Array, precision: lax.Precision) -> Array:
    batch, length, heads, dim = query.shape

    def one_head(q: Array, k: Array, v: Array) -> Array:
        logits = jnp.matmul(q * dim**-0.5, k.T, precision=precision, preferred_element_type=jnp.float32)
        # Normalising after the product with v divides D numbers a token instead of M.
        weights = jnp.exp(logits - logits.max(axis=-1, keepdims=True))
        mixed = jnp.matmul(weights.astype(v.dtype), v, precision=precision, preferred_element_type=jnp.float32)
        return (mixed / weights.sum(axis=-1, keepdims=True)).astype(q.dtype)

    def heads_first(tokens: Array) -> Array:
        return tokens.swapaxes(1, 2).reshape(batch * heads, tokens.shape[1], dim)

    mixed = lax.map(lambda qkv: one_head(*qkv), (heads_first(query), heads_first(key), heads_first(value)))
    return mixed.reshape(batch, heads, length, dim).swapaxes(1, 2)
