"""Transformer blocks with rotary attention, as in CroCo v2 (Weinzaepfel et al. 2023) and in DUSt3R.

A block passes the values at each of its sites to its `BlockSites`, which edits them, keeps them and ends the block.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from und3rstand_jax.model.attention import AttentionImplementation, Rotation, attend, attention_scores, mix_by_scores, rotate
from und3rstand_jax.model.block_sites import BlockSites
from und3rstand_jax.model.sites import HEADS, SCORES, WEIGHTS
from und3rstand_jax.model.stack import Params


@dataclasses.dataclass(frozen=True)
class Arithmetic:
    """How every part of the trunk computes: its dtype, the precision of its matrix products and its attention implementation."""

    dtype: jnp.dtype
    precision: lax.Precision
    attention: AttentionImplementation

    def dense(self, features: int, name: str) -> nn.Dense:
        """A linear layer with bias."""
        return nn.Dense(features, dtype=self.dtype, precision=self.precision, name=name)

    def layer_norm(self, name: str, epsilon: float = 1e-6, dtype: DTypeLike | None = None) -> nn.LayerNorm:
        """LayerNorm as PyTorch computes it; its result has the trunk's dtype, or `dtype` if that is given."""
        # Flax's default E[x²] − E[x]² loses digits where the residual stream has a large mean.
        return nn.LayerNorm(epsilon=epsilon, use_fast_variance=False, dtype=dtype or self.dtype, name=name)

    def scores(
        self, step: str, query: Float[Array, "B N H D"], key: Float[Array, "B M H D"], sites: BlockSites
    ) -> Float[Array, "B H N M"] | None:
        """The edited scores of an attention, None where they are not edited; captured scores and weights are kept either way."""
        weights = sites.captured_at(f"{step}.{WEIGHTS}")
        if f"{step}.{SCORES}" in sites.edits:
            scores = sites.at(f"{step}.{SCORES}", attention_scores(query, key, self.precision), heads_axis=1)
            sites.kept.update({str(of): jax.nn.softmax(scores[:, of.head_slice, of.query_slice], axis=-1) for of in weights})
            return scores
        # Only the captured heads: `attend` does not need these scores.
        for of in sites.captured_at(f"{step}.{SCORES}"):
            sites.kept[str(of)] = attention_scores(query[:, of.query_slice], key, self.precision, of.head_slice)
        for of in weights:
            chosen = attention_scores(query[:, of.query_slice], key, self.precision, of.head_slice)
            sites.kept[str(of)] = jax.nn.softmax(chosen, axis=-1)
        return None

    def mix(
        self,
        step: str,
        query: Float[Array, "B N H D"],
        key: Float[Array, "B M H D"],
        value: Float[Array, "B M H D"],
        scores: Float[Array, "B H N M"] | None,
        sites: BlockSites,
    ) -> Float[Array, "B N H D"]:
        """Each head's mix of the values: from edited scores if there are any, else by the model's attention implementation."""
        mixed = (
            attend(query, key, value, self.attention, self.precision) if scores is None else mix_by_scores(scores, value, self.precision)
        )
        return sites.at(f"{step}.{HEADS}", mixed)


class EncoderBlock(nn.Module):
    """Pre-norm block: self-attention, then MLP."""

    arithmetic: Arithmetic
    num_heads: int
    mlp_ratio: int

    @nn.compact
    def __call__(self, x: Float[Array, "B N C"], rotation: Rotation, sites: BlockSites) -> Float[Array, "B N C"]:
        """The residual stream after the block, as far as `sites` lets it run."""
        norm = self.arithmetic.layer_norm
        x = sites.step(
            "self_attn", x, lambda: SelfAttention(self.arithmetic, self.num_heads, name="attn")(norm("norm1")(x), rotation, sites)
        )
        return sites.step("mlp", x, lambda: Mlp(self.arithmetic, self.mlp_ratio, name="mlp")(norm("norm2")(x)))


