"""The one edit: x ← scale · x + shift, in numbers.

Scales and shifts are arrays that broadcast against the values of their site, so that other numbers, and other choices of places, reuse the
compiled program. `und3rstand_jax.model.edits` and `und3rstand_jax.model.site_edits` make them.
"""

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Numbers: TypeAlias = Float[Array | np.ndarray, "..."]


class Affine(NamedTuple):
    """Scale and shift of one site in one view: float32 arrays with equally many axes, each as long as that of the site's values, or 1."""

    scale: Numbers
    shift: Numbers


ViewAffines: TypeAlias = tuple[Affine | None, ...]
"""The edit of each view; None for a view that is not edited."""

SiteEdits: TypeAlias = dict[str, ViewAffines]
"""Id of a site -> its edits. The ids and axes are static, the numbers are not."""


def neutral_like(affine: Affine) -> Affine:
    """An edit with numbers of the same shapes that changes nothing: it runs the same program."""
    return Affine(np.ones(affine.scale.shape, np.float32), np.zeros(affine.shift.shape, np.float32))


def apply_affine(affine: Affine, x: Array) -> Array:
    """scale · x + shift, computed in at least float32 and returned in x's dtype."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    return jnp.asarray(affine.scale * x.astype(wide) + affine.shift, x.dtype)


def edited_layer(layer_id: str, layers: dict[str, tuple[Array, ...]], edits: SiteEdits) -> dict[str, tuple[Array, ...]]:
    """The layers, with one of them edited."""
    if layer_id not in layers or layer_id not in edits:
        return layers
    views = zip(layers[layer_id], edits[layer_id], strict=True)
    return layers | {layer_id: tuple(x if affine is None else apply_affine(affine, x) for x, affine in views)}


def as_one_batch(views: Sequence[Affine | None], batch: int) -> Affine | None:
    """The edit of views that are concatenated along the batch, `batch` examples each."""
    some = next((affine for affine in views if affine is not None), None)
    if some is None:
        return None

    def joined(parts: Sequence[Numbers]) -> Array:
        axes = np.broadcast_shapes(*(part.shape[1:] for part in parts))
        return jnp.concatenate([jnp.broadcast_to(part, (batch, *axes)) for part in parts])

    every = [affine or neutral_like(some) for affine in views]
    return Affine(joined([affine.scale for affine in every]), joined([affine.shift for affine in every]))
