"""Two-way correspondence between leaves of a JAX parameter tree and named PyTorch tensors.

Each JAX leaf says which source tensors it is made of and how their axes are laid out. Read forwards this converts,
backwards it exports; because it is keyed by the target, a leaf without a source cannot go unnoticed.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from und3rstand_jax.errors import UserError

Tree = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the axes of a PyTorch tensor become those of a JAX leaf: a permutation, after which `dropped` leading axes
    of size 1 are left out.
    """

    axes: tuple[int, ...]
    dropped: int = 0

    def to_jax(self, tensor: np.ndarray) -> np.ndarray:
        """A view of the tensor in JAX's layout."""
        permuted = tensor.transpose(self.axes)
        return permuted.reshape(permuted.shape[self.dropped :])

    def to_torch(self, array: np.ndarray) -> np.ndarray:
        """A view of the array in PyTorch's layout."""
        return array.reshape((1,) * self.dropped + array.shape).transpose(np.argsort(self.axes))

    def torch_shape(self, jax_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape a source tensor must have to fill a leaf of `jax_shape`."""
        full = (1,) * self.dropped + jax_shape
        return tuple(full[i] for i in np.argsort(self.axes))


VECTOR = Layout((0,))
LINEAR = Layout((1, 0))  # (out, in) -> (in, out)
CONV = Layout((2, 3, 1, 0))  # (out, in, y, x) -> (y, x, in, out)
CONV_1X1 = Layout((2, 3, 1, 0), dropped=2)  # (out, in, 1, 1) -> (in, out)
CONV_TRANSPOSED = Layout((0, 2, 3, 1))  # (in, out, y, x) -> (in, y, x, out)


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


def flatten(tree: Tree, prefix: str = "") -> dict[str, Any]:
    """Path -> leaf of a nested dict."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        flat.update(flatten(value, f"{path}/") if isinstance(value, dict) else {path: value})
    return flat


def unflatten(flat: Mapping[str, Any]) -> Tree:
    """The nested dict of `flatten`'s paths."""
    tree: Tree = {}
    for path, value in flat.items():
        *parents, last = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return tree


def export(tree: Tree, leaves: LeafMap) -> Iterator[tuple[str, np.ndarray]]:
    """Every source tensor, named and laid out as in PyTorch. A tensor that fills two leaves comes twice.

    Raises:
        UserError: tree and map do not hold the same leaves.
    """
    flat = flatten(tree)
    odd = sorted(flat.keys() ^ leaves.keys())
    if odd:
        raise UserError(f"the checkpoint's tree and its record of names differ in {', '.join(odd)}; convert it again")
    for path, leaf in leaves.items():
        array = np.asarray(flat[path])
        for index, name in leaf.places():
            yield name, leaf.layout.to_torch(array[index])
