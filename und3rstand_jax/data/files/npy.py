"""NumPy's .npy format, header first: a few bytes may claim an array of any size, for which NumPy would allocate memory."""

import io
import math
import os
from typing import IO, NamedTuple

import numpy as np
from numpy.lib import format as npy_format

_LONGEST_HEADER = 2**16  # bytes; it names every field of a structured array


class NpyHeader(NamedTuple):
    """What an .npy file claims to contain."""

    shape: tuple[int, ...]
    dtype: np.dtype

    def __str__(self) -> str:
        kind = f"fields {', '.join(self.dtype.names)}" if self.dtype.names else str(self.dtype)
        return f"an array of {kind} of shape {self.shape}"


def read_header(stream: IO[bytes] | io.BufferedIOBase) -> NpyHeader:
    """The header of an .npy file. The stream's position does not change.

    Raises:
        ValueError: it is not an .npy file, or of a version other than 1.0 and 2.0.
    """
    start = stream.tell()
    version = npy_format.read_magic(stream)
    if version == (1, 0):
        shape, _, dtype = npy_format.read_array_header_1_0(stream, max_header_size=_LONGEST_HEADER)
    elif version == (2, 0):
        shape, _, dtype = npy_format.read_array_header_2_0(stream, max_header_size=_LONGEST_HEADER)
    else:
        raise ValueError(f"version {version[0]}.{version[1]} of the .npy format, expected 1.0 or 2.0")
    stream.seek(start, os.SEEK_SET)
    return NpyHeader(shape, dtype)


def read_array(stream: IO[bytes] | io.BufferedIOBase, size: int) -> np.ndarray:
    """The array of an .npy file, which must have as many bytes as its header says.

    Args:
        stream: a stream at the file's start.
        size: size of the file in bytes, or of what it unpacks to.

    Raises:
        ValueError: the file is shorter than its header says, or contains objects, which could run code.
    """
    header = read_header(stream)
    needed = math.prod(header.shape) * header.dtype.itemsize
    if needed > size:
        raise ValueError(f"its header says {needed} bytes, the file has {size}")
    return npy_format.read_array(stream, allow_pickle=False, max_header_size=_LONGEST_HEADER)
