"""Reads the options that state a VGGT's architecture into the fields of its config.

The hub's `config.json` has `embed_dim`, `img_size` and `patch_size` and, from newer code, `enable_camera` and the like. Everything else is
fixed in the original's code, or shows in the tensors. A config that this package exports states the rest, under the fields' names.
"""

import math
from collections.abc import Mapping
from typing import Any

from und3rstand_jax.model.option_values import Fields, Parser, count, image_size, is_count, read_options

ENABLE = {"camera": "enable_camera", "depth": "enable_depth", "points": "enable_point"}
"""Head -> the option that says whether there is one."""

STATED = frozenset({"embed_dim", "img_size", "patch_size"})
"""What every config of a VGGT states."""

_HEAD_DIM = 64  # in DINOv2, of every size

_TAPS = (5, 12, 18, 24)  # of 24 pairs, counted from 1


def read(options: Mapping[str, Any]) -> Fields:
    """The fields that options state.

    Raises:
        ConfigError: an option is unknown, or has a value that is not supported. All are listed.
    """
    return read_options(options, PARSERS, ())


def assumed(embed_dim: int, depth: int) -> Fields:
    """The published model's values, scaled to these sizes, for what no shape shows. Attention heads have 64 channels in DINOv2 and 128 in
    the camera head, which is twice as wide; the DPT heads read the pairs at the same relative depths.
    """
    heads = max(1, embed_dim // _HEAD_DIM)
    layers = tuple(max(1, math.floor(tap * depth / _TAPS[-1] + 0.5)) - 1 for tap in _TAPS)
    return {"enc_num_heads": heads, "camera_num_heads": heads, "dpt_layers": layers}


def _four_counts(option: str, value: Any) -> Fields:
    if not (isinstance(value, tuple | list) and len(value) == 4 and all(map(is_count, value))):
        raise ValueError(f"{option} must be four positive integers; found {value!r}")
    return {option: tuple(int(item) for item in value)}


def _four_numbers(option: str, value: Any) -> Fields:
    if not (isinstance(value, tuple | list) and len(value) == 4 and all(map(_is_count_or_zero, value))):
        raise ValueError(f"{option} must be the numbers of four pairs, from 0; found {value!r}")
    return {option: tuple(int(item) for item in value)}


def _is_count_or_zero(value: Any) -> bool:
    return is_count(value) or (value == 0 and not isinstance(value, bool))


def _base(option: str, value: Any) -> Fields:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{option} must be a number; found {value!r}")
    return {option: float(value)}


def _enabled(option: str, value: Any) -> Fields:
    if not isinstance(value, bool):
        raise ValueError(f"{option} must be true or false; found {value!r}")
    return {option: value}


PARSERS: Mapping[str, Parser] = {
    **dict.fromkeys(("embed_dim", "patch_size", "depth", "num_heads", "enc_depth", "enc_num_heads", "mlp_ratio"), count),
    **dict.fromkeys(("camera_depth", "camera_num_heads", "camera_iterations", "dpt_width"), count),
    "img_size": image_size,
    "num_registers": count,
    "rope_base": _base,
    "dpt_channels": _four_counts,
    "dpt_layers": _four_numbers,
    **dict.fromkeys((*ENABLE.values(), "enable_track"), _enabled),
}
"""All options; those named `enable_…` are not fields of the config."""
