"""Reads a source into a parameter tree, one tensor at a time, straight into its stacked place."""

from collections.abc import Callable, Mapping

import numpy as np

from convert.mapping import Leaf, LeafMap
from convert.mapping_check import raise_if_any
from convert.probes.findings import Complaint
from convert.sources.tensor_files import TensorFiles

_ALIGNMENT = 64  # bytes: JAX takes a NumPy array without a copy when it starts on such a boundary
_ROWS = 16  # float32 values in a cache line


def fill(
    leaves: LeafMap, shapes: Mapping[str, tuple[int, ...]], tensors: TensorFiles, progress: Callable[[int], object]
) -> dict[str, np.ndarray]:
    """Path -> array of every leaf, in the source's dtype. Holds one source tensor at a time beside the result.

    `progress` is told the bytes of each tensor read.

    Raises:
        UserError: tensors hold NaN or infinite values; all are named.
    """
    filled, not_finite = {}, list[Complaint]()
    for path, leaf in leaves.items():
        array = filled[path] = _aligned(shapes[path], _dtype(leaf, tensors))
        for index, name in leaf.places():
            tensor = tensors.read(name)
            if not _is_finite(tensor):
                bad = int(np.sum(~np.isfinite(tensor.astype(np.float32))))
                not_finite.append(Complaint(name, f"{bad} of {tensor.size} values"))
            _copy(tensor, leaf.layout.to_torch(array[index]))
            progress(tensor.nbytes)
    # A tensor that fills two leaves is named once.
    raise_if_any(list(dict.fromkeys(not_finite)), "found NaN or infinite values, expected finite ones")
    return filled


def _copy(tensor: np.ndarray, target: np.ndarray) -> None:
    """Copies into a transposed view a few rows at a time: whole, every element written would miss the cache."""
    for start in range(0, len(tensor), _ROWS):
        target[start : start + _ROWS] = tensor[start : start + _ROWS]


def _dtype(leaf: Leaf, tensors: TensorFiles) -> np.dtype:
    import ml_dtypes

    name = tensors[leaf.names[0]].dtype
    return np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)


def _is_finite(tensor: np.ndarray) -> bool:
    # One pass without a temporary: a sum is finite unless a summand is not, or (then looked at closely) it overflows.
    with np.errstate(over="ignore", invalid="ignore"):
        total = tensor.sum(dtype=np.float32)
    return bool(np.isfinite(total)) or bool(np.isfinite(tensor.astype(np.float32)).all())


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    size = int(np.prod(shape)) * dtype.itemsize
    buffer = np.empty(size + _ALIGNMENT, np.uint8)
    start = -buffer.ctypes.data % _ALIGNMENT
    return buffer[start : start + size].view(dtype).reshape(shape)
