"""Look inside multi-view transformers, layer by layer, in JAX.

    import und3rstand_jax as u3d

    model, probes = u3d.load_backbone_and_probe("jgaubil/und3rstand-dust3r-512-dpt")
    features = model(u3d.load_image("a.jpg"), u3d.load_image("b.jpg"))
    for layer_id, (pred1, pred2) in zip(model.probed_layers.layer_ids, probes(features)):
        print(layer_id, pred1["pts3d"].shape, pred1["conf"].shape)

Names are imported when they are first used: JAX takes a second to import, and a command's `--help` does not need it.
"""

import importlib
import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from und3rstand_jax.analysis.attribution import attribution
    from und3rstand_jax.analysis.sweep import sweep
    from und3rstand_jax.checkpoint.format import CheckpointInfo, is_checkpoint, read_checkpoint_info
    from und3rstand_jax.convert.push import Upload, push_to_hub
    from und3rstand_jax.geometry.descriptor_matches import Matches, match
    from und3rstand_jax.geometry.unprojection import points_of_depth
    from und3rstand_jax.loading import converted_checkpoint, load_backbone, load_backbone_and_probe
    from und3rstand_jax.model.backbone import Backbone, ProbedLayers
    from und3rstand_jax.model.dust3r.config import BackboneConfig
    from und3rstand_jax.model.dust3r.module import DUSt3R
    from und3rstand_jax.model.edit_files import read_edits
    from und3rstand_jax.model.edits import Edit, Edits, block_attention, knock_out, patch_from, replace, skip, steer
    from und3rstand_jax.model.images import load_image, load_images, placement_of, placements_of
    from und3rstand_jax.model.layer_ids import layer_ids, paper_layer_ids, select_layers
    from und3rstand_jax.model.mast3r.config import MASt3RConfig
    from und3rstand_jax.model.mast3r.module import MASt3R
    from und3rstand_jax.model.output import BackboneOutput, Cameras
    from und3rstand_jax.model.placement import Placement
    from und3rstand_jax.model.start import start_layers
    from und3rstand_jax.model.vggt.config import VGGTConfig
    from und3rstand_jax.model.vggt.module import VGGT
    from und3rstand_jax.probes.config import ProbeConfig, ProbeGroup
    from und3rstand_jax.probes.probes import PointmapProbes, Probes
    from und3rstand_jax.support.errors import (
        CheckpointError,
        ConfigError,
        DataError,
        EditError,
        ImageError,
        LayerError,
        OptionError,
        OutputError,
        TrainingError,
        UserError,
    )

    __version__: str

# Without it, the library's warnings would reach stderr in a program that has not configured logging.
logging.getLogger(__name__).addHandler(logging.NullHandler())

_HOMES = {
    "analysis.attribution": ("attribution",),
    "analysis.sweep": ("sweep",),
    "checkpoint.format": ("CheckpointInfo", "is_checkpoint", "read_checkpoint_info"),
    "convert.push": ("Upload", "push_to_hub"),
    "geometry.descriptor_matches": ("Matches", "match"),
    "geometry.unprojection": ("points_of_depth",),
    "loading": ("converted_checkpoint", "load_backbone", "load_backbone_and_probe"),
    "model.backbone": ("Backbone", "ProbedLayers"),
    "model.dust3r.config": ("BackboneConfig",),
    "model.dust3r.module": ("DUSt3R",),
    "model.edit_files": ("read_edits",),
    "model.edits": ("Edit", "Edits", "block_attention", "knock_out", "patch_from", "replace", "skip", "steer"),
    "model.images": ("load_image", "load_images", "placement_of", "placements_of"),
    "model.layer_ids": ("layer_ids", "paper_layer_ids", "select_layers"),
    "model.mast3r.config": ("MASt3RConfig",),
    "model.mast3r.module": ("MASt3R",),
    "model.output": ("BackboneOutput", "Cameras"),
    "model.placement": ("Placement",),
    "model.start": ("start_layers",),
    "model.vggt.config": ("VGGTConfig",),
    "model.vggt.module": ("VGGT",),
    "probes.config": ("ProbeConfig", "ProbeGroup"),
    "probes.probes": ("PointmapProbes", "Probes"),
    "support.errors": (
        *("CheckpointError", "ConfigError", "DataError", "EditError", "ImageError", "LayerError"),
        *("OptionError", "OutputError", "TrainingError", "UserError"),
    ),
}
_MODULES = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "Backbone",
    "BackboneConfig",
    "BackboneOutput",
    "Cameras",
    "CheckpointError",
    "CheckpointInfo",
    "ConfigError",
    "DUSt3R",
    "DataError",
    "Edit",
    "EditError",
    "Edits",
    "ImageError",
    "LayerError",
    "MASt3R",
    "MASt3RConfig",
    "Matches",
    "OptionError",
    "OutputError",
    "Placement",
    "PointmapProbes",
    "ProbeConfig",
    "ProbeGroup",
    "ProbedLayers",
    "Probes",
    "TrainingError",
    "Upload",
    "UserError",
    "VGGT",
    "VGGTConfig",
    "__version__",
    "attribution",
    "block_attention",
    "converted_checkpoint",
    "is_checkpoint",
    "knock_out",
    "layer_ids",
    "load_backbone",
    "load_backbone_and_probe",
    "load_image",
    "load_images",
    "match",
    "paper_layer_ids",
    "patch_from",
    "placement_of",
    "placements_of",
    "points_of_depth",
    "push_to_hub",
    "read_checkpoint_info",
    "read_edits",
    "replace",
    "select_layers",
    "skip",
    "start_layers",
    "steer",
    "sweep",
]


def __getattr__(name: str) -> object:
    if name == "__version__":
        return importlib.import_module(f"{__name__}.support.versions").own_version()
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
