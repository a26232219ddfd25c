"""Mapping files: what a person states about a probe checkpoint that its names do not.

A JSON object:

    {
      "layers": {"decoder.0.self_attn": "probes.0.net", "decoder.0.mlp": "probes.1.net"},
      "steps": ["norm", "linear", "activation", "linear"],
      "unused": ["loss"],
      "activation": "relu", "norm": "layernorm", "norm_epsilon": 1e-6, "residual": false,
      "output_layout": "channels_last",
      "depth_mode": ["exp", "-inf", "inf"], "conf_mode": ["exp", 1, "inf"]
    }

`layers` gives each layer id the prefix below which all of its MLP's tensors lie, or two prefixes, view 1 first, where
each view has its own MLP. All else is optional: `steps` is every MLP's order from first to last (norms in the natural
order of their names), `unused` lists prefixes of tensors to leave out, the rest are fields of `ProbeConfig`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from und3rstand_jax.convert.findings import Complaint
from und3rstand_jax.convert.probes.mlps import Mlp, Widths, make_mlp
from und3rstand_jax.convert.probes.names import Module
from und3rstand_jax.model.layer_ids import select_layers
from und3rstand_jax.probes.config import Step
from und3rstand_jax.support.errors import UserError

SETTINGS = ("activation", "norm", "norm_epsilon", "residual", "output_layout", "depth_mode", "conf_mode")


_STEPS = ("linear", "norm", "activation")


@dataclass(frozen=True)
class ProbeMapping:
    """A mapping file's content, checked for form: each layer's prefixes (one a view), and what else it states."""

    layers: Mapping[str, tuple[str, ...]]
    steps: tuple[Step, ...] | None
    unused: tuple[str, ...]
    settings: Mapping[str, Any]


def read_mapping(content: Mapping[str, Any], available: Sequence[str]) -> tuple[ProbeMapping, list[Complaint]]:
    """The mapping in a parsed mapping file, and what is wrong with it.

    Args:
        content: the JSON object.
        available: the backbone's layer ids.

    Raises:
        UserError: the file holds no object.
    """
    if not isinstance(content, Mapping):
        raise UserError(f"the mapping file holds {type(content).__name__}; expected a JSON object with the key layers")
    faults = [f"has an unknown key {key!r}; known are layers, steps, unused, {', '.join(SETTINGS)}" for key in content if key not in _KEYS]
    layers, layer_faults = _read_layers(content.get("layers", {}), available)
    steps, unused = content.get("steps"), content.get("unused", [])
    if not (steps is None or (isinstance(steps, list | tuple) and all(step in _STEPS for step in steps))):
        faults.append(f'has "steps" {steps!r}; expected a list of {", ".join(_STEPS)}')
        steps = None
    if not (isinstance(unused, list | tuple) and all(isinstance(prefix, str) for prefix in unused)):
        faults.append(f'has "unused" {unused!r}; expected a list of prefixes')
        unused = []
    settings = {key: content[key] for key in SETTINGS if content.get(key) is not None}
    mapping = ProbeMapping(layers, None if steps is None else tuple(steps), tuple(prefix.rstrip(".") for prefix in unused), settings)
    return mapping, [Complaint("the mapping file", fault) for fault in (*faults, *layer_faults)]


def _read_layers(stated: Any, available: Sequence[str]) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    if not isinstance(stated, Mapping):
        return {}, [f'has "layers" {stated!r}; expected an object of layer id: prefix']
    layers, faults = {}, []
    for layer, prefixes in stated.items():
        views = (prefixes,) if isinstance(prefixes, str) else prefixes
        unknown = unknown_layer(layer, available)
        if unknown:
            faults += unknown
        elif isinstance(views, list | tuple) and len(views) in (1, 2) and all(isinstance(prefix, str) for prefix in views):
            layers[layer] = tuple(prefix.rstrip(".") for prefix in views)
        else:
            faults.append(f"gives {layer} {prefixes!r}; expected a prefix or a list of two (view 1, view 2)")
    if len({len(views) for views in layers.values()}) > 1:
        faults.append("gives some layers one prefix and others two; expected one for each layer, or one for each layer and view")
    return layers, faults


def mapped_mlps(
    mapping: ProbeMapping, modules: Sequence[Module], widths: Widths
) -> tuple[list[tuple[str, tuple[Mlp, ...]]], list[Complaint]]:
    """Each mapped layer's MLPs, one a view, in the file's order, and the prefixes that cannot be used."""
    layers, complaints = [], []
    taken: dict[Module, str] = {}
    for layer, prefixes in mapping.layers.items():
        views = []
        for prefix in prefixes:
            below = [module for module in modules if is_below(module.path, prefix)]
            twice = next((taken[module] for module in below if module in taken), None)
            taken |= dict.fromkeys(below, prefix)
            if twice is not None:
                complaints.append(Complaint("the mapping file", f"uses the tensors below {twice!r} and {prefix!r} twice"))
            elif not any(module.is_linear for module in below):
                complaints.append(Complaint("the mapping file", f"gives {layer} {prefix!r}, below which there is no linear layer"))
            else:
                views.append(make_mlp(below, widths, prefix))
        if len(views) == len(prefixes):
            layers.append((layer, tuple(views)))
    return layers, complaints


def is_below(name: str, prefix: str) -> bool:
    """Whether a tensor or module is, or lies below, the one at `prefix`."""
    return not prefix or name == prefix or name.startswith(f"{prefix}.")


def unknown_layer(layer: str, available: Sequence[str]) -> list[str]:
    """What is wrong with a layer id, if anything; it names the ids nearest to it."""
    if layer in available:
        return []
    try:
        select_layers(layer, available)
    except UserError as error:
        return [str(error)]
    return [f"has {layer!r}, a pattern; expected one layer id, such as {available[0]}"]


_KEYS = {"layers", "steps", "unused", *SETTINGS}
