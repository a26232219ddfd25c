"""The numbers of the study of knock-outs by what was taken away: curves over the number of heads, with those of their controls."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from und3rstand_jax.analysis.ablations import By
from und3rstand_jax.analysis.pair_measures import VIEW2
from und3rstand_jax.analysis.studies.knock_out import sets
from und3rstand_jax.analysis.studies.knock_out.sweeps import Row
from und3rstand_jax.analysis.studies.study import Mean, mean_of

ByPair = Mapping[str, Float[np.ndarray, " S"]]
"""Every metric's value in every measured pair."""

TOLD_K = 8
"""Findings are about this many heads, or the most that were taken away."""


class Curve(NamedTuple):
    """One kind of set over k. For random ones, the mean over draws, pair by pair, and the lowest and highest mean of a draw."""

    ks: tuple[int, ...]
    values: tuple[Mean, ...]
    effects: tuple[Mean, ...]
    lowest: tuple[float, ...]
    highest: tuple[float, ...]
    draws: tuple[int, ...]

    def at(self, k: int) -> int:
        """The index of k."""
        return self.ks.index(k)


def curve_of(rows: Sequence[Row], kind: str, by: By, metric: str, of: str | None = None) -> Curve:
    """The curve of the sets of one kind, taken away in one way; `of` tells the controls of several kinds apart."""
    chosen = [row for row in rows if row.taken.kind == kind and row.by == by and of in (None, row.taken.of)]
    points = []
    for k in sorted({row.taken.k for row in chosen if row.taken.k is not None}):
        draws = [row for row in chosen if row.taken.k == k]
        means = [mean_of(row.values[metric]).mean for row in draws]
        value, effect = (
            mean_of(np.mean([part[metric] for part in parts], axis=0))
            for parts in zip(*((row.values, row.effects) for row in draws), strict=True)
        )
        points.append((k, value, effect, min(means), max(means), len(draws)))
    return Curve(*zip(*points, strict=True)) if points else Curve((), (), (), (), (), ())


def excess_of(rows: Sequence[Row], kind: str, by: By, metric: str, k: int) -> Mean:
    """How much more a set costs than the mean of its random controls, pair by pair."""
    own = next(row for row in rows if (row.taken.kind, row.by, row.taken.k) == (kind, by, k))
    drawn = [row.values[metric] for row in rows if (row.taken.kind, row.taken.of, row.by, row.taken.k) == (sets.RANDOM, kind, by, k)]
    return mean_of(own.values[metric] - np.mean(drawn, axis=0))


def ways(rows: Sequence[Row]) -> list[By]:
    """The ways in which heads were taken away."""
    return [by for by in sets.WAYS if any(row.by == by and row.taken.kind == sets.MATCH for row in rows)]


def named(rows: Sequence[Row], name: str) -> Row:
    """The row of a sublayer, a block or cross-attention."""
    return next(row for row in rows if row.taken.name == name)


def told_k(rows: Sequence[Row]) -> int:
    """The number of heads that findings are about."""
    return max(k for k in curve_of(rows, sets.MATCH, "mean", VIEW2).ks if k <= TOLD_K)


def effect_on(row: Row, metric: str = VIEW2) -> Mean:
    """The mean difference from the unedited run."""
    return mean_of(row.effects[metric])
