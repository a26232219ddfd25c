"""The steps of one MLP in running order: where its norms and its activations stand between the linear layers.

Norms are placed by their names (a common Sequential, a common block, a numbered row of norms) and their widths.
Activations hold no tensors: they show only as gaps in the indices of a Sequential. If nothing shows them, one is assumed
between every two linear layers, after the norm if there is one.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

from und3rstand_jax.convert.findings import How, least_certain, pattern
from und3rstand_jax.convert.probes.modules import Mlp, Module
from und3rstand_jax.convert.probes.running_order import part_key, runs_before
from und3rstand_jax.probes.config import Step

Slot = Literal["gap", "wide gap", "adjacent", "boundary", "unknown"]

_GAPS = ("gap", "wide gap")


def lay_out(mlp: Mlp, stated_steps: tuple[Step, ...] | None = None) -> Mlp:
    """The MLP with the stated steps, else with those that its tensors show; with a fault if they do not fit or cannot be decided."""
    if stated_steps is not None:
        if stated_steps.count("linear") != len(mlp.linears) or stated_steps.count("norm") != len(mlp.norms):
            found = f"has {len(mlp.linears)} linear layers and {len(mlp.norms)} norms"
            return dataclasses.replace(mlp, fault=f"{found}, which the stated steps do not fit")
        stated_places = [stated_steps[:i].count("linear") for i, step in enumerate(stated_steps) if step == "norm"]
        for norm, place in zip(mlp.norms, stated_places, strict=True):
            if norm.outputs != mlp.widths[place]:
                name = ".".join(mlp.relative(norm))
                found = f"has norm {name!r} of width {norm.outputs}"
                return dataclasses.replace(mlp, fault=f"{found}, where the stated steps need {mlp.widths[place]}")
        return dataclasses.replace(mlp, steps=stated_steps, how="option", why=("the mapping file's steps",))

    places, defaulted, unplaced = _place_norms(mlp)
    if unplaced is not None:
        name, widths = ".".join(mlp.relative(unplaced)), "→".join(map(str, mlp.widths))
        fault = f"has a norm {name!r} of width {unplaced.outputs} whose place between linear layers of widths {widths} cannot be determined"
        return dataclasses.replace(mlp, fault=f'{fault}; state "steps" in a mapping file (--mapping FILE)')
    norms = sorted(mlp.norms, key=lambda norm: places[norm])
    running: list[Module] = []
    for i in range(len(mlp.linears) + 1):
        running += [norm for norm in norms if places[norm] == i]
        running += mlp.linears[i : i + 1]
    steps, hows, why = _with_activations(mlp, running)
    if defaulted:
        why.add("a norm as wide as both its neighbours is taken to follow its linear layer")
        hows.add("default")
    return dataclasses.replace(mlp, norms=tuple(norms), steps=steps, how=least_certain(hows), why=tuple(sorted(why)))


def _place_norms(mlp: Mlp) -> tuple[dict[Module, int], bool, Module | None]:
    """How many linear layers run before each norm, whether a default decided, and a norm that cannot be placed."""
    rows: dict[str, list[Module]] = defaultdict(list)
    for norm in mlp.norms:
        rows[pattern(".".join(mlp.relative(norm)))].append(norm)
    places: dict[Module, int] = {}
    defaulted = False
    for row in rows.values():
        named = [_named_places(mlp, norm) for norm in row]
        if all(len(options) == 1 for options in named):
            found = [options[0] for options in named]
        else:
            # A row of norms shifts as one along the linear layers: by how much?
            reach = range(len(mlp.linears) + 2 - len(row))
            fitting = [s for s in reach if all(i + s in named[i] and mlp.widths[i + s] == norm.outputs for i, norm in enumerate(row))]
            if len(fitting) != 1:
                # In most PyTorch code, a norm follows its linear layer.
                in_blocks = all(len(options) <= 2 for options in named)
                if 1 not in fitting or not (in_blocks or len(row) == len(mlp.linears) - 1):
                    return {}, False, row[0]
                fitting, defaulted = [1], True
            found = [i + fitting[0] for i in range(len(row))]
        for norm, place in zip(row, found, strict=True):
            if mlp.widths[place] != norm.outputs:
                return {}, False, norm
            places[norm] = place
    return places, defaulted, None


def _named_places(mlp: Mlp, norm: Module) -> list[int]:
    """The places that a norm's name allows, as the number of linear layers before it."""
    before = [runs_before(mlp.relative(linear), mlp.relative(norm)) for linear in mlp.linears]
    count = len(before)
    rank, _ = part_key("".join(mlp.relative(norm)[:1]))
    if rank > 0 and before[-1] and mlp.widths[-1] != norm.outputs:
        return [count - 1]  # a final norm of the hidden width normalises what the last layer reads
    first = max((i + 1 for i, known in enumerate(before) if known is True), default=0)
    last = min((i for i, known in enumerate(before) if known is False), default=count)
    return list(range(first, last + 1))


