"""Two-way correspondence between leaves of a JAX parameter tree and named PyTorch tensors.

Each JAX leaf says which source tensors it is made of and how their axes are laid out. Read forwards this converts,
backwards it exports; because it is keyed by the target, a leaf without a source cannot go unnoticed.

Whether a source fills a parameter tree: every leaf once, every tensor used or known to be unused.
"""

import dataclasses
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from und3rstand_jax.checkpoint.trees import Tree, flatten
from und3rstand_jax.convert.findings import Complaint
from und3rstand_jax.convert.sources.tensor_files import TensorInfo
from und3rstand_jax.support.errors import UserError


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


DTYPES = ("float32", "float16", "bfloat16")


def complaints(
    leaves: LeafMap, shapes: Mapping[str, tuple[int, ...]], tensors: Mapping[str, TensorInfo], accounted: Iterable[str]
) -> list[Complaint]:
    """Everything that keeps `tensors` from filling a tree of these shapes; empty if nothing does.

    Args:
        leaves: where every leaf comes from.
        shapes: the leaves that the model has, and their shapes.
        tensors: the source.
        accounted: tensors that may stay unused.
    """
    found = [Complaint(f"leaf {path}", "has no source in the mapping") for path in shapes if path not in leaves]
    found += [Complaint(f"leaf {path}", "is in the mapping, but not in the model") for path in leaves if path not in shapes]
    used: set[str] = set()
    for path in leaves.keys() & shapes.keys():
        leaf = leaves[path]
        expected = leaf.layout.torch_shape(tuple(shapes[path][len(leaf.stack) :]))
        used.update(leaf.names)
        # A tensor may fill two leaves (CroCo's one decoder); what is wrong with it is said once.
        found += [complaint for name in leaf.names for complaint in _tensor_complaints(name, expected, tensors)]
        found += _stack_complaints([name for name in leaf.names if name in tensors], tensors)
    surplus = tensors.keys() - used - set(accounted)
    found += [Complaint(name, f"found shape {shape_text(tensors[name].shape)}, surplus: nothing expects it") for name in surplus]
    return list(dict.fromkeys(found))


def raise_if_any(found: Sequence[Complaint], what: str) -> None:
    """Raises all complaints together, in one line; what is said of equal tensors of several blocks is said once.

    Raises:
        UserError: there are any.
    """
    if found:
        raise UserError(f"{what}: {len(found)} problem{'s' if len(found) > 1 else ''}: {'; '.join(told_by_block(found))}")


def told_by_block(found: Iterable[Complaint]) -> list[str]:
    """Complaints as text, in natural order, those that differ only in the block's index as one: `enc_blocks.{0…23}.norm1.bias: …`."""
    alike: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for complaint in found:
        before, index, after = re.fullmatch(r"(.*?)(?:(?<=\.)(\d+)(?=\.|$)(.*))?", complaint.subject, re.DOTALL).groups()  # type: ignore[union-attr]
        alike[before, after or "", complaint.text] += [int(index)] if index else []
    lines = {(before, after, text): f"{before}{_runs(sorted(set(at)))}{after}: {text}" for (before, after, text), at in alike.items()}
    return [lines[key] for key in sorted(lines, key=lambda key: (_natural(key[0]), min(alike[key], default=-1), _natural(key[1]), key[2]))]


def shape_text(shape: tuple[int, ...]) -> str:
    """A shape as `48×16`."""
    return "×".join(map(str, shape)) or "scalar"


def _tensor_complaints(name: str, expected: tuple[int, ...], tensors: Mapping[str, TensorInfo]) -> list[Complaint]:
    if name not in tensors:
        return [Complaint(name, f"missing, expected shape {shape_text(expected)}")]
    info, found = tensors[name], []
    if info.shape != expected:
        found.append(Complaint(name, f"found shape {shape_text(info.shape)}, expected {shape_text(expected)}"))
    if info.dtype not in DTYPES:
        found.append(Complaint(name, f"found dtype {info.dtype}, expected one of {', '.join(DTYPES)}"))
    return found


def _stack_complaints(names: Sequence[str], tensors: Mapping[str, TensorInfo]) -> list[Complaint]:
    dtypes = sorted({tensors[name].dtype for name in names})
    if len(dtypes) < 2 or not set(dtypes) <= set(DTYPES):
        return []
    found = []
    for name in names:
        others = " and ".join(dtype for dtype in dtypes if dtype != tensors[name].dtype)
        found.append(Complaint(name, f"found dtype {tensors[name].dtype}, and {others} in other blocks; expected one dtype in all"))
    return found


def _runs(numbers: Sequence[int]) -> str:
    """0, 1, 2, 5 as {0…2,5}; a single number as it is."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    if len(numbers) < 2:
        return "".join(map(str, numbers))
    return "{" + ",".join(f"{run[0]}…{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs) + "}"


def _natural(name: str) -> list[list[tuple[int, str]]]:
    return [[(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", piece)] for piece in name.split(".")]
