"""Scaled dot-product attention with two-dimensional rotary positions, and its weights.

Rotary position embedding is Su et al. 2021's, in two dimensions as in CroCo v2 (Weinzaepfel et al. 2023). Attention itself
has several implementations, because none is the fastest on every platform.
"""

import functools
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from und3rstand_jax.support.errors import OptionError
from und3rstand_jax.support.option_values import AttentionImplementation

Rotation = tuple[Float[Array, "_ 2 _"], Float[Array, "_ 2 _"]]
"""Cosines and sines of one view, each (N, 2, head_dim / 4): token, axis (y, x), frequency."""


_MOST_TOGETHER = 2**30
_MOST_OF_HEAD = 2**24
"""Bytes of attention weights at once: of all heads on accelerators; of one head on a CPU, whose cache they should not exceed by far."""


def grid_positions(height: int, width: int) -> Int[np.ndarray, "{height}*{width} 2"]:
    """Integer (y, x) of every token of a height × width grid, in row-major order."""
    return np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij"), axis=-1).reshape(-1, 2)


def rotation(grid: tuple[int, int], head_dim: int, base: float, special_tokens: int = 0) -> Rotation:
    """Cosines and sines that rotate a head's channels by the token's place in a (rows, columns) grid.

    Half of the channels (D' = head_dim / 2) turn with y, half with x, by position · base^(−2i / D'). The angles are
    computed in float32 whatever the trunk's dtype: bfloat16 cannot distinguish neighbouring positions.

    Special tokens precede the patch tokens and are not rotated; if there are any, grid positions are counted from 1.
    """
    half = head_dim // 2
    frequencies = jnp.float32(base) ** (-jnp.arange(0, half, 2, dtype=jnp.float32) / half)
    places = grid_positions(*grid)
    if special_tokens:
        places = np.concatenate([np.zeros((special_tokens, 2), places.dtype), places + 1])
    angles = jnp.asarray(places, jnp.float32)[..., None] * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def rotate(tokens: Float[Array, "B N H D"], rotation: Rotation) -> Float[Array, "B N H D"]:
    """Rotates queries or keys by the positions of their tokens; the result keeps the tokens' dtype."""
    cos, sin = (table[None, :, None, :, :] for table in rotation)
    parts = tokens.astype(jnp.float32).reshape(*tokens.shape[:-1], 2, 2, -1)  # axis (y, x), pair member, frequency
    first, second = parts[..., 0, :], parts[..., 1, :]
    rotated = jnp.stack([first * cos - second * sin, second * cos + first * sin], axis=-2)
    return rotated.reshape(tokens.shape).astype(tokens.dtype)


def attend(
    query: Float[Array, "B N H D"],
    key: Float[Array, "B M H D"],
    value: Float[Array, "B M H D"],
    implementation: AttentionImplementation,
    precision: lax.Precision,
) -> Float[Array, "B N H D"]:
    """softmax(q kᵀ / √D) v for every head.

    `implementation` is "xla" (one batched program), "per_head" (one head after another, and for long sequences some queries at a time, so
    that on a CPU their attention weights stay in the cache), "cudnn" (fused; NVIDIA GPUs, float16 or bfloat16 only) or "auto": per_head on
    a CPU, cudnn in half precision on an NVIDIA GPU whose cuDNN has a kernel for these shapes, otherwise xla, or per_head if the weights
    of all heads together would take more than a gigabyte. "auto" is resolved when the program is lowered, for its target platform.

    Raises:
        OptionError: there is no such implementation, or it is "cudnn" for float32 inputs, which cuDNN does not support.
    """
    if implementation not in get_args(AttentionImplementation):
        raise OptionError(f"attention must be one of {', '.join(get_args(AttentionImplementation))}; found {implementation!r}")
    if implementation == "cudnn" and query.dtype == jnp.float32:
        raise OptionError("attention='cudnn' computes in bfloat16; load the model with dtype='bfloat16', or use attention='xla'")
    if implementation == "auto":
        size = 4 * len(query) * query.shape[2] * query.shape[1] * key.shape[1]
        fallback: AttentionImplementation = "xla" if size <= _MOST_TOGETHER else "per_head"
        return lax.platform_dependent(
            query,
            key,
            value,
            cpu=lambda q, k, v: _per_head(q, k, v, precision),
            cuda=lambda q, k, v: attend(q, k, v, "cudnn" if _cudnn_has_kernel(q, k, v) else fallback, precision),
            default=lambda q, k, v: attend(q, k, v, fallback, precision),
        )
    if implementation == "per_head":
        return _per_head(query, key, value, precision)
    return _batched(query, key, value, implementation, precision)


