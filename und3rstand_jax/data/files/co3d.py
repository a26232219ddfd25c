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
from und3rstand_jax.data.records import Split, View, things_of
from und3rstand_jax.support.documents import read_json
from und3rstand_jax.support.errors import DataError, OptionError
from und3rstand_jax.support.text import listed

_Frame: TypeAlias = Annotated[int, annotated_types.Interval(ge=0, lt=2**31)]

Selection: TypeAlias = dict[str, dict[str, list[_Frame]]]
"""{category: {sequence: [frame numbers]}}."""

_LISTS = {"train": "selected_seqs_train.json", "val": "selected_seqs_test.json"}

_POSITIONS = 100
"""Number of frames that are used in a sequence, from its first."""

_FARTHEST, _STEP = 30, 5
"""Every frame of a set but the first is a multiple of _STEP, at most _FARTHEST, away from an earlier one."""

_MOST_VIEWS = _POSITIONS // _STEP
"""All frames of a set are a multiple of _STEP apart, so a sequence has at most this many for one set."""


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
        """The view; depth outside the object's mask counts as unknown, since Co3D's depth is reliable only on the object.

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
    """The sets of one split, enumerated rather than stored: a sequence has the first entries of `_starts`, each grown to `views` frames.

    `frames` concatenates the frame numbers of all sequences. `first_frames` and `first_sets` say where each sequence starts in `frames`
    and among the sets.
    """

    root: Path
    sequences: tuple[str, ...]
    frames: Int[np.ndarray, " frames"]
    first_frames: Int[np.ndarray, " bounds"]
    first_sets: Int[np.ndarray, " bounds"]
    views: int
    notes: tuple[str, ...]

    def __len__(self) -> int:
        return int(self.first_sets[-1])

    def files(self, index: int) -> tuple[Co3dView, ...]:
        """The frames of a set."""
        # The last sequence that starts at or before `index`: one without sets starts where the next one does.
        sequence = int(np.searchsorted(self.first_sets, index, side="right")) - 1
        start = _starts(self.views)[0][index - self.first_sets[sequence]]
        first, end = self.first_frames[sequence : sequence + 2].tolist()
        positions = _grown(start.tolist(), min(end - first, _POSITIONS), self.views)
        folder = self.root / self.sequences[sequence]
        return tuple(Co3dView(folder, int(self.frames[first + position])) for position in positions)


def open_co3d(root: Path, split: Split, views: int = 2) -> Co3dListing:
    """The sets of the sequences in the split's list. Only a sequence's frames at positions below 100 are used.

    Pairs are positions i, j with |i - j| = 5, 10, … or 30, in both orders. Every pair starts one larger set. A further frame is drawn
    from all that are not in the set yet and are 5, 10, … or 30 away from one that is; the draws depend only on i, j and the sequence's
    length. All frames of a set are a multiple of 5 apart: a sequence with sets of V views has more than 5·(V - 1) frames.

    Raises:
        DataError: the list is missing or malformed, or categories in it have no folder.
        OptionError: no sequence can have sets of this many views.
    """
    if views > _MOST_VIEWS:
        raise OptionError(f"co3d: expected sets of at most {_MOST_VIEWS} views, since frames lie {_STEP} apart, found --views {views}")
    selected = _read_selection(root, _LISTS[split])
    missing = [category for category in selected if selected[category] and not os.path.isdir(root / category)]
    if missing:
        raise DataError(f"co3d:{root}: {_LISTS[split]} lists categories without a folder: {listed(missing, most=LISTED)}")
    lists = {f"{category}/{sequence}": frames for category in selected for sequence, frames in selected[category].items()}
    lengths = np.array([len(frames) for frames in lists.values()], np.int64)
    sets = np.searchsorted(_starts(views)[1], np.minimum(lengths, _POSITIONS), side="right")
    notes = [f"{len(lengths)} sequences of {len(selected)} categories"]
    if (sets == 0).any():
        fewest = _STEP * (views - 1) + 1
        notes.append(f"{(sets == 0).sum()} sequences have fewer than {fewest} frames and give no {things_of(views)}")
    if (lengths > _POSITIONS).any():
        notes.append(f"{(lengths > _POSITIONS).sum()} sequences have more than {_POSITIONS} frames; the first {_POSITIONS} are used")
    return Co3dListing(
        root,
        tuple(lists),
        np.array([frame for frames in lists.values() for frame in frames], np.int32),
        np.concatenate([[0], np.cumsum(lengths)]),
        np.concatenate([[0], np.cumsum(sets)]),
        views,
        tuple(notes),
    )


@functools.cache
def _starts(views: int) -> tuple[Int[np.ndarray, "pairs 2"], Int[np.ndarray, " pairs"]]:
    """All pairs of positions that start a set, ordered by the fewest frames with which a sequence has that set, and those numbers."""

    def fewest(pair: tuple[int, int]) -> int:
        return max(max(pair), min(pair) % _STEP + _STEP * (views - 1)) + 1

    pairs = [(i, j) for i in range(_POSITIONS) for j in range(_POSITIONS) if 0 < abs(i - j) <= _FARTHEST and abs(i - j) % _STEP == 0]
    pairs.sort(key=fewest)
    return np.array(pairs), np.array(list(map(fewest, pairs)))


def _grown(start: list[int], length: int, views: int) -> list[int]:
    """A set's positions in a sequence of `length` frames: those of a pair, and further ones drawn from its neighbourhood."""
    positions = list(start)
    # The words of a seed sequence are the same on every machine and in every version of NumPy, unlike a generator's draws.
    for word in np.random.SeedSequence(start).generate_state(views - 2).tolist():
        reached = {near + step for near in positions for step in range(-_FARTHEST, _FARTHEST + 1, _STEP) if 0 <= near + step < length}
        free = sorted(reached.difference(positions))
        positions.append(free[word % len(free)])
    return positions


def _read_selection(root: Path, name: str) -> Selection:
    path = root / name
    if not os.path.lexists(path):
        expected = f"expected {name} beside folders CATEGORY/SEQUENCE, as DUSt3R's preprocessing of Co3D writes them"
        raise DataError(f"co3d:{root}: {expected}; {found_in(root)}")
    return read_json(path, Selection, DataError, 'expected {"category": {"sequence": [frame numbers]}}')
