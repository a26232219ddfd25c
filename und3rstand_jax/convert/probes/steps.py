"""The steps of one MLP in running order: where its norms and its activations stand between the linear layers.

Norms are placed by their names (a common Sequential, a common block, a numbered row of norms) and their widths.
Activations hold no tensors: they show only as gaps in the indices of a Sequential. Where nothing shows them, there is
one between every two linear layers, after the norm if there is one.

Probes of equal shape as one group, and the source names of each of its leaves.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from und3rstand_jax.convert.findings import Complaint, How, least_certain
from und3rstand_jax.convert.probes.arrange import Views
from und3rstand_jax.convert.probes.mlps import Mlp, part_rank, runs_before
from und3rstand_jax.convert.probes.names import Module, pattern, tensor_name
from und3rstand_jax.probes.config import ProbeGroup, Step

Slot = Literal["gap", "wide gap", "adjacent", "boundary", "unknown"]


_GAPS = ("gap", "wide gap")


@dataclass(frozen=True)
class Layout:
    """An MLP in running order. `norms` and `steps` are empty where `fault` says what could not be decided."""

    norms: tuple[Module, ...]
    steps: tuple[Step, ...]
    how: How = "read"
    why: tuple[str, ...] = ()
    fault: str | None = None


def lay_out(mlp: Mlp, stated_steps: tuple[Step, ...] | None = None) -> Layout:
    """The steps of `mlp`, or those the caller states once they fit its tensors."""
    if stated_steps is not None:
        return _stated(mlp, stated_steps)
    places, defaulted, fault = _place_norms(mlp)
    if fault:
        return Layout((), (), fault=fault)
    norms = sorted(mlp.norms, key=lambda norm: places[norm])
    running: list[Module] = []
    for i in range(len(mlp.linears) + 1):
        running += [norm for norm in norms if places[norm] == i]
        running += mlp.linears[i : i + 1]
    steps, hows, why = _with_activations(mlp, running)
    if defaulted:
        why.add("a norm as wide as both its neighbours is taken to follow its linear layer")
    return Layout(tuple(norms), steps, least_certain(hows | ({"default"} if defaulted else set())), tuple(sorted(why)))


def _stated(mlp: Mlp, steps: tuple[Step, ...]) -> Layout:
    counts = {"linear": len(mlp.linears), "norm": len(mlp.norms)}
    if any(steps.count(kind) != count for kind, count in counts.items()):
        return Layout((), (), fault=f"has {counts['linear']} linear layers and {counts['norm']} norms, which the stated steps do not fit")
    places = [steps[:i].count("linear") for i, step in enumerate(steps) if step == "norm"]
    for norm, place in zip(mlp.norms, places, strict=True):
        if norm.outputs != mlp.widths[place]:
            name = ".".join(mlp.relative(norm))
            return Layout((), (), fault=f"has norm {name!r} of width {norm.outputs}, where the stated steps need {mlp.widths[place]}")
    return Layout(mlp.norms, steps, "option", ("the mapping file's steps",))


def _place_norms(mlp: Mlp) -> tuple[dict[Module, int], bool, str | None]:
    """How many linear layers run before each norm, whether a default decided, and a fault."""
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
            shift, by_default = _shift(mlp, row, named)
            if shift is None:
                return {}, False, _unplaced(mlp, row[0])
            found = [i + shift for i in range(len(row))]
            defaulted |= by_default
        for norm, place in zip(row, found, strict=True):
            if mlp.widths[place] != norm.outputs:
                return {}, False, _unplaced(mlp, norm)
            places[norm] = place
    return places, defaulted, None


def _named_places(mlp: Mlp, norm: Module) -> list[int]:
    """The places a norm's name leaves open, by number of linear layers before it."""
    before = [runs_before(mlp.relative(linear), mlp.relative(norm)) for linear in mlp.linears]
    count = len(before)
    rank = part_rank("".join(mlp.relative(norm)[:1]))
    if rank > 0 and before[-1] and mlp.widths[-1] != norm.outputs:
        return [count - 1]  # a final norm of the hidden width normalises what the last layer reads
    first = max((i + 1 for i, known in enumerate(before) if known is True), default=0)
    last = min((i for i, known in enumerate(before) if known is False), default=count)
    return list(range(first, last + 1))