def attention_scores(
    query: Float[Array, "B N H D"], key: Float[Array, "B M H D"], precision: lax.Precision, heads: slice = slice(None)
) -> Float[Array, "B h N M"]:
    """q kᵀ / √D of the h heads that `heads` keeps, in float32 whatever the dtype of q and k.

    For inspection and edits: `attend` computes its own, most of which never exist as one array.
    """
    products = jnp.einsum("bnhd,bmhd->bhnm", query[:, :, heads], key[:, :, heads], precision=precision, preferred_element_type=jnp.float32)
    return products * query.shape[-1] ** -0.5


def mix_by_scores(scores: Float[Array, "B H N M"], value: Float[Array, "B M H D"], precision: lax.Precision) -> Float[Array, "B N H D"]:
    """softmax(scores) v for every head: `attend` for scores that exist already because they were edited."""
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    mixed = jnp.einsum("bhnm,bmhd->bnhd", weights, value, precision=precision, preferred_element_type=jnp.float32)
    return mixed.astype(value.dtype)


def _cudnn_has_kernel(query: Float[Array, "B N H D"], key: Float[Array, "B M H D"], value: Float[Array, "B M H D"]) -> bool:
    """Whether this process has cuDNN, and a kernel in it for these shapes and types.

    JAX reports this only by an exception when it traces the call. It traces every platform's branch, so on machines without cuDNN too.
    """
    if query.dtype == jnp.float32:
        return False
    try:
        jax.eval_shape(functools.partial(jax.nn.dot_product_attention, implementation="cudnn"), query, key, value)
    except (RuntimeError, NotImplementedError, ValueError):
        return False
    return True


def _batched(
    query: Float[Array, "B N H D"],
    key: Float[Array, "B M H D"],
    value: Float[Array, "B M H D"],
    implementation: Literal["xla", "cudnn"],
    precision: lax.Precision,
) -> Float[Array, "B N H D"]:
    # jax.nn.dot_product_attention has no precision argument; it takes the one in force while it is traced.
    with jax.default_matmul_precision(precision.name.lower()):
        return jax.nn.dot_product_attention(query, key, value, implementation=implementation)


def _per_head(
    query: Float[Array, "B N H D"], key: Float[Array, "B M H D"], value: Float[Array, "B M H D"], precision: lax.Precision
) -> Float[Array, "B N H D"]:
    batch, length, heads, dim = query.shape
    # Limits the queries at a time by the memory of one head's weights: sequences over many views are long.
    parts = -(-4 * length * key.shape[1] // _MOST_OF_HEAD)
    at_once = -(-length // parts)

    def one_part(q: Float[Array, "n D"], k: Float[Array, "M D"], v: Float[Array, "M D"]) -> Float[Array, "n D"]:
        logits = jnp.matmul(q * dim**-0.5, k.T, precision=precision, preferred_element_type=jnp.float32)
        # Normalising after the product with v divides D numbers a token instead of M.
        weights = jnp.exp(logits - logits.max(axis=-1, keepdims=True))
        mixed = jnp.matmul(weights.astype(v.dtype), v, precision=precision, preferred_element_type=jnp.float32)
        return (mixed / weights.sum(axis=-1, keepdims=True)).astype(q.dtype)

    def one_head(q: Float[Array, "N D"], k: Float[Array, "M D"], v: Float[Array, "M D"]) -> Float[Array, "N D"]:
        if parts == 1:
            return one_part(q, k, v)
        padded = jnp.pad(q, ((0, parts * at_once - length), (0, 0))).reshape(parts, at_once, dim)
        return lax.map(lambda part: one_part(part, k, v), padded).reshape(-1, dim)[:length]

    def heads_first(tokens: Float[Array, "B L H D"]) -> Float[Array, "B*H L D"]:
        return tokens.swapaxes(1, 2).reshape(batch * heads, tokens.shape[1], dim)

    mixed = lax.map(lambda qkv: one_head(*qkv), (heads_first(query), heads_first(key), heads_first(value)))
    return mixed.reshape(batch, heads, length, dim).swapaxes(1, 2)
