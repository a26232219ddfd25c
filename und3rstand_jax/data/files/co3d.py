"""Co3D v2 as DUSt3R's preprocessing writes it.

selected_seqs_{train,test}.json    {category: {sequence: [frame numbers]}}
CATEGORY/SEQUENCE/images/frame%06d.jpg, and beside it .npz with camera_pose (cam2world), camera_intrinsics, maximum_depth
CATEGORY/SEQUENCE/depths/frame%06d.jpg.geometric.png    16 bits: depth = value / 65535 · maximum_depth
CATEGORY/SEQUENCE/masks/frame%06d.png    the object, where value / 255 > 0.1
"""

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from und3rstand_jax.data.files.reading import Split, found_in, read_mask, read_npz, read_png16, require_one_size, to_view
from und3rstand_jax.data.records import View
from und3rstand_jax.support.errors import UserError

_LISTS = {"train": "selected_seqs_train.json", "val": "selected_seqs_test.json"}


_POSITIONS, _FARTHEST, _STEP = 100, 30, 5


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
        """The view; depth outside the object's mask counts as unknown, since Co3D's depth is of use on the object alone."""
        depth_path = self.folder / "depths" / f"{self.image.name}.geometric.png"
        mask_path = self.folder / "masks" / f"{self.image.stem}.png"
        cam2world, intrinsics, maximum_depth = read_npz(
            self.image.with_suffix(".npz"), {"camera_pose": (4, 4), "camera_intrinsics": (3, 3), "maximum_depth": ()}
        )
        stored, mask = read_png16(depth_path), read_mask(mask_path)
        require_one_size(mask, mask_path, stored, depth_path)
        depth = np.where(mask / 255 > 0.1, stored / 65535 * maximum_depth, 0)
        return to_view(self.image, depth_path, depth, intrinsics, cam2world)


@dataclasses.dataclass(frozen=True, eq=False)
class Co3dListing:
    """The pairs of one split, enumerated without being stored: of a sequence, the first ones of `_position_pairs`."""

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
        # The last sequence that starts at or before `index`: those without pairs start where the next one does.
        sequence = int(np.searchsorted(self.first_pairs, index, side="right")) - 1
        positions = _position_pairs()[index - self.first_pairs[sequence]]
        frame1, frame2 = self.frames[self.first_frames[sequence] + positions].tolist()
        folder = self.root / self.sequences[sequence]
        return Co3dView(folder, frame1), Co3dView(folder, frame2)


def open_co3d(root: Path, split: Split) -> Co3dListing:
    """The pairs of the sequences in the split's list: positions i, j below 100, |i - j| 5, 10, … or 30, in both orders.

    Raises:
        UserError: the list is not there or is not such a list, or folders of its categories are missing.
    """
    selected = _read_selected(root / _LISTS[split], root)
    missing = [category for category in selected if selected[category] and not (root / category).is_dir()]
    if missing:
        names = f"{', '.join(missing[:6])}{', …' if len(missing) > 6 else ''}"
        raise UserError(f"co3d:{root}: {_LISTS[split]} lists {len(missing)} categories that have no folder there: {names}")
    lists = {f"{category}/{sequence}": frames for category in selected for sequence, frames in selected[category].items()}
    lengths = np.array([len(frames) for frames in lists.values()], np.int64)
    pairs_below = np.searchsorted(_position_pairs().max(axis=1), np.arange(_POSITIONS + 1))
    pairs = pairs_below[np.minimum(lengths, _POSITIONS)]
    return Co3dListing(
        root,
        tuple(lists),
        np.array([frame for frames in lists.values() for frame in frames], np.int32),
        np.cumsum(lengths) - lengths,
        np.concatenate([[0], np.cumsum(pairs)]),
        _notes(len(selected), lengths, pairs),
    )


@functools.cache
def _position_pairs() -> Int[np.ndarray, "pairs 2"]:
    """All pairs of positions, ordered by the greater one: those of a shorter sequence come first."""
    pairs = [(i, j) for i in range(_POSITIONS) for j in range(_POSITIONS) if 0 < abs(i - j) <= _FARTHEST and abs(i - j) % _STEP == 0]
    return np.array(sorted(pairs, key=max))


def _notes(categories: int, lengths: np.ndarray, pairs: np.ndarray) -> tuple[str, ...]:
    notes = [f"{len(lengths)} sequences of {categories} categories"]
    if (pairs == 0).any():
        notes.append(f"{(pairs == 0).sum()} sequences have fewer than {_STEP + 1} frames and give no pair")
    if (lengths > _POSITIONS).any():
        notes.append(f"{(lengths > _POSITIONS).sum()} sequences have more than {_POSITIONS} frames, of which the first {_POSITIONS} count")
    return tuple(notes)


def _read_selected(path: Path, root: Path) -> Mapping[str, Mapping[str, list[int]]]:
    expected = f"co3d:{root}: expected {path.name} beside folders CATEGORY/SEQUENCE, as DUSt3R's preprocessing of Co3D writes them"
    if not path.is_file():
        raise UserError(f"{expected}; {found_in(root)}")
    try:
        selected = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    if not _is_selection(selected):
        raise UserError(f'{path} is not a list of sequences: expected {{"category": {{"sequence": [frame numbers]}}}}')
    return selected


def _is_selection(selected: Any) -> bool:
    return isinstance(selected, dict) and all(
        isinstance(sequences, dict)
        and all(isinstance(frames, list) and all(type(frame) is int for frame in frames) for frames in sequences.values())
        for sequences in selected.values()
    )
