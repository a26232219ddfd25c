"""What the study of similarity measures, pair by pair: unbiased HSIC between layers and between views, effective rank, mean cosine.

pair ─▶ tokens of all layers ─┬─▶ of each view: Gram matrices ─▶ HSIC of every two layers, of the next pair's, of random weights'
                              ├─▶ of each view: effective rank, mean cosine
                              └─▶ of both views: HSIC at true matches, at another scene's, at shuffled ones
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from und3rstand_jax.analysis.studies.study import Setting, over_pairs, pairs_at_once
from und3rstand_jax.analysis.token_similarity import effective_rank, gram, inner, mean_cosine, u_centred
from und3rstand_jax.analysis.true_place_attention import both_true_places
from und3rstand_jax.model.backbone import Backbone, random_backbone
from und3rstand_jax.model.config import ModelConfig

Stacks = tuple[Float[Array, "B _L _N _C"], ...]
"""One view's patches of all of the encoder's layers, and of all of the decoder's."""

Drawn = tuple[Float[Array, "S Le _ Ce"], Float[Array, "S Ld _ Cd"]]
"""The same for random weights, of only the pairs that are measured: no pair comes after them."""


def measure(setting: Setting) -> dict[str, Float[np.ndarray, "S ..."]]:
    """Every number of every pair, with L layers in network order.

    For each view, `view1/…` and `view2/…`: `layers` and `random` (S, L, L) are HSIC between every two layers, of the model and of random
    weights; `with_random`, `with_next` and `shuffled` (S, L) are HSIC between a layer and the random model's, the next pair's, and its own
    tokens in another order; `rank`, `cosine`, `random_rank` and `random_cosine` are (S, L). For both views together, `match`, `other`,
    `shuffled` and `random` with `/cross`, `/one` and `/two` (S, L): HSIC between matched tokens, and of each view's with themselves.
    """
    drawn = random_backbone(setting.backbone.config, setting.seed, setting.backbone.module.dtype)
    grids, truths = setting.grids, setting.pairs.truths

    def compute(some: range) -> dict[str, np.ndarray]:
        # With the next pair at the end.
        numbers = [number % setting.count for number in range(some.start, some.stop + 1)]
        places = [both_true_places(truths[number], grids)[0] for number in numbers]
        trained, random = _stacks(setting.backbone, setting, numbers), _stacks(drawn, setting, numbers[:-1])
        found: dict[str, Any] = {}
        for view in (0, 1):
            orders = [_order(setting.seed, number, grids[view]) for number in numbers[:-1]]
            values = _of_view(trained[view], random[view], np.stack(orders))
            found |= {f"view{view + 1}/{name}": value for name, value in values.items()}
            for name, stacks in (("rank", trained[view]), ("random_rank", random[view])):
                ranks = [effective_rank(np.asarray(stack[: len(some)])) for stack in stacks]
                found[f"view{view + 1}/{name}"] = np.concatenate(ranks, axis=1)
        matches = [_matches(place.token, place.seen) for place in places]
        at_random = [_shuffled(match, setting.seed, number) for match, number in zip(matches, numbers, strict=True)]
        own, others, mixed = (_joined(part) for part in (matches[:-1], matches[1:], at_random[:-1]))
        for name, of, pairs in (("match", trained, own), ("other", trained, others), ("shuffled", trained, mixed), ("random", random, own)):
            values = _between_views(*(jax.tree.map(lambda leaf: leaf[: len(some)], of[view]) for view in (0, 1)), *pairs)
            found |= {f"{name}/{key}": value for key, value in values.items()}
        return {name: np.asarray(values) for name, values in jax.device_get(found).items()}

    return over_pairs(setting, "similarity of tokens", compute, similarity_at_once(setting))


def _stacks(backbone: Backbone, setting: Setting, numbers: Sequence[int]) -> tuple[Stacks, ...]:
    one, two = (view[list(numbers)] for view in setting.pairs.views)
    output = backbone(one, two, capture="*", head=False)
    layers = stack_layers(backbone.config)
    return tuple(tuple(jnp.stack([output.patches(layer)[view] for layer in stack], axis=1) for stack in layers) for view in (0, 1))


def stack_layers(config: ModelConfig) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The encoder's layers, and the layers from the input of the blocks where views meet; together, all in network order."""
    border = config.layer_ids.index(config.embed)
    return config.layer_ids[:border], config.layer_ids[border:]


