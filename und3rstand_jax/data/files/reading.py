"""Reads photos, depth and cameras from files. Whatever is wrong with a file becomes an UnreadablePair that names it."""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32, Float64, Shaped, UInt8, UInt16
from PIL import Image

from und3rstand_jax.data.records import UnreadablePair, View
from und3rstand_jax.geometry.cameras import intrinsics_fault, pose_fault

_EIGHT_BIT_MODES = ("RGB", "RGBA", "RGBX", "L", "LA", "P", "CMYK", "YCbCr")

_SIXTEEN_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I")

_EXIF_ORIENTATION = 0x0112


def found_in(folder: Path) -> str:
    """What is at `folder`, for messages about a wrong root: "the folder holds a.txt, b/"."""
    if not folder.exists():
        return "there is no such folder"
    if not folder.is_dir():
        return "that is a file"
    names = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir())
    if not names:
        return "the folder is empty"
    return f"the folder holds {', '.join(names[:6])}{f' and {len(names) - 6} more' if len(names) > 6 else ''}"


def read_rgb(path: Path) -> UInt8[np.ndarray, "H W 3"]:
    """A photo's pixels as stored; transparency is dropped.

    A photo with an EXIF orientation is refused: nothing says whether depth and intrinsics belong to the photo before or after rotation.
    """
    with _naming(path), Image.open(path) as image:
        _require_mode(image, path, _EIGHT_BIT_MODES, "an 8-bit photo")
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
        if orientation != 1:
            remedy = "rotate the pixels to match depth and intrinsics, or remove the tag"
            raise UnreadablePair(f"{path}: an EXIF tag rotates the photo (orientation {orientation}): {remedy}")
        return np.asarray(image.convert("RGB"))


def read_mask(path: Path) -> UInt8[np.ndarray, "H W"]:
    """An 8-bit greyscale mask."""
    with _naming(path), Image.open(path) as image:
        _require_mode(image, path, ("1", *_EIGHT_BIT_MODES), "an 8-bit mask")
        return np.asarray(image.convert("L"))


def read_png16(path: Path) -> UInt16[np.ndarray, "H W"]:
    """Depth as stored in a 16-bit greyscale PNG."""
    with _naming(path), Image.open(path) as image:
        _require_mode(image, path, _SIXTEEN_BIT_MODES, "depth in a 16-bit greyscale PNG")
        return np.asarray(image).astype(np.uint16)


def read_npy(path: Path) -> Float32[np.ndarray, "H W"]:
    """Depth in an .npy file of integers or floats."""
    with _naming(path):
        stored = np.load(path, allow_pickle=False)
        if not isinstance(stored, np.ndarray) or stored.dtype.kind not in "iuf" or stored.ndim != 2:
            found = f"an array of {stored.dtype} of shape {stored.shape}" if isinstance(stored, np.ndarray) else "an archive"
            raise UnreadablePair(f"{path}: expected depth of shape (height, width), found {found}")
        return stored.astype(np.float32)


def read_exr(path: Path) -> Float32[np.ndarray, "H W"]:
    """Depth in an OpenEXR file with one channel. Read by the reference library, since builds of OpenCV 5 leave EXR out."""
    # Imported here: rendered scenes need none of this, and come without the extra that brings it.
    import OpenEXR

    # The library itself prints details of every failure; a missing file needs none.
    if not path.is_file():
        raise UnreadablePair(f"{path}: there is no such file")
    with _naming(path), OpenEXR.File(str(path), separate_channels=True) as file:
        channels = {name: np.asarray(channel.pixels) for name, channel in file.channels().items()}
    if len(channels) != 1:
        raise UnreadablePair(f"{path}: expected one channel of depth, found {', '.join(channels) or 'none'}")
    return next(iter(channels.values())).astype(np.float32)


def read_npz(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> list[Float64[np.ndarray, "..."]]:
    """Arrays of an .npz file by name, in the order of `shapes` and reshaped to them."""
    with _naming(path), np.load(path, allow_pickle=False) as stored:
        missing = [name for name in shapes if name not in stored]
        if missing:
            raise UnreadablePair(f"{path}: expected the arrays {', '.join(shapes)}, found {', '.join(stored) or 'none'}")
        arrays = [np.asarray(stored[name], np.float64) for name in shapes]
    for (name, shape), array in zip(shapes.items(), arrays, strict=True):
        if array.size != math.prod(shape):
            raise UnreadablePair(f"{path}: expected {name} of shape {shape}, found {array.shape}")
    return [array.reshape(shape) for array, shape in zip(arrays, shapes.values(), strict=True)]


def to_view(
    image_path: Path,
    depth_path: Path,
    depth: Shaped[np.ndarray, "H W"],
    intrinsics: Float[np.ndarray, "..."],
    cam2world: Float[np.ndarray, "..."],
) -> View:
    """A view of a photo, read here, and its geometry, checked here; depth that is negative or not finite becomes 0, unknown."""
    for what, fault in (("the intrinsics matrix", intrinsics_fault(intrinsics)), ("the cam2world pose", pose_fault(cam2world))):
        if fault:
            raise UnreadablePair(f"{image_path}: {what} {fault}")
    image = read_rgb(image_path)
    require_one_size(depth, depth_path, image, image_path)
    known = np.isfinite(depth) & (depth > 0)
    return View(image, np.where(known, depth, 0).astype(np.float32), intrinsics, cam2world)


def require_one_size(found: Shaped[np.ndarray, "..."], path: Path, expected: Shaped[np.ndarray, "..."], expected_path: Path) -> None:
    """Raises UnreadablePair unless two images have one size."""
    if found.shape[:2] != expected.shape[:2]:
        size, expected_size = (f"{width}×{height}" for height, width in (found.shape[:2], expected.shape[:2]))
        raise UnreadablePair(f"{path}: has {size} pixels, {expected_path} has {expected_size}; they must have one size")


def _require_mode(image: Image.Image, path: Path, modes: Sequence[str], expected: str) -> None:
    if image.mode not in modes:
        raise UnreadablePair(f"{path}: expected {expected}, found pixels of mode {image.mode}")


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turns whatever the block raises into an UnreadablePair that names the file."""
    try:
        yield
    except UnreadablePair:
        raise
    except FileNotFoundError:
        raise UnreadablePair(f"{path}: there is no such file") from None
    except Image.UnidentifiedImageError:
        raise UnreadablePair(f"{path}: is not an image in a format that Pillow reads") from None
    # Damaged files make Pillow, numpy, zipfile and OpenEXR raise nearly anything (OSError, SyntaxError, zlib.error, KeyError, …).
    except Exception as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UnreadablePair(f"{path}: cannot be read, it seems damaged ({reason})") from error
