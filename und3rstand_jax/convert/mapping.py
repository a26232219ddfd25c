"""Uses of a leaf map (`und3rstand_jax.model.tensor_names`): read forwards it converts, backwards it exports.

Because the map is keyed by the target, a leaf without a source cannot go unnoticed.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from und3rstand_jax.checkpoint.trees import Tree, flatten
from und3rstand_jax.convert.findings import Complaint
from und3rstand_jax.convert.sources.tensor_files import TensorInfo
from und3rstand_jax.model.tensor_names import LINEAR, VECTOR, Layout, Leaf, LeafMap, Shape
from und3rstand_jax.support.errors import CheckpointError
from und3rstand_jax.support.text import listed

DTYPES = ("float32", "float16", "bfloat16")
"""The dtypes in which tensors that the model uses may be stored."""


def probe_leaves(names: Mapping[str, Sequence[Sequence[str]]]) -> dict[str, Leaf]:
    """The leaf map of probes from leaf -> source names [layer][view], with one view where both share an MLP."""
    return {
        path: Leaf(
            tuple(name for views in layers for name in views),
            LINEAR if path.endswith("kernel") else VECTOR,
            (len(layers),) if len(layers[0]) == 1 else (len(layers), len(layers[0])),
        )
        for path, layers in names.items()
    }


def export(tree: Tree, leaves: LeafMap) -> Iterator[tuple[str, np.ndarray]]:
    """Every source tensor, named and laid out as in PyTorch. A tensor that fills two leaves appears twice.

    Raises:
        CheckpointError: the tree and the map do not have the same leaves.
    """
    flat = flatten(tree)
    odd = sorted(flat.keys() ^ leaves.keys())
    if odd:
        raise CheckpointError(f"the checkpoint's tree and its record of names differ in {listed(odd)}; convert it again")
    for path, leaf in leaves.items():
        array = np.asarray(flat[path])
        for index, name in leaf.places():
            yield name, leaf.layout.to_torch(array[index])


def leaves_to_json(leaves: LeafMap) -> dict[str, Any]:
    """A leaf map as JSON: path -> names, layout and stack axes."""
    return {
        path: {"names": list(leaf.names), "layout": dataclasses.asdict(leaf.layout), "stack": list(leaf.stack)}
        for path, leaf in leaves.items()
    }


def leaves_from_json(content: Mapping[str, Any]) -> dict[str, Leaf]:
    """The inverse of `leaves_to_json`."""
    return {
        path: Leaf(tuple(row["names"]), Layout(tuple(row["layout"]["axes"]), row["layout"]["dropped"]), tuple(row["stack"]))
        for path, row in content.items()
    }


def mismatches(
    leaves: LeafMap, shapes: Mapping[str, Shape], tensors: Mapping[str, TensorInfo], accounted: Iterable[str]
) -> list[Complaint]:
    """Everything that keeps `tensors` from filling a tree of these shapes; empty if every leaf is filled once and no tensor is left.

    Args:
        leaves: the source of every leaf.
        shapes: the model's leaves and their shapes.
        tensors: the source's tensors.
        accounted: tensors that may stay unused.
    """
    found = [Complaint(f"leaf {path}", "has no source in the mapping") for path in shapes if path not in leaves]
    found += [Complaint(f"leaf {path}", "is in the mapping, but not in the model") for path in leaves if path not in shapes]
    used: set[str] = set()
    for path in leaves.keys() & shapes.keys():
        leaf = leaves[path]
        used.update(leaf.names)
        expected = leaf.layout.torch_shape(tuple(shapes[path][len(leaf.stack) :]))
        infos = {name: tensors[name] for name in leaf.names if name in tensors}
        dtypes = sorted({info.dtype for info in infos.values()})
        found += [Complaint(name, f"missing, expected shape {shape_text(expected)}") for name in leaf.names if name not in infos]
        for name, info in infos.items():
            if info.shape != expected:
                found.append(Complaint(name, f"found shape {shape_text(info.shape)}, expected {shape_text(expected)}"))
            if info.dtype not in DTYPES:
                found.append(Complaint(name, f"found dtype {info.dtype}, expected one of {', '.join(DTYPES)}"))
            if len(dtypes) > 1 and set(dtypes) <= set(DTYPES):
                others = " and ".join(dtype for dtype in dtypes if dtype != info.dtype)
                found.append(Complaint(name, f"found dtype {info.dtype}, and {others} in other blocks; expected one dtype in all"))
    surplus = tensors.keys() - used - set(accounted)
    found += [Complaint(name, f"found shape {shape_text(tensors[name].shape)}, surplus: nothing expects it") for name in surplus]
    # A tensor may fill two leaves (CroCo's one decoder); what is wrong with it is reported once.
    return list(dict.fromkeys(found))


def shape_text(shape: Shape) -> str:
    """A shape as `48×16`."""
    return "×".join(map(str, shape)) or "scalar"
