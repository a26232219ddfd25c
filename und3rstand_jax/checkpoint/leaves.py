"""What is known about a parameter tree on disk before any value is read, however it is stored."""

import abc
import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from und3rstand_jax.model.tensor_names import Shape


@dataclasses.dataclass(frozen=True)
class StoredLeaf(abc.ABC):
    """One leaf on disk: `path` is its path in the tree (`decoder/norm/scale`), `files` are all files that hold it."""

    path: str
    files: tuple[Path, ...]
    shape: Shape
    itemsize: int

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return math.prod(self.shape) * self.itemsize

    @abc.abstractmethod
    def read(self) -> np.ndarray:
        """The values, in newly allocated memory.

        Raises:
            CheckpointError: they cannot be read.
        """


@dataclasses.dataclass(frozen=True)
class StoredTree:
    """A tree on disk, checked but not read.

    Attributes:
        leaves: path -> leaf, for those whose files match the config.
        faults: path -> what is wrong, in a few words, for all others; "" stands for the tree as a whole.
        files: further files to copy along with those of the leaves.
    """

    leaves: Mapping[str, StoredLeaf]
    faults: Mapping[str, str]
    files: tuple[Path, ...] = ()


def times(shape: object) -> str:
    """A shape for a message: 3×4."""
    assert isinstance(shape, list | tuple)
    return "×".join(map(str, shape)) or "a single value"
