"""What the study of heads measures on every pair, from the attention weights of all blocks."""

import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from und3rstand_jax.analysis.attention_keys import Keys, keys_of
from und3rstand_jax.analysis.steps import kind_of
from und3rstand_jax.analysis.studies.study import Setting, other_pair, over_pairs, pairs_at_once
from und3rstand_jax.analysis.true_place_attention import both_true_places, over_queries, stacked_places, strongest_in
from und3rstand_jax.model.config import ModelConfig
from und3rstand_jax.model.module import MultiViewModel
from und3rstand_jax.model.output import BackboneOutput, Grid, Grids
from und3rstand_jax.model.sites import WEIGHTS

_MOST_WEIGHTS = 2**32  # bytes, of one pair

SINK_TOKEN = "sink_token"
"""For every pair, which key gets most of a head's attention; it has no mean."""


def measure_heads(setting: Setting) -> dict[str, Float[np.ndarray, "S 2 blocks heads"]]:
    """Every number of every head, pair by pair: ATTENTION/NAME, such as cross_attn/mass; axis 1 is the view whose tokens are the queries.

    Queries are patches. Where keys are special tokens or the patches of several views, there are more numbers: see `destinations`.
    """
    truths, grids = setting.pairs.truths, setting.grids
    groups = _groups(setting)

    def compute(some: range) -> dict[str, np.ndarray]:
        places = [both_true_places(truths[number], grids) for number in some]
        others = [both_true_places(truths[other_pair(number, len(truths))], grids) for number in some]
        views = tuple(view[some.start : some.stop] for view in setting.pairs.views)
        stacked = tuple(map(stacked_places, (places, others)))
        found: dict[str, list[np.ndarray]] = {}
        for names in groups:
            stats = _head_statistics(setting.backbone.module, names, grids, setting.backbone.params, *views, *stacked)
            for name, values in jax.device_get(stats).items():
                found.setdefault(name, []).append(np.asarray(values))
        return {name: np.concatenate(values, axis=2) for name, values in found.items()}

    return over_pairs(setting, "attention of heads", compute, heads_at_once(setting))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _head_statistics(
    module: MultiViewModel, names: tuple[str, ...], grids: Grids, params: Any, view1: Array, view2: Array, places: tuple, others: tuple
) -> dict[str, Float[Array, "B 2 blocks heads"]]:
    output = cast(BackboneOutput, module.apply({"params": params}, view1, view2, capture=names, head=False))
    config = module.config
    found: dict[str, list[list[Array]]] = {}
    for name in names:
        layer = name.removesuffix(f".{WEIGHTS}")
        for view, captured in enumerate(output[name]):
            keys, seen = keys_of(config, layer, grids, view), jnp.asarray(places[view].seen)
            weights = jnp.asarray(captured)[:, :, keys.special :] if keys.special else jnp.asarray(captured)
            if keys.are_plain:
                (read,) = keys.patches
                stats = attention_statistics(weights, grids[view], grids[read], seen)
            else:
                stats = statistics_of_several(weights, keys, grids, view, seen) | destinations(weights, keys, view)
            if 1 - view in keys.patches:
                to_other = weights if keys.are_plain else weights[..., keys.patches[1 - view]]
                stats |= match_statistics(to_other, places[view], others[view])
            for key, values in stats.items():
                found.setdefault(f"{kind_of(layer, config)}/{key}", [[], []])[view].append(values)
    return {key: jnp.stack([jnp.stack(blocks, axis=1) for blocks in views], axis=1) for key, views in found.items()}


def match_statistics(weights: Float[Array, "B H N M"], places: Any, others: Any) -> dict[str, Float[Array, "B H"]]:
    """Whether attention and its strongest key are on the true places (`TruePlaces`, stacked), and on those of others as a control.

    Keys are the other view's patches; attention whose rows do not sum to 1 also goes elsewhere.
    """
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
    """The numbers of `OF_QUERIES`, for all queries, for those that are seen and for those that are not."""
    between = jnp.asarray(_distances(here, there))
    distance = jnp.einsum("bhnm,nm->bhn", weights, between, precision=jax.lax.Precision.HIGHEST)
    return _of_queries(weights, distance, between, seen)


