"""Image sizes as options write them."""

import re

from train.data.records import Shape
from und3rstand_jax.errors import UserError


def image_shape(text: str, patch_size: int, option: str = "--resolution") -> Shape:
    """`WIDTHxHEIGHT` as (height, width).

    Raises:
        UserError: it is none, or a side is no multiple of the patch size.
    """
    matched = re.fullmatch(r"(\d+)[x×](\d+)", text.strip())
    if matched is None:
        raise UserError(f"{option} {text!r} is not WIDTHxHEIGHT, such as 512x384")
    width, height = int(matched[1]), int(matched[2])
    if not width or not height or width % patch_size or height % patch_size:
        raise UserError(f"{option} {text}: both sides must be multiples of {patch_size}")
    return height, width
