"""Which cross-attention heads look hardest at the true place, over held-out pairs."""

from typing import Literal

import numpy as np

from und3rstand_jax.analysis.ablations import Place
from und3rstand_jax.analysis.pair_measures import Pairs
from und3rstand_jax.analysis.true_place_attention import attention_on, both_true_places
from und3rstand_jax.analysis.view_set import Attention
from und3rstand_jax.model.backbone import Backbone
from und3rstand_jax.model.start import token_grids
from und3rstand_jax.support.progress import progress_bar

_ATTENTION_AT_ONCE = 2**29  # bytes

_VIEWS: tuple[Literal[1, 2], ...] = (1, 2)


def true_place_shares(backbone: Backbone, pairs: Pairs, progress: bool = False) -> dict[str, float]:
    """Of every cross-attention head, as a place's id, the share of its attention on the true place: the mean over pairs."""
    config = backbone.config
    names = [f"decoder.{block}.cross_attn.weights" for block in range(config.dec_depth)]
    sizes = [(view.shape[1], view.shape[2]) for view in pairs.views]
    grids = token_grids((sizes[0], sizes[1]), config)
    tokens = [rows * columns for rows, columns in grids]
    at_once = max(1, _ATTENTION_AT_ONCE // (8 * config.dec_depth * config.dec_num_heads * tokens[0] * tokens[1]))
    shares = []
    with progress_bar("attention", len(pairs.truths), "pair", progress) as advance:
        for low in range(0, len(pairs.truths), at_once):
            batch = [view[low : low + at_once] for view in pairs.views]
            output = backbone(batch[0], batch[1], capture=names, head=False)
            weights = [[np.asarray(view) for view in output[name]] for name in names]
            for index in range(len(batch[0])):
                attention = [Attention.to_others(block, [view[index] for view in views]) for block, views in enumerate(weights)]
                shares.append(attention_on(attention, both_true_places(pairs.truths[low + index], grids)))
            advance(len(batch[0]))
    mean = np.nanmean(shares, axis=0)
    return {
        str(Place(f"decoder.{block}.cross_attn.heads", view, head)): float(mean[view - 1, block, head])
        for view in _VIEWS
        for block, head in np.ndindex(*mean.shape[1:])
    }
