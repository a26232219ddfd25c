"""A checkpoint's tensors as one lazy table: names, shapes and dtypes at once, values one at a time."""

import math
import re
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from und3rstand_jax.support.errors import CheckpointError


@dataclass(frozen=True)
class TensorInfo:
    """Shape and dtype of one stored tensor; the dtype is numpy's name for it ("float32", "bfloat16", "int64", …)."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        """Bytes of its values."""
        bits = re.search(r"\d+", self.dtype)
        return math.prod(self.shape) * (int(bits[0]) // 8 if bits else 1)


class TensorFiles(Mapping[str, TensorInfo]):
    """The tensors of one checkpoint, over all of its files.

    Attributes:
        files: the files that hold the tensors.
        metadata: the safetensors headers' own strings, of all shards ({} for pickles).
        args: what a pickle says of its model: the call in `args.model`, or a dict of options; None where it says nothing.
    """

    def __init__(
        self,
        table: Mapping[str, TensorInfo],
        files: tuple[Path, ...],
        *,
        metadata: Mapping[str, str] | None = None,
        args: str | Mapping[str, Any] | None = None,
    ) -> None:
        """The table of `files`; readers of a format call this once they know it."""
        self._table = dict(table)
        self.files = files
        self.metadata = dict(metadata or {})
        self.args = args

    @abstractmethod
    def read(self, name: str) -> np.ndarray:
        """One tensor, in memory of its own and writable; bfloat16 as `ml_dtypes.bfloat16`.

        Raises:
            KeyError: there is no such tensor.
            CheckpointError: its dtype has no numpy form, or the file can no longer be read.
        """

    @abstractmethod
    def close(self) -> None:
        """Closes the files; nothing can be read afterwards."""

    def __getitem__(self, name: str) -> TensorInfo:
        """Shape and dtype of the tensor `name`."""
        return self._table[name]

    def __iter__(self) -> Iterator[str]:
        """Names in the order in which the files hold them."""
        return iter(self._table)

    def __len__(self) -> int:
        """Number of tensors."""
        return len(self._table)

    def __enter__(self) -> "TensorFiles":
        """The table itself, closed at the end of the block."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Closes the files."""
        self.close()


@contextmanager
def reading(path: Path | str) -> Iterator[None]:
    """Turns an `OSError` from reading `path` into a `CheckpointError` that names it."""
    try:
        yield
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise CheckpointError(f"cannot read {path}: {reason}; check that it exists and that you may read it") from error


def first_bytes(path: Path) -> bytes:
    """The first bytes of a tensor file, which must be neither empty nor a Git LFS pointer."""
    with reading(path), path.open("rb") as file:
        head = file.read(64)
    if not head:
        raise CheckpointError(f"{path} is empty (0 bytes), expected a checkpoint; copy or download it again")
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path} is a Git LFS pointer, not the tensors themselves; run `git lfs pull` in its folder")
    return head
