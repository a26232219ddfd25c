"""Data sets: lists of pairs and of larger sets, cameras, depth in four formats, masks."""

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from tests.data_sets import make_views, write_blendedmvs, write_co3d, write_pairs
from tests.fuzz.contract import Files, Kind
from tests.fuzz.kinds import material
from tests.fuzz.kinds.photos import huge_png

SHAPE = (32, 48)
_FRAMES = 6  # the fewest of a sequence of Co3D that give a pair


def _reader(kind: str, views: int = 2) -> Callable[[Path], None]:
    """Opens a list, and reads, crops and inspects what it lists."""

    def read(folder: Path) -> None:
        from und3rstand_jax.data.files.file_sets import open_sets
        from und3rstand_jax.data.inspect.describe import describe
        from und3rstand_jax.data.inspect.inspection import inspect_sets

        sets = open_sets(kind, folder, "train", views)
        describe(inspect_sets(sets, 2, SHAPE))
        sets.load(0, SHAPE, np.random.default_rng(0))

    return read


@functools.cache
def _pairs(depth: str) -> Files:
    return material.made(lambda folder: write_pairs(folder, make_views(2, SHAPE), [(0, 1), (1, 0)], depth, {"depth_scale": 0.5}))


@functools.cache
def _lines() -> Sequence[Files]:
    files = dict(_pairs("png"))
    content = json.loads(files.pop("pairs.json"))
    entries = [{"view1": content["views"][one], "view2": content["views"][two], "split": "train"} for one, two in content["pairs"]]
    return [files | {"pairs.jsonl": "".join(f"{json.dumps(entry)}\n" for entry in entries).encode()}]


@functools.cache
def _sets() -> Files:
    return material.made(lambda folder: write_pairs(folder, make_views(4, SHAPE), [(0, 1)], sets=[(0, 1, 2), (3, 2, 1, 0)]))


@functools.cache
def _lines_of_sets() -> Sequence[Files]:
    files = dict(_sets())
    content = json.loads(files.pop("pairs.json"))
    entries = [{"views": [content["views"][name] for name in names], "split": "train"} for names in content["sets"]]
    return [files | {"pairs.jsonl": "".join(f"{json.dumps(entry)}\n" for entry in entries).encode()}]


@functools.cache
def _co3d() -> Sequence[Files]:
    return [material.made(lambda folder: write_co3d(folder, {"apple/1": make_views(_FRAMES, SHAPE)}))]


@functools.cache
def _blendedmvs() -> Sequence[Files]:
    return [material.made(lambda folder: write_blendedmvs(folder, {(1, 11): make_views(2, SHAPE)}, [(1, 11, 0, 1), (1, 11, 1, 0)]))]


@functools.cache
def _scored() -> Sequence[Files]:
    pairs, scores = [(1, 11, 0, 1), (1, 11, 1, 2), (1, 11, 3, 0)], [0.2, 0.9, 0.5]
    return [material.made(lambda folder: write_blendedmvs(folder, {(1, 11): make_views(4, SHAPE)}, pairs, scores))]


def _with(files: Files, suffix: str, *contents: bytes) -> Sequence[Files]:
    """The data set as it is, and with other content in the first of its files that end so."""
    name = next(name for name in sorted(files) if name.endswith(suffix))
    return [files, *(files | {name: content} for content in contents)]


def _cameras() -> Sequence[Files]:
    bomb = {"intrinsics": np.zeros(270_000_000, np.uint8), "R_cam2world": np.eye(3), "t_cam2world": np.zeros(3)}
    return _with(_blendedmvs()[0], ".npz", material.archive(bomb, compressed=True))


def _npy_depth() -> Sequence[Files]:
    odd = np.zeros((32, 48), np.float64)
    odd[::2], odd[0], odd[1] = 1e300, np.nan, -np.inf
    return _with(_pairs("npy"), ".npy", material.saved(odd), material.saved(np.full((32, 48), 2**63, np.uint64)))


def _png_depth() -> Sequence[Files]:
    return _with(_pairs("png"), "v0.png", huge_png(13_000))


KINDS = (
    Kind("pairs.json", lambda: [_pairs("png"), _pairs("npy")], _reader("pairs"), ("pairs.json",)),
    Kind("pairs.jsonl", _lines, _reader("pairs"), ("pairs.jsonl",)),
    Kind("sets of pairs.json", lambda: [_sets()], _reader("pairs", 3), ("pairs.json",)),
    Kind("sets of pairs.jsonl", _lines_of_sets, _reader("pairs", 3), ("pairs.jsonl",)),
    Kind("co3d list", _co3d, _reader("co3d"), ("*.json",)),
    Kind("co3d files", _co3d, _reader("co3d"), ("*.npz", "*.png", "*.jpg")),
    Kind("blendedmvs list", _blendedmvs, _reader("blendedmvs"), ("*.npy",)),
    Kind("blendedmvs scores", _scored, _reader("blendedmvs", 3), ("*.npy",)),
    Kind("camera .npz", _cameras, _reader("blendedmvs"), ("*.npz",)),
    Kind("depth .npy", _npy_depth, _reader("pairs"), ("*.npy",)),
    Kind("depth PNG", _png_depth, _reader("pairs"), ("v0.png",)),
    Kind("depth EXR", _blendedmvs, _reader("blendedmvs"), ("*.exr",)),
)
