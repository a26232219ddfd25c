"""What the study of heads measures of every pair, from the attention weights of all blocks."""

import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from und3rstand_jax.analysis.studies.study import Setting, other_pair, over_pairs, pairs_at_once
from und3rstand_jax.analysis.true_place_attention import both_true_places, over_queries, stacked_places, strongest_in
from und3rstand_jax.model.config import ModelConfig
from und3rstand_jax.model.module import MultiViewModel
from und3rstand_jax.model.output import BackboneOutput, Grid, Grids

CROSS, SELF = "cross_attn", "self_attn"

SINK_TOKEN = "sink_token"
"""Of every pair, which key gets most of a head's attention; there is no mean of that."""


def measure_heads(setting: Setting) -> dict[str, Float[np.ndarray, "S 2 blocks heads"]]:
    """Everything of every head, pair by pair: ATTENTION/NAME, such as cross_attn/mass; axis 1 is the view whose tokens ask."""
    truths, grids = setting.pairs.truths, setting.grids
    names = tuple(
        f"decoder.{block}.{attention}.weights" for block in range(setting.backbone.config.dec_depth) for attention in (SELF, CROSS)
    )

    def compute(some: range) -> dict[str, np.ndarray]:
        places = [both_true_places(truths[number], grids) for number in some]
        others = [both_true_places(truths[other_pair(number, len(truths))], grids) for number in some]
        views = (view[some.start : some.stop] for view in setting.pairs.views)
        stats = _head_statistics(
            setting.backbone.module, names, grids, setting.backbone.params, *views, *map(stacked_places, (places, others))
        )
        return {name: np.asarray(values) for name, values in jax.device_get(stats).items()}

    return over_pairs(setting, "attention of heads", compute, heads_at_once(setting))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _head_statistics(
    module: MultiViewModel, names: tuple[str, ...], grids: Grids, params: Any, view1: Array, view2: Array, places: tuple, others: tuple
) -> dict[str, Float[Array, "B 2 blocks heads"]]:
    output = cast(BackboneOutput, module.apply({"params": params}, view1, view2, capture=names, head=False))
    found: dict[str, list[list[Array]]] = {}
    for name in names:
        attention = name.split(".")[2]
        for view, weights in enumerate(output[name]):
            asked = 1 - view if attention == CROSS else view
            stats = attention_statistics(jnp.asarray(weights), grids[view], grids[asked], jnp.asarray(places[view].seen))
            if attention == CROSS:
                stats |= match_statistics(jnp.asarray(weights), places[view], others[view])
            for key, values in stats.items():
                found.setdefault(f"{attention}/{key}", [[], []])[view].append(values)
    return {key: jnp.stack([jnp.stack(blocks, axis=1) for blocks in views], axis=1) for key, views in found.items()}


def match_statistics(weights: Float[Array, "B H N M"], places: Any, others: Any) -> dict[str, Float[Array, "B H"]]:
    """How attention and its strongest key lie to the true places (`TruePlaces`, stacked), and to those of others as a control."""
    strongest = jnp.argmax(weights, axis=-1)

    def mass(near: Bool[Array, "B N M"], seen: Bool[Array, "B N"]) -> Float[Array, "B H"]:
        return over_queries(jnp.sum(jnp.where(near[:, None], weights, 0.0), axis=-1), seen)

    return {
        "match": over_queries((strongest == places.token[:, None]).astype(jnp.float32), places.seen),
        "near": strongest_in(weights, places.near, places.seen),
        "near_other": strongest_in(weights, others.near, others.seen),
        "mass": mass(places.near, places.seen),
        "mass_other": mass(others.near, others.seen),
    }


def attention_statistics(
    weights: Float[Array, "B H N M"], here: Grid, there: Grid, seen: Bool[Array, "B N"]
) -> dict[str, Float[Array, "B H"]]:
    """What `OF_QUERIES` names, of all queries, of those that are seen and of those that are not."""
    between = jnp.asarray(_distances(here, there))
    entropy = -jnp.sum(weights * jnp.log(jnp.maximum(weights, 1e-30)), axis=-1) / np.log(max(weights.shape[-1], 2))
    taken = jnp.mean(weights, axis=2)  # of each key, (B, H, M)
    strongest = jnp.argmax(taken, axis=-1)
    of_queries = {
        "entropy": entropy,
        "distance": jnp.einsum("bhnm,nm->bhn", weights, between, precision=jax.lax.Precision.HIGHEST),
        "own": jnp.sum(jnp.where(between < 1.5, weights, 0.0), axis=-1),
        "sink": jnp.take_along_axis(weights, strongest[:, :, None, None], axis=-1)[..., 0],
    }
    everywhere = jnp.ones_like(seen)
    found = {SINK_TOKEN: strongest.astype(jnp.float32)}
    for suffix, mask in (("", everywhere), ("_seen", seen), ("_unseen", ~seen)):
        found |= {f"{name}{suffix}": over_queries(values, mask) for name, values in of_queries.items()}
    return found


def _distances(here: Grid, there: Grid) -> Float[np.ndarray, "N M"]:
    """From each token's place to each of the other grid's, in the other grid's tokens, with the two images laid over one another."""

    def places(grid: Grid) -> Int[np.ndarray, "N 2"]:
        return np.stack(np.divmod(np.arange(grid[0] * grid[1]), grid[1]), axis=-1)

    scale = np.array(there) / np.array(here)
    own = (places(here) + 0.5) * scale - 0.5
    return np.linalg.norm(own[:, None] - places(there)[None], axis=-1).astype(np.float32)


def head_count(config: ModelConfig) -> int:
    """Of one attention of one view's decoder, in all blocks."""
    return config.dec_depth * config.dec_num_heads


def bytes_a_pair(setting: Setting) -> int:
    """Of the attention weights of all blocks."""
    one, two = (rows * columns for rows, columns in setting.grids)
    return 4 * head_count(setting.backbone.config) * (one * one + two * two + 2 * one * two)


def heads_at_once(setting: Setting) -> int:
    """As many pairs as have half a GiB of weights."""
    return pairs_at_once(setting, bytes_a_pair(setting))
