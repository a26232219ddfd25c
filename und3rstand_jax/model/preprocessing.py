"""How the published models resize and crop photos. Nothing here imports JAX: the command lines list the preprocessings in --help.

"probe" is the preprocessing of the probe model's own example (card of `jgaubil/und3rstand-dust3r-512-dpt`): always a
square. "dust3r" is the loader of DUSt3R (Wang et al., CVPR 2024), which keeps the photo's aspect ratio. "vggt" and "vggt-pad" are
the two modes, crop and pad, of the loader of VGGT (Wang et al., CVPR 2025).
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

from PIL import Image

from und3rstand_jax.model.photos import Color
from und3rstand_jax.model.placement import Placement, Size
from und3rstand_jax.support.errors import ImageError, OptionError

Preprocessing = Literal["probe", "dust3r", "vggt", "vggt-pad"]

PATCH_SIZE = 16
VGGT_PATCH_SIZE = 14

WHITE: Color = (255, 255, 255)


class Way(NamedTuple):
    """What a preprocessing does to any photo.

    Attributes:
        size: the default side in pixels to which photos are resized: that of the published models.
        multiple: output sides are multiples of this, in pixels: the models' patch size.
        shrink: the filter if the photo becomes smaller.
        enlarge: the filter if it does not.
        background: the colour behind transparent parts of a photo; None if transparency is dropped.
        one_size: whether photos of one scene are padded to one size.
    """

    size: int
    multiple: int
    shrink: Image.Resampling
    enlarge: Image.Resampling
    background: Color | None
    one_size: bool


# Pillow's filters widen with the scale when they shrink, which is the antialiasing asked for.
_BILINEAR, _BICUBIC, _LANCZOS = Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS

_PROBE = Way(512, PATCH_SIZE, _BILINEAR, _BILINEAR, background=None, one_size=False)
_DUST3R = Way(512, PATCH_SIZE, _LANCZOS, _BICUBIC, background=None, one_size=False)
_VGGT = Way(518, VGGT_PATCH_SIZE, _BICUBIC, _BICUBIC, background=WHITE, one_size=True)

WAYS: Mapping[Preprocessing, Way] = {"probe": _PROBE, "dust3r": _DUST3R, "vggt": _VGGT, "vggt-pad": _VGGT}


def way_of(preprocessing: Preprocessing) -> Way:
    """What this preprocessing does.

    Raises:
        OptionError: there is no such preprocessing.
    """
    if preprocessing not in WAYS:
        raise OptionError(f"preprocessing {preprocessing!r} is not one of {', '.join(WAYS)}")
    return WAYS[preprocessing]


def place(photo: Size, preprocessing: Preprocessing, size: int | None = None, square_ok: bool = False) -> Placement:
    """The placement of the model's image in an upright photo of this size; see `und3rstand_jax.model.images.load_image`.

    Raises:
        ImageError: nothing is left of the photo at this size, or it would become too large.
        OptionError: there is no such preprocessing, or it does not take this size.
    """
    way = way_of(preprocessing)
    size = way.size if size is None else size
    if preprocessing != "dust3r" and (size <= 0 or size % way.multiple):
        raise OptionError(f"image size {size} must be a positive multiple of {way.multiple}")
    if preprocessing == "probe":
        placement = _probe_crop(photo, size)
    elif preprocessing == "dust3r":
        placement = _dust3r_crop(photo, size, square_ok)
    elif preprocessing == "vggt":
        placement = _vggt_crop(photo, size)
    else:
        placement = _vggt_whole(photo, size, max(photo)).padded((size, size))
    height, width = placement.resized
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > limit:
        raise ImageError(f"{_found(photo)} would be resized to {width}×{height}, which is too large; crop it or use a smaller size")
    return placement


def together(placements: list[Placement], preprocessing: Preprocessing) -> list[Placement]:
    """The placements of photos of one scene, each centred in the greatest height and width of all if the preprocessing needs one size."""
    if not placements or not way_of(preprocessing).one_size:
        return placements
    # Between multiples of 14 there is a middle: the difference is even.
    height, width = (max(placement.size[axis] for placement in placements) for axis in (0, 1))
    return [placement.padded((height, width)) for placement in placements]


def resize(image: Image.Image, placement: Placement, preprocessing: Preprocessing) -> Image.Image:
    """Resizes an upright RGB photo to the size from which `placement.window` takes the model's image."""
    way = way_of(preprocessing)
    height, width = placement.resized
    return image.resize((width, height), way.shrink if max(placement.resized) < max(placement.photo) else way.enlarge)


def _probe_crop(photo: Size, size: int) -> Placement:
    longer = size * max(photo) // min(photo)
    height, width = photo
    resized = (longer, size) if width <= height else (size, longer)
    top, left = (round((side - size) / 2) for side in resized)
    return Placement(photo, resized, (top, left), (size, size))


def _dust3r_crop(photo: Size, size: int, square_ok: bool) -> Placement:
    if size <= 0:
        raise OptionError(f"image size {size} must be positive")
    long = max(photo)
    # 224 is the size of the short side: the linear 224 model was trained on squares.
    target = round(size * long / min(photo)) if size == 224 else size
    height, width = (round(side * target / long) for side in photo)
    y, x = height // 2, width // 2
    if size == 224:
        half_width = half_height = min(x, y)
    else:
        half_width, half_height = (2 * half // PATCH_SIZE * (PATCH_SIZE // 2) for half in (x, y))
        if width == height and not square_ok:
            # 3/4 of the width; at sizes other than DUSt3R's own that need not be a multiple of 16 yet.
            half_height = 3 * half_width // 4 // (PATCH_SIZE // 2) * (PATCH_SIZE // 2)
    if not half_width or not half_height:
        raise ImageError(
            f"{_found(photo)} leaves {2 * half_width}×{2 * half_height} at size {size}; "
            f"each side must keep at least {PATCH_SIZE}: use a larger size or a less elongated image"
        )
    return Placement(photo, (height, width), (y - half_height, x - half_width), (2 * half_height, 2 * half_width))


def _vggt_crop(photo: Size, size: int) -> Placement:
    whole = _vggt_whole(photo, size, photo[1])
    height, width = whole.size
    return Placement(photo, whole.resized, ((height - size) // 2, 0), (size, width)) if height > size else whole


def _vggt_whole(photo: Size, size: int, whole_side: int) -> Placement:
    """The side of `whole_side` pixels becomes `size`, the other the nearest multiple of the patch size in proportion."""
    # In this order, since rounding decides at halves.
    height, width = (
        size if side == whole_side else round(side * (size / whole_side) / VGGT_PATCH_SIZE) * VGGT_PATCH_SIZE for side in photo
    )
    if not width or not height:
        raise ImageError(
            f"{_found(photo)} leaves {width}×{height} at size {size}; each side must keep at least "
            f"{VGGT_PATCH_SIZE}: use a larger size or a less elongated image"
        )
    return Placement(photo, (height, width), (0, 0), (height, width))


def _found(photo: Size) -> str:
    return f"an image of {photo[1]}×{photo[0]} pixels"
