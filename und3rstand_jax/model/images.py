"""Photos to model input, in the two ways of the published models, and back to pixels to show them.

"probe" is the preprocessing of the probe model's own example (card of `jgaubil/und3rstand-dust3r-512-dpt`): always a
square. "dust3r" is the loader of DUSt3R (Wang et al., CVPR 2024), which keeps the photo's aspect ratio.
"""

import os
from collections.abc import Sequence
from typing import Literal, Protocol, get_args, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, UInt8
from PIL import Image

from und3rstand_jax.support.errors import ImageError, OptionError
from und3rstand_jax.support.image_files import open_image, orientation

Preprocessing = Literal["probe", "dust3r"]

Photo = str | os.PathLike[str] | Image.Image
"""A photo's file, in a format of `support.image_files.PHOTO_FORMATS`, or an open Pillow image."""

PATCH_SIZE = 16


@runtime_checkable
class TakesViews(Protocol):
    """A config that says which images its model takes."""

    @property
    def patch_size(self) -> int:
        """Of which the sides are multiples."""

    def check_view_count(self, count: int) -> None:
        """Raises OptionError where the model does not take so many views."""

    def check_sizes(self, sizes: Sequence[tuple[int, int]]) -> None:
        """Raises ImageError where the model does not take images of these (height, width) together."""


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes a photo upright, by its EXIF orientation."""

_AT_ONCE = 2**20  # values converted at a time


def load_image(
    photo: Photo, preprocessing: Preprocessing = "probe", size: int = 512, square_ok: bool = False
) -> Float[np.ndarray, "1 H W 3"]:
    """A photo as model input: float32 RGB in [-1, 1], height and width multiples of 16.

    The EXIF orientation is applied, the first frame of an animation taken, transparency dropped, 16 bits reduced to 8.

    Args:
        photo: a file (JPEG, PNG, TIFF, WebP, BMP, GIF, PPM, JPEG 2000, AVIF; HEIC where pillow-heif is installed), or an open Pillow
            image.
        preprocessing: "probe" brings the short side to `size` (bilinear, antialiased) and takes the central square.
            "dust3r" brings the long side to `size` (Lanczos down, bicubic up) and crops to multiples of 16 around the
            centre; at size 224 it brings the short side to 224 and takes the central square.
        size: in pixels; for "probe" a multiple of 16.
        square_ok: for "dust3r" at sizes other than 224, keeps a square photo square instead of cropping it to 4:3.

    Raises:
        ImageError: the file is missing, is no image of these formats, is damaged or has more than 134 million pixels, or at this
            size a side has fewer than 16 pixels.
        OptionError: there is no such preprocessing, or the size is not one of its sizes.
    """
    rgb = open_photo(photo)
    if preprocessing == "probe":
        cropped = _probe_crop(rgb, size)
    elif preprocessing == "dust3r":
        cropped = _dust3r_crop(rgb, size, square_ok)
    else:
        raise OptionError(f"preprocessing {preprocessing!r} is not one of {', '.join(get_args(Preprocessing))}")
    return ((np.asarray(cropped, np.float32) / 255 - 0.5) / 0.5)[None]


def to_uint8(image: Float[np.ndarray, "*B H W 3"]) -> UInt8[np.ndarray, "*B H W 3"]:
    """The pixels of a model input in [-1, 1], to show it or to colour points with it; exact for what `load_image` returns."""
    return np.clip(np.rint((np.asarray(image, np.float32) * 0.5 + 0.5) * 255), 0, 255).astype(np.uint8)


def open_photo(photo: Photo) -> Image.Image:
    """The photo's first frame, upright, in 8-bit RGB, which `load_image` accepts in place of the file.

    Raises:
        ImageError: the file is missing, is not an image or is damaged.
    """
    if isinstance(photo, Image.Image):
        return _upright_rgb(photo, "the image")
    with open_image(photo) as image:
        return _upright_rgb(image, str(photo))


def _upright_rgb(image: Image.Image, name: str) -> Image.Image:
    # A damaged file makes Pillow's decoders raise nearly anything (OSError, SyntaxError, struct.error, zlib.error, …).
    try:
        image.load()
        turn = _TURNS.get(orientation(image))
        image = image if turn is None else image.transpose(turn)
        if image.mode == "F" or image.mode.startswith("I"):
            image = _to_eight_bits(image)
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


def _probe_crop(image: Image.Image, size: int) -> Image.Image:
    if size <= 0 or size % PATCH_SIZE:
        raise OptionError(f"image size {size} must be a positive multiple of {PATCH_SIZE}")
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


def _resize(image: Image.Image, width: int, height: int, resample: Image.Resampling) -> Image.Image:
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > limit:
        found = f"an image of {image.width}×{image.height} pixels"
        raise ImageError(f"{found} would be resized to {width}×{height}, which is too large; crop it or use a smaller size")
    # Pillow's filters widen with the scale when they shrink, which is the antialiasing asked for.
    return image.resize((width, height), resample)


def as_views(images: Sequence[ArrayLike], config: TakesViews) -> tuple[Float[Array, "B _H _W 3"], ...]:
    """The images of every view of B sets, each as `as_view` has it.

    Raises:
        OptionError: the model takes fewer or more views.
        ImageError: one is not a batch of images, or the views' batches differ in size.
    """
    if not images:
        raise OptionError("a pass takes the views' images, or start= and none")
    config.check_view_count(len(images))
    views = tuple(as_view(image, config.patch_size, f"view{number}") for number, image in enumerate(images, start=1))
    for number, view in enumerate(views, start=1):
        if len(view) != len(views[0]):
            raise ImageError(f"view1 holds {len(views[0])} images and view{number} {len(view)}; sets need as many of each")
    config.check_sizes([(view.shape[1], view.shape[2]) for view in views])
    return views


def as_view(image: ArrayLike, patch_size: int, name: str) -> Float[Array, "B H W 3"]:
    """A batch of RGB images in [-1, 1] as (B, H, W, 3), from that or from (B, 3, H, W).

    Raises:
        ImageError: the array, which the message calls `name`, is not such a batch, or a side is not a multiple of the patch size.
    """
    array = image if isinstance(image, jax.Array) else np.asarray(image)  # a traced or device array stays where it is
    expected = f"{name} must be RGB in [-1, 1], floating point, (B, H, W, 3) or (B, 3, H, W)"
    if array.ndim != 4 or 3 not in (array.shape[1], array.shape[-1]):
        hint = "; add a batch axis with image[None]" if array.ndim == 3 else ""
        raise ImageError(f"{expected}; found shape {tuple(array.shape)}{hint}")
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise ImageError(f"{expected}; found {array.dtype}: scale 8-bit images with (x / 255 - 0.5) / 0.5")
    if 0 in array.shape:
        raise ImageError(f"{expected}; found shape {tuple(array.shape)}, which holds no pixels")
    if array.shape[-1] != 3:
        array = array.transpose(0, 2, 3, 1)
    height, width = array.shape[1:3]
    if height % patch_size or width % patch_size:
        raise ImageError(f"{name} is {height}×{width}; both sides must be multiples of {patch_size}: crop or resize it (load_image does)")
    # NumPy's float64 is float32 to JAX, and to this model also where JAX would keep it (JAX_ENABLE_X64).
    return jnp.asarray(array, jnp.float32 if array.dtype == jnp.float64 else array.dtype)
