"""Decides which layer, and which view, each probe of a checkpoint with unknown names reads.

The evidence, in order: what the caller states, what the config states, layers in the names, and finally a running
number that counts exactly the decoder layers of the paper. Anything else stays undecided, with a complaint that says
which option settles it.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from und3rstand_jax.convert.findings import Complaint, How, natural_key, pattern
from und3rstand_jax.convert.options import unknown_layer
from und3rstand_jax.convert.probes.modules import Mlp, Module, Reading, Widths
from und3rstand_jax.convert.probes.recognise.layers import NamedLayers, read_layer_names
from und3rstand_jax.convert.probes.recognise.mlps import mlp_branches
from und3rstand_jax.convert.probes.recognise.views import Name, Slots, once_each, order_slots, pair_named
from und3rstand_jax.convert.probes.running_order import make_mlp
from und3rstand_jax.convert.probes.statements import Statements
from und3rstand_jax.model.config import ModelConfig
from und3rstand_jax.model.layer_ids import select_layers
from und3rstand_jax.support.errors import LayerError

_SETTLE = "state the layers with --probe-layers id,id,… (in the order of the table) or --mapping FILE"


def recognise(
    modules: Sequence[Module], widths: Widths, probe_layers: Sequence[str], statements: Statements, backbone: ModelConfig
) -> Reading:
    """The probes among `modules`, with their layers and views.

    Args:
        modules: all linear layers and norms of the checkpoint.
        widths: what an MLP may read and write.
        probe_layers: the layers that the caller states, in the order of the MLPs; often none.
        statements: what the config states.
        backbone: the model the probes read.
    """
    stated, faults = _stated_layers(probe_layers, statements, backbone)
    mlps = [make_mlp(branch, widths) for branch in mlp_branches(modules, widths)]
    faults += _sibling_faults([mlp for mlp in mlps if not mlp.fault])
    faults += [Complaint(mlp.prefix, mlp.fault) for mlp in mlps if mlp.fault]
    if not mlps:
        return Reading((), (), (), tuple(faults))
    names = read_layer_names([mlp.prefix for mlp in mlps], [mlp.widths[0] for mlp in mlps], backbone)
    groups: dict[str, list[tuple[Mlp, Name]]] = defaultdict(list)
    for layer, mlp, rest in zip(names.ids, mlps, names.rests, strict=False):
        groups[layer].append((mlp, rest))
    named = tuple(layer for layer in backbone.layer_ids if layer in groups)
    if not named:
        slots = order_slots(mlps, len(stated.ids) if stated else None)
    elif len(mlps) == len(named):
        slots = once_each([groups[layer][0][0] for layer in named], True, "the names have each layer once")
    else:
        slots = pair_named([groups[layer] for layer in named])
    ids, how, why, problem = _identify(named, slots, names, stated, backbone)
    faults += [Complaint("views:", slots.problem)] if slots.problem else []
    faults += [Complaint("layers:", problem)] if problem else []
    return Reading.of(() if problem else ids, slots.probes, backbone, (how, why), (slots.how, slots.why), faults)


@dataclass(frozen=True)
class _StatedLayers:
    """Layer ids that somebody stated, in the order of the MLPs: `how` says who stated them, `where` says where."""

    ids: tuple[str, ...]
    how: How
    where: str


def _stated_layers(
    probe_layers: Sequence[str], statements: Statements, backbone: ModelConfig
) -> tuple[_StatedLayers | None, list[Complaint]]:
    """The layers of --probe-layers, else those of the config, else None; and the ids that cannot be used.

    A config may state exact ids, ids in other words (dec_blocks.3.cross_attn), or patterns.
    """
    if probe_layers:
        faults = [fault for layer in probe_layers for fault in unknown_layer(layer, backbone.layer_ids)]
        faults += [f"states {layer} more than once" for layer, count in Counter(probe_layers).items() if count > 1]
        stated = None if faults else _StatedLayers(tuple(probe_layers), "option", "--probe-layers")
        return stated, [Complaint("--probe-layers:", fault) for fault in faults]
    statement = next(iter(statements.by_field.get("layers", ())), None)
    if statement is None:
        return None, []
    subject = f"the config's {statement.key}"
    names = [name.strip() for name in statement.value.split(",")] if isinstance(statement.value, str) else list(statement.value)
    if set(names) <= set(backbone.layer_ids):
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            return None, [Complaint(subject, f"states {twice} more than once")]
        return _StatedLayers(tuple(names), "read", subject), []
    named = read_layer_names(names, [0] * len(names), backbone)
    if named.ids:
        ids = tuple(dict.fromkeys(named.ids))  # each layer once or, where the config names both decoders, twice
        return _StatedLayers(ids, "read", subject), []
    try:
        return _StatedLayers(select_layers(names, backbone.layer_ids), "read", subject), []
    except LayerError as error:
        return None, [Complaint(subject, f"states layers that cannot be determined: {error}")]


def _sibling_faults(mlps: Sequence[Mlp]) -> list[Complaint]:
    """Complaints about MLPs whose tensors differ from those of most siblings: MLPs with the same name pattern and input width.

    A whole linear layer can be lost without breaking the chain of widths: only the siblings show this.
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
                found = " and ".join(f"{verb} {', '.join(sorted(names, key=natural_key))}" for verb, names in parts if names)
                faults.append(Complaint(mlp.prefix, f"{found}; expected the tensors of its {len(family) - 1} siblings, or a mapping file"))
    return faults


def _identify(
    named: tuple[str, ...], slots: Slots, names: NamedLayers, stated: _StatedLayers | None, backbone: ModelConfig
) -> tuple[tuple[str, ...], How, str, str]:
    """The layer ids in the order of the slots, how they were found, why, and the problem if they could not be."""
    count = len(slots.probes)
    if stated:
        if len(stated.ids) != count:
            return (), stated.how, stated.where, f"{stated.where} states {len(stated.ids)} layers; the checkpoint has probes for {count}"
        if stated.how != "option" and named and set(named) != set(stated.ids):
            odd = sorted(set(named) ^ set(stated.ids))
            return (), stated.how, stated.where, f"{stated.where} and the names disagree on {', '.join(odd[:4])}; {_SETTLE}"
        if stated.how == "option" or not named:
            return stated.ids, stated.how, f"{stated.where}, in the order of the MLPs", ""
    if named:
        return named, names.how, names.why, ""
    every = backbone.all_layers
    stacks = list(dict.fromkeys(layer.partition(".")[0] for layer in every))
    if slots.counted and count == len(every) and all(views[0].widths[0] == backbone.block_width for views in slots.probes):
        as_many = f"the {stacks[0]} has layers" if len(stacks) == 1 else f"there are {' and '.join(stacks)} layers"
        return every, "inferred", f"a running number counts {count} probes, as many as {as_many}", ""
    problem = names.problem or (
        f"nothing says which layers the {count} probes read (only {len(every)} would be all {' and '.join(stacks)} layers)"
    )
    return (), "default", "", f"{problem}; {_SETTLE}"
