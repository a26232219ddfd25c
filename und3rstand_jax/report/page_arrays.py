"""How the page stores arrays: as integers, in byte planes that gzip compresses well, then gzip and base64. web/js/arrays.js inverts it."""

import base64
import dataclasses
import gzip
from collections.abc import Sequence

import numpy as np

_DTYPES = ("uint8", "int16", "float32")


@dataclasses.dataclass(frozen=True)
class PackedArray:
    """An array as stored on the page.

    Attributes:
        name: the name under which the page's scripts look it up.
        spec: name, dtype, shape and whether differences along the last axis were stored; plain JSON values.
        text: base64 of gzip of the bytes: first the low byte of every element, then the next, ... (little-endian).
    """

    name: str
    spec: dict[str, object]
    text: str


def pack(name: str, array: np.ndarray, differences: bool = False) -> PackedArray:
    """Packs an array of uint8, int16 or float32, losslessly and deterministically.

    `differences` stores each element minus its predecessor on the last axis, modulo the type's range, which makes smooth maps of
    integers compress well.

    Raises:
        TypeError: the dtype is a different one, or differences of floats are requested, which would not be exact.
    """
    dtype = array.dtype.name
    if dtype not in _DTYPES or (differences and dtype == "float32"):
        raise TypeError(f"{name}: expected one of {', '.join(_DTYPES)} (differences: integers), found {dtype}")
    stored = np.diff(array, axis=-1, prepend=np.zeros_like(array[..., :1])) if differences else array
    planes = np.frombuffer(np.ascontiguousarray(stored, array.dtype.newbyteorder("<")).tobytes(), np.uint8).reshape(-1, array.itemsize).T
    spec = {"name": name, "dtype": dtype, "shape": list(array.shape), "differences": differences}
    return PackedArray(name, spec, base64.b64encode(gzip.compress(planes.tobytes(), 6, mtime=0)).decode())


def packed_size(arrays: Sequence[PackedArray]) -> int:
    """The number of characters that these arrays take on the page."""
    return sum(len(array.text) for array in arrays)
