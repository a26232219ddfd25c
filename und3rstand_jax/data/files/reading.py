"""Reads photos, depth and cameras from files. Any fault in a file becomes an UnreadableSet that names the file.

The unpacked size is read from a file's header and checked against a bound before anything is unpacked.
"""

import contextlib
import math
import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32, Float64, Shaped, UInt8, UInt16
from PIL import Image

from und3rstand_jax.data.files.npy import read_array, read_header
from und3rstand_jax.data.records import UnreadableSet, View
from und3rstand_jax.geometry.cameras import intrinsics_fault, pose_fault
from und3rstand_jax.support.errors import ImageError
from und3rstand_jax.support.files import open_regular
from und3rstand_jax.support.image_files import LARGEST_PIXELS, open_image, orientation
from und3rstand_jax.support.text import listed, one_line

_EIGHT_BIT_MODES = ("RGB", "RGBA", "RGBX", "L", "LA", "P", "CMYK", "YCbCr")

_SIXTEEN_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I")

_LARGEST_DEPTH = float(np.finfo(np.float32).max)

_AT_ONCE = 2**20  # values looked up at a time

_LARGEST_MEMBER = 2**20  # bytes that an array of a camera unpacks to, its header included

LISTED = 6  # names that a message lists at most


def found_in(folder: Path) -> str:
    """What is at `folder`, for messages about a wrong root: "the folder contains a.txt, b/"."""
    try:
        names = sorted(entry.name + "/" * entry.is_dir() for entry in os.scandir(folder))
    except FileNotFoundError:
        return "there is no such folder"
    except NotADirectoryError:
        return "that is a file"
    except (OSError, ValueError) as error:
        return f"the folder cannot be listed ({getattr(error, 'strerror', None) or error})"
    return f"the folder contains {listed(names, most=LISTED)}" if names else "the folder is empty"


def read_rgb(path: Path) -> UInt8[np.ndarray, "H W 3"]:
    """A photo's pixels as stored; transparency is dropped.

    A photo with an EXIF orientation is refused: nothing says whether depth and intrinsics belong to the photo before or after rotation.
    """
    with _naming(path), open_image(path) as image:
        _require_mode(image, path, _EIGHT_BIT_MODES, "an 8-bit photo")
        turn = orientation(image)
        if turn != 1:
            remedy = "rotate the pixels to match depth and intrinsics, or remove the tag"
            raise UnreadableSet(f"{path}: an EXIF tag rotates the photo (orientation {turn}): {remedy}")
        return np.asarray(image.convert("RGB"))


def read_mask(path: Path) -> UInt8[np.ndarray, "H W"]:
    """An 8-bit greyscale mask, a PNG."""
    with _naming(path), open_image(path, ("PNG",)) as image:
        _require_mode(image, path, ("1", *_EIGHT_BIT_MODES), "an 8-bit mask")
        return np.asarray(image.convert("L"))


def read_png16(path: Path) -> UInt16[np.ndarray, "H W"]:
    """Depth as stored in a 16-bit greyscale PNG."""
    with _naming(path), open_image(path, ("PNG",)) as image:
        _require_mode(image, path, _SIXTEEN_BIT_MODES, "depth in a 16-bit greyscale PNG")
        return np.asarray(image).astype(np.uint16, copy=False)


def looked_up(stored: UInt16[np.ndarray, "H W"], depths: Float64[np.ndarray, "65536"], path: Path) -> Float32[np.ndarray, "H W"]:
    """Depth from 16-bit values, by a table of the depth that each value stands for; allocates no float64 array of the image's size.

    Raises:
        UnreadableSet: a stored value stands for a depth beyond float32.
    """
    if (depths[: int(stored.max(initial=0)) + 1] > _LARGEST_DEPTH).any():
        raise UnreadableSet(_beyond(path))
    values = depths.clip(-_LARGEST_DEPTH, _LARGEST_DEPTH).astype(np.float32)
    found = np.empty(stored.shape, np.float32)
    flat, depth = stored.reshape(-1), found.reshape(-1)
    for start in range(0, flat.size, _AT_ONCE):
        depth[start : start + _AT_ONCE] = values[flat[start : start + _AT_ONCE]]
    return found


def read_npy(path: Path) -> Float32[np.ndarray, "H W"]:
    """Depth in an .npy file of integers or floats."""
    with _naming(path), open_regular(path) as stream:
        header = read_header(stream)
        if header.dtype.kind not in "iuf" or len(header.shape) != 2:
            raise UnreadableSet(f"{path}: expected depth of shape (height, width), found {header}")
        _require_pixels(path, math.prod(header.shape))
        return scaled(read_array(stream, os.fstat(stream.fileno()).st_size), 1.0, path)


