"""Which heads of the attention between the views look hardest at the true places, over held-out pairs or sets of more views."""

from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float

from und3rstand_jax.analysis.ablations import Place
from und3rstand_jax.analysis.attention_keys import Keys, keys_of
from und3rstand_jax.analysis.attention_maps import Views, weights_by_block, weights_ids
from und3rstand_jax.analysis.inputs import GroundTruth
from und3rstand_jax.analysis.pair_measures import Pairs
from und3rstand_jax.analysis.true_place_attention import set_true_places
from und3rstand_jax.model.backbone import Backbone
from und3rstand_jax.model.output import Activation, Grids
from und3rstand_jax.model.sites import HEADS
from und3rstand_jax.model.start import token_grids
from und3rstand_jax.support.progress import progress_bar

_ATTENTION_AT_ONCE = 2**29  # bytes

TruePlaces: TypeAlias = tuple[Bool[np.ndarray, "_N _M"], Bool[np.ndarray, " _N"]]
"""See `places_in_others`."""


def true_place_shares(backbone: Backbone, pairs: Pairs, progress: bool = False) -> dict[str, float]:
    """Place id of each head of the attention between the views -> its share of attention on the true places, the mean over pairs.

    In a set of more views a token attends to those of all other views, and has a true place in each of them that sees it. Where the weights
    of all blocks take too much memory, even for one set, they are computed block by block.
    """
    config = backbone.config
    steps = [block.across for block in config.blocks]
    grids = token_grids(tuple((view.shape[1], view.shape[2]) for view in pairs.views), config)
    read = sum(config.token_count(steps[0], grid) * config.attention_keys(steps[0], grids, view) for view, grid in enumerate(grids))
    at_once = _ATTENTION_AT_ONCE // (4 * len(steps) * config.block_heads * read)
    keys = [keys_of(config, steps[0], grids, view) for view in range(len(grids))]
    shares = []
    with progress_bar("attention", len(pairs.truths), "pair", progress) as advance:
        for low in range(0, len(pairs.truths), max(1, at_once)):
            batch = tuple(view[low : low + max(1, at_once)] for view in pairs.views)
            places = [places_in_others(truth, grids) for truth in pairs.truths[low : low + len(batch[0])]]
            blocks = _in_one_pass(backbone, batch) if at_once else (heads for _, heads in weights_by_block(backbone, batch))
            shares.append(np.stack([_shares(heads, places, keys) for heads in blocks], axis=2))
            advance(len(batch[0]))
    mean = np.nanmean(np.concatenate(shares), axis=0)
    return {
        str(Place(f"{steps[block]}.{HEADS}", view + 1, head)): float(mean[view, block, head])
        for view, block, head in np.ndindex(*mean.shape)
    }


def _in_one_pass(backbone: Backbone, views: Views) -> Iterator[list[Activation]]:
    """The weights of every block, all heads together, as `weights_by_block` gives them."""
    output = backbone(*views, capture=weights_ids(backbone.config), head=False)
    return ([output[name]] for name in output)


def _shares(heads: list[Activation], places: list[list[TruePlaces]], keys: Sequence[Keys]) -> Float[np.ndarray, "B V heads"]:
    """Each head's share in each view of each pair, from the weights of one block, of some heads and then the next."""
    found = []
    for part in heads:
        weights = [_to_others(np.asarray(of_view), keys, view) for view, of_view in enumerate(part)]
        found.append([[_share(weights[view][index], *of_view) for view, of_view in enumerate(one)] for index, one in enumerate(places)])
    return np.concatenate(found, axis=-1)


def _to_others(weights: Float[np.ndarray, "B heads _N _M"], keys: Sequence[Keys], view: int) -> Float[np.ndarray, "B heads N M"]:
    """A view's weights from its patches to those of the other views, view after view."""
    own = keys[view]
    if own.are_plain:
        return weights
    others = [weights[:, :, own.special :, patches] for other, patches in own.patches.items() if other != view]
    return np.concatenate(others, axis=-1)


def places_in_others(truth: GroundTruth, grids: Grids) -> list[TruePlaces]:
    """For each view's N tokens, which of the other views' M tokens show the same place, to within one; and whether any view sees it."""
    found = []
    for places in set_true_places(truth, grids):
        near = np.concatenate([of_view.near & of_view.seen[:, None] for of_view in places.values()], axis=1)
        found.append((near, np.any([of_view.seen for of_view in places.values()], axis=0)))
    return found


def _share(weights: Float[np.ndarray, "heads N M"], near: Bool[np.ndarray, "N M"], seen: Bool[np.ndarray, " N"]) -> np.ndarray:
    """Each head's share of attention on the true places; NaN if nothing is seen."""
    if not seen.any():
        return np.full(len(weights), np.nan)
    return (weights * near).sum(axis=-1)[:, seen].mean(axis=-1)
