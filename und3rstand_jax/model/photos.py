"""A photo's file, or an open Pillow image, as upright pixels in 8-bit RGB."""

import os

import numpy as np
from PIL import Image

from und3rstand_jax.support.errors import ImageError
from und3rstand_jax.support.image_files import open_image, orientation

Photo = str | os.PathLike[str] | Image.Image
"""A photo's file, in a format of `support.image_files.PHOTO_FORMATS`, or an open Pillow image."""

Color = tuple[int, int, int]
"""8-bit RGB."""

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The operation that makes a photo upright, by its EXIF orientation."""

_AT_ONCE = 2**20  # values converted at a time


def open_photo(photo: Photo, background: Color | None = None) -> Image.Image:
    """The photo's first frame, upright, in 8-bit RGB, which `load_image` accepts instead of the file.

    Args:
        photo: a file, or an open image, which is not changed.
        background: the colour behind transparent parts of the photo; by default transparency is dropped.

    Raises:
        ImageError: the file is missing, is not an image or is damaged.
    """
    if isinstance(photo, Image.Image):
        return _upright_rgb(photo, "the image", background)
    with open_image(photo) as image:
        return _upright_rgb(image, str(photo), background)


def _upright_rgb(image: Image.Image, name: str, background: Color | None) -> Image.Image:
    # A damaged file makes Pillow's decoders raise nearly anything (OSError, SyntaxError, struct.error, zlib.error, …).
    try:
        image.load()
        turn = _TURNS.get(orientation(image))
        image = image if turn is None else image.transpose(turn)
        if image.mode == "F" or image.mode.startswith("I"):
            image = _to_eight_bits(image)
        if background is not None and image.has_transparency_data:
            image = Image.alpha_composite(Image.new("RGBA", image.size, background), image.convert("RGBA"))
        if image.mode == "P":
            # A palette may carry transparency, which Pillow drops cleanly only by way of RGBA.
            image = image.convert("RGBA")
        return image.convert("RGB")
    except Exception as error:
        raise ImageError(f"cannot read {name}, the file seems damaged: {error or type(error).__name__}") from error


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Greys of more than 8 bits, rescaled: Pillow's own conversion would clip them at 255."""
    # A few at a time: the image may be large, and float64 takes four times the memory of 16 bits.
    stored = np.asarray(image).reshape(-1)
    parts = [slice(start, start + _AT_ONCE) for start in range(0, stored.size, _AT_ONCE)]
    if image.mode.startswith("I;16"):
        full = 65535.0
    else:
        # 32-bit integers and floats have no full scale: take the smallest of the usual ones that holds every value.
        usual = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0, 2.0**31 - 1)
        greatest = max(np.nan_to_num(stored[part].astype(np.float64)).max() for part in parts)
        full = next((scale for scale in usual if greatest <= scale), usual[-1])
    eight = np.empty(stored.size, np.uint8)
    for part in parts:
        eight[part] = np.rint(np.clip(np.nan_to_num(stored[part].astype(np.float64)) / full, 0, 1) * 255)
    return Image.fromarray(eight.reshape(image.height, image.width))
