"""BlendedMVS as DUSt3R's preprocessing writes it.

blendedmvs_pairs.npy    structured: seq_high, seq_low (the sequence), img1, img2 (frame numbers), score (how much they overlap)
%08x%016x (seq_high, seq_low)/%08d.jpg, .exr (depth), .npz with intrinsics, R_cam2world, t_cam2world
"""

import dataclasses
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

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


class Links(NamedTuple):
    """The listed pairs as a graph along which sets grow, by sequence: frame numbers, scores, and where each sequence starts in them."""

    frames: Int[np.ndarray, "links 2"]
    scores: Float[np.ndarray, " links"]
    first: Int[np.ndarray, " bounds"]

    @classmethod
    def of(cls, pairs: Int[np.ndarray, "links 3"], scores: Float[np.ndarray, " links"], sequences: int) -> "Links":
        """The graph of pairs, each given as the index of its sequence, below `sequences`, and two frame numbers."""
        order = np.argsort(pairs[:, 0], kind="stable")
        return cls(pairs[order, 1:], scores[order], np.searchsorted(pairs[order, 0], np.arange(sequences + 1)))

    def grown(self, sequence: int, pair: tuple[int, int], views: int) -> list[int]:
        """The frames of a set: a pair, then repeatedly the frame with the greatest score to one in it; of equals, the lowest number."""
        links = slice(*self.first[sequence : sequence + 2].tolist())
        frames, scores, found = self.frames[links], self.scores[links], list(pair)
        while len(found) < views:
            inside = np.isin(frames, found)
            leaving = inside[:, 0] != inside[:, 1]
            outer = np.where(inside[:, 0], frames[:, 1], frames[:, 0])[leaving]
            found.append(int(outer[scores[leaving] == scores[leaving].max()].min()))
        return found


@dataclasses.dataclass(frozen=True, eq=False)
class BlendedMvsListing:
    """The pairs of one split that start its sets: each an index into `sequences` and two frame numbers.

    Sets of more than two `views` are grown along `links`, which is None for pairs.
    """

    root: Path
    sequences: tuple[str, ...]
    pairs: Int[np.ndarray, "pairs 3"]
    links: Links | None
    views: int
    notes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.pairs)

    def files(self, index: int) -> tuple[BlendedMvsView, ...]:
        """The frames of a set."""
        sequence, *frames = self.pairs[index].tolist()
        if self.links is not None:
            frames = self.links.grown(sequence, (frames[0], frames[1]), self.views)
        folder = self.root / self.sequences[sequence]
        return tuple(BlendedMvsView(folder / f"{frame:08d}.jpg") for frame in frames)


def open_blendedmvs(root: Path, split: Split, views: int = 2) -> BlendedMvsListing:
    """The sets of the sequences whose seq_low is a multiple of 10 ("val") or not ("train").

    Pairs are those listed. Each of them starts a larger set, which grows by the frame with the greatest score to any frame in it; of
    equals, by the one with the lowest number. Pairs from which too few frames can be reached in this way are left out and counted in the
    notes.

    The list covers all parts of BlendedMVS. Pairs of sequences without a folder are left out and counted in the notes.

    Raises:
        DataError: the list is missing or malformed, or no sequence has a folder.
    """
    listed = _read_list(root, scored=views > 2)
    keys, sequence = np.unique(listed[["seq_high", "seq_low"]], return_inverse=True)
    names = [f"{high:08x}{low:016x}" for high, low in keys.tolist()]
    present = np.array([(root / name).is_dir() for name in names], bool)
    if not present.any():
        example = f", such as {names[0]}" if names else ""
        raise DataError(f"blendedmvs:{root}: expected a folder for each sequence in {_LIST}{example}; {found_in(root)}")
    wanted = (keys["seq_low"] % 10 == 0) == (split == "val")
    notes = [f"{(wanted & present).sum()} sequences"]
    if (wanted & ~present).any():
        left_out = (wanted & ~present)[sequence].sum()
        notes.append(f"{(wanted & ~present).sum()} more listed sequences have no folder: their {left_out} pairs are left out")
    chosen = (wanted & present)[sequence]
    pairs = np.stack([sequence, listed["img1"], listed["img2"]], axis=-1).astype(np.int32)[chosen]
    if views == 2:
        return BlendedMvsListing(root, tuple(names), pairs, None, views, tuple(notes))
    links = Links.of(pairs, listed["score"][chosen].astype(np.float64), len(names))
    enough = (_reachable(pairs) >= views) & (pairs[:, 1] != pairs[:, 2])
    if not enough.all():
        notes.append(f"{(~enough).sum()} pairs are linked to too few frames for {views} views and are left out")
    return BlendedMvsListing(root, tuple(names), pairs[enough], links, views, tuple(notes))


def _reachable(pairs: Int[np.ndarray, "pairs 3"]) -> Int[np.ndarray, " pairs"]:
    """The number of frames in its sequence that each pair is linked to through any number of pairs, its own two included."""
    ends = np.concatenate([pairs[:, [0, 1]], pairs[:, [0, 2]]])
    frames, number = np.unique(ends, axis=0, return_inverse=True)
    one, two = number.reshape(2, -1)
    # Every frame takes the lowest group among its own and its neighbours', and then that group's own group, until none changes.
    group = np.arange(len(frames))
    while True:
        lower = group.copy()
        np.minimum.at(lower, one, group[two])
        np.minimum.at(lower, two, group[one])
        lower = lower[lower]
        if (lower == group).all():
            return np.bincount(group, minlength=len(frames))[group[one]]
        group = lower


def _read_list(root: Path, scored: bool) -> np.ndarray:
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
            if scored and ("score" not in (header.dtype.names or ()) or header.dtype["score"].kind not in "iuf"):
                expected = "expected the field score, numbers, by which sets of more than two views are chosen"
                raise DataError(f"{path}: {expected}, found {header}: write it, or ask for two views")
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
    if scored and not np.isfinite(pairs["score"]).all():
        raise DataError(f"{path}: expected scores, found {(~np.isfinite(pairs['score'])).sum()} that are not finite")
    return pairs
