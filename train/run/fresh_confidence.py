"""Confidence to begin with again, where training has driven it to its bound.

While distances stay above the 0.2 of the loss's confidence term, the loss lowers confidence towards its bound of 1; once the exponential
underflows it has no gradient left, and it stays there even if distances shrink.
"""

from typing import Any

import jax
import jax.numpy as jnp

_HEADS = ("head1", "head2")
_LAST = ("proj", "out")  # of the linear and of the DPT head
_CHANNELS = 4  # x, y, z, confidence


def with_fresh_confidence(params: Any) -> Any:
    """The same parameters, with a raw confidence of 0 (in DUSt3R's mode, a confidence of 2) for every pixel of both views."""

    replaced = []

    def fresh(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        keys = [key.key for key in path]
        if keys[0] not in _HEADS or keys[1] not in _LAST:
            return leaf
        # Outputs are laid out channel first in both heads, a patch's pixels within.
        replaced.append(keys)
        channels = leaf.reshape(*leaf.shape[:-1], _CHANNELS, -1)
        return jnp.asarray(channels).at[..., _CHANNELS - 1, :].set(0).reshape(leaf.shape)

    params = jax.tree_util.tree_map_with_path(fresh, params)
    assert len(replaced) == 2 * len(_HEADS), replaced  # kernel and bias of each
    return params