class DecoderBlock(nn.Module):
    """Pre-norm block: self-attention, attention to the other views, then MLP."""

    arithmetic: Arithmetic
    num_heads: int
    mlp_ratio: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "B N C"], y: Float[Array, "B M C"], rotation: Rotation, other_rotation: Rotation, sites: BlockSites
    ) -> Float[Array, "B N C"]:
        """The residual stream of `x` after the block, as far as `sites` lets it run.

        `y` are the other views' streams before this block, even if `sites` lets the block begin in its middle.
        """
        norm = self.arithmetic.layer_norm

        def cross_attention() -> Float[Array, "B N C"] | None:
            attention = CrossAttention(self.arithmetic, self.num_heads, name="cross_attn")
            other = norm("norm_y")(y)
            return attention(norm("norm2")(x), other, rotation, other_rotation, sites)

        x = sites.step(
            "self_attn", x, lambda: SelfAttention(self.arithmetic, self.num_heads, name="attn")(norm("norm1")(x), rotation, sites)
        )
        x = sites.step("cross_attn", x, cross_attention)
        return sites.step("mlp", x, lambda: Mlp(self.arithmetic, self.mlp_ratio, name="mlp")(norm("norm3")(x)))


def run_block(block: nn.Module, params: Params, *inputs: Array | Rotation | None, sites: BlockSites) -> dict[str, Array]:
    """Runs a block as a function of its parameters; returns what its sites keep."""
    block.apply({"params": params}, *inputs, sites)
    return sites.kept


class SelfAttention(nn.Module):
    """Multi-head self-attention with rotary positions."""

    arithmetic: Arithmetic
    num_heads: int

    @nn.compact
    def __call__(self, x: Float[Array, "B N C"], rotation: Rotation, sites: BlockSites) -> Float[Array, "B N C"] | None:
        """The update of each token, None if the block ends before it."""
        batch, length, width = x.shape
        qkv = self.arithmetic.dense(3 * width, "qkv")(x).reshape(batch, length, 3, self.num_heads, -1)
        query, key, value = (qkv[:, :, i] for i in range(3))
        query, key = rotate(query, rotation), rotate(key, rotation)
        scores = self.arithmetic.scores("self_attn", query, key, sites)
        if sites.is_done:
            return None
        mixed = self.arithmetic.mix("self_attn", query, key, value, scores, sites)
        return None if sites.is_done else self.arithmetic.dense(width, "proj")(mixed.reshape(x.shape))


class CrossAttention(nn.Module):
    """Multi-head attention of one view's tokens to the other views', each with its own positions."""

    arithmetic: Arithmetic
    num_heads: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "B N C"], y: Float[Array, "B M C"], rotation: Rotation, other_rotation: Rotation, sites: BlockSites
    ) -> Float[Array, "B N C"] | None:
        """The update that each token of `x` reads from `y`, None if the block ends before it."""
        width = x.shape[-1]

        def heads(tokens: Float[Array, "B L C"]) -> Float[Array, "B L H D"]:
            return tokens.reshape(*tokens.shape[:2], self.num_heads, -1)

        query = rotate(heads(self.arithmetic.dense(width, "projq")(x)), rotation)
        key = rotate(heads(self.arithmetic.dense(width, "projk")(y)), other_rotation)
        scores = self.arithmetic.scores("cross_attn", query, key, sites)
        if sites.is_done:
            return None
        value = heads(self.arithmetic.dense(width, "projv")(y))
        mixed = self.arithmetic.mix("cross_attn", query, key, value, scores, sites)
        return None if sites.is_done else self.arithmetic.dense(width, "proj")(mixed.reshape(x.shape))


class Mlp(nn.Module):
    """Two linear layers with an exact (erf) GELU between them."""

    arithmetic: Arithmetic
    ratio: int

    @nn.compact
    def __call__(self, x: Float[Array, "B *N C"]) -> Float[Array, "B *N C"]:
        """Transforms each token independently."""
        width = x.shape[-1]
        hidden = gelu(self.arithmetic.dense(self.ratio * width, "fc1")(x))
        return self.arithmetic.dense(width, "fc2")(hidden)


def gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The exact GELU, x·Φ(x), through erf (Hendrycks and Gimpel 2016, arXiv 1606.08415), as PyTorch computes it.

    Computed in at least float32 and returned in x's dtype.
    """
    # jax.nn.gelu goes through erfc, with which the pocket model's gradient took 634 ms instead of 474, on 2 CPU cores for 16 pairs.
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (0.5 * wide * (1 + lax.erf(wide * math.sqrt(0.5)))).astype(x.dtype)
