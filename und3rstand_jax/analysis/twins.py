"""Twins of rendered pairs: the same room and view 1, and another view 2 through the same lens."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from und3rstand_jax.analysis.batch_errors import assembled
from und3rstand_jax.analysis.pair_measures import Pairs, pairs_of
from und3rstand_jax.data.loader import Feed, Place, Sources, validation_batches


def twins_of(feed: Feed, sources: Sources, places: Sequence[Place], pairs: Pairs) -> Pairs | None:
    """Of each held-out pair of some rendered scenes its twin, which has the scene's next second camera.

    Args:
        feed: the one that the pairs were made of.
        sources: those of its specs.
        places: of the pairs, from `und3rstand_jax.data.loader.held_out`.
        pairs: made of them.

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
    others = dataclasses.replace(feed, specs=specs)
    twins = pairs_of(list(assembled(others, validation_batches(others, sources, places), len(places), [])), len(places))
    assert np.array_equal(twins.views[0], pairs.views[0]), "a second camera changes nothing of view 1"
    return twins
