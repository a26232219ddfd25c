"""Correspondences between two views by their descriptors, as in MASt3R (Leroy et al., ECCV 2024, section 3.3).

    output = backbone(view1, view2)
    found = u3d.match(output)
    found.pixels1, found.pixels2    # (x, y) of each match in both views

Similarity is the dot product of descriptors, which have unit length: the most similar pixel is the nearest one.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from und3rstand_jax.geometry.nearest import Descriptors
from und3rstand_jax.model.output import BackboneOutput
from und3rstand_jax.support.errors import OptionError
from und3rstand_jax.support.progress import progress_bar

ROUNDS = 10
"""A walk from a seed is abandoned if it has not ended after this many rounds."""

_SEEDS_AT_ONCE = 4096

Pairs = tuple[Int[np.ndarray, " _"], Int[np.ndarray, " _"]]
"""Flat indices, y·W + x, in both views."""


@dataclasses.dataclass(frozen=True)
class Matches:
    """Pixels of two views that show the same point.

    Attributes:
        pixels1, pixels2: (x, y) of each match, sorted by the flat index y·W + x in view 1, then in view 2.
        confidence: of each match, from the descriptors' own; None where the model gives none.
        sizes: (height, width) of both views.
    """

    pixels1: Int[np.ndarray, "K 2"]
    pixels2: Int[np.ndarray, "K 2"]
    confidence: Float[np.ndarray, " K"] | None
    sizes: tuple[tuple[int, int], tuple[int, int]]

    def __len__(self) -> int:
        return len(self.pixels1)

    def inside(self, border: int) -> "Matches":
        """The matches that are at least `border` pixels away from every edge, in both views."""
        kept = np.ones(len(self), bool)
        for pixels, (height, width) in zip((self.pixels1, self.pixels2), self.sizes, strict=True):
            kept &= ((pixels >= border) & (pixels < (width - border, height - border))).all(axis=-1)
        confidence = None if self.confidence is None else self.confidence[kept]
        return Matches(self.pixels1[kept], self.pixels2[kept], confidence, self.sizes)


def match(
    output: BackboneOutput,
    *,
    pair: int | None = None,
    seeds: int = 8,
    tolerance: float | None = None,
    both_ways: bool = False,
    swapped: BackboneOutput | None = None,
    border: int = 0,
    progress: bool = False,
) -> Matches:
    """Matches the pixels of two views by the descriptors in a model's output.

    Seeds are the pixels (x, y) of view 1 with x and y in {S//2, S//2 + S, …}. A walk goes from a seed to the most similar pixel of view 2,
    from there to the most similar one of view 1, and so on, until two pixels are each other's most similar: these match. A walk of more
    than `ROUNDS` rounds matches nothing. Seeds at every pixel (S = 1) find all mutual pairs; fewer seeds find some of them.

    Args:
        output: the output of a model that makes descriptors, with the head "features" run.
        pair: index of the pair in the batch; may be omitted if there is only one.
        seeds: S, the distance between seeds in pixels.
        tolerance: in pixels. If given, there is no walk: a seed matches the pixel most similar to it if the way back ends nearer to the
            seed than this. 1 keeps only mutual pairs.
        both_ways: whether to walk from seeds in view 2 too; the matches of both are merged.
        swapped: the same model's output for the views in the other order, as in MASt3R-SfM: both outputs are matched both ways, and the
            matches are merged.
        border: matches nearer to an edge than this many pixels, in either view, are left out.
        progress: whether a terminal shows a progress bar.

    Returns:
        The matches. Their confidence is the smaller of the two descriptors'. With `swapped` it is the square root of their product, from
        the order of views in which the match was found first.

    Raises:
        OptionError: the output has no descriptors, or no such pair; options contradict each other or are out of range.
    """
    check_matching(seeds, tolerance, border, both_ways or swapped is not None)
    views, confidence = _views_of(output, pair, "the output")
    sizes = views[0].shape, views[1].shape
    other = None
    if swapped is not None:
        other, other_confidence = _views_of(swapped, pair, "swapped")
        if (other[1].shape, other[0].shape) != sizes:
            raise OptionError(f"swapped: expected views of {sizes[1]} and {sizes[0]}; found {other[0].shape} and {other[1].shape}")
    walks = [(walk, _usable_seeds(*walk[0], seeds)) for walk in _walks(views, other, both_ways)]
    found: list[list[Pairs]] = []
    with progress_bar("matching", sum(len(places) for _, places in walks), "seed", progress) as advance:
        for ((first, second), turned), places in walks:
            found.append([])
            for low in range(0, len(places), _SEEDS_AT_ONCE):
                some = places[low : low + _SEEDS_AT_ONCE]
                pairs = _walked(first, second, some) if tolerance is None else _given(first, second, some, tolerance)
                found[-1].append(pairs[::-1] if turned else pairs)
                advance(len(some))
    one, two = _united([pairs for of_walk in found for pairs in of_walk], views[1])
    if swapped is None or other is None:
        values = None if confidence is None else np.minimum(confidence[0][one], confidence[1][two])
    else:
        given = [pairs for of_walk in found[:2] for pairs in of_walk]
        values = _of_both_orders((one, two), given, confidence, other_confidence, views[1])
    return Matches(_xy(one, sizes[0]), _xy(two, sizes[1]), values, sizes).inside(border)


def check_matching(seeds: int, tolerance: float | None, border: int, walks_back: bool) -> None:
    """Refuses options that do not work; `walks_back` says whether seeds in view 2 are requested.

    Raises:
        OptionError: options contradict each other or are out of range.
    """
    if seeds < 1 or border < 0 or (tolerance is not None and not tolerance > 0):
        raise OptionError(
            f"expected seeds of at least 1, a tolerance above 0, a border of at least 0; found {seeds}, {tolerance}, {border}"
        )
    if tolerance is not None and walks_back:
        raise OptionError("a tolerance applies to seeds of view 1 without a walk: it cannot be combined with both ways or both orders")


Confidences = tuple[Float[np.ndarray, " _"], Float[np.ndarray, " _"]]


def _views_of(output: BackboneOutput, pair: int | None, what: str) -> tuple[tuple[Descriptors, Descriptors], Confidences | None]:
    """Descriptors of both views of one pair, and the confidence in each."""
    known = output.pointmaps
    if not known or any("desc" not in pred for pred in known):
        raise OptionError(
            f'{what} has no descriptors; expected that of a model with local features (MASt3R), with its head "features" run (head=True)'
        )
    batch = len(known[0]["desc"])
    if pair is None and batch != 1:
        raise OptionError(f"{what} has {batch} pairs; say which with pair=0 to {batch - 1}")
    index = 0 if pair is None else pair
    if not 0 <= index < batch:
        raise OptionError(f"{what} has {batch} pairs, 0 to {batch - 1}; found pair={pair}")
    one, two = (Descriptors(pred["desc"][index]) for pred in known)
    if not all("desc_conf" in pred for pred in known):
        return (one, two), None
    first, second = (np.asarray(pred["desc_conf"][index], np.float32).reshape(-1) for pred in known)
    return (one, two), (first, second)


Walk = tuple[tuple[Descriptors, Descriptors], bool]
"""The views in the order of the walk, and whether that is view 2 first."""


def _walks(views: tuple[Descriptors, Descriptors], other: tuple[Descriptors, Descriptors] | None, both_ways: bool) -> list[Walk]:
    walks: list[Walk] = [(views, False)]
    if both_ways or other is not None:
        walks.append((views[::-1], True))
    if other is not None:
        # In the other order, view 1 is the second.
        walks += [(other[::-1], False), (other, True)]
    return walks


def seed_places(size: tuple[int, int], seeds: int) -> Int[np.ndarray, " S"]:
    """Flat indices of the seeds of a (height, width) view."""
    rows, columns = (np.arange(seeds // 2, length, seeds) for length in size)
    return (rows[:, None] * size[1] + columns).reshape(-1)


def _walked(first: Descriptors, second: Descriptors, seeds: Int[np.ndarray, " S"]) -> Pairs:
    """Pairs in which walks from seeds in the first view end; with repetitions."""
    here = seeds
    before = np.full(len(here), -1)
    found: list[Pairs] = []
    for _ in range(ROUNDS):
        there = second.nearest(first.of(here))
        back = first.nearest(second.of(there))
        # Where the other view's pixel is that of the round before, it led here: the pair is mutual.
        done = (there == before) | (back == here)
        found.append((here[done], there[done]))
        here, before = back[~done], there[~done]
        if not len(here):
            break
    return np.concatenate([one for one, _ in found]), np.concatenate([two for _, two in found])


def _given(first: Descriptors, second: Descriptors, seeds: Int[np.ndarray, " S"], tolerance: float) -> Pairs:
    """Seeds, each with the pixel most similar to it, where the way back ends nearer than the tolerance."""
    there = second.nearest(first.of(seeds))
    back = first.nearest(second.of(there))
    near = np.linalg.norm(_xy(back, first.shape) - _xy(seeds, first.shape), axis=-1) < tolerance
    return seeds[near], there[near]


def _usable_seeds(first: Descriptors, second: Descriptors, seeds: int) -> Int[np.ndarray, " S"]:
    places = seed_places(first.shape, seeds)
    return places[first.known[places]] if second.known.any() else places[:0]


def _united(found: Sequence[Pairs], second: Descriptors) -> Pairs:
    """Every pair once, sorted."""
    one, two = np.divmod(np.unique(_keys(found, second)), second.shape[0] * second.shape[1])
    return one, two


def _keys(found: Sequence[Pairs], second: Descriptors) -> Int[np.ndarray, " K"]:
    """One number for every pair, in the order in which matches are sorted."""
    area = second.shape[0] * second.shape[1]
    return np.concatenate([np.empty(0, np.int64), *(one.astype(np.int64) * area + two for one, two in found)])


def _of_both_orders(
    pairs: Pairs, given: Sequence[Pairs], confidence: Confidences | None, swapped: Confidences | None, second: Descriptors
) -> Float[np.ndarray, " K"] | None:
    """The square root of both confidences' product, from the given order if it found the pair (`given`), else from the swapped one."""
    if confidence is None or swapped is None:
        return None
    one, two = pairs
    in_given_order = np.isin(_keys([pairs], second), _keys(given, second))
    products = np.where(in_given_order, confidence[0][one] * confidence[1][two], swapped[1][one] * swapped[0][two])
    return np.sqrt(products)


def _xy(places: Int[np.ndarray, " K"], size: tuple[int, int]) -> Int[np.ndarray, "K 2"]:
    rows, columns = np.divmod(places, size[1])
    return np.stack([columns, rows], axis=-1)
