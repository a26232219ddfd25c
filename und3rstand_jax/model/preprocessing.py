"""The ways in which the published models resize and crop photos. Nothing here imports JAX: the command lines name them in --help.

"probe" is the preprocessing of the probe model's own example (card of `jgaubil/und3rstand-dust3r-512-dpt`): always a
square. "dust3r" is the loader of DUSt3R (Wang et al., CVPR 2024), which keeps the photo's aspect ratio. "vggt" and "vggt-pad" are
the two modes, crop and pad, of the loader of VGGT (Wang et al., CVPR 2025).
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

from PIL import Image

from und3rstand_jax.model.photos import Color
from und3rstand_jax.support.errors import ImageError, OptionError

Preprocessing = Literal["probe", "dust3r", "vggt", "vggt-pad"]

PATCH_SIZE = 16
VGGT_PATCH_SIZE = 14

WHITE: Color = (255, 255, 255)


class Way(NamedTuple):
    """What a preprocessing does to any photo.

    Attributes:
        size: the side in pixels that photos are brought to where none is given: that of the published models.
        multiple: the sides of what comes out are multiples of it, in pixels: the models' patch size.
        background: what shows through a transparent photo; None where its transparency is dropped.
        one_size: whether photos of one scene are padded to one size.
    """

    size: int
    multiple: int
    background: Color | None
    one_size: bool


_DUST3R = Way(size=512, multiple=PATCH_SIZE, background=None, one_size=False)
_VGGT = Way(size=518, multiple=VGGT_PATCH_SIZE, background=WHITE, one_size=True)

WAYS: Mapping[Preprocessing, Way] = {"probe": _DUST3R, "dust3r": _DUST3R, "vggt": _VGGT, "vggt-pad": _VGGT}


def way_of(preprocessing: Preprocessing) -> Way:
    """What this preprocessing does.

    Raises:
        OptionError: there is no such preprocessing.
    """
    if preprocessing not in WAYS:
        raise OptionError(f"preprocessing {preprocessing!r} is not one of {', '.join(WAYS)}")
    return WAYS[preprocessing]


def resized(image: Image.Image, preprocessing: Preprocessing, size: int, square_ok: bool = False) -> Image.Image:
    """An upright RGB photo as the model is to see it; what each way does is told at `und3rstand_jax.model.images.load_image`.

    Raises:
        ImageError: nothing is left of the photo at this size, or it would become too large.
        OptionError: there is no such preprocessing, or the size is not one of its sizes.
    """
    way = way_of(preprocessing)
    if preprocessing != "dust3r" and (size <= 0 or size % way.multiple):
        raise OptionError(f"image size {size} must be a positive multiple of {way.multiple}")
    if preprocessing == "probe":
        return _probe_crop(image, size)
    if preprocessing == "dust3r":
        return _dust3r_crop(image, size, square_ok)
    if preprocessing == "vggt":
        return _vggt_crop(image, size)
    return pad_with_white(_vggt_resize(image, size, max(image.size)), size, size)


def pad_with_white(image: Image.Image, width: int, height: int) -> Image.Image:
    """The image in the middle of a white one. Between multiples of 14 there is a middle: the difference is even."""
    if image.size == (width, height):
        return image
    padded = Image.new("RGB", (width, height), WHITE)
    padded.paste(image, ((width - image.width) // 2, (height - image.height) // 2))
    return padded


def _probe_crop(image: Image.Image, size: int) -> Image.Image:
    short, long = min(image.size), max(image.size)
    longer = size * long // short
    width, height = (size, longer) if image.width <= image.height else (longer, size)
    resized = _resize(image, width, height, Image.Resampling.BILINEAR)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return resized.crop((left, top, left + size, top + size))


def _dust3r_crop(image: Image.Image, size: int, square_ok: bool) -> Image.Image:
    if size <= 0:
        raise OptionError(f"image size {size} must be positive")
    long = max(image.size)
    # 224 is the size of the short side: the linear 224 model was trained on squares.
    target = round(size * long / min(image.size)) if size == 224 else size
    width, height = (round(side * target / long) for side in image.size)
    resample = Image.Resampling.LANCZOS if long > target else Image.Resampling.BICUBIC
    x, y = width // 2, height // 2
    if size == 224:
        half_width = half_height = min(x, y)
    else:
        half_width, half_height = (2 * half // PATCH_SIZE * (PATCH_SIZE // 2) for half in (x, y))
        if width == height and not square_ok:
            # 3/4 of the width; at sizes other than DUSt3R's own that need not be a multiple of 16 yet.
            half_height = 3 * half_width // 4 // (PATCH_SIZE // 2) * (PATCH_SIZE // 2)
    if not half_width or not half_height:
        raise ImageError(
            f"an image of {image.width}×{image.height} pixels leaves {2 * half_width}×{2 * half_height} at size {size}; "
            f"each side must keep at least {PATCH_SIZE}: use a larger size or a less elongated image"
        )
    resized = _resize(image, width, height, resample)
    return resized.crop((x - half_width, y - half_height, x + half_width, y + half_height))


def _vggt_crop(image: Image.Image, size: int) -> Image.Image:
    whole = _vggt_resize(image, size, image.width)
    if whole.height <= size:
        return whole
    top = (whole.height - size) // 2
    return whole.crop((0, top, size, top + size))


def _vggt_resize(image: Image.Image, size: int, whole_side: int) -> Image.Image:
    """The side of `whole_side` pixels becomes `size`, the other the nearest multiple of the patch size in proportion."""
    # In this order, since rounding decides at halves.
    width, height = (
        size if side == whole_side else round(side * (size / whole_side) / VGGT_PATCH_SIZE) * VGGT_PATCH_SIZE for side in image.size
    )
    if not width or not height:
        raise ImageError(
            f"an image of {image.width}×{image.height} pixels leaves {width}×{height} at size {size}; each side must keep at least "
            f"{VGGT_PATCH_SIZE}: use a larger size or a less elongated image"
        )
    return _resize(image, width, height, Image.Resampling.BICUBIC)


def _resize(image: Image.Image, width: int, height: int, resample: Image.Resampling) -> Image.Image:
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > limit:
        found = f"an image of {image.width}×{image.height} pixels"
        raise ImageError(f"{found} would be resized to {width}×{height}, which is too large; crop it or use a smaller size")
    # Pillow's filters widen with the scale when they shrink, which is the antialiasing asked for.
    return image.resize((width, height), resample)
