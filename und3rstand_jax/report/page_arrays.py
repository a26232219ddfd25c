"""How the page carries arrays: integers, their bytes sorted so that gzip does well, gzip, base64."""

import base64
import dataclasses
import gzip
from typing import Any

import numpy as np

_DTYPES = ("uint8", "int16", "float32")


@dataclasses.dataclass(frozen=True)
class PackedArray:
    """An array as the page carries it.

    Attributes:
        name: by which the page asks for it.
        spec: name, dtype, shape and whether differences along the last axis were stored; plain JSON values.
        text: base64 of gzip of the bytes: first the low byte of every element, then the next, ... (little-endian).
    """

    name: str
    spec: dict[str, Any]
    text: str


def pack(name: str, array: np.ndarray, differences: bool = False) -> PackedArray:
    """Packs an array of uint8, int16 or float32, exactly.

    `differences` stores each element less its neighbour before it on the last axis, modulo the type's range, which makes smooth
    maps of integers small. Packing the same array again gives the same text.

    Raises:
        TypeError: another dtype, or differences of floats, which would not be exact.
    """
    dtype = array.dtype.name
    if dtype not in _DTYPES or (differences and dtype == "float32"):
        raise TypeError(f"{name}: expected one of {', '.join(_DTYPES)} (differences: integers), found {dtype}")
    stored = np.diff(array, axis=-1, prepend=np.zeros_like(array[..., :1])) if differences else array
    planes = np.frombuffer(np.ascontiguousarray(stored, array.dtype.newbyteorder("<")).tobytes(), np.uint8).reshape(-1, array.itemsize).T
    spec = {"name": name, "dtype": dtype, "shape": list(array.shape), "differences": differences}
    return PackedArray(name, spec, base64.b64encode(gzip.compress(planes.tobytes(), 6, mtime=0)).decode())


def size(arrays: tuple[PackedArray, ...]) -> int:
    """Characters that these arrays take on the page."""
    return sum(len(array.text) for array in arrays)