@jax.jit
def _of_view(trained: Stacks, random: Drawn, orders: Int[Array, "S N"]) -> dict[str, Float[Array, "S ..."]]:
    """For S pairs; `trained` has the pair after the last as well."""

    def of_pair(given: Any) -> dict[str, Array]:
        tokens, following, drawn, order = given
        own, following_own, drawn_own = (jnp.concatenate([u_centred(gram(stack)) for stack in some]) for some in (tokens, following, drawn))
        count = own.shape[-1]
        mixed = own[:, order][:, :, order]
        diagonal = functools.partial(jax.vmap(inner, in_axes=(0, 0, None)), own)
        return {
            "layers": inner(own, own, count),
            "random": inner(drawn_own, drawn_own, count),
            "with_random": diagonal(drawn_own, count),
            "with_next": diagonal(following_own, count),
            "shuffled": diagonal(mixed, count),
            "cosine": jnp.concatenate([mean_cosine(stack) for stack in tokens]),
            "random_cosine": jnp.concatenate([mean_cosine(stack) for stack in drawn]),
        }

    first, after = (jax.tree.map(lambda leaf, part=part: leaf[part], trained) for part in (slice(None, -1), slice(1, None)))
    return jax.lax.map(of_pair, (first, after, random, orders))


@jax.jit
def _between_views(one: Stacks, two: Stacks, token: Int[Array, "S N"], seen: Bool[Array, "S N"]) -> dict[str, Float[Array, "S L"]]:
    """HSIC of view 1's tokens with those of view 2 that they are matched with, layer by layer, and of each with themselves."""

    def of_pair(given: Any) -> dict[str, Array]:
        one, two, token, seen = given
        count = jnp.sum(seen)
        of_one = jnp.concatenate([u_centred(gram(stack), seen) for stack in one])
        of_two = jnp.concatenate([u_centred(gram(stack[:, token]), seen) for stack in two])
        both = jax.vmap(inner, in_axes=(0, 0, None))
        return {"cross": both(of_one, of_two, count), "one": both(of_one, of_one, count), "two": both(of_two, of_two, count)}

    return jax.lax.map(of_pair, (one, two, token, seen))


Matches = tuple[Int[np.ndarray, " N"], Bool[np.ndarray, " N"]]
"""For each of view 1's tokens, which of view 2's shows the same place, 0 if none does, and whether any does."""


def _matches(token: Int[np.ndarray, " N"], seen: Bool[np.ndarray, " N"]) -> Matches:
    return np.where(seen, token, 0), seen


def _shuffled(matches: Matches, seed: int, number: int) -> Matches:
    """The same tokens of both views, matched with one another at random."""
    token, seen = matches
    mixed = token.copy()
    mixed[seen] = np.random.default_rng([seed, number, 1]).permutation(token[seen])
    return mixed, seen


def _order(seed: int, number: int, grid: tuple[int, int]) -> Int[np.ndarray, " N"]:
    return np.random.default_rng([seed, number]).permutation(grid[0] * grid[1])


def _joined(matches: Sequence[Matches]) -> tuple[np.ndarray, np.ndarray]:
    tokens, seen = zip(*matches, strict=True)
    return np.stack(tokens), np.stack(seen)


def bytes_a_pair(setting: Setting) -> int:
    """Approximate bytes of a pair's tokens in all layers, of the model and of random weights."""
    config = setting.backbone.config
    widths = sum(map(config.layer_width, config.layer_ids))
    return 2 * 4 * widths * sum(rows * columns for rows, columns in setting.grids)


def bytes_of_grams(setting: Setting) -> int:
    """Approximate bytes of the Gram matrices of one view of one pair; no more are in memory at once."""
    return 6 * 4 * len(setting.backbone.config.layer_ids) * max(rows * columns for rows, columns in setting.grids) ** 2


def similarity_at_once(setting: Setting) -> int:
    """How many pairs are in memory together."""
    return pairs_at_once(setting, bytes_a_pair(setting))


def values_a_pair(config: ModelConfig) -> int:
    """How many numbers are kept of each pair."""
    layers = len(config.layer_ids)
    return 2 * (2 * layers**2 + 7 * layers) + 12 * layers


def of_view(by_pair: Mapping[str, np.ndarray], view: int, name: str) -> Float[np.ndarray, "S ..."]:
    """What `measure` found for a view under a name."""
    return by_pair[f"view{view}/{name}"]
