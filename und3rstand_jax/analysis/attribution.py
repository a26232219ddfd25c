"""Attribution: a first-order estimate of what knocking out each head and sublayer does, all from one backward pass.

With every site scaled by 1, the derivative of a scalar with respect to a scale is the effect of turning that site down a little;
−∂/∂scale is the linear estimate of turning it off (attribution patching: Nanda 2023; Syed et al. 2023, arXiv 2310.10348). It is only
an estimate: compare it with a sweep before relying on it.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from und3rstand_jax.analysis.ablations import Place, places_of
from und3rstand_jax.model.affine import Affine, SiteEdits
from und3rstand_jax.model.backbone import Backbone
from und3rstand_jax.model.config import ModelConfig
from und3rstand_jax.model.module import MultiViewModel
from und3rstand_jax.model.output import BackboneOutput
from und3rstand_jax.model.sites import HEADS, parse_site
from und3rstand_jax.support.progress import progress_bar

Scalar = Callable[[BackboneOutput, Any, Any], Float[Array, " B"]]
"""A function of an output, the truth and what all pairs share, with one number per pair; it is traced, so it must be pure."""


def attribution(
    backbone: Backbone,
    views: tuple[np.ndarray, ...],
    places: str | Sequence[Place],
    scalar: Scalar,
    truth: Any = (),
    shared: Any = (),
    *,
    capture: Sequence[str] = (),
    head: bool = True,
    batch_size: int = 8,
    remat: bool = True,
    progress: bool = False,
) -> dict[str, Float[np.ndarray, " S"]]:
    """Place, such as `decoder.4.cross_attn.heads:0@2` -> the first-order effect of knocking it out on each pair's scalar.

    Args:
        backbone: the model.
        views: every view of S pairs, or of S sets of more views.
        places: patterns of heads, sublayers (`.update`) and layers, or a sequence of places; each place gets an estimate.
        scalar: what is attributed.
        truth, shared: passed to `scalar` as `und3rstand_jax.analysis.sweep.sweep` passes them to its measure.
        capture, head: what `scalar` needs of the output.
        batch_size: pairs in one pass.
        remat: recompute each block in the backward pass, so that only one block's activations are in memory at a time.
        progress: whether a terminal shows a progress bar.

    Raises:
        LayerError, EditError: a pattern matches nothing, or something that cannot be knocked out.
    """
    places = places_of(places, backbone.config, len(views)) if isinstance(places, str) else places
    module = backbone.module.clone(remat=remat)
    sites = tuple(dict.fromkeys(place.site for place in places))
    parts = []
    with progress_bar("attribution", len(views[0]), "pair", progress) as advance:
        for low in range(0, len(views[0]), batch_size):
            batch = jax.tree.map(lambda leaf, low=low: np.asarray(leaf)[low : low + batch_size], (views, truth))
            scales = unit_scales(sites, len(batch[0][0]), backbone.config, len(views))
            gradient = _gradient(module, scalar, tuple(capture), head, scales, backbone.params, *batch, shared)
            by_place = [np.asarray(gradient[place.site][place.view - 1]).reshape(len(batch[0][0]), -1) for place in places]
            parts.append(np.stack([-values[:, place.head or 0] for place, values in zip(places, by_place, strict=True)], axis=1))
            advance(len(batch[0][0]))
    return {str(place): column for place, column in zip(places, np.concatenate(parts).T, strict=True)}


def unit_scales(sites: Sequence[str], batch: int, config: ModelConfig, views: int = 2) -> dict[str, tuple[Array, ...]]:
    """For every site and view, a scale of 1 for each pair and head."""

    def ones(site: str) -> Array:
        of = parse_site(site)
        return jnp.ones((batch, 1, config.head_count(of.layer_id), 1) if of.part == HEADS else (batch, 1, 1), jnp.float32)

    return {site: (ones(site),) * views for site in sites}


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _gradient(
    module: MultiViewModel,
    scalar: Scalar,
    capture: tuple[str, ...],
    head: bool,
    scales: dict[str, tuple[Array, ...]],
    params: dict,
    views: tuple[Array, ...],
    truth: Any,
    shared: Any,
) -> dict[str, tuple[Array, ...]]:
    def total(scales: dict[str, tuple[Array, ...]]) -> Float[Array, ""]:
        edits: SiteEdits = {site: tuple(Affine(scale, jnp.zeros_like(scale)) for scale in of_views) for site, of_views in scales.items()}
        output = cast(BackboneOutput, module.apply({"params": params}, *views, capture=capture, head=head, edits=edits))
        return jnp.sum(scalar(output, truth, shared))

    return jax.grad(total)(scales)
