"""The options that published checkpoints state their architecture with, read into the fields of a config and written again.

The hub's `config.json` and the `args.model` string of a `.pth` file hold the same keyword arguments. An option that this implementation
does not have is refused by name, never ignored.
"""

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from und3rstand_jax.model.output_modes import OUTPUT_MODES, parse_mode
from und3rstand_jax.support.errors import ConfigError
from und3rstand_jax.support.text import listed

Fields = dict[str, Any]
"""Field of a config -> its value."""

Parser = Callable[[str, Any], Fields]
"""Takes an option's name and value; raises a ValueError that says what is wrong with it."""

SIZES = ("enc_embed_dim", "enc_depth", "enc_num_heads", "dec_embed_dim", "dec_depth", "dec_num_heads", "patch_size", "mlp_ratio")

IGNORED = frozenset({"freeze", "landscape_only", "mask_ratio", "two_confs", "desc_conf_mode", "desc_mode"})
"""Options that change nothing: training state, what the original itself ignores when it loads for use, and what belongs to heads that
the checkpoint does not have."""


def read_options(options: Mapping[str, Any], parsers: Mapping[str, Parser], ignored: Collection[str]) -> Fields:
    """The fields of a config that options state.

    Raises:
        ConfigError: an option is unknown, or has a value that is not supported. All are listed.
    """
    fields: Fields = {}
    complaints = []
    for option, value in options.items():
        if option in parsers:
            try:
                fields |= parsers[option](option, value)
            except ValueError as error:
                complaints.append(str(error))
        elif option not in ignored:
            complaints.append(f"option {option!r} (= {value!r}) is not known to this implementation")
    if complaints:
        raise ConfigError("backbone config: " + listed(complaints, "; ", 20, 400))
    return fields


def only(*values: Any) -> Parser:
    """Of an option that has one value, or some that make no difference to the model: no field."""

    def parse(option: str, value: Any) -> Fields:
        if not any(value == known and type(value) is type(known) for known in values):
            one_of = "one of " if len(values) > 1 else ""
            raise ValueError(f"{option} {value!r} is not supported; expected {one_of}{', '.join(map(str, values))}")
        return {}

    return parse


def output_mode(kind: str) -> Parser:
    """Of an output activation; `kind` is that of `output_modes`."""

    def parse(option: str, value: Any) -> Fields:
        try:
            return {option: parse_mode(kind, value)}
        except ValueError as error:
            raise ValueError(f"{option} {value!r} is not supported; expected {error}") from None

    return parse


def _count(option: str, value: Any) -> Fields:
    if not _is_count(value):
        raise ValueError(f"{option} must be a positive integer; found {value!r}")
    return {option: int(value)}


def _image_size(option: str, value: Any) -> Fields:
    size = (value, value) if _is_count(value) else value
    if not (isinstance(size, tuple | list) and len(size) == 2 and all(_is_count(side) for side in size)):
        raise ValueError(f"img_size must be one or two positive integers; found {value!r}")
    return {option: tuple(size)}


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
    **dict.fromkeys(SIZES, _count),
    "img_size": _image_size,
    "head_type": _head_type,
    **{option: output_mode(option) for option in OUTPUT_MODES},
    "pos_embed": _rope,
    "patch_embed_cls": only("PatchEmbedDust3R", "ManyAR_PatchEmbed", "PatchEmbed"),
    "norm_im2_in_dec": only(True),
}
"""The options that all models with DUSt3R's trunk have, but for `output_mode`, which depends on the head."""

OPTION_OF = {"rope_base": "pos_embed"}
"""Fields whose option has another name."""


def _is_count(value: Any) -> bool:
    is_whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    return is_whole and not isinstance(value, bool) and value > 0
