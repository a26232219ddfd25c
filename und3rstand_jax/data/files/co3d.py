"""Co3D v2 as DUSt3R's preprocessing writes it.

selected_seqs_{train,test}.json    {category: {sequence: [frame numbers]}}
CATEGORY/SEQUENCE/images/frame%06d.jpg, and beside it .npz with camera_pose (cam2world), camera_intrinsics, maximum_depth
CATEGORY/SEQUENCE/depths/frame%06d.jpg.geometric.png    16 bits: depth = value / 65535 · maximum_depth
CATEGORY/SEQUENCE/masks/frame%06d.png    the object, where value / 255 > 0.1
"""

import dataclasses
import functools
import os
from pathlib import Path
from typing import Annotated, TypeAlias

import annotated_types
import numpy as np
from jaxtyping import Int

from und3rstand_jax.data.files.reading import LISTED, found_in, looked_up, read_mask, read_npz, read_png16, require_one_size, to_view
from und3rstand_jax.data.records import Split, View
from und3rstand_jax.support.documents import read_json
from und3rstand_jax.support.errors import DataError
from und3rstand_jax.support.text import listed

_Frame: TypeAlias = Annotated[int, annotated_types.Interval(ge=0, lt=2**31)]

Selection: TypeAlias = dict[str, dict[str, list[_Frame]]]
"""{category: {sequence: [frame numbers]}}."""

_LISTS = {"train": "selected_seqs_train.json", "val": "selected_seqs_test.json"}

_POSITIONS = 100
"""Frames of a sequence that count, from its first."""

_FARTHEST, _STEP = 30, 5
"""A pair's frames lie a multiple of _STEP apart, at most _FARTHEST."""


@dataclasses.dataclass(frozen=True)
class Co3dView:
    """One frame of a sequence; `folder` is the sequence's."""

    folder: Path
    frame: int

    @property
    def image(self) -> Path:
        """The photo."""
        return self.folder / "images" / f"frame{self.frame:06d}.jpg"

    def read(self) -> View:
        """The view; depth outside the object's mask counts as unknown, since Co3D's is reliable on the object only.

        Raises UnreadableSet.
        """
        depth_path = self.folder / "depths" / f"{self.image.name}.geometric.png"
        mask_path = self.folder / "masks" / f"{self.image.stem}.png"
        cam2world, intrinsics, maximum_depth = read_npz(
            self.image.with_suffix(".npz"), {"camera_pose": (4, 4), "camera_intrinsics": (3, 3), "maximum_depth": ()}
        )
        stored, mask = read_png16(depth_path), read_mask(mask_path)
        require_one_size(mask, mask_path, stored, depth_path)
        depth = looked_up(stored, np.arange(2**16) / 65535 * maximum_depth, depth_path)
        depth[mask < 26] = 0  # value / 255 ≤ 0.1
        return to_view(self.image, depth_path, depth, intrinsics, cam2world)


@dataclasses.dataclass(frozen=True, eq=False)
class Co3dListing:
    """The pairs of one split, enumerated rather than stored: a sequence has the first so many of `_position_pairs`.

    `frames` concatenates the frame numbers of all sequences. `first_frames` and `first_pairs` say where each sequence starts in it
    and in the pairs.
    """

    root: Path
    sequences: tuple[str, ...]
    frames: Int[np.ndarray, " frames"]
    first_frames: Int[np.ndarray, " sequences"]
    first_pairs: Int[np.ndarray, " sequences+1"]
    notes: tuple[str, ...]

    def __len__(self) -> int:
        return int(self.first_pairs[-1])

    def files(self, index: int) -> tuple[Co3dView, Co3dView]:
        """The two frames of a pair."""
        # The last sequence that starts at or before `index`: one without pairs starts where the next one does.
        sequence = int(np.searchsorted(self.first_pairs, index, side="right")) - 1
        positions = _position_pairs()[index - self.first_pairs[sequence]]
        frame1, frame2 = self.frames[self.first_frames[sequence] + positions].tolist()
        folder = self.root / self.sequences[sequence]
        return Co3dView(folder, frame1), Co3dView(folder, frame2)


def open_co3d(root: Path, split: Split, views: int = 2) -> Co3dListing:
    """The pairs of the sequences in the split's list: positions i, j below 100, |i - j| 5, 10, … or 30, in both orders.

    Raises:
        DataError: the list is missing or malformed, or categories in it have no folder.
    """
    selected = _read_selection(root, _LISTS[split])
    missing = [category for category in selected if selected[category] and not os.path.isdir(root / category)]
    if missing:
        raise DataError(f"co3d:{root}: {_LISTS[split]} lists categories without a folder: {listed(missing, most=LISTED)}")
    lists = {f"{category}/{sequence}": frames for category in selected for sequence, frames in selected[category].items()}
    lengths = np.array([len(frames) for frames in lists.values()], np.int64)
    pairs_below = np.searchsorted(_position_pairs().max(axis=1), np.arange(_POSITIONS + 1))
    pairs = pairs_below[np.minimum(lengths, _POSITIONS)]
    notes = [f"{len(lengths)} sequences of {len(selected)} categories"]
    if (pairs == 0).any():
        notes.append(f"{(pairs == 0).sum()} sequences have fewer than {_STEP + 1} frames and give no pairs")
    if (lengths > _POSITIONS).any():
        notes.append(f"{(lengths > _POSITIONS).sum()} sequences have more than {_POSITIONS} frames; the first {_POSITIONS} are used")
    return Co3dListing(
        root,
        tuple(lists),
        np.array([frame for frames in lists.values() for frame in frames], np.int32),
        np.cumsum(lengths) - lengths,
        np.concatenate([[0], np.cumsum(pairs)]),
        tuple(notes),
    )


@functools.cache
def _position_pairs() -> Int[np.ndarray, "pairs 2"]:
    """All pairs of positions, ordered by the greater one: those of a shorter sequence come first."""
    pairs = [(i, j) for i in range(_POSITIONS) for j in range(_POSITIONS) if 0 < abs(i - j) <= _FARTHEST and abs(i - j) % _STEP == 0]
    return np.array(sorted(pairs, key=max))


def _read_selection(root: Path, name: str) -> Selection:
    path = root / name
    if not os.path.lexists(path):
        expected = f"expected {name} beside folders CATEGORY/SEQUENCE, as DUSt3R's preprocessing of Co3D writes them"
        raise DataError(f"co3d:{root}: {expected}; {found_in(root)}")
    return read_json(path, Selection, DataError, 'expected {"category": {"sequence": [frame numbers]}}')
