"""From a batch to the inputs of model and loss, on the device: renders scenes, jitters colours and unprojects depth.

Colour jitter changes brightness, contrast, saturation and hue by random amounts in random order. Its ranges are DUSt3R's: a factor of
0.5 to 1.5 for the first three, a shift of up to a tenth of the colour circle for hue. The views of a set are jittered
independently, so that a network cannot match them by colour alone.
"""

from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray, UInt8

from und3rstand_jax.data.records import Batch, Shape, View, ViewSet
from und3rstand_jax.data.synthetic.config import SyntheticConfig
from und3rstand_jax.data.synthetic.render import render_set, render_sets
from und3rstand_jax.geometry.loss import Target, Targets
from und3rstand_jax.geometry.unprojection import unproject

FACTORS = (0.5, 1.5)
"""Range of the factors of brightness, contrast and saturation."""

HUE_SHIFT = 0.1
"""Largest shift of the hue, in turns of the colour circle."""

Image: TypeAlias = Float[Array, "H W 3"]
"""RGB in [0, 1], unless stated otherwise."""

Number: TypeAlias = Float[Array, ""] | float


class Example(NamedTuple):
    """A batch of sets as model and loss take it: for each view, the image in [-1, 1] (B, H, W, 3), the ground truth, and the
    intrinsics (B, 3, 3).
    """

    images: tuple[Float[Array, "B _H _W 3"], ...]
    targets: Targets
    intrinsics: tuple[Float[Array, "B 3 3"], ...]


def assemble(batch: Batch, seed: Array | int, shape: Shape, scenes: SyntheticConfig | None, colour_jitter: bool) -> Example:
    """The example of a batch; pure. A set's result depends on the seed, its position and its scene, not on the batch it is in.

    Args:
        batch: a batch from the loader; its arrays may be traced.
        seed: the seed of scenes and colours.
        shape: (height, width) of every view; static, like all arguments after it.
        scenes: how scenes are rendered; None if there are none, so that the renderer is not compiled.
        colour_jitter: whether each view's colours are jittered.
    """
    if scenes is None:
        if batch.views is None:
            raise ValueError("a batch without files needs scenes")
        views = batch.views
    elif batch.views is None:
        views = render_sets(seed, batch.scene, shape, scenes)
    else:

        def rendered_or_read(item: tuple[Array, ViewSet]) -> ViewSet:
            scene, read = item
            # Under lax.map, unlike under vmap, only the branch that is taken runs.
            return lax.cond(scene >= 0, lambda: render_set(seed, jnp.maximum(scene, 0), shape, scenes), lambda: read)

        views = lax.map(rendered_or_read, (batch.scene, batch.views))
    example = to_example(views)
    if not colour_jitter:
        return example
    keys = jax.vmap(lambda position: jax.random.fold_in(jax.random.key(seed), position))(batch.position)
    of_views = [jax.vmap(jax.random.fold_in, (0, None))(keys, view) for view in range(len(views))]
    images = [lax.map(lambda item: jitter_colours(*item), item) for item in zip(of_views, example.images, strict=True)]
    return example._replace(images=tuple(images))


def to_example(views: ViewSet) -> Example:
    """The example of a batch of records, without colour jitter; pure."""
    return Example(
        images=tuple(model_input(view.image) for view in views),
        targets=tuple(target(view) for view in views),
        intrinsics=tuple(jnp.asarray(view.intrinsics, jnp.float32) for view in views),
    )


def batch_size(example: Example) -> int:
    """The number of sets in an example."""
    return jax.tree.leaves(example.images)[0].shape[0]


def model_input(image: UInt8[Array | np.ndarray, "*B H W 3"]) -> Float[Array, "*B H W 3"]:
    """8-bit RGB, scaled to the model's range [-1, 1]."""
    return (jnp.asarray(image).astype(jnp.float32) / 255 - 0.5) / 0.5


def target(view: View) -> Target:
    """The world point of every pixel, R·(z·(u − cx)/fx, z·(v − cy)/fy, z) + t; valid where the depth is positive and finite."""
    depth = jnp.asarray(view.depth, jnp.float32)
    valid = (depth > 0) & jnp.isfinite(depth)
    in_camera = unproject(jnp.where(valid, depth, 0.0), jnp.asarray(view.intrinsics, jnp.float32))
    cam2world = jnp.asarray(view.cam2world, jnp.float32)
    rotated = jnp.einsum("...ij,...hwj->...hwi", cam2world[..., :3, :3], in_camera, precision=lax.Precision.HIGHEST)
    return Target(rotated + cam2world[..., None, None, :3, 3], cam2world, valid)


def jitter_colours(key: PRNGKeyArray, image: Image) -> Image:
    """One image in [-1, 1] with its colours changed at random; stays in [-1, 1]."""
    order_key, factor_key, hue_key = jax.random.split(key, 3)
    factors = jax.random.uniform(factor_key, (3,), jnp.float32, minval=FACTORS[0], maxval=FACTORS[1])
    shift = jax.random.uniform(hue_key, (), jnp.float32, minval=-HUE_SHIFT, maxval=HUE_SHIFT)
    amounts = jnp.append(factors, shift)
    order = jax.random.permutation(order_key, 4)
    changes = (brightness, contrast, saturation, hue)
    changed = lax.fori_loop(0, 4, lambda i, rgb: lax.switch(order[i], changes, rgb, amounts[order[i]]), image * 0.5 + 0.5)
    return changed * 2.0 - 1.0


def brightness(rgb: Image, factor: Number) -> Image:
    """Blends with black."""
    return _blend(rgb, jnp.zeros_like(rgb), factor)


def contrast(rgb: Image, factor: Number) -> Image:
    """Blends with the mean of the image's luma."""
    return _blend(rgb, jnp.broadcast_to(jnp.mean(_luma(rgb)), rgb.shape), factor)


def saturation(rgb: Image, factor: Number) -> Image:
    """Blends with the image's luma."""
    return _blend(rgb, jnp.broadcast_to(_luma(rgb), rgb.shape), factor)


def hue(rgb: Image, shift: Number) -> Image:
    """Rotates the hue by `shift` turns of the colour circle, in HSV."""
    value = rgb.max(axis=-1)
    chroma = value - rgb.min(axis=-1)
    r, g, b = (rgb[..., i] for i in range(3))
    safe = jnp.where(chroma > 0, chroma, 1.0)
    sextant = jnp.where(value == r, (g - b) / safe, jnp.where(value == g, 2 + (b - r) / safe, 4 + (r - g) / safe))
    rotated = sextant + 6 * shift

    # Channel n of HSV to RGB: v − c·clip(min(k, 4 − k), 0, 1), k = (n + 6h) mod 6, n = 5, 3, 1.
    def channel(n: float) -> Array:
        k = jnp.mod(n + rotated, 6.0)
        return value - chroma * jnp.clip(jnp.minimum(k, 4 - k), 0, 1)

    return jnp.stack([channel(5.0), channel(3.0), channel(1.0)], axis=-1)


def _luma(rgb: Image) -> Float[Array, "H W 1"]:
    """ITU-R BT.601 luma."""
    return (0.299 * rgb[..., :1] + 0.587 * rgb[..., 1:2]) + 0.114 * rgb[..., 2:]


def _blend(rgb: Image, other: Image, factor: Number) -> Image:
    return jnp.clip(other + factor * (rgb - other), 0.0, 1.0)
