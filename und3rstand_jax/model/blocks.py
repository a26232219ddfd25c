"""The exact GELU (Hendrycks and Gimpel 2016, arXiv 1606.08415) through erf, as PyTorch computes it.

Transformer blocks of DUSt3R (Wang et al., CVPR 2024, section 3.1; blocks as in CroCo v2).

A block returns the residual stream after each of its steps, named as in layer ids, and those attention weights that
`captured` names (`und3rstand_jax.model.captures`). `until` ends it after the named step: what nobody reads is not traced.
"""

import math
from collections.abc import Collection
from typing import Any, cast

import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

from und3rstand_jax.model.attention import AttentionImplementation, Rotation, attend, attention_weights, rotate
from und3rstand_jax.model.captures import heads_of_weights


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x·Φ(x), Φ the normal distribution; computed in at least float32 and returned in x's dtype."""
    # jax.nn.gelu goes through erfc, with which the pocket model's gradient took 634 ms in place of 474, on 2 CPU cores for 16 pairs.
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (0.5 * wide * (1 + lax.erf(wide * math.sqrt(0.5)))).astype(x.dtype)


Tokens = Float[Array, "B N C"]


Steps = dict[str, Array]


class Arithmetic(nn.Module):
    """What every part of the trunk shares: the dtype it computes in and how exact its products are."""

    dtype: jnp.dtype
    precision: lax.Precision
    attention: AttentionImplementation

    def dense(self, features: int, name: str) -> nn.Dense:
        """A linear layer with bias in this arithmetic."""
        return nn.Dense(features, dtype=self.dtype, precision=self.precision, name=name)

    def layer_norm(self, name: str) -> nn.LayerNorm:
        """LayerNorm as PyTorch computes it, epsilon 1e-6."""
        # Flax's default E[x²] − E[x]² loses digits where the residual stream has a large mean.
        return nn.LayerNorm(epsilon=1e-6, use_fast_variance=False, dtype=self.dtype, name=name)

    @property
    def arithmetic(self) -> dict[str, Any]:
        """The three fields, to hand on to a part."""
        return {"dtype": self.dtype, "precision": self.precision, "attention": self.attention}


def run(block: nn.Module, params: Any, *args: Any) -> Steps:
    """A block as a function of its parameters."""
    return cast(Steps, block.apply({"params": params}, *args))


class Attention(Arithmetic):
    """What both kinds of multi-head attention share."""

    num_heads: int

    def weights(self, step: str, query: Array, key: Array, captured: Collection[str]) -> Steps:
        """Those weights of this attention, `step` of its block, that are captured: (B, heads, N, M) each."""
        groups = heads_of_weights(step, captured)
        return {name: attention_weights(query, key, heads, self.precision) for name, heads in groups.items()}


class SelfAttention(Attention):
    """Multi-head self-attention with rotary positions."""

    @nn.compact
    def __call__(self, x: Tokens, rotation: Rotation, captured: Collection[str], until: str) -> tuple[Steps, Tokens | None]:
        """The captured weights, and the mixed tokens of the view unless it ends with those."""
        batch, length, width = x.shape
        qkv = self.dense(3 * width, "qkv")(x).reshape(batch, length, 3, self.num_heads, -1)
        query, key, value = (qkv[:, :, i] for i in range(3))
        query, key = rotate(query, rotation), rotate(key, rotation)
        weights = self.weights("self_attn", query, key, captured)
        if until in weights:
            return weights, None
        mixed = attend(query, key, value, self.attention, self.precision)
        return weights, self.dense(width, "proj")(mixed.reshape(x.shape))


class CrossAttention(Attention):
    """Multi-head attention of one view's tokens to the other's, each with its own positions."""

    @nn.compact
    def __call__(
        self, x: Tokens, y: Tokens, rotation: Rotation, other_rotation: Rotation, captured: Collection[str], until: str
    ) -> tuple[Steps, Tokens | None]:
        """The captured weights, and the tokens `y` mixed into an update for each token of `x` unless it ends with those."""
        width = x.shape[-1]

        def heads(tokens: Array) -> Array:
            return tokens.reshape(*tokens.shape[:2], self.num_heads, -1)

        query = rotate(heads(self.dense(width, "projq")(x)), rotation)
        key = rotate(heads(self.dense(width, "projk")(y)), other_rotation)
        weights = self.weights("cross_attn", query, key, captured)
        if until in weights:
            return weights, None
        value = heads(self.dense(width, "projv")(y))
        mixed = attend(query, key, value, self.attention, self.precision)
        return weights, self.dense(width, "proj")(mixed.reshape(x.shape))


class Mlp(Arithmetic):
    """Two linear layers with an exact (erf) GELU between them."""

    ratio: int

    @nn.compact
    def __call__(self, x: Tokens) -> Tokens:
        """Transforms each token alone."""
        width = x.shape[-1]
        hidden = gelu(self.dense(self.ratio * width, "fc1")(x))
        return self.dense(width, "fc2")(hidden)


class EncoderBlock(Arithmetic):
    """Pre-norm block: self-attention, then MLP."""

    num_heads: int
    mlp_ratio: int

    @nn.compact
    def __call__(self, x: Tokens, rotation: Rotation, until: str = "mlp", captured: Collection[str] = ()) -> Steps:
        """The residual stream after each step up to and with `until`, and the captured weights on the way."""
        attn = SelfAttention(**self.arithmetic, num_heads=self.num_heads, name="attn")
        steps, update = attn(self.layer_norm("norm1")(x), rotation, captured, until)
        if update is None:
            return steps
        x = steps["self_attn"] = x + update
        if until == "self_attn":
            return steps
        mlp = Mlp(**self.arithmetic, ratio=self.mlp_ratio, name="mlp")
        steps["mlp"] = x + mlp(self.layer_norm("norm2")(x))
        return steps


class DecoderBlock(Arithmetic):
    """Pre-norm block: self-attention, attention to the other view, then MLP."""

    num_heads: int
    mlp_ratio: int

    @nn.compact
    def __call__(
        self, x: Tokens, y: Tokens, rotation: Rotation, other_rotation: Rotation, until: str = "mlp", captured: Collection[str] = ()
    ) -> Steps:
        """The residual stream of `x` after each step up to and with `until`, and the captured weights on the way.

        `y` is the other view before this block.
        """
        attn = SelfAttention(**self.arithmetic, num_heads=self.num_heads, name="attn")
        steps, update = attn(self.layer_norm("norm1")(x), rotation, captured, until)
        if update is None:
            return steps
        x = steps["self_attn"] = x + update
        if until == "self_attn":
            return steps
        cross_attn = CrossAttention(**self.arithmetic, num_heads=self.num_heads, name="cross_attn")
        other = self.layer_norm("norm_y")(y)
        weights, update = cross_attn(self.layer_norm("norm2")(x), other, rotation, other_rotation, captured, until)
        steps |= weights
        if update is None:
            return steps
        x = steps["cross_attn"] = x + update
        if until == "cross_attn":
            return steps
        mlp = Mlp(**self.arithmetic, ratio=self.mlp_ratio, name="mlp")
        steps["mlp"] = x + mlp(self.layer_norm("norm3")(x))
        return steps
