"""Figures of pairs: sizes, depths, fields of view, overlap, and how well both views' geometry agrees.

Rendered scenes as a list of pairs, to inspect them as what comes from files is.

What a data set holds, and whether its geometry is consistent: figures over a sample of its pairs.
"""

import dataclasses
import sys
from typing import Literal, Protocol

import jax
import numpy as np
from tqdm import tqdm

from und3rstand_jax.data.inspect.agreement import Agreement, ThinPair, agreement, baseline_over_depth, both_ways, thin_pair, total
from und3rstand_jax.data.inspect.diagnosis import Explanation, explain
from und3rstand_jax.data.records import Pair, Shape, UnreadablePair, View, held_out_scenes, training_scenes
from und3rstand_jax.data.synthetic.config import SyntheticConfig
from und3rstand_jax.data.synthetic.render import render_pair


@dataclasses.dataclass(frozen=True)
class ViewFigures:
    """Of one view: size in pixels; nearest (1st percentile), median and farthest (99th) depth in the unit of cam2world, NaN where
    none is known; share of the pixels whose depth is known; horizontal field of view in degrees; offset of the principal point from
    the centre as a share of the side (the worse of the two).
    """

    size: tuple[int, int]
    depth: tuple[float, float, float]
    valid: float
    field_of_view: float
    off_centre: float


@dataclasses.dataclass(frozen=True)
class PairFigures:
    """Of one pair: its name, its views, the agreement of view 1's points with view 2 and of both with each other,
    and the distance of the cameras over the median depth.
    """

    name: str
    views: tuple[ViewFigures, ViewFigures]
    forward: Agreement
    both: Agreement
    baseline_over_depth: float


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What was found in a sample of a source's pairs.

    `unreadable` and `refused` are messages: of pairs whose files are damaged or missing, and of those whose crop to `shape` training
    would skip. `explanations` name the mistakes that would explain a disagreement; empty if there is none or no usual one explains it.
    """

    name: str
    pairs: int
    notes: tuple[str, ...]
    shape: Shape
    figures: tuple[PairFigures, ...]
    unreadable: tuple[str, ...]
    refused: tuple[str, ...]
    agreement: Agreement
    explanations: tuple[Explanation, ...]


def pair_figures(name: str, pair: Pair, thin: ThinPair) -> PairFigures:
    """The figures of a pair and of its thinned geometry."""
    views = (_view_figures(pair.view1), _view_figures(pair.view2))
    return PairFigures(name, views, agreement(thin), both_ways([thin]), baseline_over_depth(thin))


def _view_figures(view: View) -> ViewFigures:
    height, width = view.depth.shape
    known = view.depth[view.depth > 0]
    near, median, far = np.percentile(known, (1, 50, 99)) if known.size else (np.nan,) * 3
    (fx, _, cx), (_, _, cy) = view.intrinsics[:2]
    field_of_view = np.degrees(np.arctan((cx + 0.5) / fx) + np.arctan((width - 0.5 - cx) / fx))
    off_centre = max(abs((cx + 0.5) / width - 0.5), abs((cy + 0.5) / height - 0.5))
    return ViewFigures(
        (width, height), (float(near), float(median), float(far)), known.size / view.depth.size, float(field_of_view), off_centre
    )


@dataclasses.dataclass(frozen=True)
class RenderedPairs:
    """The first scenes of a seed, on the host."""

    scenes: SyntheticConfig
    seed: int
    split: Literal["train", "val"]
    count: int
    shape: Shape
    name: str = "synthetic"
    notes: tuple[str, ...] = ("scenes are rendered as they are needed and never end",)

    def __len__(self) -> int:
        return self.count

    def read(self, index: int) -> Pair:
        """One pair."""
        number = (training_scenes if self.split == "train" else held_out_scenes)()[index]
        return jax.tree.map(np.asarray, _render(self.seed, number, self.shape, self.scenes))

    def pair_name(self, index: int) -> str:
        """How a report calls a pair."""
        return f"scene {index}"

    def fit(self, index: int, pair: Pair, shape: Shape, rng: np.random.Generator | None) -> Pair:
        """Scenes are rendered at the size asked for."""
        return pair


_render = jax.jit(render_pair, static_argnums=(2, 3))


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
