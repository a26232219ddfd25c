"""Transformer blocks with rotary attention, as CroCo v2 (Weinzaepfel et al. 2023) and DUSt3R have them.

A block returns the residual stream after each of its steps, named as in layer ids, and those attention weights that
`captured` names (`und3rstand_jax.model.captures`). `until` ends it after the named step: what nobody reads is not traced.
"""

import dataclasses
import math
from collections.abc import Collection
from typing import cast

import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

from und3rstand_jax.model.attention import AttentionImplementation, Rotation, attend, attention_weights, rotate
from und3rstand_jax.model.captures import heads_of_weights
from und3rstand_jax.model.stack import Params

Steps = dict[str, Array]
"""Name of a step of a block -> the residual stream after it, (B, N, C), or the attention weights of that name."""


@dataclasses.dataclass(frozen=True)
class Arithmetic:
    """How every part of the trunk computes: its dtype, the precision of its matrix products, how attention is computed."""

    dtype: jnp.dtype
    precision: lax.Precision
    attention: AttentionImplementation

    def dense(self, features: int, name: str) -> nn.Dense:
        """A linear layer with bias."""
        return nn.Dense(features, dtype=self.dtype, precision=self.precision, name=name)

    def layer_norm(self, name: str) -> nn.LayerNorm:
        """LayerNorm as PyTorch computes it, epsilon 1e-6."""
        # Flax's default E[x²] − E[x]² loses digits where the residual stream has a large mean.
        return nn.LayerNorm(epsilon=1e-6, use_fast_variance=False, dtype=self.dtype, name=name)

    def captured_weights(self, step: str, query: Float[Array, "B N H D"], key: Float[Array, "B M H D"], captured: Collection[str]) -> Steps:
        """The captured weights of the attention that is `step` of its block: (B, heads, N, M) each."""
        groups = heads_of_weights(step, captured)
        return {name: attention_weights(query, key, heads, self.precision) for name, heads in groups.items()}


class EncoderBlock(nn.Module):
    """Pre-norm block: self-attention, then MLP."""

    arithmetic: Arithmetic
    num_heads: int
    mlp_ratio: int

    @nn.compact
    def __call__(self, x: Float[Array, "B N C"], rotation: Rotation, until: str = "mlp", captured: Collection[str] = ()) -> Steps:
        """The residual stream after each step up to and including `until`, and the captured weights on the way."""
        attn = SelfAttention(self.arithmetic, self.num_heads, name="attn")
        steps, update = attn(self.arithmetic.layer_norm("norm1")(x), rotation, captured, until)
        if update is None:
            return steps
        x = steps["self_attn"] = x + update
        if until == "self_attn":
            return steps
        mlp = Mlp(self.arithmetic, self.mlp_ratio, name="mlp")
        steps["mlp"] = x + mlp(self.arithmetic.layer_norm("norm2")(x))
        return steps


class DecoderBlock(nn.Module):
    """Pre-norm block: self-attention, attention to the other view, then MLP."""

    arithmetic: Arithmetic
    num_heads: int
    mlp_ratio: int

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B N C"],
        y: Float[Array, "B M C"],
        rotation: Rotation,
        other_rotation: Rotation,
        until: str = "mlp",
        captured: Collection[str] = (),
    ) -> Steps:
        """The residual stream of `x` after each step up to and including `until`, and the captured weights on the way.

        `y` is the other view's stream before this block.
        """
        attn = SelfAttention(self.arithmetic, self.num_heads, name="attn")
        steps, update = attn(self.arithmetic.layer_norm("norm1")(x), rotation, captured, until)
        if update is None:
            return steps
        x = steps["self_attn"] = x + update
        if until == "self_attn":
            return steps
        cross_attn = CrossAttention(self.arithmetic, self.num_heads, name="cross_attn")
        other = self.arithmetic.layer_norm("norm_y")(y)
        weights, update = cross_attn(self.arithmetic.layer_norm("norm2")(x), other, rotation, other_rotation, captured, until)
        steps |= weights
        if update is None:
            return steps
        x = steps["cross_attn"] = x + update
        if until == "cross_attn":
            return steps
        mlp = Mlp(self.arithmetic, self.mlp_ratio, name="mlp")
        steps["mlp"] = x + mlp(self.arithmetic.layer_norm("norm3")(x))
        return steps


