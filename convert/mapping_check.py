"""Whether a source fills a parameter tree: every leaf once, every tensor used or known to be unused."""

import re
from collections.abc import Iterable, Mapping

from convert.mapping import LeafMap
from convert.sources.tensor_files import TensorInfo
from und3rstand_jax.errors import UserError

DTYPES = ("float32", "float16", "bfloat16")


def complaints(
    leaves: LeafMap, shapes: Mapping[str, tuple[int, ...]], tensors: Mapping[str, TensorInfo], accounted: Iterable[str]
) -> list[str]:
    """Everything that keeps `tensors` from filling a tree of these shapes; empty if nothing does.

    Args:
        leaves: where every leaf comes from.
        shapes: the leaves that the model has, and their shapes.
        tensors: the source.
        accounted: tensors that may stay unused.
    """
    found = [f"leaf {path} has no source in the mapping" for path in shapes if path not in leaves]
    found += [f"mapping names leaf {path}, which the model does not have" for path in leaves if path not in shapes]
    used: set[str] = set()
    for path in leaves.keys() & shapes.keys():
        leaf = leaves[path]
        expected = leaf.layout.torch_shape(tuple(shapes[path][len(leaf.stack) :]))
        used.update(leaf.names)
        dtypes = {tensors[name].dtype for name in leaf.names if name in tensors}
        found += [line for name in leaf.names for line in _tensor_complaints(name, expected, tensors)]
        if len(dtypes) > 1:
            found.append(
                f"{leaf.names[0]} and its like in other blocks must share one dtype to be stacked; found {', '.join(sorted(dtypes))}"
            )
    surplus = tensors.keys() - used - set(accounted)
    found += [f"{name} {_shape(tensors[name].shape)}: surplus, nothing expects it" for name in surplus]
    return sorted(found, key=_natural)


def raise_if_any(found: list[str], what: str) -> None:
    """Raises all complaints together, one a line after the first.

    Raises:
        UserError: there are any.
    """
    if found:
        raise UserError(f"{what}: {len(found)} problem{'s' if len(found) > 1 else ''}: " + "; ".join(found))


def _tensor_complaints(name: str, expected: tuple[int, ...], tensors: Mapping[str, TensorInfo]) -> list[str]:
    if name not in tensors:
        return [f"{name}: missing, expected shape {_shape(expected)}"]
    info, found = tensors[name], []
    if info.shape != expected:
        found.append(f"{name}: found shape {_shape(info.shape)}, expected {_shape(expected)}")
    if info.dtype not in DTYPES:
        found.append(f"{name}: found dtype {info.dtype}, expected one of {', '.join(DTYPES)}")
    return found


def _shape(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "scalar"


def _natural(text: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", text)]
