"""What is known of a parameter tree on disk before a value is read, whichever way it is stored."""

import abc
import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from und3rstand_jax.model.tensor_names import Shape


@dataclasses.dataclass(frozen=True)
class StoredLeaf(abc.ABC):
    """One leaf on disk: `path` is that in the tree (`decoder/norm/scale`), `files` are all that hold it."""

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
        """The values, in memory of their own.

        Raises:
            CheckpointError: they cannot be read.
        """


@dataclasses.dataclass(frozen=True)
class StoredTree:
    """A tree on disk, looked over and not read.

    Attributes:
        leaves: path -> leaf, of those whose files are as the config has them.
        faults: path -> what is wrong with it, in a few words, of all others; "" stands for the tree as a whole.
        files: further files that go with the leaves' in a copy.
    """

    leaves: Mapping[str, StoredLeaf]
    faults: Mapping[str, str]
    files: tuple[Path, ...] = ()


def times(shape: object) -> str:
    """A shape for a message: 3×4."""
    assert isinstance(shape, list | tuple)
    return "×".join(map(str, shape)) or "a single value"
