"""Twins of rendered pairs: the same room and view 1, and another view 2 through the same lens."""

import dataclasses

import numpy as np

from und3rstand_jax.analysis.pair_measures import Pairs, held_out_pairs
from und3rstand_jax.data.loader import Feed


def twins_of(feed: Feed, pairs: Pairs, progress: bool = False) -> Pairs | None:
    """Of each held-out pair of some rendered scenes its twin, which has the scene's next second camera.

    Args:
        feed: the one that the pairs were made of.
        pairs: from `held_out_pairs`.
        progress: whether a terminal shows a progress bar.

    Returns:
        As many pairs, whose images and truth of view 1 are those of `pairs`; None if not all pairs are rendered: a data set's have no twin.
    """
    if any(spec.scenes is None for spec in feed.specs):
        return None
    specs = tuple(
        dataclasses.replace(spec, scenes=dataclasses.replace(spec.scenes, second=spec.scenes.second + 1))
        for spec in feed.specs
        if spec.scenes is not None
    )
    twins = held_out_pairs(dataclasses.replace(feed, specs=specs), len(pairs.truths), progress)
    assert np.array_equal(twins.views[0], pairs.views[0]), "a second camera changes nothing of view 1"
    return twins
