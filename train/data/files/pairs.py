"""Pairs of people's own: photos, depth and cameras in files of any layout, listed in pairs.json or pairs.jsonl (docs/data.md)."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from train.data.files.listing import Split
from train.data.files.pairs_list import PairEntry, ViewEntry, read_list
from train.data.files.reading import read_npy, read_png16, to_view
from train.data.records import View

_VAL_EVERY = 10


@dataclasses.dataclass(frozen=True)
class OwnView:
    """One view with its camera; `depth_scale` is the unit of cam2world per stored step."""

    image: Path
    depth: Path
    depth_scale: float
    intrinsics: Float[np.ndarray, "3 3"]
    cam2world: Float[np.ndarray, "4 4"]

    def read(self) -> View:
        """The view."""
        stored = read_png16(self.depth) if self.depth.suffix.lower() == ".png" else read_npy(self.depth)
        return to_view(self.image, self.depth, stored * np.float64(self.depth_scale), self.intrinsics, self.cam2world)


@dataclasses.dataclass(frozen=True, eq=False)
class OwnListing:
    """All views, a column a property, and of each pair of one split the indices of two of them."""

    root: Path
    images: tuple[str, ...]
    depths: tuple[str, ...]
    depth_scales: Float[np.ndarray, " views"]
    intrinsics: Float[np.ndarray, "views 3 3"]
    cam2world: Float[np.ndarray, "views 4 4"]
    pairs: Int[np.ndarray, "pairs 2"]
    notes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.pairs)

    def files(self, index: int) -> tuple[OwnView, OwnView]:
        """The two views of a pair."""
        first, second = self.pairs[index].tolist()
        return self._view(first), self._view(second)

    def _view(self, view: int) -> OwnView:
        image, depth = self.root / self.images[view], self.root / self.depths[view]
        return OwnView(image, depth, float(self.depth_scales[view]), self.intrinsics[view], self.cam2world[view])


def open_own_pairs(root: Path, split: Split) -> OwnListing:
    """The pairs of `root`'s list that belong to the split: by their own word, or else every 10th two views to "val".

    Raises:
        UserError: there is no list, or something in it is wrong; everything that is, is said at once.
    """
    views, entries = read_list(root)
    pairs = np.array([entry.views for entry in entries], np.int32).reshape(-1, 2)[_belongs(entries, split)]
    return _columns(root, views, pairs, (f"{len(entries)} pairs of {len(views)} views are listed, {len(pairs)} of them for {split!r}",))


def _belongs(entries: Sequence[PairEntry], split: Split) -> np.ndarray:
    if any(entry.split for entry in entries):
        return np.array([entry.split == split for entry in entries], bool)
    # Both orders of two views are one pair here: what is trained on one way round is not held out the other.
    first: dict[frozenset[int], int] = {}
    numbers = [first.setdefault(frozenset(entry.views), len(first)) for entry in entries]
    return (np.array(numbers, int) % _VAL_EVERY == _VAL_EVERY - 1) == (split == "val")


def _columns(root: Path, views: Sequence[ViewEntry], pairs: np.ndarray, notes: tuple[str, ...]) -> OwnListing:
    return OwnListing(
        root,
        tuple(view.image for view in views),
        tuple(view.depth for view in views),
        np.array([view.depth_scale for view in views], np.float64),
        np.array([view.intrinsics for view in views], np.float64).reshape(-1, 3, 3),
        np.array([view.cam2world for view in views], np.float64).reshape(-1, 4, 4),
        pairs,
        notes,
    )
