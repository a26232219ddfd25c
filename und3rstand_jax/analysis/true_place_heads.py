"""Which heads of the attention between the views look hardest at the true places, over held-out pairs or sets of more views."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from und3rstand_jax.analysis.ablations import Place
from und3rstand_jax.analysis.attention_keys import Keys, keys_of
from und3rstand_jax.analysis.inputs import GroundTruth
from und3rstand_jax.analysis.pair_measures import Pairs
from und3rstand_jax.analysis.true_place_attention import set_true_places
from und3rstand_jax.model.backbone import Backbone
from und3rstand_jax.model.output import Grids
from und3rstand_jax.model.sites import HEADS, WEIGHTS
from und3rstand_jax.model.start import token_grids
from und3rstand_jax.support.progress import progress_bar

_ATTENTION_AT_ONCE = 2**29  # bytes


def true_place_shares(backbone: Backbone, pairs: Pairs, progress: bool = False) -> dict[str, float]:
    """Place id of each head of the attention between the views -> its share of attention on the true places, the mean over pairs.

    In a set of more views a token attends to those of all other views, and has a true place in each of them that sees it.
    """
    config = backbone.config
    steps = [block.across for block in config.blocks]
    grids = token_grids(tuple((view.shape[1], view.shape[2]) for view in pairs.views), config)
    read = sum(config.token_count(steps[0], grid) * config.attention_keys(steps[0], grids, view) for view, grid in enumerate(grids))
    at_once = max(1, _ATTENTION_AT_ONCE // (4 * len(steps) * config.block_heads * read))
    keys = [keys_of(config, steps[0], grids, view) for view in range(len(grids))]
    shares = []
    with progress_bar("attention", len(pairs.truths), "pair", progress) as advance:
        for low in range(0, len(pairs.truths), at_once):
            batch = [view[low : low + at_once] for view in pairs.views]
            output = backbone(*batch, capture=[f"{step}.{WEIGHTS}" for step in steps], head=False)
            weights = [[_to_others(np.asarray(of_view), keys, view) for view, of_view in enumerate(output[name])] for name in output]
            for index in range(len(batch[0])):
                places = places_in_others(pairs.truths[low + index], grids)
                shares.append([[_share(block[view][index], *of_view) for block in weights] for view, of_view in enumerate(places)])
            advance(len(batch[0]))
    mean = np.nanmean(shares, axis=0)
    return {
        str(Place(f"{steps[block]}.{HEADS}", view + 1, head)): float(mean[view, block, head])
        for view, block, head in np.ndindex(*mean.shape)
    }


def _to_others(weights: Float[np.ndarray, "B heads _N _M"], keys: Sequence[Keys], view: int) -> Float[np.ndarray, "B heads N M"]:
    """A view's weights from its patches to those of the other views, view after view."""
    own = keys[view]
    if own.are_plain:
        return weights
    others = [weights[:, :, own.special :, patches] for other, patches in own.patches.items() if other != view]
    return np.concatenate(others, axis=-1)


def places_in_others(truth: GroundTruth, grids: Grids) -> list[tuple[Bool[np.ndarray, "_N _M"], Bool[np.ndarray, " _N"]]]:
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
