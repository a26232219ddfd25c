"""The two images as the model takes them."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from und3rstand_jax.errors import UserError


def as_view(image: ArrayLike, patch_size: int, name: str) -> Float[Array, "B H W 3"]:
    """A batch of RGB images in [-1, 1] as (B, H, W, 3); (B, 3, H, W) is taken too.

    Raises:
        UserError: the array is no such batch, or a side is no multiple of the patch size.
    """
    array = image if isinstance(image, jax.Array) else np.asarray(image)  # a traced or device array stays where it is
    expected = f"{name} must be RGB in [-1, 1], floating point, (B, H, W, 3) or (B, 3, H, W)"
    if array.ndim != 4 or 3 not in (array.shape[1], array.shape[-1]):
        hint = "; add a batch axis with image[None]" if array.ndim == 3 else ""
        raise UserError(f"{expected}; found shape {tuple(array.shape)}{hint}")
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise UserError(f"{expected}; found {array.dtype}: scale 8-bit images with (x / 255 - 0.5) / 0.5")
    if 0 in array.shape:
        raise UserError(f"{expected}; found shape {tuple(array.shape)}, which holds no pixels")
    if array.shape[-1] != 3:
        array = array.transpose(0, 2, 3, 1)
    height, width = array.shape[1:3]
    if height % patch_size or width % patch_size:
        raise UserError(f"{name} is {height}×{width}; both sides must be multiples of {patch_size}: crop or resize it (load_image does)")
    return jnp.asarray(array)
