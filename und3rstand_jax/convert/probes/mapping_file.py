"""Mapping files: what a person states about a probe checkpoint because its names do not show it.

A JSON object:

    {
      "layers": {"decoder.0.self_attn": "probes.0.net", "decoder.0.mlp": "probes.1.net"},
      "steps": ["norm", "linear", "activation", "linear"],
      "unused": ["loss"],
      "activation": "relu", "norm": "layernorm", "norm_epsilon": 1e-6, "residual": false,
      "output_layout": "channels_last",
      "depth_mode": ["exp", "-inf", "inf"], "conf_mode": ["exp", 1, "inf"]
    }

`layers` gives each layer id the prefix below which all of its MLP's tensors lie or, if each view has its own MLP, a list
of prefixes, view 1 first. The other keys are optional: `steps` are the steps of every MLP from first to last (norms in the
natural order of their names), `unused` lists prefixes of tensors to leave out, the rest are fields of `ProbeConfig`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from und3rstand_jax.convert.findings import Complaint, How
from und3rstand_jax.convert.options import unknown_layer
from und3rstand_jax.convert.probes.modules import Mlp, Module, Reading, Views, Widths, is_below
from und3rstand_jax.convert.probes.running_order import make_mlp
from und3rstand_jax.model.config import ModelConfig
from und3rstand_jax.probes.config import Step

SETTINGS = ("activation", "norm", "norm_epsilon", "residual", "output_layout", "depth_mode", "conf_mode")

_KEYS = ("layers", "steps", "unused", *SETTINGS)
_STEPS = ("linear", "norm", "activation")


@dataclass(frozen=True)
class ProbeMapping:
    """A mapping file's content, checked for form: each layer's prefixes (one per view), and what else it states."""

    layers: Mapping[str, tuple[str, ...]]
    steps: tuple[Step, ...] | None
    unused: tuple[str, ...]
    settings: Mapping[str, object]


def parse_mapping(content: Mapping[str, object], available: Sequence[str]) -> tuple[ProbeMapping, list[Complaint]]:
    """The mapping in the JSON object of a mapping file, and what is wrong with it.

    Args:
        content: the JSON object.
        available: the backbone's layer ids.
    """
    faults = [f"has an unknown key {key!r}; known are {', '.join(_KEYS)}" for key in content if key not in _KEYS]
    steps, unused, stated = content.get("steps"), content.get("unused", []), content.get("layers", {})
    if not (steps is None or (isinstance(steps, list | tuple) and all(step in _STEPS for step in steps))):
        faults.append(f'has "steps" {steps!r}; expected a list of {", ".join(_STEPS)}')
        steps = None
    if not (isinstance(unused, list | tuple) and all(isinstance(prefix, str) for prefix in unused)):
        faults.append(f'has "unused" {unused!r}; expected a list of prefixes')
        unused = []
    if not isinstance(stated, Mapping):
        faults.append(f'has "layers" {stated!r}; expected an object of layer id: prefix')
        stated = {}
    layers = {}
    for layer, prefixes in stated.items():
        views = (prefixes,) if isinstance(prefixes, str) else prefixes
        unknown = unknown_layer(layer, available)
        if unknown:
            faults += unknown
        elif isinstance(views, list | tuple) and views and all(isinstance(prefix, str) for prefix in views):
            layers[layer] = tuple(prefix.rstrip(".") for prefix in views)
        else:
            faults.append(f"gives {layer} {prefixes!r}; expected a prefix or a list of them (view 1, view 2, …)")
    if len({len(views) for views in layers.values()}) > 1:
        faults.append("gives layers different numbers of prefixes; expected one for each layer, or one for each layer and view")
    settings = {key: content[key] for key in SETTINGS if content.get(key) is not None}
    mapping = ProbeMapping(layers, None if steps is None else tuple(steps), tuple(prefix.rstrip(".") for prefix in unused), settings)
    return mapping, [Complaint("the mapping file", fault) for fault in faults]


def read_mapped(mapping: ProbeMapping, modules: Sequence[Module], widths: Widths, backbone: ModelConfig) -> Reading:
    """The layers and views that a mapping file states; prefixes that cannot be used are reported as faults."""
    ids: list[str] = []
    probes: list[Views] = []
    faults = []
    taken: dict[Module, str] = {}
    for layer, prefixes in mapping.layers.items():
        views: list[Mlp] = []
        for prefix in prefixes:
            below = [module for module in modules if is_below(module.path, prefix)]
            twice = next((taken[module] for module in below if module in taken), None)
            taken |= dict.fromkeys(below, prefix)
            if twice is not None:
                faults.append(Complaint("the mapping file", f"uses the tensors below {twice!r} and {prefix!r} twice"))
            elif not any(module.is_linear for module in below):
                faults.append(Complaint("the mapping file", f"gives {layer} {prefix!r}, below which there is no linear layer"))
            else:
                views.append(make_mlp(below, widths, prefix))
        if len(views) == len(prefixes):
            ids.append(layer)
            probes.append(tuple(views))
    faults += [Complaint(mlp.prefix, mlp.fault) for views in probes for mlp in views if mlp.fault]
    evidence: tuple[How, str] = ("option", "the mapping file")
    return Reading.of(ids, probes, backbone, evidence, evidence, faults)
