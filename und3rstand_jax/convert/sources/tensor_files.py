"""A checkpoint's tensors as one lazy table: names, shapes and dtypes at once, values one at a time."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from und3rstand_jax.support.errors import UserError


@dataclass(frozen=True)
class TensorInfo:
    """Shape and dtype of one stored tensor; the dtype is numpy's name for it ("float32", "bfloat16", "int64", …)."""

    shape: tuple[int, ...]
    dtype: str


class TensorFiles(Mapping[str, TensorInfo]):
    """The tensors of one checkpoint, over all of its files.

    Attributes:
        files: the files that hold the tensors.
        metadata: the safetensors headers' own strings, of all shards ({} for pickles).
        aliases: second name -> the stored name it stands for, where the metadata says that tensors were shared.
        args: what a pickle says of its model: the call in `args.model`, or a dict of options; None where it says nothing.
    """

    def __init__(
        self,
        table: Mapping[str, TensorInfo],
        files: tuple[Path, ...],
        *,
        metadata: Mapping[str, str] | None = None,
        args: object | None = None,
    ) -> None:
        """The table of `files`; readers of a format call this once they know it."""
        self._table = dict(table)
        self.files = files
        self.metadata = dict(metadata or {})
        self.aliases = {second: kept for second, kept in self.metadata.items() if second not in self._table and kept in self._table}
        self.args = args

    @abstractmethod
    def read(self, name: str) -> np.ndarray:
        """One tensor, in memory of its own and writable; bfloat16 as `ml_dtypes.bfloat16`.

        Raises:
            KeyError: there is no such tensor.
            UserError: its dtype has no numpy form, or the file can no longer be read.
        """

    @abstractmethod
    def close(self) -> None:
        """Lets go of the files; nothing can be read afterwards."""

    def __getitem__(self, name: str) -> TensorInfo:
        """Shape and dtype of the tensor `name`."""
        return self._table[name]

    def __iter__(self) -> Iterator[str]:
        """Names in the order in which the files hold them."""
        return iter(self._table)

    def __len__(self) -> int:
        """Number of tensors."""
        return len(self._table)

    def __enter__(self) -> Self:
        """The table itself, closed at the end of the block."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Closes the files."""
        self.close()


@contextmanager
def reading(path: Path | str) -> Iterator[None]:
    """Turns what the system says against reading `path` into a `UserError` that names it."""
    try:
        yield
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(f"cannot read {path}: {reason}; check that it exists and that you may read it") from error


_LFS_POINTER = b"version https://git-lfs"


def first_bytes(path: Path) -> bytes:
    """The beginning of a tensor file, after checking what no reader could make sense of: an empty file, a Git LFS pointer."""
    with reading(path), path.open("rb") as file:
        head = file.read(64)
    if not head:
        raise UserError(f"{path} is empty (0 bytes), expected a checkpoint; copy or download it again")
    if head.startswith(_LFS_POINTER):
        raise UserError(f"{path} is a Git LFS pointer, not the tensors themselves; run `git lfs pull` in its folder")
    return head
