"""Pairs of a data set on disk, cropped to a batch's size."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np

from train.data.files.blendedmvs import open_blendedmvs
from train.data.files.cameras import principal_point_fault
from train.data.files.co3d import open_co3d
from train.data.files.crop import crop_view
from train.data.files.listing import Listing, Split, ViewFiles
from train.data.files.pairs import open_own_pairs
from train.data.records import Pair, Shape, UnreadablePair, View
from und3rstand_jax.errors import UserError

_OPENERS: dict[str, Callable[[Path, Split], Listing]] = {"co3d": open_co3d, "blendedmvs": open_blendedmvs, "pairs": open_own_pairs}

KINDS: tuple[str, ...] = tuple(_OPENERS)


@dataclasses.dataclass(frozen=True)
class FilePairs:
    """The pairs of one split of a data set on disk. `notes` says what was counted or left out when the list was made."""

    name: str
    listing: Listing

    def __len__(self) -> int:
        return len(self.listing)

    @property
    def notes(self) -> tuple[str, ...]:
        """What was counted or left out when the list was made, a line each; whoever uses the source is to show them."""
        return self.listing.notes

    def pair_name(self, index: int) -> str:
        """How messages call a pair: by its photos."""
        files1, files2 = self.listing.files(index)
        return f"{files1.image} and {files2.image}"

    def read(self, index: int) -> Pair:
        """One pair as its files have it: views of any size, cameras in float64. Raises UnreadablePair."""
        files1, files2 = self.listing.files(index)
        return Pair(files1.read(), files2.read())

    def load(self, index: int, shape: Shape, rng: np.random.Generator | None) -> Pair:
        """One pair at exactly `shape` (H, W); all but the photos in float32. Raises UnreadablePair, see `read` and `fit`."""
        return self.fit(index, self.read(index), shape, rng)

    def fit(self, index: int, pair: Pair, shape: Shape, rng: np.random.Generator | None) -> Pair:
        """What `read` gave for `index` as training takes it: see `crop_view`.

        The world's origin moves into camera 1 before float64 is given up: in coordinates of a country, float32 has no centimetres.

        Raises:
            UnreadablePair: a principal point is far off its photo's centre, or a crop holds no pixel of known depth.
        """
        origin = pair.view1.cam2world[:3, 3]
        files1, files2 = self.listing.files(index)
        return Pair(_fit(pair.view1, files1, shape, rng, origin), _fit(pair.view2, files2, shape, rng, origin))


def open_pairs(kind: str, root: Path, split: Split) -> FilePairs:
    """The pairs of one split of the data set at `root`.

    Args:
        kind: one of KINDS.
        root: the data set's folder.
        split: "train", or "val" for those kept for evaluation.

    Raises:
        UserError: the kind is unknown, the folder does not hold such a data set, its list is faulty, or the split is empty.
    """
    if kind not in _OPENERS:
        raise UserError(f"{kind!r} is not a kind of data set; expected one of {', '.join(KINDS)}")
    name = f"{kind}:{root}"
    listing = _OPENERS[kind](Path(root), split)
    if not len(listing):
        hint = "; name other data to validate on with --val-data" if split == "val" else ""
        raise UserError(f"{name} has no pairs for the split {split!r} ({'; '.join(listing.notes)}){hint}")
    return FilePairs(name, listing)


def _fit(view: View, files: ViewFiles, shape: Shape, rng: np.random.Generator | None, origin: np.ndarray) -> View:
    fault = principal_point_fault(view.intrinsics, *view.image.shape[:2])
    if fault:
        raise UnreadablePair(f"{files.image}: {fault}")
    cropped = crop_view(view, shape, rng)
    if not cropped.depth.any():
        raise UnreadablePair(f"{files.image}: no pixel of its crop to {shape[1]}×{shape[0]} has a known depth")
    cam2world = cropped.cam2world.copy()
    cam2world[:3, 3] -= origin
    return View(
        np.ascontiguousarray(cropped.image),
        np.ascontiguousarray(cropped.depth, np.float32),
        cropped.intrinsics.astype(np.float32),
        cam2world.astype(np.float32),
    )
