"""Tiny checkpoints for tests of the converter: a linear-head DUSt3R of 32 and 16 channels with two decoder blocks, and probes for it."""

import functools
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tests.golden import weights
from tests.make_checkpoint import probe_state_dict, save_hub_folder
from tests.original_names import original_shapes

SEED = 11
CONFIG: dict[str, Any] = {
    "output_mode": "pts3d",
    "head_type": "linear",
    "depth_mode": ["exp", -math.inf, math.inf],
    "conf_mode": ["exp", 1, math.inf],
    "pos_embed": "RoPE100",
    "img_size": [32, 32],
    "patch_embed_cls": "PatchEmbedDust3R",
    "enc_embed_dim": 32,
    "enc_depth": 2,
    "enc_num_heads": 2,
    "dec_embed_dim": 16,
    "dec_depth": 2,
    "dec_num_heads": 2,
}
NO_PROVENANCE: dict[str, Any] = {
    **dict.fromkeys(("source", "kind"), "test"),
    **dict.fromkeys(("revision", "config")),
    **{field: {} for field in ("sha256", "metadata", "leaves", "unused", "second_names")},
}
"""The record of a part that came from nowhere."""
DPT_CONFIG = CONFIG | {"head_type": "dpt", "dec_depth": 4}
MAST3R_CONFIG = DPT_CONFIG | {
    "head_type": "catmlp+dpt",
    "output_mode": "pts3d+desc24",
    "desc_mode": "norm",
    "two_confs": True,
    "desc_conf_mode": ["exp", 0, math.inf],
}
CROCO_CONFIG = {key: value for key, value in CONFIG.items() if key not in ("head_type", "output_mode", "depth_mode", "conf_mode")}
LAYERS = tuple(f"decoder.{block}.{step}" for block in (0, 1) for step in ("self_attn", "cross_attn", "mlp"))


def backbone_tensors(config: Mapping[str, Any] = CONFIG) -> dict[str, np.ndarray]:
    """Deterministic weights under the original's names, both names of those that have two."""
    return dict(_made(json.dumps(config)))


@functools.cache
def _made(config: str) -> Mapping[str, np.ndarray]:
    return {name: _of_first_name(name, shape) for name, shape in original_shapes(json.loads(config)).items()}


def _of_first_name(name: str, shape: tuple[int, ...]) -> np.ndarray:
    before, second, after = name.partition(".layer_rn.")
    return weights.tensor(f"{before}.layer{int(after[0]) + 1}_rn.weight" if second else name, shape, SEED)


def probe_tensors(name: str = "probes.{layer}.mlp.{step}", layers: int = len(LAYERS)) -> dict[str, np.ndarray]:
    """One five-layer MLP for each of the decoder's layers."""
    return probe_state_dict(CONFIG["dec_embed_dim"], 8, layers, SEED, name)


def croco_tensors() -> dict[str, np.ndarray]:
    """A trunk with one decoder, and CroCo's pixel head, which is never read."""
    trunk = {name: tensor for name, tensor in backbone_tensors().items() if not name.startswith(("dec_blocks2.", "downstream_head"))}
    return trunk | {"prediction_head.weight": np.zeros((768, 16), np.float32), "prediction_head.bias": np.ones(768, np.float32)}


def save_backbone(folder: Path, tensors: Mapping[str, np.ndarray] | None = None, config: Mapping[str, Any] = CONFIG) -> Path:
    """A backbone in the hub's layout."""
    return save_hub_folder(folder, backbone_tensors(config) if tensors is None else tensors, config)


def save_probes(folder: Path, backbone: Path | str, tensors: Mapping[str, np.ndarray] | None = None) -> Path:
    """Probes in the hub's layout, whose config names their backbone."""
    return save_hub_folder(folder, probe_tensors() if tensors is None else tensors, {"base_model": str(backbone), "activation": "gelu"})
