"""DUSt3R's linear head, and the pixel shuffle it shares with the probes."""

import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float


class LinearHead(nn.Module):
    """One linear layer from a token to four raw channels for each pixel of its patch. Always float32."""

    patch_size: int

    @nn.compact
    def __call__(self, tokens: Float[Array, "B h w C"]) -> Float[Array, "B H W 4"]:
        """(B, h, w, C) to (B, patch·h, patch·w, 4)."""
        outputs = nn.Dense(4 * self.patch_size**2, precision=lax.Precision.HIGHEST, name="proj")(tokens.astype(jnp.float32))
        return shuffle_pixels(outputs, self.patch_size, "channels_first")


def shuffle_pixels(outputs: Float[Array, "B h w O"], patch_size: int, layout: str) -> Float[Array, "B H W K"]:
    """Lays each token's O = K·patch² outputs out as its patch of K channels.

    `layout` is "channels_first" (output channel·patch² + row·patch + column, DUSt3R's own) or "channels_last"
    ((row·patch + column)·K + channel).
    """
    batch, height, width, _ = outputs.shape
    p = patch_size
    if layout == "channels_first":
        patches = jnp.transpose(outputs.reshape(batch, height, width, -1, p, p), (0, 1, 4, 2, 5, 3))
    else:
        patches = jnp.swapaxes(outputs.reshape(batch, height, width, p, p, -1), 2, 3)
    return patches.reshape(batch, height * p, width * p, -1)
