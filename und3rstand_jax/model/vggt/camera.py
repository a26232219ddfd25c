"""VGGT's camera head: each view's camera from its token, refined iteratively (Wang et al., CVPR 2025, section 3.3). Always float32."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

from und3rstand_jax.model.block_sites import BlockSites
from und3rstand_jax.model.blocks import Arithmetic, gelu, run_block
from und3rstand_jax.model.head_choice import POSE_ENCODING
from und3rstand_jax.model.stack import stacked
from und3rstand_jax.model.vggt.blocks import ScaledBlock
from und3rstand_jax.model.vggt.config import STEPS, VGGTConfig

_EXACT = Arithmetic(jnp.dtype(jnp.float32), lax.Precision.HIGHEST, "auto")


class Poses(NamedTuple):
    """The pose encodings after each of K iterations, and the residual stream after each step of its blocks."""

    encodings: tuple[Float[Array, "B V 9"], ...]
    streams: tuple[dict[str, Float[Array, "depth B V C"]], ...]


class CameraHead(nn.Module):
    """Blocks over the views' camera tokens, modulated by the current pose estimate (adaptive norm, Peebles and Xie, ICCV 2023)."""

    config: VGGTConfig

    @nn.compact
    def __call__(self, tokens: Float[Array, "B V C"]) -> Poses:
        """Takes (B, V, 2·embed_dim): the frame block's output concatenated with the global block's."""
        config, width = self.config, tokens.shape[-1]
        tokens = _EXACT.layer_norm("token_norm", 1e-5)(tokens.astype(jnp.float32))
        embed, modulation = _EXACT.dense(width, "embed_pose"), _EXACT.dense(3 * width, "modulation")
        plain = nn.LayerNorm(epsilon=1e-6, use_fast_variance=False, use_scale=False, use_bias=False)
        norm, branch = _EXACT.layer_norm("norm", 1e-5), PoseBranch(config.camera_iterations, name="pose")
        empty = self.param("empty_pose", nn.initializers.zeros, (POSE_ENCODING,), jnp.float32)
        block = ScaledBlock(_EXACT, config.camera_num_heads, config.mlp_ratio, parent=None)
        token = jnp.zeros((1, 1, 1, width), jnp.float32)
        blocks = self.param("blocks", stacked(lambda key: block.init(key, token, None, BlockSites()), config.camera_depth))

        def run(x: Float[Array, "B 1 V C"], params: Any) -> tuple[Array, dict[str, Array]]:
            kept = run_block(block, params, x, None, sites=BlockSites(STEPS))
            return kept[STEPS[-1]], {step: kept[step][:, 0] for step in STEPS}

        raw = jnp.broadcast_to(empty, (*tokens.shape[:2], POSE_ENCODING))
        encodings, streams = [], []
        for iteration in range(config.camera_iterations):
            shift, scale, gate = jnp.split(modulation(nn.silu(embed(raw if not iteration else lax.stop_gradient(raw)))), 3, axis=-1)
            x, steps = lax.scan(run, (tokens + gate * (plain(tokens) * (1 + scale) + shift))[:, None], blocks)
            delta = branch(norm(x[:, 0]))
            raw = raw + delta if iteration else delta
            # The next iteration begins with the pose before this ReLU.
            encodings.append(jnp.concatenate([raw[..., :7], jax.nn.relu(raw[..., 7:])], axis=-1))
            streams.append(steps)
        return Poses(tuple(encodings), tuple(streams))


class PoseBranch(nn.Module):
    """Two linear layers with an exact GELU between them. They run once per iteration, and the results add up."""

    iterations: int

    @nn.compact
    def __call__(self, x: Float[Array, "B V C"]) -> Float[Array, "B V 9"]:
        """The change of the pose."""
        hidden = gelu(_EXACT.dense(x.shape[-1] // 2, "fc1")(x))
        last = nn.Dense(POSE_ENCODING, dtype=_EXACT.dtype, precision=_EXACT.precision, bias_init=self._some_camera, name="fc2")
        return last(hidden)

    def _some_camera(self, key: Array, shape: tuple[int, ...], dtype: Any) -> Float[Array, " 9"]:
        """The bias with which all iterations of a fresh model together give no rotation and fields of view of a radian: after its ReLU, a
        field of view below 0 has no gradient.
        """
        return jnp.array([0, 0, 0, 0, 0, 0, 1, 1, 1], dtype) / self.iterations
