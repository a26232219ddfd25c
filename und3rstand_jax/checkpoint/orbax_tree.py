"""A parameter tree as Orbax writes it: its files and their metadata, checked before any value is read.

Orbax writes a folder for every leaf (`decoder.norm.scale/`), a Zarr array of `.zarray` and chunks, and files of its own beside these
folders. Nothing else belongs to a tree. All of it may come from a stranger: links are checked before they are followed, and shapes, types
and chunks must match the config beside the tree, so that the memory needed for reading is known in advance. Values are read with
TensorStore, on which Orbax is built; Orbax itself is not imported.
"""

import dataclasses
import math
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

import numpy as np
from annotated_types import Ge, Le
from typing_extensions import TypedDict

from und3rstand_jax.checkpoint.format import ORBAX_FILES
from und3rstand_jax.checkpoint.leaves import StoredLeaf, StoredTree, times
from und3rstand_jax.checkpoint.links import check_link
from und3rstand_jax.model.tensor_names import Shape
from und3rstand_jax.support.documents import read_json
from und3rstand_jax.support.errors import CheckpointError
from und3rstand_jax.support.text import one_line

_METADATA = "_METADATA"
_ARRAY = ".zarray"

# Weights hardly compress. Equal values do, ten thousand times: a small tree of them may be intended, a large one is an attack.
_UNPACKED_WITHOUT_QUESTION = 2**30
_LARGEST_RATIO = 100

_Size = Annotated[int, Ge(1), Le(2**31 - 1)]


class _Zstd(TypedDict):
    id: Literal["zstd"]
    level: int


class _ZarrArray(TypedDict):
    """What Orbax writes into `.zarray`; TensorStore gets these fields and never reads the file."""

    zarr_format: Literal[2]
    shape: list[_Size]
    chunks: list[_Size]
    dtype: Literal["<f4", "<f2", "bfloat16"]
    compressor: _Zstd | None
    filters: None
    fill_value: float | None
    order: Literal["C"]
    dimension_separator: NotRequired[Literal["."]]


@dataclasses.dataclass(frozen=True)
class ZarrLeaf(StoredLeaf):
    """A leaf in its own folder; `metadata` is Zarr's."""

    folder: Path
    metadata: Mapping[str, Any]

    def read(self) -> np.ndarray:  # noqa: D102 (documented by the base class)
        import tensorstore as ts

        spec = {
            "driver": "zarr",
            "kvstore": {"driver": "file", "path": str(self.folder.resolve())},
            "metadata": dict(self.metadata),
            "open": True,
            "assume_metadata": True,  # the metadata that was checked, not what the file says by now
            "fill_missing_data_reads": False,
        }
        try:
            return ts.open(spec, read=True).result().read().result()
        except (ValueError, OSError) as error:
            raise CheckpointError(f"{self.folder} cannot be read: {one_line(error, 200)}") from error


def orbax_tree(folder: Path, root: Path, shapes: Mapping[str, Shape]) -> StoredTree:
    """Checks the tree in a folder of the checkpoint `root`, whose leaves must have these shapes according to the config.

    Raises:
        CheckpointError: something in it is a link to a folder or out of the checkpoint, or a pipe or device.
    """
    files = _files(folder, root)
    held: dict[str, dict[str, Path]] = {}
    for name, file in files.items():
        place, _, inner = name.rpartition("/")
        held.setdefault(place, {})[inner] = file
    leaves: dict[str, ZarrLeaf] = {}
    faults: dict[str, str] = {}
    own = [file for name, file in files.items() if re.fullmatch(ORBAX_FILES, name)]
    for path, shape in shapes.items():
        place = path.replace("/", ".")
        of_leaf = held.pop(place, {})
        try:
            leaves[path] = _leaf(path, folder / place, shape, of_leaf)
        except CheckpointError as error:
            faults[path] = str(error)
    faults |= {place: "not a leaf of the model that the config describes" for place in held if _ARRAY in held[place]}
    if _METADATA not in files:
        faults[""] = f"{_METADATA} is missing"
    if not faults:
        packed = sum(file.stat().st_size for leaf in leaves.values() for file in leaf.files)
        unpacked = sum(leaf.nbytes for leaf in leaves.values())
        if unpacked > max(_UNPACKED_WITHOUT_QUESTION, _LARGEST_RATIO * packed):
            faults[""] = f"{packed / 2**20:.1f} MiB that would take {unpacked / 2**30:.1f} GiB in memory: no real weights compress so well"
    return StoredTree(leaves, faults, tuple(own))


def _files(folder: Path, root: Path) -> dict[str, Path]:
    """Name, relative to `folder`, -> path of every file below it.

    Raises:
        CheckpointError: one is a link to a folder or out of `root`, or a pipe or device.
    """
    found = {}
    for place, folders, names in os.walk(folder):
        for name in sorted([*folders, *names]):
            path = Path(place) / name
            if path.is_symlink():
                check_link(path, root)
            mode = path.stat().st_mode if path.exists() else 0
            if name in names and stat.S_ISREG(mode):
                found[path.relative_to(folder).as_posix()] = path
            elif name in names or path.is_symlink():
                raise CheckpointError(f"{path} is neither a regular file nor a real folder, so not part of a checkpoint; remove it")
    return found


def _leaf(path: str, folder: Path, shape: Shape, held: Mapping[str, Path]) -> ZarrLeaf:
    """A leaf whose files are `held`.

    Raises:
        CheckpointError: they do not make up a leaf of this shape; the message is a few words.
    """
    if not held:
        raise CheckpointError("missing")
    if _ARRAY not in held:
        raise CheckpointError(f"its {_ARRAY} is missing")
    array = read_json(held[_ARRAY], _ZarrArray, CheckpointError, largest=2**16)
    if tuple(array["shape"]) != shape:
        raise CheckpointError(f"its shape is {times(array['shape'])}, but the config says {times(shape)}")
    chunks = array["chunks"]
    if len(chunks) != len(shape) or any(chunk > side for chunk, side in zip(chunks, shape, strict=True)):
        raise CheckpointError(f"its chunks of {times(chunks)} are not parts of {times(shape)}")
    grid = [-(-side // chunk) for side, chunk in zip(shape, chunks, strict=True)]
    inside = [name for name in held if re.fullmatch(r"\d{1,10}(\.\d{1,10})*", name) and _is_in(name, grid)]
    if len(inside) != math.prod(grid):
        raise CheckpointError(f"{math.prod(grid) - len(inside)} of its {math.prod(grid)} chunks are missing")
    files = (held[_ARRAY], *(held[name] for name in inside))
    return ZarrLeaf(path, files, shape, 4 if array["dtype"] == "<f4" else 2, folder, array)


def _is_in(name: str, grid: list[int]) -> bool:
    """Whether a chunk's name, such as 0.3, is a place in the grid."""
    place = [int(index) for index in name.split(".")]
    return len(place) == len(grid) and all(index < count for index, count in zip(place, grid, strict=True))
