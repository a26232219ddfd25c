"""The table of what a probe checkpoint holds, as it was seen: for --inspect, and for the person who must decide."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from convert.probes.mlps import Mlp
from convert.probes.names import Module, Shape, name_range, pattern

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