def scaled(stored: Shaped[np.ndarray, "H W"], scale: float, path: Path) -> Float32[np.ndarray, "H W"]:
    """`stored` times `scale`, in float32.

    Raises:
        UnreadableSet: a depth is finite in the file, but exceeds the largest float32, 3.4e38, after scaling.
    """
    depth = np.empty(stored.shape, np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        # Multiplied in float64, a few values at a time, and rounded once.
        np.multiply(stored, np.float64(scale), out=depth, dtype=np.float64, casting="same_kind")
    if (np.isinf(depth) & np.isfinite(stored)).any():
        raise UnreadableSet(_beyond(path))
    return depth


def _beyond(path: Path) -> str:
    return f"{path}: contains depths that its scale takes beyond 3.4e38, the largest float32: write 0 where depth is unknown"


def read_exr(path: Path) -> Float32[np.ndarray, "H W"]:
    """Depth in an OpenEXR file with one channel. It uses the reference library, since builds of OpenCV 5 leave EXR out."""
    # Imported here: rendered scenes do not need it, and work without the extra that installs it.
    import OpenEXR

    with _naming(path):
        # The library itself prints details of every failure; a missing file or a pipe needs none.
        open_regular(path).close()
        with OpenEXR.File(str(path), header_only=True) as file:
            names = [channel.name for channel in file.header()["channels"]]
            values = sum(_exr_values(part.header) for part in file.parts)
        if len(names) != 1:
            raise UnreadableSet(f"{path}: expected one channel of depth, found {listed(names, most=LISTED) or 'none'}")
        _require_pixels(path, values)
        with OpenEXR.File(str(path), separate_channels=True) as file:
            [channel] = file.channels().values()
            return np.asarray(channel.pixels).astype(np.float32, copy=False)


def _exr_values(header: Mapping[str, object]) -> int:
    """Number of values in all channels of a part: the library reads every part at once."""
    (left, top), (right, bottom) = np.asarray(header["dataWindow"]).tolist()
    channels = header["channels"]
    assert isinstance(channels, list)
    return max(right - left + 1, 0) * max(bottom - top + 1, 0) * len(channels)


def read_npz(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> list[Float64[np.ndarray, "..."]]:
    """The arrays of numbers in an .npz file that `shapes` names, in its order and reshaped to it. Only these are unpacked."""
    arrays = []
    with _naming(path), open_regular(path) as stream, zipfile.ZipFile(stream) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist()]
        if any(name not in names for name in shapes):
            raise UnreadableSet(f"{path}: expected the arrays {', '.join(shapes)}, found {listed(names, most=LISTED) or 'none'}")
        for name, shape in shapes.items():
            size = archive.getinfo(f"{name}.npy").file_size
            if size > _LARGEST_MEMBER:
                raise UnreadableSet(f"{path}: expected {name} of shape {shape}, found {size / 2**20:.0f} MiB")
            with archive.open(f"{name}.npy") as member:
                header = read_header(member)
                if math.prod(header.shape) != math.prod(shape) or header.dtype.kind not in "iuf":
                    raise UnreadableSet(f"{path}: expected {name} of shape {shape}, found {header}")
                arrays.append(read_array(member, size).astype(np.float64).reshape(shape))
    return arrays


def to_view(
    image_path: Path,
    depth_path: Path,
    depth: Float32[np.ndarray, "H W"],
    intrinsics: Float[np.ndarray, "..."],
    cam2world: Float[np.ndarray, "..."],
) -> View:
    """A view: reads its photo and checks its geometry. Depth that is negative or not finite becomes 0, which means unknown.

    `depth` is changed in place.
    """
    for what, fault in (("the intrinsics matrix", intrinsics_fault(intrinsics)), ("the cam2world pose", pose_fault(cam2world))):
        if fault:
            raise UnreadableSet(f"{image_path}: {what} {fault}")
    image = read_rgb(image_path)
    require_one_size(depth, depth_path, image, image_path)
    depth[~(np.isfinite(depth) & (depth > 0))] = 0
    return View(image, depth, intrinsics, cam2world)


def require_one_size(found: Shaped[np.ndarray, "..."], path: Path, expected: Shaped[np.ndarray, "..."], expected_path: Path) -> None:
    """Raises UnreadableSet unless two images have the same size."""
    if found.shape[:2] == expected.shape[:2]:
        return
    size, expected_size = (f"{width}×{height}" for height, width in (found.shape[:2], expected.shape[:2]))
    message = f"{path}: has {size} pixels, {expected_path} has {expected_size}; they must have the same size"
    (height, width), (expected_height, expected_width) = found.shape[:2], expected.shape[:2]
    # The same scene, seen by a depth sensor or a network of lower resolution: the sides have the same proportion.
    if height < expected_height and abs(width / height * expected_height / expected_width - 1) < 0.02:
        message += f": shrink the photo to {size} and scale K with it, or enlarge this file, each pixel repeated rather than interpolated"
    raise UnreadableSet(message)


def _require_pixels(path: Path, count: int) -> None:
    if count > LARGEST_PIXELS:
        raise UnreadableSet(f"{path}: has {count / 1e6:.0f} million pixels, at most {LARGEST_PIXELS / 1e6:.0f} million are read")


def _require_mode(image: Image.Image, path: Path, modes: Sequence[str], expected: str) -> None:
    if image.mode not in modes:
        raise UnreadableSet(f"{path}: expected {expected}, found pixels of mode {image.mode}")


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turns whatever the block raises into an UnreadableSet that names the file."""
    try:
        yield
    except UnreadableSet:
        raise
    except ImageError as error:
        raise UnreadableSet(str(error)) from error
    except FileNotFoundError:
        raise UnreadableSet(f"{path}: there is no such file") from None
    except UnicodeEncodeError:
        raise UnreadableSet(f"{path}: OpenEXR cannot read a file whose name is not UTF-8: rename it") from None
    # Damaged files make Pillow, numpy, zipfile and OpenEXR raise nearly anything (OSError, SyntaxError, zlib.error, KeyError, …).
    except Exception as error:
        if isinstance(error, OSError) and error.strerror:
            raise UnreadableSet(f"{path}: cannot be read: {error.strerror}") from error
        raise UnreadableSet(f"{path}: cannot be read; it seems damaged ({one_line(error) or type(error).__name__})") from error
