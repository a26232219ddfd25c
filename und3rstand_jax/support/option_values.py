"""Values of options that several commands share."""

import re
from typing import Literal

from und3rstand_jax.support.errors import OptionError

Dtype = Literal["float32", "bfloat16"]
"""Data type of a backbone's computation."""

AttentionImplementation = Literal["auto", "per_head", "xla", "cudnn"]
"""How a backbone's attention is computed; see `und3rstand_jax.model.attention.attend`."""


def parse_image_size(text: str, patch_size: int, option: str) -> tuple[int, int]:
    """`SIDE` or `WIDTHxHEIGHT`, in pixels, as (height, width).

    Raises:
        OptionError: it is neither, or a side is not a multiple of the patch size; the message names the option.
    """
    matched = re.fullmatch(r"(\d{1,9})(?:[x×](\d{1,9}))?", text.strip())
    if matched is None:
        raise OptionError(f"{option} {text!r} is neither a side nor WIDTHxHEIGHT in pixels; give 512 or 512x384")
    width, height = int(matched[1]), int(matched[2] or matched[1])
    if not width or not height or width % patch_size or height % patch_size:
        raise OptionError(f"{option} {text}: both sides must be multiples of {patch_size}; found {width}×{height} pixels")
    return height, width


def check_seed(seed: int, option: str = "--seed") -> int:
    """The seed, which must fit JAX's 32 bits.

    Raises:
        OptionError: it does not; the message names the option.
    """
    if not 0 <= seed < 2**32:
        raise OptionError(f"{option} must be at least 0 and below 2^32; found {seed}")
    return seed
