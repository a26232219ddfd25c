"""A parameter tree in one safetensors file, each leaf under the part's name and its path: `backbone/encoder/norm/scale`.

Any safetensors reader can read it, without Orbax and without this package. It may come from a stranger: names, shapes and types must
match the config beside it before any value is read, and values must be finite.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from und3rstand_jax.checkpoint.leaves import StoredLeaf, StoredTree, times
from und3rstand_jax.checkpoint.links import check_link
from und3rstand_jax.model.tensor_names import Shape
from und3rstand_jax.support.errors import CheckpointError
from und3rstand_jax.support.files import open_regular
from und3rstand_jax.support.text import one_line

_ITEMSIZES = {"F32": 4, "F16": 2, "BF16": 2}


@dataclasses.dataclass(frozen=True)
class FileLeaf(StoredLeaf):
    """A leaf stored as the tensor `name` in its only file."""

    name: str

    def read(self) -> np.ndarray:  # noqa: D102 (documented by the base class)
        import ml_dtypes  # noqa: F401 (its import makes numpy know the name bfloat16, which safetensors looks up)
        from safetensors import SafetensorError, safe_open

        (file,) = self.files
        try:
            # A separate handle: leaves are read in several threads. Positioned reads do not map the file into memory.
            with safe_open(file, framework="numpy", backend="pread") as held:
                values = held.get_tensor(self.name)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{self.name} of {file} cannot be read: {one_line(error, 200)}") from error
        if not is_finite(values):
            raise CheckpointError(f"{self.name} of {file} holds NaN or infinite values; expected finite ones")
        return values


def safetensors_tree(file: Path, root: Path, part: str, shapes: Mapping[str, Shape]) -> StoredTree:
    """Checks the tree in a file of the checkpoint `root`, whose leaves must have these shapes according to the config.

    safetensors itself checks that the file is as long as its header says.

    Raises:
        CheckpointError: the file is a link that leads out of the checkpoint, a pipe, or not a complete safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    check_link(file, root)
    leaves: dict[str, FileLeaf] = {}
    faults: dict[str, str] = {}
    try:
        open_regular(file).close()
        with safe_open(file, framework="numpy", backend="pread") as held:
            headers = {name: held.get_slice(name) for name in held.keys()}  # noqa: SIM118 (it is no mapping)
            found = {name: (tuple(header.get_shape()), header.get_dtype()) for name, header in headers.items()}
    except SafetensorError as error:
        raise CheckpointError(f"{file} is not a complete safetensors file: {one_line(error, 200)}") from error
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror or error}") from error
    for path, shape in shapes.items():
        name = f"{part}/{path}"
        if name not in found:
            faults[path] = "missing"
            continue
        stored, dtype = found.pop(name)
        if stored != shape:
            faults[path] = f"its shape is {times(stored)}, but the config says {times(shape)}"
        elif dtype not in _ITEMSIZES:
            faults[path] = f"its type is {dtype}; expected one of {', '.join(_ITEMSIZES)}"
        else:
            leaves[path] = FileLeaf(path, (file,), shape, _ITEMSIZES[dtype], name)
    faults |= dict.fromkeys(found, "not a leaf of the model that the config describes")
    return StoredTree(leaves, faults)


def is_finite(values: np.ndarray) -> bool:
    """Whether no value is NaN or infinite."""
    # One pass without a temporary: a sum is finite unless a summand is not, or (then every value is checked) it overflows.
    with np.errstate(over="ignore", invalid="ignore"):
        total = values.sum(dtype=np.float32)
    return bool(np.isfinite(total)) or bool(np.isfinite(values.astype(np.float32)).all())
