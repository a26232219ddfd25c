"""What must hold between the parts of a probe checkpoint: siblings are alike, and the config says what shapes show.

The table of what a probe checkpoint holds, as it was seen: for --inspect, and for the person who must decide.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from und3rstand_jax.convert.findings import Complaint
from und3rstand_jax.convert.probes.mlps import Mlp
from und3rstand_jax.convert.probes.names import Module, Shape, name_range, natural_key, pattern
from und3rstand_jax.convert.probes.settings import Statement, Statements
from und3rstand_jax.model.config import BackboneConfig


def sibling_faults(mlps: Sequence[Mlp]) -> list[Complaint]:
    """MLPs of one name pattern and input width whose tensors are not those of most of their siblings.

    A whole linear layer can be lost without breaking the chain of widths: only the siblings show it.
    """
    families: dict[tuple[str, int], list[Mlp]] = defaultdict(list)
    for mlp in mlps:
        families[pattern(mlp.prefix), mlp.widths[0]].append(mlp)
    faults = []
    for family in families.values():
        usual = Counter(mlp.relative_tensors() for mlp in family).most_common(1)[0][0]
        for mlp in family:
            own = mlp.relative_tensors()
            if own != usual:
                parts = [("lacks", usual - own), ("alone has", own - usual)]
                told = " and ".join(f"{verb} {', '.join(sorted(names, key=natural_key))}" for verb, names in parts if names)
                faults.append(Complaint(mlp.prefix, f"{told}; expected the tensors of its {len(family) - 1} siblings, or a mapping file"))
    return faults


def statement_faults(mlps: Sequence[Mlp], probes: int, statements: Statements, backbone: BackboneConfig) -> list[Complaint]:
    """Statements of the config that the shapes contradict.

    Args:
        mlps: every MLP.
        probes: the number of probed layers, which "num_layers" may also mean.
        statements: the config's.
        backbone: whose patch size the outputs were read by.
    """
    facts = [_facts(mlp, backbone.patch_size) for mlp in mlps]
    faults = []
    for field in ("hidden", "inputs", "outputs", "depth", "hidden_layers", "bias", "patch_size"):
        for statement in statements.of.get(field, ()):
            if field == "depth" and statement.key.rpartition(".")[2] in ("num_layers", "n_layers") and statement.value == probes:
                continue
            # One stated input width among several is that of some probes; every other fact is every probe's.
            holds = any if field == "inputs" else all
            if facts and not holds(_value(statement) in fact[field] for fact in facts):
                shown = " and ".join(dict.fromkeys(str(fact[field][0]) for fact in facts))
                faults.append(Complaint(f"the config's {statement.key}", f"is {statement.value!r}, but the tensors say {shown}"))
    return faults


def _facts(mlp: Mlp, patch_size: int) -> dict[str, list[Any]]:
    """For each field, the ways to state what this MLP's shapes show."""
    hidden = list(mlp.widths[1:-1])
    biases = [linear.has_bias for linear in mlp.linears]
    return {
        "hidden": [*(hidden[:1] if len(set(hidden)) == 1 else []), hidden],
        "inputs": [mlp.widths[0]],
        "outputs": [mlp.widths[-1]],
        "depth": [len(mlp.linears)],
        "hidden_layers": [len(hidden)],
        "bias": biases[:1] if len(set(biases)) == 1 else [biases],
        "patch_size": [patch_size, [patch_size, patch_size]],
    }


def _value(statement: Statement) -> Any:
    return list(statement.value) if isinstance(statement.value, tuple) else statement.value


Row = tuple[str, ...]


_HEADER: Row = ("MLPs", "names", "layers", "view", "linear layers", "norms")


@dataclass(frozen=True)
class Seat:
    """An MLP and the layer and view it was given; `layer` is "?" where that could not be told."""

    mlp: Mlp
    layer: str
    view: str


def show_table(seats: Sequence[Seat], outside: Sequence[Module], unused: Mapping[str, str], tensors: Mapping[str, Shape]) -> str:
    """A table of the MLPs in order, of the modules that belong to none, and of the unused tensors with the reason.

    MLPs of equal shape whose names differ only in numbers share a row.
    """
    rows: dict[tuple[str, ...], list[Seat]] = defaultdict(list)
    for seat in seats:
        rows[pattern(seat.mlp.prefix), seat.view, _linears(seat.mlp), _norms(seat.mlp.norms)].append(seat)
    table = [_HEADER, *(_row(alike) for alike in rows.values())] if rows else []
    return "\n".join([*_aligned(table), *_outside(outside), *_unused(unused, tensors)])


def _row(alike: Sequence[Seat]) -> Row:
    mlp = alike[0].mlp
    names = name_range([seat.mlp.prefix for seat in alike]) or "(no prefix)"
    layers = alike[0].layer if len({seat.layer for seat in alike}) == 1 else f"{alike[0].layer} … {alike[-1].layer}"
    return str(len(alike)), names, layers, alike[0].view, _linears(mlp), _norms(mlp.norms)


def _linears(mlp: Mlp) -> str:
    if mlp.fault:
        return ", ".join(f"{linear.inputs}→{linear.outputs}" for linear in mlp.linears) + " (broken)"
    without = [str(i) for i, linear in enumerate(mlp.linears) if not linear.has_bias]
    note = " without bias" if without else ""
    some = f" in {', '.join(without)}" if 0 < len(without) < len(mlp.linears) else ""
    return "→".join(map(str, mlp.widths)) + note + some


def _norms(norms: Iterable[Module]) -> str:
    kinds = [f"{norm.outputs}{'' if norm.has_bias else ' without bias'}" for norm in norms]
    runs = [(kind, len(list(run))) for kind, run in groupby(kinds)]
    return ", ".join(kind if count == 1 else f"{count} of {kind}" for kind, count in runs) or "none"


def _aligned(rows: Sequence[Row]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _outside(modules: Sequence[Module]) -> list[str]:
    alike: dict[tuple[str, Shape], list[str]] = defaultdict(list)
    for module in modules:
        alike[pattern(module.path), module.shape].append(module.path)
    return [f"in no MLP: {len(paths)} × {name_range(paths)} {shape}" for (_, shape), paths in alike.items()]


def _unused(unused: Mapping[str, str], tensors: Mapping[str, Shape]) -> list[str]:
    alike: dict[tuple[str, Shape, str], list[str]] = defaultdict(list)
    for name, reason in unused.items():
        alike[pattern(name), tuple(tensors[name]), reason].append(name)
    return [f"unused: {len(names)} × {name_range(names)} {shape}: {reason}" for (_, shape, reason), names in alike.items()]
