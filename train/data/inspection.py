"""What a data set holds, and whether its geometry is consistent: figures over a sample of its pairs."""

import sys
from typing import Protocol

import numpy as np
from tqdm import tqdm

from train.data.diagnosis import explain
from train.data.figures import Inspection, pair_figures
from train.data.overlap import thin_pair, total
from train.data.records import Pair, Shape, UnreadablePair

DEFAULT_SHAPE = (384, 512)


class InspectedPairs(Protocol):
    """A numbered list of pairs that can be looked at before and after cropping, such as `FilePairs`."""

    @property
    def name(self) -> str:
        """How the report calls it."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What was counted or left out when the list was made, a line each."""
        ...

    def __len__(self) -> int: ...

    def pair_name(self, index: int) -> str:
        """How the report calls a pair."""
        ...

    def read(self, index: int) -> Pair:
        """A pair as it is. Raises UnreadablePair."""
        ...

    def fit(self, index: int, pair: Pair, shape: Shape, rng: np.random.Generator | None) -> Pair:
        """That pair as training takes it. Raises UnreadablePair."""
        ...


def inspect_pairs(source: InspectedPairs, count: int, shape: Shape = DEFAULT_SHAPE) -> Inspection:
    """Reads `count` pairs spread at random over the source (always the same ones), or all there are.

    Geometry is judged on the views as their files have them; that they can be cropped to `shape`, as training does, is only tried.
    Mistakes are looked for in all sampled pairs together, so that a few bad ones do not decide.
    """
    chosen = np.random.default_rng(0).choice(len(source), min(count, len(source)), replace=False)
    figures, thin_pairs, unreadable, refused = [], [], [], []
    for index in tqdm(np.sort(chosen).tolist(), desc="reading pairs", unit="pair", file=sys.stderr, disable=None, leave=False, delay=0.5):
        try:
            pair = source.read(index)
        except UnreadablePair as error:
            unreadable.append(str(error))
            continue
        thin_pairs.append(thin_pair(pair))
        figures.append(pair_figures(source.pair_name(index), pair, thin_pairs[-1]))
        try:
            source.fit(index, pair, shape, None)
        except UnreadablePair as error:
            refused.append(str(error))
    explanations = explain(thin_pairs) if thin_pairs else []
    return Inspection(
        name=source.name,
        pairs=len(source),
        notes=source.notes,
        shape=shape,
        figures=tuple(figures),
        unreadable=tuple(unreadable),
        refused=tuple(refused),
        agreement=total(pair.both for pair in figures),
        explanations=tuple(explanations),
    )
