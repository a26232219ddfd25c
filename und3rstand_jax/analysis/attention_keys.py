"""Which keys of a view's attention are which view's patches, and which are special tokens."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from und3rstand_jax.model.config import ModelConfig
from und3rstand_jax.model.output import Grids


class Keys(NamedTuple):
    """The keys of a view's attention: the tokens of one or more views, view after view, each with its special tokens first.

    Attributes:
        patches: a view's number, from 0 -> which keys are its patches; in the order of the keys.
        is_special: for every key, whether it is a special token.
        special: how many special tokens come before the patches of each view, among the queries too.
    """

    patches: dict[int, slice]
    is_special: Bool[np.ndarray, " M"]
    special: int

    @property
    def are_plain(self) -> bool:
        """Whether they are one view's patches and nothing else."""
        return len(self.patches) == 1 and not self.special


def keys_of(config: ModelConfig, layer_id: str, grids: Grids, view: int) -> Keys:
    """The keys that a view's tokens attend to in a step.

    Args:
        config: of the backbone.
        layer_id: the step.
        grids: (rows, columns) of each view's patches.
        view: whose tokens are the queries, from 0.
    """
    reads, special = config.reads(layer_id), len(config.special_tokens(layer_id))
    views = [other for other in range(len(grids)) if reads == "all" or (reads == "own") == (other == view)]
    patches, start = {}, 0
    for other in views:
        stop = start + config.token_count(layer_id, grids[other])
        patches[other] = slice(start + special, stop)
        start = stop
    is_special = np.ones(start, bool)
    for of_view in patches.values():
        is_special[of_view] = False
    return Keys(patches, is_special, special)
