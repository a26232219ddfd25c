"""Maps the leaves of a JAX parameter tree to the named tensors of a PyTorch state dict, with the axis layouts of both.

A family's table has rows (module of the tree, module in PyTorch, kind); the kind gives the leaves of a module and their layouts. A
parameter that is not a module's weight or bias, such as a learned token, has its own row. `{i}` in a name stands for the block's number:
such rows are stacked over the blocks.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

Shape = tuple[int, ...]

Row = tuple[str, str, str]
"""(module of the tree, module in PyTorch, kind), or for a single parameter (leaf, tensor, kind)."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the axes of a PyTorch tensor become those of a JAX leaf: a permutation, after which `dropped` leading axes
    of size 1 are left out.
    """

    axes: tuple[int, ...]
    dropped: int = 0

    def to_torch(self, array: np.ndarray) -> np.ndarray:
        """A view of the array in PyTorch's layout."""
        return array.reshape((1,) * self.dropped + array.shape).transpose(np.argsort(self.axes))

    def torch_shape(self, jax_shape: Shape) -> Shape:
        """The shape a source tensor must have to fill a leaf of `jax_shape`."""
        full = (1,) * self.dropped + jax_shape
        return tuple(full[i] for i in np.argsort(self.axes))


VECTOR = Layout((0,))
LINEAR = Layout((1, 0))  # (out, in) -> (in, out)
CONV = Layout((2, 3, 1, 0))  # (out, in, y, x) -> (y, x, in, out)
CONV_1X1 = Layout((2, 3, 1, 0), dropped=2)  # (out, in, 1, 1) -> (in, out)
CONV_TRANSPOSED = Layout((0, 2, 3, 1))  # (in, out, y, x) -> (in, y, x, out)

_KINDS: dict[str, dict[str, tuple[str, Layout]]] = {
    "linear": {"kernel": ("weight", LINEAR), "bias": ("bias", VECTOR)},
    "norm": {"scale": ("weight", VECTOR), "bias": ("bias", VECTOR)},
    "conv": {"kernel": ("weight", CONV), "bias": ("bias", VECTOR)},
    "conv without bias": {"kernel": ("weight", CONV)},
    "conv 1x1": {"kernel": ("weight", CONV_1X1), "bias": ("bias", VECTOR)},
    "conv transposed": {"kernel": ("weight", CONV_TRANSPOSED), "bias": ("bias", VECTOR)},
    "layer scale": {"gamma": ("gamma", VECTOR)},
}
_PARAMETERS = {
    "token": Layout((0, 1, 2), dropped=2),  # (1, 1, C) -> (C)
    "tokens": Layout((0, 1, 2), dropped=1),  # (1, N, C) -> (N, C)
    "tokens of two kinds": Layout((0, 1, 2, 3), dropped=1),  # (1, 2, N, C) -> (2, N, C)
}


@dataclasses.dataclass(frozen=True)
class Leaf:
    """Where one JAX leaf comes from.

    `names` are the source tensors in row-major order over the leaf's leading `stack` axes (none for a plain leaf).
    """

    names: tuple[str, ...]
    layout: Layout
    stack: tuple[int, ...] = ()

    def places(self) -> Iterator[tuple[tuple[int, ...], str]]:
        """(index into the leading axes, source tensor) of every part."""
        return zip(np.ndindex(*self.stack), self.names, strict=True)


LeafMap = Mapping[str, Leaf]
"""Path of a JAX leaf (`encoder/blocks/attn/qkv/kernel`) -> where it comes from."""


class NamedStack(NamedTuple):
    """Rows of modules under one path of the tree and one stem of names; `depth` is the number of blocks, or 0 if they are not a stack."""

    path: str
    stem: str
    depth: int
    rows: tuple[Row, ...]


def leaves_of(stacks: Iterable[NamedStack], prefix: str = "") -> dict[str, Leaf]:
    """Every leaf of the stacks and its source tensors, whose names begin with `prefix`."""
    leaves = {}
    for path, stem, depth, rows in stacks:
        for module, name, kind in rows:
            if kind in _PARAMETERS:
                parts = {f"{path}{module}": (name, _PARAMETERS[kind])}
            else:
                parts = {f"{path}{module}/{part}": (f"{name}.{suffix}", layout) for part, (suffix, layout) in _KINDS[kind].items()}
            for leaf, (tensor, layout) in parts.items():
                names = tuple(f"{prefix}{stem.format(i=i)}{tensor}" for i in range(depth or 1))
                leaves[leaf] = Leaf(names, layout, (depth,) if depth else ())
    return leaves
