"""A checkpoint's tensors as one lazy table: names, shapes and dtypes at once, values one at a time."""

import math
import re
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from und3rstand_jax.support.errors import CheckpointError
from und3rstand_jax.support.files import open_regular
from und3rstand_jax.support.text import listed


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


_LONGEST_NAME = 1000  # characters; 60 in DUSt3R


class TensorFiles(Mapping[str, TensorInfo]):
    """The tensors of one checkpoint, across all of its files.

    Attributes:
        files: the files that hold the tensors.
        metadata: the safetensors headers' own strings, of all shards ({} for pickles).
        args: what a pickle says about its model: the call in `args.model`, or a dict of options; None if it says nothing.
        chosen: the entry of a pickle, or the beginning of names, that holds the tensors; "" if the files hold nothing else.
        ignored: name of everything else in the files -> what it is.
    """

    def __init__(
        self,
        table: Mapping[str, TensorInfo],
        files: tuple[Path, ...],
        *,
        metadata: Mapping[str, str] | None = None,
        args: str | Mapping[str, Any] | None = None,
        chosen: str = "",
        ignored: Mapping[str, str] | None = None,
    ) -> None:
        """Takes the table of `files`; the reader of each format calls this once it knows the table.

        Raises:
            CheckpointError: a name has more than 1000 characters.
        """
        longest = max(table, key=len, default="")
        if len(longest) > _LONGEST_NAME:
            raise CheckpointError(
                f"{files[0].name} names a tensor with {len(longest):,} characters ({longest[:40]}…); names are paths of modules, "
                f"expected at most {_LONGEST_NAME} characters: rename it"
            )
        self._table = dict(table)
        self.files = files
        self.metadata = dict(metadata or {})
        self.args = args
        self.chosen = chosen
        self.ignored = dict(ignored or {})

    @abstractmethod
    def read(self, name: str) -> np.ndarray:
        """One tensor, writable and in its own memory; bfloat16 as `ml_dtypes.bfloat16`.

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


class TensorsBelow(TensorFiles):
    """The tensors of a table whose names begin with a prefix, under their names without the prefix."""

    def __init__(self, whole: TensorFiles, prefix: str) -> None:
        """Narrows down `whole`, which is closed along with this table.

        Raises:
            CheckpointError: no name begins with the prefix.
        """
        self._whole, self._start = whole, f"{prefix.rstrip('.')}."
        table = {name.removeprefix(self._start): info for name, info in whole.items() if name.startswith(self._start)}
        counts = Counter(name.partition(".")[0] for name in whole if not name.startswith(self._start))
        beside = {name: tensor_count(count) for name, count in counts.items()}
        if not table:
            whole.close()
            held = listed(f"{name} ({what})" for name, what in {**whole.ignored, **beside}.items())
            raise CheckpointError(
                f"--key {prefix} is neither an entry of {whole.files[0].name} nor the beginning of a tensor's name; found {held}"
            )
        metadata = {key.removeprefix(self._start): value.removeprefix(self._start) for key, value in whole.metadata.items()}
        chosen = ".".join(filter(None, (whole.chosen, prefix)))
        super().__init__(table, whole.files, metadata=metadata, args=whole.args, chosen=chosen, ignored={**whole.ignored, **beside})

    def read(self, name: str) -> np.ndarray:  # noqa: D102 (documented by the base class)
        return self._whole.read(self._start + name)

    def close(self) -> None:  # noqa: D102 (documented by the base class)
        self._whole.close()


def tensor_count(count: int) -> str:
    """A number of tensors for a message."""
    return f"{count:,} tensor{'' if count == 1 else 's'}"


def merged(
    tables: Mapping[Path, Mapping[str, TensorInfo]], weight_map: Mapping[str, str] | None = None
) -> tuple[dict[str, TensorInfo], dict[str, Path]]:
    """The shards of a checkpoint as one table, and the file that holds each tensor.

    Args:
        tables: the tensors of every shard.
        weight_map: tensor -> file name, if an index states it; it must agree with the shards.

    Raises:
        CheckpointError: a name appears twice, or the index disagrees.
    """
    table: dict[str, TensorInfo] = {}
    homes: dict[str, Path] = {}
    twice = []
    for path, held in tables.items():
        twice += [f"{name} in {homes[name].name} and {path.name}" for name in held if name in homes]
        table |= held
        homes |= dict.fromkeys(held, path)
    if twice:
        raise CheckpointError(f"names that appear in two files: {listed(twice, '; ')}; give one of the files, or the folder with its index")
    if weight_map is not None:
        found = {name: path.name for name, path in homes.items()}
        faults = [
            f"{name} should be in {file} and is {f'in {found[name]}' if name in found else 'in no shard'}"
            for name, file in weight_map.items()
            if found.get(name) != file
        ]
        faults += [f"{name} is in {file} and not in the index" for name, file in found.items() if name not in weight_map]
        if faults:
            raise CheckpointError(f"index and shards disagree: {listed(faults, '; ')}; copy or download index and shards again together")
    return table, homes


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
    with reading(path), open_regular(path) as file:
        head = file.read(64)
    if not head:
        raise CheckpointError(f"{path} is empty (0 bytes), expected a checkpoint; copy or download it again")
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path} is a Git LFS pointer, not the tensors themselves; run `git lfs pull` in its folder")
    return head
