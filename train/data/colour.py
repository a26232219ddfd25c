"""Colour jitter, on the device: brightness, contrast, saturation and hue changed at random and in random order.

The ranges are DUSt3R's (a factor of 0.5 to 1.5 for the first three, a shift of a tenth of the colour circle for hue); the two views of
a pair change independently, so that a network cannot match them by colour alone.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

FACTORS = (0.5, 1.5)
HUE_SHIFT = 0.1

Image = Float[Array, "H W 3"]


def jitter_colours(key: jax.Array, image: Image) -> Image:
    """One image in [-1, 1] with its colours changed; stays in [-1, 1]."""
    order_key, factor_key, hue_key = jax.random.split(key, 3)
    factors = jax.random.uniform(factor_key, (3,), minval=FACTORS[0], maxval=FACTORS[1])
    shift = jax.random.uniform(hue_key, (), minval=-HUE_SHIFT, maxval=HUE_SHIFT)
    amounts = jnp.append(factors, shift)
    order = jax.random.permutation(order_key, 4)
    changes = (brightness, contrast, saturation, hue)
    changed = lax.fori_loop(0, 4, lambda i, rgb: lax.switch(order[i], changes, rgb, amounts[order[i]]), image * 0.5 + 0.5)
    return changed * 2.0 - 1.0


def brightness(rgb: Image, factor: Array) -> Image:
    """Blends an image in [0, 1] with black."""
    return _blend(rgb, jnp.zeros_like(rgb), factor)


def contrast(rgb: Image, factor: Array) -> Image:
    """Blends with the mean of its luma."""
    return _blend(rgb, jnp.broadcast_to(jnp.mean(_luma(rgb)), rgb.shape), factor)


def saturation(rgb: Image, factor: Array) -> Image:
    """Blends with its luma."""
    return _blend(rgb, jnp.broadcast_to(_luma(rgb), rgb.shape), factor)


def hue(rgb: Image, shift: Array) -> Image:
    """Turns the hue by `shift` of the colour circle, in HSV."""
    value = rgb.max(axis=-1)
    chroma = value - rgb.min(axis=-1)
    r, g, b = (rgb[..., i] for i in range(3))
    safe = jnp.where(chroma > 0, chroma, 1.0)
    sextant = jnp.where(value == r, (g - b) / safe, jnp.where(value == g, 2 + (b - r) / safe, 4 + (r - g) / safe))
    turned = sextant + 6 * shift

    # Channel n of HSV to RGB: v − c·clip(min(k, 4 − k), 0, 1), k = (n + 6h) mod 6, n = 5, 3, 1.
    def channel(n: float) -> Array:
        k = jnp.mod(n + turned, 6.0)
        return value - chroma * jnp.clip(jnp.minimum(k, 4 - k), 0, 1)

    return jnp.stack([channel(5.0), channel(3.0), channel(1.0)], axis=-1)


def _luma(rgb: Image) -> Float[Array, "H W 1"]:
    """ITU-R BT.601 luma."""
    return (0.299 * rgb[..., :1] + 0.587 * rgb[..., 1:2]) + 0.114 * rgb[..., 2:]


def _blend(rgb: Image, other: Image, factor: Array) -> Image:
    return jnp.clip(other + factor * (rgb - other), 0.0, 1.0)
