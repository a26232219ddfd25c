"""Opens image files: regular files of a few common formats and limited size, but not the previews that camera raw files begin with.

Pillow reads many more formats. Some start another program (EPS starts Ghostscript), and most are never used for photos. A format that
is not listed here is refused by its name, whatever the file is called.
"""

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence
from typing import BinaryIO

from PIL import Image, TiffImagePlugin

from und3rstand_jax.support.errors import ImageError
from und3rstand_jax.support.files import open_regular
from und3rstand_jax.support.text import one_line

PHOTO_FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "BMP", "GIF", "PPM", "JPEG2000", "AVIF", "HEIF")
"""The formats, by Pillow's names. HEIF needs the package pillow-heif, which is used if it is installed."""

LARGEST_PIXELS = 2**27
"""The most pixels of an image: 134 million. A file of a few hundred kB may claim any number, and each takes up to 10 bytes to read."""

_OTHERS = (
    (0, b"%!PS", "PostScript"),
    (0, b"\xc5\xd0\xd3\xc6", "PostScript"),
    (0, b"%PDF", "PDF"),
    (0, b"8BPS", "Photoshop"),
    (0, b"v/1\x01", "OpenEXR"),
    (0, b"\xff\x0a", "JPEG XL"),
    (4, b"JXL ", "JPEG XL"),
    (0, b"<svg", "SVG"),
    (0, b"<?xml", "XML"),
    (0, b"FUJIFILMCCD-RAW", "a camera's raw file"),
    (4, b"ftypcrx", "a camera's raw file"),
    (0, b"IIRO", "a camera's raw file"),
    (0, b"IIU\x00", "a camera's raw file"),
    (0, b"II*\x00", "a TIFF that Pillow cannot read, such as a camera's raw file"),
    (0, b"MM\x00*", "a TIFF that Pillow cannot read, such as a camera's raw file"),
    (0, b"\x93NUMPY", "a NumPy array"),
    (0, b"PK\x03\x04", "a ZIP archive or .npz file"),
)
"""Offset in the file, the bytes there, and the format that they indicate."""

_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")

_ORIENTATION = 0x0112
_DNG_VERSION, _SUBFILE_TYPE = 50706, 254

_logger = logging.getLogger(__name__)


@contextlib.contextmanager
def open_image(file: str | os.PathLike[str], formats: Sequence[str] = PHOTO_FORMATS) -> Iterator[Image.Image]:
    """Yields an open image. Its pixels are decoded on first use, and only then may prove to be damaged.

    Args:
        file: a regular file.
        formats: the formats to accept, by Pillow's names.

    Raises:
        ImageError: the file is missing, cannot be opened, has another format, begins with a mere preview, or has more than
            LARGEST_PIXELS pixels.
    """
    name = os.fspath(file)
    try:
        stream = open_regular(name)
    except FileNotFoundError:
        raise ImageError(f"no image at {name}: there is no such file") from None
    except (OSError, ValueError) as error:
        raise ImageError(f"cannot open {name}: {getattr(error, 'strerror', None) or error}") from error
    head = stream.read(64)
    stream.seek(0)
    with stream, _opened(stream, head, name, formats) as image:
        if image.width * image.height > LARGEST_PIXELS:
            raise ImageError(_too_large(name, f"{image.width}×{image.height}"))
        _refuse_previews(image, head, name)
        yield image


def orientation(image: Image.Image) -> int:
    """The photo's EXIF orientation, 2 to 8, or 1 for upright. Metadata that is damaged or out of range counts as 1.

    Pillow turns a TIFF upright when it decodes it; after that, this is 1.
    """
    try:
        found = image.getexif().get(_ORIENTATION)
    except Exception as error:  # of nearly any kind, as for damaged pixels
        _logger.info("damaged EXIF metadata is ignored: %s", one_line(error))
        return 1
    return found if isinstance(found, int) and 2 <= found <= 8 else 1


def _opened(stream: BinaryIO, head: bytes, name: str, formats: Sequence[str]) -> Image.Image:
    if head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS and "HEIF" in formats:
        _register_heif(name)
    Image.init()
    known = [kind for kind in formats if kind in Image.OPEN]
    try:
        return Image.open(stream, formats=known)
    except Image.UnidentifiedImageError:
        kind = next((kind for start, magic, kind in _OTHERS if head[start:].startswith(magic)), None)
        found = f": it seems to be {kind}" if kind else ""
        expected = ", ".join(kind for kind in formats if kind in known or kind == "HEIF")
        raise ImageError(f"{name} is not an image in a supported format ({expected}){found}; convert it to PNG or JPEG") from None
    except Image.DecompressionBombError:
        raise ImageError(_too_large(name, "more than Pillow opens")) from None
    # A nonsense header makes Pillow's readers raise nearly anything (OSError, ValueError, struct.error, …).
    except Exception as error:
        raise ImageError(f"cannot read {name}, the file seems damaged: {one_line(error) or type(error).__name__}") from error


def _register_heif(name: str) -> None:
    try:
        import pillow_heif  # type: ignore[import-not-found,unused-ignore]
    except ImportError as error:
        raise ImageError(
            f"{name} is a HEIC photo, which Pillow alone cannot read: pip install pillow-heif, or convert it to PNG or JPEG"
        ) from error
    pillow_heif.register_heif_opener()


def _refuse_previews(image: Image.Image, head: bytes, name: str) -> None:
    """A camera's raw file (DNG, NEF, ARW, CR2, …) is a TIFF whose first image is a small preview."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return
    kind = image.tag_v2.get(_SUBFILE_TYPE, 0)
    reduced = isinstance(kind, int) and kind & 1
    if reduced or _DNG_VERSION in image.tag_v2 or head[8:10] == b"CR":
        size = f"{image.width}×{image.height}"
        raise ImageError(f"{name} is a camera's raw file, which begins with a preview of {size}: develop it to PNG, JPEG or TIFF first")


def _too_large(name: str, pixels: str) -> str:
    return f"{name} has too many pixels ({pixels}; at most {LARGEST_PIXELS / 1e6:.0f} million are read): make it smaller first"