def apply_block(
    block: EncoderBlock | DecoderBlock, params: Params, *inputs: Array | Rotation, until: str, captured: Collection[str]
) -> Steps:
    """Runs a block as a function of its parameters."""
    return cast(Steps, block.apply({"params": params}, *inputs, until=until, captured=captured))


class SelfAttention(nn.Module):
    """Multi-head self-attention with rotary positions."""

    arithmetic: Arithmetic
    num_heads: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "B N C"], rotation: Rotation, captured: Collection[str], until: str
    ) -> tuple[Steps, Float[Array, "B N C"] | None]:
        """The captured weights, and the update of each token unless the block ends with the weights."""
        batch, length, width = x.shape
        qkv = self.arithmetic.dense(3 * width, "qkv")(x).reshape(batch, length, 3, self.num_heads, -1)
        query, key, value = (qkv[:, :, i] for i in range(3))
        query, key = rotate(query, rotation), rotate(key, rotation)
        weights = self.arithmetic.captured_weights("self_attn", query, key, captured)
        if until in weights:
            return weights, None
        mixed = attend(query, key, value, self.arithmetic.attention, self.arithmetic.precision)
        return weights, self.arithmetic.dense(width, "proj")(mixed.reshape(x.shape))


class CrossAttention(nn.Module):
    """Multi-head attention of one view's tokens to the other's, each with its own positions."""

    arithmetic: Arithmetic
    num_heads: int

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B N C"],
        y: Float[Array, "B M C"],
        rotation: Rotation,
        other_rotation: Rotation,
        captured: Collection[str],
        until: str,
    ) -> tuple[Steps, Float[Array, "B N C"] | None]:
        """The captured weights, and the update that each token of `x` reads from `y` unless the block ends with the weights."""
        width = x.shape[-1]

        def heads(tokens: Float[Array, "B L C"]) -> Float[Array, "B L H D"]:
            return tokens.reshape(*tokens.shape[:2], self.num_heads, -1)

        query = rotate(heads(self.arithmetic.dense(width, "projq")(x)), rotation)
        key = rotate(heads(self.arithmetic.dense(width, "projk")(y)), other_rotation)
        weights = self.arithmetic.captured_weights("cross_attn", query, key, captured)
        if until in weights:
            return weights, None
        value = heads(self.arithmetic.dense(width, "projv")(y))
        mixed = attend(query, key, value, self.arithmetic.attention, self.arithmetic.precision)
        return weights, self.arithmetic.dense(width, "proj")(mixed.reshape(x.shape))


class Mlp(nn.Module):
    """Two linear layers with an exact (erf) GELU between them."""

    arithmetic: Arithmetic
    ratio: int

    @nn.compact
    def __call__(self, x: Float[Array, "B N C"]) -> Float[Array, "B N C"]:
        """Transforms each token alone."""
        width = x.shape[-1]
        hidden = gelu(self.arithmetic.dense(self.ratio * width, "fc1")(x))
        return self.arithmetic.dense(width, "fc2")(hidden)


def gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The exact GELU, x·Φ(x), through erf (Hendrycks and Gimpel 2016, arXiv 1606.08415), as PyTorch computes it.

    Computed in at least float32 and returned in x's dtype.
    """
    # jax.nn.gelu goes through erfc, with which the pocket model's gradient took 634 ms in place of 474, on 2 CPU cores for 16 pairs.
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (0.5 * wide * (1 + lax.erf(wide * math.sqrt(0.5)))).astype(x.dtype)
