"""Look inside multi-view transformers, layer by layer, in JAX.

    import und3rstand_jax as u3d

    model, probes = u3d.load_backbone_and_probe("jgaubil/und3rstand-dust3r-512-dpt")
    features = model(u3d.load_image("a.jpg"), u3d.load_image("b.jpg"))
    for layer_id, (pred1, pred2) in zip(model.probed_layers.layer_ids, probes(features)):
        print(layer_id, pred1["pts3d"].shape, pred1["conf"].shape)

Names are imported when they are first used: JAX takes a second to import, and a command's `--help` needs none of it.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from und3rstand_jax.checkpoint import CheckpointInfo, is_checkpoint, read_checkpoint_info
    from und3rstand_jax.config import BackboneConfig
    from und3rstand_jax.dust3r import DUSt3R
    from und3rstand_jax.errors import UserError
    from und3rstand_jax.images import load_image
    from und3rstand_jax.layers import layer_ids, paper_layer_ids, select_layers
    from und3rstand_jax.loading import converted_checkpoint, load_backbone, load_backbone_and_probe
    from und3rstand_jax.model import Backbone, ProbedLayers, Probes
    from und3rstand_jax.output import BackboneOutput
    from und3rstand_jax.probe_config import ProbeConfig, ProbeGroup
    from und3rstand_jax.probes import PointmapProbes

_HOMES = {
    "checkpoint": ("CheckpointInfo", "is_checkpoint", "read_checkpoint_info"),
    "config": ("BackboneConfig",),
    "dust3r": ("DUSt3R",),
    "errors": ("UserError",),
    "images": ("load_image",),
    "layers": ("layer_ids", "paper_layer_ids", "select_layers"),
    "loading": ("converted_checkpoint", "load_backbone", "load_backbone_and_probe"),
    "model": ("Backbone", "ProbedLayers", "Probes"),
    "output": ("BackboneOutput",),
    "probe_config": ("ProbeConfig", "ProbeGroup"),
    "probes": ("PointmapProbes",),
}
_MODULES = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "Backbone",
    "BackboneConfig",
    "BackboneOutput",
    "CheckpointInfo",
    "DUSt3R",
    "PointmapProbes",
    "ProbeConfig",
    "ProbeGroup",
    "ProbedLayers",
    "Probes",
    "UserError",
    "converted_checkpoint",
    "is_checkpoint",
    "layer_ids",
    "load_backbone",
    "load_backbone_and_probe",
    "load_image",
    "paper_layer_ids",
    "read_checkpoint_info",
    "select_layers",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
