"""The layers that the caller or the config states, in our ids."""

from collections.abc import Sequence

from convert.probes.arrange import Stated
from convert.probes.findings import Complaint
from convert.probes.layers import read_names
from convert.probes.mapping import unknown_layer
from convert.probes.statements import Statement, Statements
from und3rstand_jax.config import BackboneConfig
from und3rstand_jax.errors import UserError
from und3rstand_jax.layers import select_layers


def stated_layers(probe_layers: Sequence[str], statements: Statements, backbone: BackboneConfig) -> tuple[Stated | None, list[Complaint]]:
    """The layers of --probe-layers, else those of the config, else None; and the ids that cannot be used."""
    if probe_layers:
        faults = [fault for layer in probe_layers for fault in unknown_layer(layer, backbone.layer_ids)]
        faults += [f"states {layer} more than once" for layer in dict.fromkeys(probe_layers) if list(probe_layers).count(layer) > 1]
        stated = None if faults else Stated(tuple(probe_layers), "option", "--probe-layers")
        return stated, [Complaint("--probe-layers:", fault) for fault in faults]
    for statement in statements.of.get("layers", ()):
        ids, fault = _translated(statement, backbone)
        subject = f"the config's {statement.key}"
        return (None, [Complaint(subject, fault)]) if fault else (Stated(ids, "read", subject), [])
    return None, []


def _translated(statement: Statement, backbone: BackboneConfig) -> tuple[tuple[str, ...], str]:
    """Ids as they stand, else ids in other words (dec_blocks.3.cross_attn), else patterns."""
    names = [name.strip() for name in statement.value.split(",")] if isinstance(statement.value, str) else list(statement.value)
    if set(names) <= set(backbone.layer_ids):
        twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
        return tuple(names), f"states {twice[0]} more than once" if twice else ""
    reading = read_names(names, [0] * len(names), backbone)
    if reading.ids:
        return tuple(dict.fromkeys(reading.ids)), ""  # each layer once or, where the config names both decoders, twice
    try:
        return select_layers(names, backbone.layer_ids), ""
    except UserError as error:
        return (), f"states layers that cannot be told: {error}"
