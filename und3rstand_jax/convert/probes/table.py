"""The table of what was seen in a probe checkpoint: for --inspect, and for the person who must settle what names leave open."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import groupby

from und3rstand_jax.convert.findings import name_range, pattern
from und3rstand_jax.convert.probes.modules import Mlp, Module, Reading
from und3rstand_jax.model.tensor_names import Shape
from und3rstand_jax.support.text import listed, text_table

_MOST_ROWS = 60


def show_table(reading: Reading, outside: Sequence[Module], unused: Mapping[str, str], tensors: Mapping[str, Shape]) -> str:
    """The MLPs in order, the modules that belong to none, and the unused tensors with the reason, as aligned text.

    MLPs of equal shape whose names differ only in numbers share a row. A layer that cannot be determined is shown as "?".
    """
    rows: dict[tuple[str, ...], list[tuple[str, Mlp]]] = defaultdict(list)
    for layer, views in zip(reading.ids or ("?",) * len(reading.probes), reading.probes, strict=True):
        for view, mlp in enumerate(views, start=1):
            which = str(view) if len(views) > 1 else "all"
            kinds = groupby(f"{norm.outputs}{'' if norm.has_bias else ' without bias'}" for norm in mlp.norms)
            runs = [(kind, len(list(run))) for kind, run in kinds]
            norms = ", ".join(kind if count == 1 else f"{count} of {kind}" for kind, count in runs) or "none"
            rows[pattern(mlp.prefix), which, _linears(mlp), norms].append((layer, mlp))
    table = []
    for (_, which, linears, norms), alike in rows.items():
        names = name_range([mlp.prefix for _, mlp in alike]) or "(no prefix)"
        first, last = alike[0][0], alike[-1][0]
        layers = first if len({layer for layer, _ in alike}) == 1 else f"{first} … {last}"
        table.append((str(len(alike)), names, layers, which, linears, norms))
    lines = text_table(("MLPs", "names", "layers", "view", "linear layers", "norms"), table[:_MOST_ROWS]).splitlines() if table else []
    lines += [f"and {len(table) - _MOST_ROWS:,} more kinds of MLPs"] if len(table) > _MOST_ROWS else []

    modules: dict[tuple[str, Shape], list[str]] = defaultdict(list)
    for module in outside:
        modules[pattern(module.path), module.shape].append(module.path)
    outsiders = [f"in no MLP: {len(paths)} × {name_range(paths)} {shape}" for (_, shape), paths in modules.items()]
    left: dict[tuple[str, Shape, str], list[str]] = defaultdict(list)
    for name, reason in unused.items():
        left[pattern(name), tuple(tensors[name]), reason].append(name)
    leftovers = [f"unused: {len(names)} × {name_range(names)} {shape}: {reason}" for (_, shape, reason), names in left.items()]
    for group in (outsiders, leftovers):
        lines += listed(group, "\n", _MOST_ROWS, 400).splitlines()
    return "\n".join(lines)


def _linears(mlp: Mlp) -> str:
    if mlp.fault:
        return ", ".join(f"{linear.inputs}→{linear.outputs}" for linear in mlp.linears) + " (broken)"
    without = [str(i) for i, linear in enumerate(mlp.linears) if not linear.has_bias]
    note = " without bias" if without else ""
    some = f" in {', '.join(without)}" if 0 < len(without) < len(mlp.linears) else ""
    return "→".join(map(str, mlp.widths)) + note + some
