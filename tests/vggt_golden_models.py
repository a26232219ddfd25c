"""What tests of VGGT have in common: the golden case's weights in the JAX model, and a smaller model that is a part of it."""

import dataclasses
import functools
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import und3rstand_jax as u3d
from tests.conversion import converted
from tests.golden_cases import relative_error
from tests.golden_vggt import SMALL_CASE, VGGTCase, load_vggt_case
from tests.make_checkpoint import save_hub_folder, vggt_config
from und3rstand_jax.model.backbone import Backbone
from und3rstand_jax.model.output import BackboneOutput
from und3rstand_jax.model.stack import Params
from und3rstand_jax.model.vggt.config import VGGTConfig
from und3rstand_jax.model.vggt.module import VGGT

EVERYTHING = ("*", "camera.*", "pose_enc.*", "depth_head.*", "point_head.*")
"""All that can be captured, but for what is inside of steps."""

golden = functools.cache(load_vggt_case)

SMALL = dataclasses.replace(
    vggt_config(golden(SMALL_CASE).config), depth=2, enc_depth=1, camera_depth=1, camera_iterations=2, dpt_layers=(0, 0, 1, 1)
)


def converted_backbone(state_dict: Mapping[str, np.ndarray], config: VGGTConfig) -> Backbone:
    """A model of the original's tensors, by way of a file and the converter."""
    with tempfile.TemporaryDirectory() as folder:
        source = save_hub_folder(Path(folder, "hub"), state_dict, config.to_hub_config())
        return u3d.load_backbone(converted(source, Path(folder, "jax")))


@functools.cache
def golden_backbone() -> Backbone:
    """The small golden case's model."""
    case = golden(SMALL_CASE)
    return converted_backbone(case.state_dict, vggt_config(case.config))


def small_state_dict() -> dict[str, np.ndarray]:
    """The small golden case's tensors as far as a model of `SMALL` has them: its first blocks."""
    beyond = {"aggregator.patch_embed.blocks": SMALL.enc_depth, "camera_head.trunk": SMALL.camera_depth}
    beyond |= {f"aggregator.{kind}_blocks": SMALL.depth for kind in ("frame", "global")}

    def is_there(name: str) -> bool:
        return all(int(name[len(stack) + 1 :].split(".")[0]) < depth for stack, depth in beyond.items() if name.startswith(f"{stack}."))

    return {name: tensor for name, tensor in golden(SMALL_CASE).state_dict.items() if is_there(name)}


@functools.cache
def small_params() -> Params:
    """Parameters of a model of `SMALL`."""
    return converted_backbone(small_state_dict(), SMALL).params


def small(**options: Any) -> Backbone:
    """A model of `SMALL`; the options are those of the module."""
    return Backbone(VGGT(SMALL, **options), small_params())


def views_of(case: VGGTCase) -> list[np.ndarray]:
    """The case's images as the JAX model takes them: each view's (B, H, W, 3) in [-1, 1]."""
    return [(2 * case.images[:, view] - 1).astype(np.float32) for view in range(case.images.shape[1])]


def named_arrays(output: BackboneOutput) -> dict[str, np.ndarray]:
    """What a run has captured, and what its heads made, whole and under the names of the golden cases."""
    arrays = {}
    for site in output:
        array = np.stack([np.asarray(x) for x in output[site]], axis=1)
        if site.startswith(("camera.", "pose_enc.")):
            array = array[:, :, 0]
        elif site.startswith(("depth_head.", "point_head.")):
            array = array.transpose(0, 1, 4, 2, 3)
        arrays[site] = array
    if output.cameras is not None:
        arrays |= {"extrinsic": np.asarray(output.cameras.extrinsics), "intrinsic": np.asarray(output.cameras.intrinsics)}
    for key, name in (("depth", "depth"), ("depth_conf", "depth_conf"), ("pts3d", "world_points"), ("conf", "world_points_conf")):
        if output.pointmaps and key in output.pointmaps[0]:
            array = np.stack([np.asarray(pointmap[key]) for pointmap in output.pointmaps], axis=1)
            arrays[name] = array[..., None] if name == "depth" else array
    return arrays


def error_ratios(case: VGGTCase, backbone: Backbone) -> dict[str, float]:
    """Array of the golden case -> our error over the original's float32 error, both against the original's float64 outputs."""
    arrays = named_arrays(backbone(*views_of(case), capture=EVERYTHING))
    return {name: relative_error(case.stored(name, arrays[name]), case.arrays[name]) / case.float32_error(name) for name in arrays}


def golden_layers(case: VGGTCase, *layers: str) -> BackboneOutput:
    """Layers as the original had them, to begin a pass with."""
    height, width = case.images.shape[2:4]
    tokens = {layer: tuple(np.moveaxis(case.arrays[layer], 1, 0)) for layer in layers}
    return BackboneOutput(tokens, ((height, width),) * case.images.shape[1])


def pictures(count: int, size: tuple[int, int], batch: int = 1) -> list[np.ndarray]:
    """Views (B, H, W, 3) in [-1, 1], each another one: blocks of seven pixels, and noise. The first are the same of any count."""
    views = []
    for number in range(count):
        rng = np.random.default_rng(number)
        coarse = rng.uniform(-1, 1, (batch, size[0] // 7, size[1] // 7, 3)).repeat(7, axis=1).repeat(7, axis=2)
        views.append(np.clip(coarse + 0.2 * rng.standard_normal(coarse.shape), -1, 1).astype(np.float32))
    return views
