"""BlendedMVS as DUSt3R's preprocessing writes it.

blendedmvs_pairs.npy    structured: seq_high, seq_low (the sequence), img1, img2 (frame numbers), score
%08x%016x (seq_high, seq_low)/%08d.jpg, .exr (depth), .npz with intrinsics, R_cam2world, t_cam2world
"""

import dataclasses
from pathlib import Path

import numpy as np
from jaxtyping import Int

from und3rstand_jax.data.files.reading import found_in, read_exr, read_npz, to_view
from und3rstand_jax.data.records import Split, View
from und3rstand_jax.support.errors import DataError

_LIST = "blendedmvs_pairs.npy"

_FIELDS = ("seq_high", "seq_low", "img1", "img2")


@dataclasses.dataclass(frozen=True)
class BlendedMvsView:
    """One frame of a sequence."""

    image: Path

    def read(self) -> View:
        """The view. Raises UnreadablePair."""
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


def open_blendedmvs(root: Path, split: Split) -> BlendedMvsListing:
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
    if not path.is_file():
        expected = f"expected {_LIST} beside folders of sequences, as DUSt3R's preprocessing of BlendedMVS writes them"
        raise DataError(f"blendedmvs:{root}: {expected}; {found_in(root)}")
    try:
        listed = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} cannot be read; it seems damaged: {error}") from error
    missing = [field for field in _FIELDS if field not in (listed.dtype.names or ())]
    if missing or listed.ndim != 1:
        found = f"fields {', '.join(listed.dtype.names)}" if listed.dtype.names else f"an array of {listed.dtype}"
        raise DataError(f"{path} is not a list of pairs: expected the fields {', '.join(_FIELDS)}, found {found}")
    return listed
