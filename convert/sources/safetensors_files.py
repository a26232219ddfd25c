"""Tensors of one or several safetensors files."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from convert.sources.tensor_files import TensorFiles, TensorInfo, first_bytes, reading
from und3rstand_jax.errors import UserError

_DTYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "U32": "uint32",
    "I32": "int32",
    "U64": "uint64",
    "I64": "int64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}


class SafetensorsFiles(TensorFiles):
    """Tensors of safetensors files, which are shards of one checkpoint.

    Values are fetched with positioned reads, not through a memory map: a map's pages count as resident memory until the file is
    closed, so a whole conversion would hold the source a second time. Both ways measured the same speed.
    """

    def __init__(self, files: Sequence[Path], weight_map: Mapping[str, str] | None = None) -> None:
        """Opens all files and reads their headers.

        Args:
            files: the shards.
            weight_map: tensor name -> file name, where an index states it; it must agree with the shards.

        Raises:
            UserError: a file is not a complete safetensors file, a name appears twice, or the index disagrees.
        """
        self._stack = ExitStack()
        self._homes: dict[str, tuple[Any, Path]] = {}
        table: dict[str, TensorInfo] = {}
        metadata: dict[str, str] = {}
        twice = []
        try:
            for path in files:
                handle = self._stack.enter_context(_open(path))
                metadata |= handle.metadata() or {}
                for name in handle.offset_keys():
                    if name in table:
                        twice.append(f"{name} in {self._homes[name][1].name} and {path.name}")
                    header = handle.get_slice(name)
                    table[name] = TensorInfo(tuple(header.get_shape()), _dtype_name(header.get_dtype()))
                    self._homes[name] = (handle, path)
            if twice:
                raise UserError(f"names that appear in two files: {'; '.join(twice)}; give one of the files, or the folder with its index")
            if weight_map is not None:
                self._check_index(weight_map)
        except UserError:
            self.close()
            raise
        super().__init__(table, tuple(files), metadata=metadata)

    def read(self, name: str) -> np.ndarray:  # noqa: D102 (documented by the base class)
        import ml_dtypes  # noqa: F401 (its import makes numpy know the name bfloat16, which safetensors looks up)

        handle, path = self._homes[name]
        try:
            with reading(path):
                return handle.get_tensor(name)
        except (AttributeError, TypeError) as error:
            dtype = self[name].dtype
            raise UserError(
                f"{path}: {name} has dtype {dtype}, which cannot be read here; save it as float32, float16 or bfloat16"
            ) from error

    def close(self) -> None:  # noqa: D102 (documented by the base class)
        self._homes = {}
        self._stack.close()

    def _check_index(self, weight_map: Mapping[str, str]) -> None:
        """Holds every name's file against the index, both ways."""
        found = {name: path.name for name, (_, path) in self._homes.items()}
        complaints = [
            f"{name} should be in {file} and is {f'in {found[name]}' if name in found else 'in no shard'}"
            for name, file in weight_map.items()
            if found.get(name) != file
        ]
        complaints += [f"{name} is in {file} and not in the index" for name, file in found.items() if name not in weight_map]
        if complaints:
            raise UserError(f"index and shards disagree: {'; '.join(complaints)}; copy or download index and shards again together")


def _dtype_name(code: str) -> str:
    return _DTYPES.get(code, code.lower())


def _open(path: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    first_bytes(path)
    try:
        with reading(path):
            return safe_open(path, framework="numpy", backend="pread")
    except SafetensorError as error:
        size = path.stat().st_size
        raise UserError(
            f"{path} is not a complete safetensors file: {error} ({size} bytes); truncated, or another format; copy or download it again"
        ) from error
