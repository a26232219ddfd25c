"""Part of the study `inputs`: covers the patches of view 1 that show what a token of view 2 shows, and measures that token.

tokens of view 2 that view 1 sees ─▶ some, drawn ─▶ their match and its neighbours, or as many patches elsewhere, grey ─▶ passes
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Bool, Float

from und3rstand_jax.analysis.inputs import GroundTruth
from und3rstand_jax.analysis.pair_measures import Pairs
from und3rstand_jax.analysis.true_place_attention import both_true_places
from und3rstand_jax.model.output import Grid, Grids

QUERIES = 4
"""The most tokens that are measured in a pair."""

_NEIGHBOURS = 1  # rows and columns of tokens around the match

Points: TypeAlias = tuple[np.ndarray, ...]
"""Both views' predicted points, (B, H, W, 3)."""

Window: TypeAlias = tuple[slice, slice]
"""Rows and columns of a view's tokens."""


class Query(NamedTuple):
    """A token of view 2 by its row and column, the window of view 1's tokens around its true match, and one as large elsewhere."""

    place: tuple[int, int]
    match: Window
    control: Window


def drawn_queries(truth: GroundTruth, grids: Grids, count: int, seed: int) -> list[Query]:
    """At most `count` tokens of view 2 that view 1 sees; each with a control: an equal window around another place."""
    random = np.random.default_rng(seed)
    places = both_true_places(truth, grids)[1]
    shown = set(places.token[places.seen].tolist())  # of view 1's tokens, those that view 2 sees too
    rows, columns = grids[0]
    found: list[Query] = []
    for token in random.permutation(np.flatnonzero(places.seen)):
        row, column = divmod(int(places.token[token]), columns)
        match = _around(row, rows), _around(column, columns)
        height, width = (part.stop - part.start for part in match)
        others = [
            (slice(top, top + height), slice(left, left + width))
            for top in range(rows - height + 1)
            for left in range(columns - width + 1)
            if (top + height // 2) * columns + left + width // 2 in shown
            and not (_overlap(match[0], top, height) and _overlap(match[1], left, width))
        ]
        if others and len(found) < count:
            row, column = divmod(int(token), grids[1][1])
            found.append(Query((row, column), match, others[random.integers(len(others))]))
    return found


def covered(image: Float[np.ndarray, "H W 3"], window: Window, patch: int) -> Float[np.ndarray, "H W 3"]:
    """An image in [-1, 1] with mid-grey in a window of its patches."""
    image = image.copy()
    image[_pixels(window, patch)] = 0.0
    return image


def measured_covers(
    pairs: Pairs,
    grids: Grids,
    seeds: Sequence[int],
    run: Callable[[np.ndarray, np.ndarray], Points],
    straight: Points,
    count: int = QUERIES,
) -> dict[str, Float[np.ndarray, " S"]]:
    """Means over each pair's queries; NaN for a pair without any.

    Args:
        pairs: some pairs.
        grids: of both views' tokens.
        seeds: of each pair's draws.
        run: the model, from both views' images to both views' points.
        straight: what it gives for the pairs as they are.
        count: the most queries of a pair.

    Returns:
        straight/token_error, and of match and control token_error, token_moved and elsewhere_moved, under COVER/NAME.
    """
    queries = [drawn_queries(truth, grids, count, seed) for truth, seed in zip(pairs.truths, seeds, strict=True)]
    patch = pairs.views[0].shape[1] // grids[0][0]
    found: dict[str, list[list[float]]] = {}

    def note(name: str, pair: int, value: float) -> None:
        found.setdefault(name, [[] for _ in queries])[pair].append(value)

    for number in range(count):
        for cover in ("match", "control"):
            view1 = np.stack(
                [
                    covered(image, getattr(own[number], cover), patch) if number < len(own) else image
                    for image, own in zip(pairs.views[0], queries, strict=True)
                ]
            )
            points = run(view1, pairs.views[1])
            for index, own in enumerate(queries):
                if number < len(own):
                    token = _token_mask(own[number].place, patch, points[1].shape[1:3])
                    before, after = (_normalised((both[0][index], both[1][index]), pairs.truths[index]) for both in (straight, points))
                    for name, value in _changes(before, after, pairs, index, token).items():
                        if cover == "match" or not name.startswith("straight/"):
                            note(name if name.startswith("straight/") else f"{cover}/{name}", index, value)
    names = ("straight/token_error", *(f"{cover}/{name}" for cover in ("match", "control") for name in CHANGES))
    nothing: list[list[float]] = [[] for _ in queries]
    return {name: np.array([np.mean(values) if values else np.nan for values in found.get(name, nothing)]) for name in names}


CHANGES = ("token_error", "token_moved", "elsewhere_moved")


def _changes(before: np.ndarray, after: np.ndarray, pairs: Pairs, index: int, token: Bool[np.ndarray, "H W"]) -> Mapping[str, float]:
    valid = pairs.truths[index].views[1].valid
    true = np.stack([plane[index] for plane in pairs.truth.truth.points[1]], axis=-1)
    moved = np.linalg.norm(after - before, axis=-1)
    return {
        "straight/token_error": _mean(np.linalg.norm(before - true, axis=-1), token & valid),
        "token_error": _mean(np.linalg.norm(after - true, axis=-1), token & valid),
        "token_moved": _mean(moved, token),
        "elsewhere_moved": _mean(moved, ~token),
    }


def _normalised(points: Points, truth: GroundTruth) -> Float[np.ndarray, "H W 3"]:
    """View 2's points over the mean distance of both views' to camera 1, as the true ones are normalised."""
    distances = np.concatenate([np.linalg.norm(view[true.valid], axis=-1) for view, true in zip(points, truth.views, strict=True)])
    return points[1] / distances.mean()


def _mean(values: Float[np.ndarray, "H W"], mask: Bool[np.ndarray, "H W"]) -> float:
    return float(values[mask].mean()) if mask.any() else np.nan


def _token_mask(place: tuple[int, int], patch: int, size: Grid) -> Bool[np.ndarray, "H W"]:
    mask = np.zeros(size, bool)
    mask[_pixels((slice(place[0], place[0] + 1), slice(place[1], place[1] + 1)), patch)] = True
    return mask


def _pixels(window: Window, patch: int) -> Window:
    return slice(window[0].start * patch, window[0].stop * patch), slice(window[1].start * patch, window[1].stop * patch)


def _around(place: int, count: int) -> slice:
    return slice(max(place - _NEIGHBOURS, 0), min(place + _NEIGHBOURS + 1, count))


def _overlap(part: slice, start: int, length: int) -> bool:
    return start < part.stop and part.start < start + length
