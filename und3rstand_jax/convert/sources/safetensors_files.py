"""Safetensors files: reads the tensors of a checkpoint's files, and writes new files."""

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from und3rstand_jax.convert.sources.tensor_files import TensorFiles, TensorInfo, first_bytes, merged, reading
from und3rstand_jax.support.errors import CheckpointError

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
"""The header's dtypes -> NumPy's names for them."""


class SafetensorsFiles(TensorFiles):
    """Tensors of safetensors files that are the shards of one checkpoint.

    Values are fetched with positioned reads, not through a memory map: a map's pages count as resident memory until the file is
    closed, so a whole conversion would hold the source a second time. Both ways are equally fast.
    """

    def __init__(self, files: Sequence[Path], weight_map: Mapping[str, str] | None = None) -> None:
        """Opens all files and reads their headers.

        Args:
            files: the shards.
            weight_map: tensor name -> file name, if an index states it; it must agree with the shards.

        Raises:
            CheckpointError: a file is not a complete safetensors file, a name appears twice, or the index disagrees.
        """
        self._stack = ExitStack()
        self._handles: dict[Path, Any] = {}
        tables: dict[Path, dict[str, TensorInfo]] = {}
        metadata: dict[str, str] = {}
        try:
            for path in files:
                handle = self._handles[path] = self._stack.enter_context(_open(path))
                metadata |= handle.metadata() or {}
                tables[path] = {}
                for name in handle.offset_keys():
                    header = handle.get_slice(name)
                    dtype = header.get_dtype()
                    tables[path][name] = TensorInfo(tuple(header.get_shape()), _DTYPES.get(dtype, dtype.lower()))
            table, self._homes = merged(tables, weight_map)
        except CheckpointError:
            self.close()
            raise
        super().__init__(table, tuple(files), metadata=metadata)

    def read(self, name: str) -> np.ndarray:  # noqa: D102 (documented by the base class)
        import ml_dtypes  # noqa: F401 (its import makes numpy know the name bfloat16, which safetensors looks up)

        path = self._homes[name]
        try:
            with reading(path):
                return self._handles[path].get_tensor(name)
        except (AttributeError, TypeError) as error:
            dtype = self[name].dtype
            raise CheckpointError(
                f"{path}: {name} has dtype {dtype}, which cannot be read here; save it as float32, float16 or bfloat16"
            ) from error

    def close(self) -> None:  # noqa: D102 (documented by the base class)
        self._handles = {}
        self._stack.close()


def _open(path: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    first_bytes(path)
    try:
        with reading(path):
            return safe_open(path, framework="numpy", backend="pread")
    except SafetensorError as error:
        size = path.stat().st_size
        raise CheckpointError(
            f"{path} is not a complete safetensors file: {error} ({size} bytes); truncated, or another format; copy or download it again"
        ) from error


def write_safetensors(file: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> None:
    """Writes a new file. Equal tensors and metadata give equal bytes, which safetensors' own writer does not: it hashes the metadata.

    Tensors are ordered by the size of their values, largest first, so that each is aligned, then by name, as that writer orders them.

    Raises:
        OSError: the file exists, or cannot be written.
    """
    names = {numpy_name: name for name, numpy_name in _DTYPES.items()}
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(sorted(metadata.items()))}
    start = 0
    for name, tensor in ordered:
        end = start + math.prod(tensor.shape) * tensor.dtype.itemsize
        header[name] = {"dtype": names[tensor.dtype.name], "shape": list(tensor.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with file.open("xb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for _, tensor in ordered:
            # As bytes: NumPy gives no buffer of bfloat16. The format is little-endian.
            little = np.ascontiguousarray(tensor, tensor.dtype.newbyteorder("<"))
            stream.write(little.reshape(-1).view(np.uint8).data)
