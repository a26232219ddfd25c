"""The block of every stack of VGGT, including DINOv2's and the camera head's, and the pair of a frame block and a global block.

    x ← x + γ₁ · attention(norm₁(x)),   x ← x + γ₂ · MLP(norm₂(x))

The residual stream is float32 whatever the trunk's dtype, because the scale γ of each branch is.
"""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from und3rstand_jax.model.attention import Rotation
from und3rstand_jax.model.block_sites import BlockSites
from und3rstand_jax.model.blocks import Arithmetic, Mlp
from und3rstand_jax.model.vggt.attention import Tokens, ViewAttention
from und3rstand_jax.model.vggt.config import KINDS, STEPS, VGGTConfig


class ScaledBlock(nn.Module):
    """A pre-norm block whose branches are scaled (LayerScale, Touvron et al., ICCV 2021).

    Attributes:
        arithmetic: how to compute.
        num_heads: heads of its attention.
        mlp_ratio: the MLP's hidden channels per token channel.
        epsilon: of its norms.
        scale: the initial value of its branches' factors.
        prefix: prefix of its steps' names within the stack, such as `frame.`.
        reads_all, normed, special_tokens: see `ViewAttention`.
    """

    arithmetic: Arithmetic
    num_heads: int
    mlp_ratio: int
    epsilon: float = 1e-5
    scale: float = 0.01
    prefix: str = ""
    reads_all: bool = False
    normed: bool = False
    special_tokens: int = 0

    @nn.compact
    def __call__(self, x: Tokens, rotation: Rotation | None, sites: BlockSites) -> Tokens:
        """The residual stream after the block, as far as `sites` lets it run."""
        norm, (attention, mlp) = self.arithmetic.layer_norm, (f"{self.prefix}{step}" for step in STEPS)

        def attended() -> Tokens | None:
            attend = ViewAttention(
                self.arithmetic, self.num_heads, attention, self.reads_all, self.normed, self.special_tokens, name="attn"
            )
            update = attend(norm("norm1", self.epsilon)(x), rotation, sites)
            return None if update is None else LayerScale(self.scale, name="scale1")(update)

        def transformed() -> Tokens:
            update = Mlp(self.arithmetic, self.mlp_ratio, name="mlp")(norm("norm2", self.epsilon)(x))
            return LayerScale(self.scale, name="scale2")(update)

        x = sites.step(attention, x, attended)
        return sites.step(mlp, x, transformed)


class LayerScale(nn.Module):
    """A learned factor for each channel, in float32."""

    initial: float

    @nn.compact
    def __call__(self, x: Float[Array, "B V P C"]) -> Float[Array, "B V P C"]:
        """The branch, scaled."""
        gamma = self.param("gamma", nn.initializers.constant(self.initial), (x.shape[-1],), jnp.float32)
        return x.astype(jnp.float32) * gamma


class Pair(nn.Module):
    """A frame block, in which each view reads itself, and a global block, in which each view reads all views."""

    arithmetic: Arithmetic
    config: VGGTConfig

    @nn.compact
    def __call__(self, x: Tokens, rotation: Rotation, sites: BlockSites) -> Tokens:
        """The residual stream after the pair, as far as `sites` lets it run."""
        for kind in KINDS:
            x = self.block(kind, name=kind)(x, rotation, sites)
        return x

    @nn.nowrap
    def block(self, kind: str, **owner: Any) -> ScaledBlock:
        """The `frame` or the `global` block, under a `name` in this module, or, with `parent=None`, outside any module."""
        return ScaledBlock(
            self.arithmetic,
            self.config.num_heads,
            self.config.mlp_ratio,
            prefix=f"{kind}.",
            reads_all=kind == KINDS[1],
            normed=True,
            special_tokens=len(self.config.special_tokens(self.config.embed)),
            **owner,
        )
