"""The files of a parameter tree on disk: which they are, and what their metadata says, before any value is read.

Orbax writes a folder for every leaf (`decoder.norm.scale/`), a Zarr array of `.zarray` and chunks, and files of its own beside them.
Nothing else belongs to a tree. All of it may be a stranger's: links are looked at before they are followed, and shapes, types and
chunks must be those of the config beside the tree, so that what reading takes is known before.
"""

import dataclasses
import math
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

from annotated_types import Ge, Le
from typing_extensions import TypedDict

from und3rstand_jax.checkpoint.format import ORBAX_FILES, REMEDY, CheckpointInfo
from und3rstand_jax.checkpoint.links import check_link
from und3rstand_jax.model.families import backbone_shapes
from und3rstand_jax.model.tensor_names import Shape
from und3rstand_jax.support.documents import read_json
from und3rstand_jax.support.errors import CheckpointError

_METADATA = "_METADATA"
_ARRAY = ".zarray"

# Weights hardly compress. Values that are all alike do, ten thousand times; a small tree of those may be wanted, a large one is an attack.
_UNPACKED_WITHOUT_QUESTION = 2**30
_LARGEST_RATIO = 100

_Size = Annotated[int, Ge(1), Le(2**31 - 1)]


class _Zstd(TypedDict):
    id: Literal["zstd"]
    level: int


class _ZarrArray(TypedDict):
    """What Orbax writes into `.zarray`; TensorStore is given these fields and never sees the file."""

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
class StoredLeaf:
    """One leaf on disk: `path` is that in the tree (`decoder/norm/scale`), `metadata` is that of Zarr, `files` are all of its files."""

    path: str
    folder: Path
    metadata: Mapping[str, Any]
    files: tuple[Path, ...]

    @property
    def shape(self) -> Shape:
        """The shape of the array."""
        return tuple(self.metadata["shape"])

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return math.prod(self.shape) * (4 if self.metadata["dtype"] == "<f4" else 2)


@dataclasses.dataclass(frozen=True)
class StoredTree:
    """A tree on disk, looked over and not read.

    Attributes:
        leaves: path -> leaf, of those whose files are as the config has them.
        faults: path -> what is wrong with it, in a few words, of all others; "" stands for the tree as a whole.
        files: Orbax's own files, which go with the leaves' in a copy.
    """

    leaves: Mapping[str, StoredLeaf]
    faults: Mapping[str, str]
    files: tuple[Path, ...]


def expected_shapes(info: CheckpointInfo, part: str) -> dict[str, Shape]:
    """Path -> shape of every leaf that the config of "backbone" or "probes" implies."""
    if part == "backbone":
        assert info.backbone is not None
        return backbone_shapes(info.backbone)
    from flax.traverse_util import flatten_dict

    from und3rstand_jax.probes.probes import probe_shapes

    assert info.probes is not None
    return {path: tuple(leaf.shape) for path, leaf in flatten_dict(probe_shapes(info.probes), sep="/").items()}


def stored_tree(root: Path, info: CheckpointInfo, part: str) -> StoredTree:
    """Looks over the tree of a part of the checkpoint `root`. What is wrong with single leaves is listed, not raised.

    Raises:
        CheckpointError: the tree is missing, or something in it is a link that leads out of the checkpoint.
    """
    folder = root / part
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is missing; the checkpoint is incomplete: {REMEDY}")
    files = _files(folder, root)
    held: dict[str, dict[str, Path]] = {}
    for name, file in files.items():
        place, _, inner = name.rpartition("/")
        held.setdefault(place, {})[inner] = file
    leaves: dict[str, StoredLeaf] = {}
    faults: dict[str, str] = {}
    own = [file for name, file in files.items() if re.fullmatch(ORBAX_FILES, name)]
    for path, shape in expected_shapes(info, part).items():
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
            faults[""] = f"{packed / 2**20:.1f} MiB that would take {unpacked / 2**30:.1f} GiB in memory: no weights are so much alike"
    return StoredTree(leaves, faults, tuple(own))


def _files(folder: Path, root: Path) -> dict[str, Path]:
    """Name, relative to `folder`, -> path of every file below it.

    Raises:
        CheckpointError: one is a link that leads out of `root`, or a pipe or device.
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
                raise CheckpointError(f"{path} is neither a file nor a folder of its own, so not part of a checkpoint; remove it")
    return found


def _leaf(path: str, folder: Path, shape: Shape, held: Mapping[str, Path]) -> StoredLeaf:
    """A leaf whose files are `held`.

    Raises:
        CheckpointError: they are not those of a leaf of this shape; the message is a few words.
    """
    if not held:
        raise CheckpointError("missing")
    if _ARRAY not in held:
        raise CheckpointError(f"its {_ARRAY} is missing")
    array = read_json(held[_ARRAY], _ZarrArray, CheckpointError, largest=2**16)
    if tuple(array["shape"]) != shape:
        raise CheckpointError(f"its shape is {_times(array['shape'])}, but the config says {_times(shape)}")
    chunks = array["chunks"]
    if len(chunks) != len(shape) or any(chunk > side for chunk, side in zip(chunks, shape, strict=True)):
        raise CheckpointError(f"its chunks of {_times(chunks)} are not parts of {_times(shape)}")
    grid = [-(-side // chunk) for side, chunk in zip(shape, chunks, strict=True)]
    inside = [name for name in held if re.fullmatch(r"\d{1,10}(\.\d{1,10})*", name) and _is_in(name, grid)]
    if len(inside) != math.prod(grid):
        raise CheckpointError(f"{math.prod(grid) - len(inside)} of its {math.prod(grid)} chunks are missing")
    return StoredLeaf(path, folder, array, (held[_ARRAY], *(held[name] for name in inside)))


def _is_in(name: str, grid: list[int]) -> bool:
    """Whether a chunk's name, such as 0.3, is that of a place in the grid."""
    place = [int(index) for index in name.split(".")]
    return len(place) == len(grid) and all(index < count for index, count in zip(place, grid, strict=True))


def _times(shape: Any) -> str:
    return "×".join(map(str, shape)) or "a single value"
