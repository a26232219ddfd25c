"""Whether a source fills a parameter tree: every leaf once, every tensor used or known to be unused."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from convert.mapping import LeafMap
from convert.probes.findings import Complaint
from convert.sources.tensor_files import TensorInfo
from und3rstand_jax.errors import UserError

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
