"""Maps the pixels of a model's image to the photo from which it was made, and back. Nothing here imports JAX.

Every preprocessing resizes the photo and then takes a window of it: a crop, or a larger window, which is padded. A `Placement` has the
numbers of both steps; the loader uses them, and so does the way back.

Pixel centres are at integers, in the photo and in the model's image, as in `und3rstand_jax.geometry.cameras`: the first pixel covers
-0.5 to 0.5. Resizing W columns to w maps one whole image to the other, so that u in the resized photo is (u + 0.5) · W / w - 0.5 in
the photo.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import ArrayLike
from PIL import Image

from und3rstand_jax.support.errors import ImageError, OptionError

Size = tuple[int, int]
"""(height, width) in pixels."""

Places = ArrayLike | Sequence[object]
"""(…, 2): column and row of pixels; anything that NumPy converts to an array."""

Interpolation = Literal["nearest", "linear"]

_METHODS = ("nearest", "linear")


@dataclasses.dataclass(frozen=True)
class Placement:
    """How a photo was resized and cropped or padded for a model.

        placement = u3d.placement_of("a.jpg")
        depth = placement.on_photo(pred1["pts3d"][0, ..., 2])           # (height, width) of the photo, NaN where it was cropped off
        camera = placement.matrix @ intrinsics                          # the model's camera in the photo's pixels

    Attributes:
        photo: the upright photo's size, after its EXIF orientation was applied.
        resized: its size after resizing.
        offset: (row, column) in the resized photo of the first pixel of the model's image; negative where that is padding.
        size: of the model's image.
    """

    photo: Size
    resized: Size
    offset: tuple[int, int]
    size: Size

    @property
    def matrix(self) -> Float[np.ndarray, "3 3"]:
        """Maps pixels (u, v, 1) of the model's image to the photo's; u counts columns, v rows.

        `matrix @ intrinsics` turns the model image's intrinsics into the photo's, with pixel centres at integers in both. This holds for
        the intrinsics in `u3d.Cameras` too, which are VGGT's own, with the principal point at (W/2, H/2) of such pixels. For software with
        pixel centres at half-integers (COLMAP), add 0.5 to the principal point of the product.
        """
        (sy, sx), (ty, tx) = self._scale, self._shift
        return np.array([[sx, 0, tx], [0, sy, ty], [0, 0, 1]])

    def to_photo(self, pixels: Places) -> Float[np.ndarray, "*N 2"]:
        """Converts places (u, v), columns first, in the model's image to places in the photo; those in padding are outside the photo."""
        return _places(pixels) * self._scale[::-1] + self._shift[::-1]

    def from_photo(self, pixels: Places) -> Float[np.ndarray, "*N 2"]:
        """Converts places (u, v), columns first, in the photo to places in the model's image; those cropped off are outside the image."""
        return (_places(pixels) - self._shift[::-1]) / self._scale[::-1]

    def on_photo(self, values: ArrayLike, method: Interpolation = "nearest") -> Float[np.ndarray, "H W *C"] | Bool[np.ndarray, "H W *C"]:
        """Values of the model's pixels (a depth or confidence map, a pointmap, a mask) at every pixel of the photo.

        They are sampled at the photo's pixel centres, without averaging over areas: a mean of points of two surfaces is on neither.
        Padding is not read. The result fits the upright photo; `PIL.ImageOps.exif_transpose` makes a photo as it was stored upright.

        Args:
            values: (h, w, …) of the model's image, without a batch axis.
            method: "nearest" takes the value of the pixel that a place is in; "linear" interpolates between the four pixels around it, also
                across the edge of an object, where there may be no surface. For a mask it is always "nearest".

        Returns:
            (height, width, …) of the photo: floating point, NaN where it was cropped off; for a mask booleans, False there.

        Raises:
            ImageError: the values are not of the model's image.
            OptionError: there is no such method.
        """
        if method not in _METHODS:
            raise OptionError(f"method {method!r} is not one of {', '.join(_METHODS)}")
        array = np.asarray(values)
        if array.shape[:2] != self.size:
            batch = array.shape[1:3] == self.size and array.shape[0] == 1
            hint = "; this has a batch axis: take [0]" if batch else ""
            raise ImageError(f"expected values of the model's image, ({self.size[0]}, {self.size[1]}, …); found {array.shape}{hint}")
        mask = array.dtype == bool
        if not (mask or np.issubdtype(array.dtype, np.floating)):
            array = array.astype(np.float32)
        linear = method == "linear" and not mask
        for axis in (0, 1):
            array = self._along(array, axis, linear)
        return array

    def padded(self, size: Size) -> "Placement":
        """This placement in the middle of a larger image, with padding around it. A side that grows must not have been cropped."""
        top, left = (start - (larger - side) // 2 for start, larger, side in zip(self.offset, size, self.size, strict=True))
        return dataclasses.replace(self, offset=(top, left), size=size)

    def window(self, resized: Image.Image, padding: tuple[int, int, int]) -> Image.Image:
        """The model's image, cut from the resized photo; padding has this colour."""
        (top, left), (height, width) = self.offset, self.size
        box = (left, top, left + width, top + height)
        if min(top, left) >= 0 and box[2] <= resized.width and box[3] <= resized.height:
            return resized.crop(box)
        image = Image.new("RGB", (width, height), padding)
        image.paste(resized, (-left, -top))
        return image

    @property
    def _scale(self) -> np.ndarray:
        """Rows and columns of the photo per row and column of the resized one."""
        return np.array(self.photo) / np.array(self.resized)

    @property
    def _shift(self) -> np.ndarray:
        """Row and column in the photo of the centre of the model's first pixel."""
        return (np.array(self.offset) + 0.5) * self._scale - 0.5

    def _along(self, array: np.ndarray, axis: int, linear: bool) -> np.ndarray:
        """The values at the photo's rows (axis 0) or columns (axis 1)."""
        places = (np.arange(self.photo[axis]) - self._shift[axis]) / self._scale[axis]
        seen = (places >= -0.5) & (places < self.size[axis] - 0.5)
        # The model's pixels that are part of the photo, not padding.
        first = max(0, -self.offset[axis])
        last = min(self.size[axis], self.resized[axis] - self.offset[axis]) - 1
        places = np.clip(places, first, last)
        low = np.floor(places if linear else places + 0.5).astype(int)
        values = np.take(array, low, axis)
        shape = tuple(-1 if i == axis else 1 for i in range(array.ndim))
        if linear:
            share = (places - low).reshape(shape).astype(array.dtype)
            # Exactly at a pixel, its neighbour must not count: it may be NaN or infinite.
            with np.errstate(invalid="ignore"):
                between = values * (1 - share) + np.take(array, np.minimum(low + 1, last), axis) * share
            values = np.where(share == 0, values, between)
        return np.where(seen.reshape(shape), values, array.dtype.type(False if array.dtype == bool else np.nan))


def _places(pixels: Places) -> Float[np.ndarray, "*N 2"]:
    places = np.asarray(pixels, np.float64)
    if places.ndim < 1 or places.shape[-1] != 2:
        raise ImageError(f"expected places (…, 2), column and row; found shape {places.shape}")
    return places
