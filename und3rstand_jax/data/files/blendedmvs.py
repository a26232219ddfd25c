"""BlendedMVS as DUSt3R's preprocessing writes it.

blendedmvs_pairs.npy    structured: seq_high, seq_low (the sequence), img1, img2 (frame numbers), score
%08x%016x (seq_high, seq_low)/%08d.jpg, .exr (depth), .npz with intrinsics, R_cam2world, t_cam2world
"""

import dataclasses
import os
from pathlib import Path

import numpy as np
from jaxtyping import Int

from und3rstand_jax.data.files.npy import read_array, read_header
from und3rstand_jax.data.files.reading import found_in, read_exr, read_npz, to_view
from und3rstand_jax.data.records import Split, View
from und3rstand_jax.support.errors import DataError
from und3rstand_jax.support.files import open_regular
from und3rstand_jax.support.text import one_line

_LIST = "blendedmvs_pairs.npy"

_FIELDS = ("seq_high", "seq_low", "img1", "img2")


@dataclasses.dataclass(frozen=True)
class BlendedMvsView:
    """One frame of a sequence."""

    image: Path

    def read(self) -> View:
        """The view. Raises UnreadableSet."""
        depth_path = self.image.with_suffix(".exr")
        intrinsics, rotation, position = read_npz(
            self.image.with_suffix(".npz"), {"intrinsics": (3, 3), "R_cam2world": (3, 3), "t_cam2world": (3,)}
        )
        cam2world = np.eye(4)
        cam2world[:3, :3], cam2world[:3, 3] = rotation, position
        return to_view(self.image, depth_path, read_exr(depth_path), intrinsics, cam2world)


@dataclasses.dataclass(frozen=True, eq=False)
class BlendedMvsListing:
    """The pairs of one split: each an index into `sequences` and two frame numbers."""

    root: Path
    sequences: tuple[str, ...]
    pairs: Int[np.ndarray, "pairs 3"]
    notes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.pairs)

    def files(self, index: int) -> tuple[BlendedMvsView, BlendedMvsView]:
        """The two frames of a pair."""
        sequence, frame1, frame2 = self.pairs[index].tolist()
        folder = self.root / self.sequences[sequence]
        return BlendedMvsView(folder / f"{frame1:08d}.jpg"), BlendedMvsView(folder / f"{frame2:08d}.jpg")


def open_blendedmvs(root: Path, split: Split, views: int = 2) -> BlendedMvsListing:
    """The listed pairs of the sequences whose seq_low is a multiple of 10 ("val") or not ("train").

    The list covers all parts of BlendedMVS. Pairs of sequences without a folder are left out and counted in the notes.

    Raises:
        DataError: the list is missing or malformed, or no sequence has a folder.
    """
    listed = _read_list(root)
    keys, sequence = np.unique(listed[["seq_high", "seq_low"]], return_inverse=True)
    names = [f"{high:08x}{low:016x}" for high, low in keys.tolist()]
    present = np.array([(root / name).is_dir() for name in names], bool)
    if not present.any():
        example = f", such as {names[0]}" if names else ""
        raise DataError(f"blendedmvs:{root}: expected a folder for each sequence in {_LIST}{example}; {found_in(root)}")
    wanted = (keys["seq_low"] % 10 == 0) == (split == "val")
    pairs = np.stack([sequence, listed["img1"], listed["img2"]], axis=-1).astype(np.int32)
    notes = [f"{(wanted & present).sum()} sequences"]
    if (wanted & ~present).any():
        left_out = (wanted & ~present)[sequence].sum()
        notes.append(f"{(wanted & ~present).sum()} more listed sequences have no folder: their {left_out} pairs are left out")
    return BlendedMvsListing(root, tuple(names), pairs[(wanted & present)[sequence]], tuple(notes))


def _read_list(root: Path) -> np.ndarray:
    path = root / _LIST
    if not os.path.lexists(path):
        expected = f"expected {_LIST} beside folders of sequences, as DUSt3R's preprocessing of BlendedMVS writes them"
        raise DataError(f"blendedmvs:{root}: {expected}; {found_in(root)}")
    try:
        with open_regular(path) as stream:
            header = read_header(stream)
            fields = [header.dtype[name] for name in _FIELDS if name in (header.dtype.names or ())]
            if len(header.shape) != 1 or len(fields) != len(_FIELDS) or any(field.kind not in "iu" for field in fields):
                expected = f"expected the fields {', '.join(_FIELDS)}, integers"
                raise DataError(f"{path} is not a list of pairs: {expected}, found {header}")
            pairs = read_array(stream, os.fstat(stream.fileno()).st_size)
    # A damaged header is evaluated as a Python literal, which may fail in nearly any way (SyntaxError, TypeError, …).
    except Exception as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} cannot be read; it seems damaged: {one_line(error) or type(error).__name__}") from error
    for name in _FIELDS:
        low, high = (int(pairs[name].min()), int(pairs[name].max())) if len(pairs) else (0, 0)
        if low < 0 or (name.startswith("img") and high >= 2**31):
            raise DataError(f"{path} is not a list of pairs: expected numbers of frames and sequences, found {name} from {low} to {high}")
    return pairs
