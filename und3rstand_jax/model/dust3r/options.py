"""Reads the options with which published checkpoints state their architecture into the fields of a config.

The hub's `config.json` and the `args.model` string of a `.pth` file hold the same keyword arguments. An option that this implementation
does not have is refused by name, never ignored.
"""

import re
from collections.abc import Mapping
from typing import Any

from und3rstand_jax.model.option_values import Fields, Parser, count, image_size, only
from und3rstand_jax.model.output_modes import OUTPUT_MODES, parse_mode

SIZES = ("enc_embed_dim", "enc_depth", "enc_num_heads", "dec_embed_dim", "dec_depth", "dec_num_heads", "patch_size", "mlp_ratio")

FROM_SCRATCH: Mapping[str, Any] = {
    "enc_depth": 4, "enc_width": 192, "enc_heads": 3, "dec_depth": 8, "dec_width": 128, "dec_heads": 4, "mlp_ratio": 3,
    "head": "linear", "image_size": "128x128",
}  # fmt: skip
"""Options of training from scratch."""

SCRATCH_FIELDS = {
    "enc_width": "enc_embed_dim", "enc_heads": "enc_num_heads", "dec_width": "dec_embed_dim", "dec_heads": "dec_num_heads",
    "head": "head_type", "image_size": "img_size",
}  # fmt: skip
"""Those whose config field has another name -> that field."""

IGNORED = frozenset({"freeze", "landscape_only", "mask_ratio", "two_confs", "desc_conf_mode", "desc_mode"})
"""Options that change nothing: training state, what the original itself ignores when it loads for use, and what belongs to heads that
the checkpoint does not have."""


def output_mode(kind: str) -> Parser:
    """The parser of an output activation; `kind` is a key of `OUTPUT_MODES`."""

    def parse(option: str, value: Any) -> Fields:
        try:
            return {option: parse_mode(kind, value)}
        except ValueError as error:
            raise ValueError(f"{option} {value!r} is not supported; expected {error}") from None

    return parse


def _head_type(option: str, value: Any) -> Fields:
    if value is not None and not isinstance(value, str):
        raise ValueError(f"head_type must be a name; found {value!r}")
    return {option: value}


def _rope(option: str, value: Any) -> Fields:
    rope = re.fullmatch(r"RoPE(\d+(?:\.\d+)?)", str(value))
    if rope is None:
        raise ValueError(f"pos_embed {value!r} is not supported; expected RoPE followed by its base (RoPE100)")
    return {"rope_base": float(rope[1])}


PARSERS: Mapping[str, Parser] = {
    **dict.fromkeys(SIZES, count),
    "img_size": image_size,
    "head_type": _head_type,
    **{option: output_mode(option) for option in OUTPUT_MODES},
    "pos_embed": _rope,
    "patch_embed_cls": only("PatchEmbedDust3R", "ManyAR_PatchEmbed", "PatchEmbed"),
    "norm_im2_in_dec": only(True),
}
"""The options that all models with DUSt3R's trunk have, except `output_mode`, which depends on the head."""

OPTION_OF = {"rope_base": "pos_embed"}
"""Fields whose option has another name."""
