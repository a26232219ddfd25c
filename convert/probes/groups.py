"""Probes of equal shape as one group, and the source names of each of its leaves."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from convert.probes.findings import Complaint
from convert.probes.mlps import Mlp
from convert.probes.names import Module, tensor_name
from convert.probes.steps import Layout
from convert.probes.views import Views
from und3rstand_jax.probe_config import ProbeGroup

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
