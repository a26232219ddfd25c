"""What a data set contains and whether its geometry is consistent: figures over a sample of its sets. Reading files needs no JAX."""

import dataclasses
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from und3rstand_jax.data.inspect.agreement import Agreement, ThinPair, agreement, baseline_over_depth, both_ways, thin_pairs, total
from und3rstand_jax.data.inspect.diagnosis import Explanation, explain
from und3rstand_jax.data.records import Shape, UnreadableSet, View, ViewSet
from und3rstand_jax.support.progress import with_progress

DEFAULT_SHAPE = (384, 512)

_FAR_BEYOND, _FAR_SHARE = 10.0, 0.01


@runtime_checkable
class InspectedSets(Protocol):
    """A numbered list of sets that can be read and cropped: `FileSets` or `RenderedSets`."""

    @property
    def name(self) -> str:
        """The source's name in the report."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What was counted or left out when the list was made, one line each."""
        ...

    @property
    def views(self) -> int:
        """Number of views in a set."""
        ...

    def __len__(self) -> int: ...

    def set_name(self, index: int) -> str:
        """A set's name in the report."""
        ...

    def read(self, index: int) -> ViewSet:
        """A set as stored. Raises UnreadableSet."""
        ...

    def fit(self, index: int, views: ViewSet, shape: Shape, rng: np.random.Generator | None) -> ViewSet:
        """That set, prepared for training. Raises UnreadableSet."""
        ...


class Far(NamedTuple):
    """The far end of a view's known depth, if something sets it apart: there may be no surface there.

    `depth` is its nearest value, `share` the fraction of known pixels at or beyond it, `rest` the greatest depth before it.
    """

    depth: float
    share: float
    rest: float

    @classmethod
    def of(cls, known: Float[np.ndarray, " n"]) -> "Far | None":
        """Depth ten times as far as all depth before it, or else a greatest depth that at least 1 % of the pixels share."""
        if not known.size:
            return None
        ordered = np.sort(known).astype(np.float64)
        gaps = np.flatnonzero(ordered[1:] >= _FAR_BEYOND * ordered[:-1]) + 1
        # The scene must be before the gap, not just a few pixels of noise in front of the scene.
        start = int(gaps[-1]) if gaps.size and gaps[-1] >= _FAR_SHARE * known.size else int(np.searchsorted(ordered, ordered[-1]))
        share = 1 - start / known.size
        beyond = start > 0 and ordered[start] >= _FAR_BEYOND * ordered[start - 1]
        return cls(float(ordered[start]), share, float(ordered[start - 1])) if start and (beyond or share >= _FAR_SHARE) else None


@dataclasses.dataclass(frozen=True)
class ViewFigures:
    """One view in figures.

    `size` is (width, height) in pixels. `depth` is the nearest (1st percentile), median and farthest (99th percentile) in the unit of
    cam2world, NaN if none is known. `valid` is the fraction of pixels with known depth. `field_of_view` is horizontal, in degrees.
    `off_centre` is the principal point's offset from the centre as a fraction of the side, the larger of the two. `far` is a far end
    of the depth that differs from the rest, None if there is none.
    """

    size: tuple[int, int]
    depth: tuple[float, float, float]
    valid: float
    field_of_view: float
    off_centre: float
    far: Far | None

    @classmethod
    def of(cls, view: View) -> "ViewFigures":
        """The figures of a view."""
        height, width = view.depth.shape
        known = view.depth[view.depth > 0]
        near, median, far = np.percentile(known, (1, 50, 99)) if known.size else (np.nan,) * 3
        (fx, _, cx), (_, _, cy) = view.intrinsics[:2]
        return cls(
            size=(width, height),
            depth=(float(near), float(median), float(far)),
            valid=known.size / view.depth.size,
            field_of_view=float(np.degrees(np.arctan((cx + 0.5) / fx) + np.arctan((width - 0.5 - cx) / fx))),
            off_centre=max(abs((cx + 0.5) / width - 0.5), abs((cy + 0.5) / height - 0.5)),
            far=Far.of(known),
        )


@dataclasses.dataclass(frozen=True)
class LinkFigures:
    """A view and the earlier one that overlaps it most: how the earlier one's points agree with it (`forward`) and both with each other
    (`both`), and the distance between the cameras divided by the median depth.
    """

    forward: Agreement
    both: Agreement
    baseline_over_depth: float

    @classmethod
    def of(cls, pair: ThinPair) -> "LinkFigures":
        """The figures of an earlier view and a later one."""
        return cls(agreement(pair), both_ways([pair]), baseline_over_depth(pair))


@dataclasses.dataclass(frozen=True)
class SetFigures:
    """One set in figures: its name, its V views, and how each after the first is linked to an earlier one (V - 1; one for a pair)."""

    name: str
    views: tuple[ViewFigures, ...]
    links: tuple[LinkFigures, ...]


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What was found in a sample of a source's sets; `views` is the number of views in a set.

    `sets` counts all sets of the source. `unreadable` contains messages about sets whose files are missing or damaged, `refused` about
    those that training would skip because they cannot be cropped to `shape`. `explanations` are the mistakes that would explain a
    disagreement; it is empty if views agree or no usual mistake explains why they do not.
    """

    name: str
    views: int
    sets: int
    notes: tuple[str, ...]
    shape: Shape
    figures: tuple[SetFigures, ...]
    unreadable: tuple[str, ...]
    refused: tuple[str, ...]
    agreement: Agreement
    explanations: tuple[Explanation, ...]


def inspect_sets(source: InspectedSets, count: int, shape: Shape = DEFAULT_SHAPE, progress: bool = False) -> Inspection:
    """Reads a random sample of a source's sets, always the same one, and checks its geometry.

    Geometry is judged on the views as stored; cropping to `shape`, as training does, is only tried. Mistakes are searched for in all
    sampled sets together, so that a few bad ones do not decide.

    Args:
        source: the sets.
        count: number of sets to read; all if there are fewer.
        shape: (height, width) to try cropping to.
        progress: whether to show progress bars.
    """
    chosen = np.sort(np.random.default_rng(0).choice(len(source), min(count, len(source)), replace=False)).tolist()
    thing = "pair" if source.views == 2 else "set"
    figures, thin, unreadable, refused = [], [], [], []
    for index in with_progress(chosen, f"reading {thing}s", len(chosen), thing, progress):
        try:
            views = source.read(index)
        except UnreadableSet as error:
            unreadable.append(str(error))
            continue
        pairs = thin_pairs(views)
        thin += pairs
        figures.append(SetFigures(source.set_name(index), tuple(map(ViewFigures.of, views)), tuple(map(LinkFigures.of, pairs))))
        try:
            source.fit(index, views, shape, None)
        except UnreadableSet as error:
            refused.append(str(error))
    return Inspection(
        name=source.name,
        views=source.views,
        sets=len(source),
        notes=source.notes,
        shape=shape,
        figures=tuple(figures),
        unreadable=tuple(unreadable),
        refused=tuple(refused),
        agreement=total(link.both for one in figures for link in one.links),
        explanations=tuple(explain(thin, progress)) if thin else (),
    )