def _shift(mlp: Mlp, row: Sequence[Module], named: Sequence[Sequence[int]]) -> tuple[int | None, bool]:
    """A row of norms moves as one along the linear layers: by how far, and whether that is only the default."""
    reach = len(mlp.linears) + 2 - len(row)
    fitting = [s for s in range(reach) if all(i + s in named[i] and mlp.widths[i + s] == norm.outputs for i, norm in enumerate(row))]
    if len(fitting) == 1:
        return fitting[0], False
    in_blocks = all(len(options) <= 2 for options in named)
    between = len(row) == len(mlp.linears) - 1
    return (1, True) if 1 in fitting and (in_blocks or between) else (None, False)


def _unplaced(mlp: Mlp, norm: Module) -> str:
    name = ".".join(mlp.relative(norm))
    return (
        f"has a norm {name!r} of width {norm.outputs} whose place between linear layers of widths "
        f'{"→".join(map(str, mlp.widths))} cannot be told; state "steps" in a mapping file (--mapping FILE)'
    )


def _with_activations(mlp: Mlp, running: Sequence[Module]) -> tuple[tuple[Step, ...], set[How], set[str]]:
    slots = [_slot(mlp.relative(a), mlp.relative(b)) for a, b in zip(running, running[1:], strict=False)]
    # Without one gap the indices are a ModuleList's and say nothing of what runs between.
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
        why.add(f"what stands before index {first} holds no tensors and is taken to change nothing")
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
    return min(1, len(slots) - 1), "default", "nothing shows the activations: one is taken between every two linear layers, after a norm"


Sources = tuple[tuple[str, ...], ...]


_Shape = tuple[tuple[int, ...], tuple[str, ...], tuple[bool, ...], tuple[bool, ...]]


@dataclass(frozen=True)
class Members:
    """A group and the MLPs in it, [layer][view]."""

    group: ProbeGroup
    probes: tuple[Views, ...]


def view_faults(probes: Sequence[Views], layouts: Mapping[Mlp, Layout]) -> list[Complaint]:
    """Layers whose two views have MLPs of different shapes."""
    return [
        Complaint(views[1].prefix, f"has another shape than view 1's {views[0].prefix}; expected two MLPs of one shape")
        for views in probes
        if all(mlp in layouts for mlp in views) and len({_shape(mlp, layouts[mlp]) for mlp in views}) > 1
    ]


def group_probes(ids: Sequence[str], probes: Sequence[Views], layouts: Mapping[Mlp, Layout]) -> tuple[Members, ...]:
    """The probes by shape; groups in the order of their first layer, layers in the order given."""
    alike: dict[_Shape, list[int]] = {}
    for i, views in enumerate(probes):
        alike.setdefault(_shape(views[0], layouts[views[0]]), []).append(i)
    found = []
    for (widths, _, biases, norm_biases), members in alike.items():
        steps = layouts[probes[members[0]][0]].steps
        group = ProbeGroup(tuple(ids[i] for i in members), widths, steps, biases, norm_biases)
        found.append(Members(group, tuple(probes[i] for i in members)))
    return tuple(found)


def source_names(groups: Sequence[Members], layouts: Mapping[Mlp, Layout]) -> dict[str, Sources]:
    """For every leaf its source names, [layer][view]."""
    return {leaf: sources for g, members in enumerate(groups) for leaf, sources in _group_sources(f"group{g}", members.probes, layouts)}


def _shape(mlp: Mlp, layout: Layout) -> _Shape:
    return mlp.widths, layout.steps, tuple(linear.has_bias for linear in mlp.linears), tuple(norm.has_bias for norm in layout.norms)


def _group_sources(name: str, probes: Sequence[Views], layouts: Mapping[Mlp, Layout]) -> Iterator[tuple[str, Sources]]:
    linears = [[mlp.linears for mlp in views] for views in probes]
    norms = [[layouts[mlp].norms for mlp in views] for views in probes]
    for kind, weight, table in (("linear", "kernel", linears), ("norm", "scale", norms)):
        for i in range(len(table[0][0])):
            modules = [[view[i] for view in views] for views in table]
            yield f"{name}/{kind}{i}/{weight}", _leaf(modules, "weight")
            if modules[0][0].has_bias:
                yield f"{name}/{kind}{i}/bias", _leaf(modules, "bias")


def _leaf(modules: Sequence[Sequence[Module]], leaf: str) -> Sources:
    return tuple(tuple(tensor_name(module.path, leaf) for module in views) for views in modules)