def _with_activations(mlp: Mlp, running: Sequence[Module]) -> tuple[tuple[Step, ...], set[How], set[str]]:
    slots = [_slot(mlp.relative(a), mlp.relative(b)) for a, b in zip(running, running[1:], strict=False)]
    # Without any gap, the indices are a ModuleList's and say nothing about what runs in between.
    sequential = any(slot in _GAPS for slot in slots)
    slots = [slot if sequential or slot != "adjacent" else "unknown" for slot in slots]
    at = [i for i, module in enumerate(running) if module.is_linear]
    after: set[int] = set()
    hows: set[How] = {"read"}
    why: set[str] = set()
    for start, stop in zip(at, at[1:], strict=False):
        offset, how, reason = _activation(slots[start:stop])
        hows.add(how)
        why.add(reason)
        if offset is not None:
            after.add(start + offset)
    first = running[0].parts[-1]
    if sequential and first.isdecimal() and int(first) > 0:
        hows.add("default")
        why.add(f"what comes before index {first} holds no tensors and is assumed to change nothing")
    steps: list[Step] = []
    for i, module in enumerate(running):
        steps.append("linear" if module.is_linear else "norm")
        steps += ["activation"] if i in after else []
    return tuple(steps), hows, why


def _slot(a: Sequence[str], b: Sequence[str]) -> Slot:
    """What can stand between two neighbours: something without tensors, nothing, the end of a block, or anything."""
    at = next((i for i, (left, right) in enumerate(zip(a, b, strict=False)) if left != right), None)
    if at is None or not (a[at].isdecimal() and b[at].isdecimal()):
        return "unknown"
    missing = int(b[at]) - int(a[at]) - 1
    if missing:
        return "gap" if missing == 1 else "wide gap"
    return "adjacent" if at == len(a) - 1 == len(b) - 1 else "boundary"


def _activation(slots: Sequence[Slot]) -> tuple[int | None, How, str]:
    """Which of the slots between two linear layers holds the activation: before the first norm, after it, …"""
    gaps = [i for i, slot in enumerate(slots) if slot in _GAPS]
    ends = [i for i, slot in enumerate(slots) if slot == "boundary"]
    if len(gaps) == 1 and slots[gaps[0]] == "wide gap":
        # A norm without parameters would leave the same trace.
        return gaps[0], "inferred", "gaps of two or more in the indices are taken for an activation and dropout"
    if len(gaps) == 1:
        return gaps[0], "read", "gaps in the indices show the activations"
    if set(slots) == {"adjacent"}:
        return None, "read", "neighbouring indices beside others with gaps have no activation between them"
    if len(slots) > 1 and not gaps and len(ends) == 1:
        return ends[0], "inferred", "a block's activation is taken to end it"
    if gaps:
        return 1, "default", "gaps on both sides of a norm: the activation is taken to follow it"
    return min(1, len(slots) - 1), "default", "nothing shows the activations: one is assumed between every two linear layers, after a norm"
