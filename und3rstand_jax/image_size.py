"""Image sizes as options write them."""

import re

from und3rstand_jax.errors import UserError


def parse_image_size(text: str, patch_size: int, option: str) -> tuple[int, int]:
    """`SIDE` or `WIDTHxHEIGHT`, in pixels, as (height, width).

    Raises:
        UserError: it is neither, or a side is no multiple of the patch size; the message names the option.
    """
    matched = re.fullmatch(r"(\d+)(?:[x×](\d+))?", text.strip())
    if matched is None:
        raise UserError(f"{option} {text!r} is neither a side nor WIDTHxHEIGHT in pixels; give 512 or 512x384")
    width, height = int(matched[1]), int(matched[2] or matched[1])
    if not width or not height or width % patch_size or height % patch_size:
        raise UserError(f"{option} {text}: both sides must be multiples of {patch_size}; found {width}×{height} pixels")
    return height, width
