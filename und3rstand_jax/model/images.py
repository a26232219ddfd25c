"""Photos to model input, with the preprocessings of the published models, and back to pixels for display."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, UInt8
from PIL import Image

from und3rstand_jax.model.photos import Photo, open_photo
from und3rstand_jax.model.placement import Placement, Size
from und3rstand_jax.model.preprocessing import WHITE, Preprocessing, place, resize, together, way_of
from und3rstand_jax.support.errors import ImageError, OptionError


@runtime_checkable
class TakesViews(Protocol):
    """A config that says which images its model takes."""

    @property
    def patch_size(self) -> int:
        """Pixels of a patch's side, of which image sides are multiples."""

    def check_view_count(self, count: int) -> None:
        """Raises OptionError if the model does not take this many views."""

    def check_sizes(self, sizes: Sequence[tuple[int, int]]) -> None:
        """Raises ImageError if the model does not take images of these (height, width) together."""


def load_image(
    photo: Photo, preprocessing: Preprocessing = "probe", size: int | None = None, square_ok: bool = False
) -> Float[np.ndarray, "1 H W 3"]:
    """A photo as model input: float32 RGB in [-1, 1], height and width multiples of 16 (14 for VGGT's preprocessings).

    The EXIF orientation is applied and 16 bits are reduced to 8. Of an animation the first frame is used. Transparency is dropped, except
    in VGGT's preprocessings.

    Args:
        photo: a file (JPEG, PNG, TIFF, WebP, BMP, GIF, PPM, JPEG 2000, AVIF; HEIC where pillow-heif is installed), or an open Pillow
            image.
        preprocessing: "probe" resizes the short side to `size` (bilinear, antialiased) and takes the central square.
            "dust3r" resizes the long side to `size` (Lanczos down, bicubic up) and crops to multiples of 16 around the
            centre; at size 224 it resizes the short side to 224 and takes the central square.
            "vggt" resizes the width to `size` and the height to the nearest multiple of 14 in proportion (bicubic), and keeps at most the
            central `size` rows. "vggt-pad" resizes the long side to `size` in the same way and pads to a square with white. In both,
            transparent parts become white. VGGT's own loader, unlike this one, ignores the EXIF orientation.
        size: in pixels; by default 512, or 518 for VGGT's preprocessings. A multiple of 16 for "probe", of 14 for VGGT's.
        square_ok: for "dust3r" at sizes other than 224, keeps a square photo square instead of cropping it to 4:3.

    Raises:
        ImageError: the file is missing, damaged, not an image in one of these formats, or has more than 134 million pixels; or at this
            size the photo becomes too large, or a side keeps fewer than 16 pixels (14 for VGGT's preprocessings).
        OptionError: there is no such preprocessing, or it does not take this size.
    """
    return load_images([photo], preprocessing, size, square_ok)[0]


def load_images(
    photos: Sequence[Photo], preprocessing: Preprocessing = "probe", size: int | None = None, square_ok: bool = False
) -> list[Float[np.ndarray, "1 _H _W 3"]]:
    """Photos of one scene as model input, each prepared as by `load_image`.

    VGGT takes only frames of one size: with "vggt" and "vggt-pad", frames of different sizes are centred and padded with white to the
    greatest height and the greatest width among them.

    Raises:
        ImageError, OptionError: as for `load_image`.
    """
    placements: list[Placement] = []
    whole: list[Image.Image] = []
    for photo in photos:  # one large photo in memory at a time
        opened = open_photo(photo, way_of(preprocessing).background)
        placements.append(place((opened.height, opened.width), preprocessing, size, square_ok))
        whole.append(resize(opened, placements[-1], preprocessing))
    placed = zip(whole, together(placements, preprocessing), strict=True)
    return [_model_input(placement.window(image, WHITE)) for image, placement in placed]


def placement_of(
    photo: Photo | Size, preprocessing: Preprocessing = "probe", size: int | None = None, square_ok: bool = False
) -> Placement:
    """The mapping between the pixels of a photo and those of its image from `load_image`, in both directions.

    Args:
        photo: the photo, or the (height, width) in pixels of the upright photo.
        preprocessing, size, square_ok: as given to `load_image`.

    Raises:
        ImageError, OptionError: as for `load_image`.
    """
    return placements_of([photo], preprocessing, size, square_ok)[0]


def placements_of(
    photos: Sequence[Photo | Size], preprocessing: Preprocessing = "probe", size: int | None = None, square_ok: bool = False
) -> list[Placement]:
    """The same mapping for each photo of one scene and its image from `load_images`; see `placement_of`.

    Raises:
        ImageError, OptionError: as for `load_image`.
    """
    return together([place(_upright_size(photo), preprocessing, size, square_ok) for photo in photos], preprocessing)


def _upright_size(photo: Photo | Size) -> Size:
    if not isinstance(photo, tuple):
        # Decoded, as the loader does it: a header may say another size or orientation than what comes out.
        opened = open_photo(photo)
        return (opened.height, opened.width)
    if len(photo) != 2 or min(photo) < 1:
        raise ImageError(f"expected a photo, or its (height, width) of at least one pixel each; found {photo}")
    return photo


def _model_input(image: Image.Image) -> Float[np.ndarray, "1 H W 3"]:
    return ((np.asarray(image, np.float32) / 255 - 0.5) / 0.5)[None]


def to_uint8(image: Float[np.ndarray, "*B H W 3"]) -> UInt8[np.ndarray, "*B H W 3"]:
    """The 8-bit pixels of a model input in [-1, 1], to show it or to colour points with it; exact for the output of `load_image`."""
    return np.clip(np.rint((np.asarray(image, np.float32) * 0.5 + 0.5) * 255), 0, 255).astype(np.uint8)


def as_views(images: Sequence[ArrayLike], config: TakesViews) -> tuple[Float[Array, "B _H _W 3"], ...]:
    """The images of every view of B sets, each converted by `as_view`.

    Raises:
        OptionError: the model takes fewer or more views.
        ImageError: one is not a batch of images, or the views' batches differ in size.
    """
    if not images:
        raise OptionError("a pass takes the views' images, or start= and no images")
    config.check_view_count(len(images))
    views = tuple(as_view(image, config.patch_size, f"view{number}") for number, image in enumerate(images, start=1))
    for number, view in enumerate(views, start=1):
        if len(view) != len(views[0]):
            raise ImageError(f"view1 has {len(views[0])} images and view{number} has {len(view)}; give one image per set for each view")
    config.check_sizes([(view.shape[1], view.shape[2]) for view in views])
    return views


def as_view(image: ArrayLike, patch_size: int, name: str) -> Float[Array, "B H W 3"]:
    """A batch of RGB images in [-1, 1] as (B, H, W, 3), converted from (B, 3, H, W) if necessary.

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
        raise ImageError(f"{expected}; found shape {tuple(array.shape)}, which has no pixels")
    if array.shape[-1] != 3:
        array = array.transpose(0, 2, 3, 1)
    height, width = array.shape[1:3]
    if height % patch_size or width % patch_size:
        raise ImageError(f"{name} is {height}×{width}; both sides must be multiples of {patch_size}: crop or resize it (load_image does)")
    # JAX converts NumPy's float64 to float32; so does this model where JAX would keep it (JAX_ENABLE_X64).
    return jnp.asarray(array, jnp.float32 if array.dtype == jnp.float64 else array.dtype)
