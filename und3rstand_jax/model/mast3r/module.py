"""MASt3R as a pure function of its parameters and its views: DUSt3R, and for each view a head for local features.

The head is a small MLP on each token's concatenated encoder and decoder outputs (Leroy et al., ECCV 2024, section 3.2).
"""

from collections.abc import Iterable, Mapping

import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

from und3rstand_jax.model.blocks import gelu
from und3rstand_jax.model.dust3r.module import DUSt3R
from und3rstand_jax.model.head_choice import Head
from und3rstand_jax.model.heads import Pointmap, shuffle_pixels, to_confidence
from und3rstand_jax.model.mast3r.config import FEATURES, MASt3RConfig
from und3rstand_jax.model.module import Traced
from und3rstand_jax.model.output import Grids

_EXACT = lax.Precision.HIGHEST


class LocalFeatures(nn.Module):
    """An MLP with an exact GELU from a token's encoder and decoder outputs to raw channels of its patch. Always float32."""

    config: MASt3RConfig

    @nn.compact
    def __call__(self, encoded: Float[Array, "B h w E"], decoded: Float[Array, "B h w D"]) -> Float[Array, "B H W K"]:
        """(B, h, w, C) of both to (B, patch·h, patch·w, K)."""
        _, hidden, outputs = self.config.feature_widths
        tokens = jnp.concatenate([encoded.astype(jnp.float32), decoded.astype(jnp.float32)], axis=-1)
        tokens = gelu(nn.Dense(hidden, precision=_EXACT, name="fc1")(tokens))
        return shuffle_pixels(nn.Dense(outputs, precision=_EXACT, name="fc2")(tokens), self.config.patch_size, "channels_first")


class MASt3R(DUSt3R):
    """The model; attributes and calls are those of `DUSt3R`. Predictions also have `desc` and `desc_conf`."""

    def predict(
        self, heads: Iterable[Head], layers: Mapping[str, Traced], grids: Grids, view: int, modules: dict[str, nn.Module]
    ) -> Pointmap:
        """See `DUSt3R.predict`."""
        prediction = super().predict(heads, layers, grids, view, modules)
        if "desc" in prediction and "conf" in prediction and "desc_conf" not in prediction:
            prediction["desc_conf"] = prediction["conf"]
        return prediction

    def head_module(self, head: Head, name: str) -> nn.Module:
        """See `DUSt3R.head_module`."""
        if head.name != FEATURES:
            return super().head_module(head, name)
        assert isinstance(self.config, MASt3RConfig)
        return LocalFeatures(self.config, name=name)

    def read_head(self, head: Head, raw: Float[Array, "B H W K"]) -> Pointmap:
        """See `DUSt3R.read_head`."""
        if head.name != FEATURES:
            return super().read_head(head, raw)
        config = self.config
        assert isinstance(config, MASt3RConfig)
        features = raw[..., : config.desc_dim]
        # No epsilon, as in the original: the descriptor of a zero vector is NaN.
        descriptors = features / jnp.linalg.norm(features, axis=-1, keepdims=True)
        if not config.two_confs:
            return Pointmap(desc=descriptors)
        return Pointmap(desc=descriptors, desc_conf=to_confidence(raw[..., -1], config.desc_conf_mode))