def statistics_of_several(
    weights: Float[Array, "B H N M"], keys: Keys, grids: Grids, view: int, seen: Bool[Array, "B N"]
) -> dict[str, Float[Array, "B H"]]:
    """The same where keys are the patches of several views, or special tokens too.

    For `own` and `distance`, the views are laid over one another. Special tokens have no place, so distances are only of the attention
    that goes to patches.
    """
    between = np.full((weights.shape[2], weights.shape[3]), np.inf, np.float32)
    for other, patches in keys.patches.items():
        between[:, patches] = _distances(grids[view], grids[other])
    to_patches = jnp.where(jnp.asarray(keys.is_special), 0.0, weights)
    finite = jnp.asarray(np.where(keys.is_special, 0, between))
    distance = jnp.einsum("bhnm,nm->bhn", to_patches, finite, precision=jax.lax.Precision.HIGHEST)
    return _of_queries(weights, distance / jnp.maximum(jnp.sum(to_patches, axis=-1), 1e-30), jnp.asarray(between), seen)


def destinations(weights: Float[Array, "B H N M"], keys: Keys, view: int) -> dict[str, Float[Array, "B H"]]:
    """Where attention goes, mean over queries: to own patches, the other view's, special tokens; and whether the sink is special."""
    taken = jnp.mean(weights, axis=2)
    found = {"to_special": jnp.sum(jnp.where(jnp.asarray(keys.is_special), taken, 0.0), axis=-1)} if keys.special else {}
    if len(keys.patches) > 1:
        found["to_own"] = jnp.sum(taken[..., keys.patches[view]], axis=-1)
        found["to_other"] = 1.0 - found["to_own"] - found.get("to_special", 0.0)
    if keys.special:
        found["sink_special"] = jnp.asarray(keys.is_special)[jnp.argmax(taken, axis=-1)].astype(jnp.float32)
    return found


def _of_queries(
    weights: Float[Array, "B H N M"], distance: Float[Array, "B H N"], between: Float[Array, "N M"], seen: Bool[Array, "B N"]
) -> dict[str, Float[Array, "B H"]]:
    entropy = -jnp.sum(weights * jnp.log(jnp.maximum(weights, 1e-30)), axis=-1) / np.log(max(weights.shape[-1], 2))
    taken = jnp.mean(weights, axis=2)  # of each key, (B, H, M)
    strongest = jnp.argmax(taken, axis=-1)
    of_queries = {
        "entropy": entropy,
        "distance": distance,
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
    """The heads of one attention of one view, in all blocks."""
    return len(config.blocks) * config.block_heads


def bytes_a_pair(setting: Setting) -> int:
    """Bytes of the attention weights in memory together: those of both attentions, in all blocks or in a group of them."""
    return min(len(setting.backbone.config.blocks), _blocks_at_once(setting)) * _bytes_a_block(setting)


def heads_at_once(setting: Setting) -> int:
    """How many pairs have up to half a GiB of weights."""
    return pairs_at_once(setting, bytes_a_pair(setting))


def passes_a_pair(setting: Setting) -> int:
    """One for each group of blocks whose weights are in memory together."""
    return len(_groups(setting))


def _bytes_a_block(setting: Setting) -> int:
    config, grids = setting.backbone.config, setting.grids
    block = config.blocks[0]
    pairs = sum(
        config.token_count(step, grid) * config.attention_keys(step, grids, view)
        for step in (block.own, block.across)
        for view, grid in enumerate(grids)
    )
    return 4 * config.block_heads * pairs


def _blocks_at_once(setting: Setting) -> int:
    return max(1, _MOST_WEIGHTS // _bytes_a_block(setting))


def _groups(setting: Setting) -> list[tuple[str, ...]]:
    """Ids of the weights, in groups of blocks whose weights of one pair are in memory together; each group takes a pass."""
    blocks, together = setting.backbone.config.blocks, _blocks_at_once(setting)
    return [
        tuple(f"{step}.{WEIGHTS}" for block in blocks[low : low + together] for step in (block.own, block.across))
        for low in range(0, len(blocks), together)
    ]
