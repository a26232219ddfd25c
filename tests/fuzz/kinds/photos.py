"""Photos in every format, with and without EXIF."""

import functools
import io
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tests.fuzz.contract import Files, Kind


def encoded(image: object, form: str, **options: object) -> bytes:
    """An image as a file of a format."""
    from PIL import Image

    assert isinstance(image, Image.Image)
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def huge_png(side: int, bits: int = 16) -> bytes:
    """A greyscale PNG of a few kilobytes that unpacks to side · side pixels."""
    row = bytes(1 + side * bits // 8)
    packer = zlib.compressobj(9)
    body = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", side, side, bits, 0, 0, 0, 0)), (b"IDAT", body), (b"IEND", b""))
    packed = b"".join(struct.pack(">I", len(part)) + name + part + struct.pack(">I", zlib.crc32(name + part)) for name, part in chunks)
    return b"\x89PNG\r\n\x1a\n" + packed


@functools.cache
def _seeds() -> Sequence[Files]:
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 255, (40, 48, 3), np.uint8)
    image = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x9003] = 6, "camera", "2020:01:01 00:00:00"
    grey = Image.fromarray(pixels[..., 0].astype(np.uint16) * 200)
    contents = [
        encoded(image, "JPEG"),
        encoded(image, "JPEG", exif=exif, progressive=True, icc_profile=b"profile", comment="comment"),
        encoded(image, "PNG", exif=exif),
        encoded(image.quantize(7), "PNG", transparency=3, dpi=(72, 72)),
        encoded(grey, "PNG"),
        encoded(image, "TIFF", exif=exif),
        encoded(grey, "TIFF", compression="tiff_lzw"),
        encoded(Image.fromarray(pixels[..., 0].astype(np.float32)), "TIFF"),
        encoded(image, "GIF", save_all=True, append_images=[image.rotate(90)], loop=3),
        encoded(image, "WEBP", exif=exif),
        encoded(image, "WEBP", save_all=True, append_images=[image.rotate(90)], lossless=True),
        encoded(image, "BMP"),
        encoded(image, "PPM"),
        encoded(image, "EPS"),
        huge_png(13_000),
    ]
    return [{"photo.jpg": content} for content in contents]


def _load(folder: Path) -> None:
    from und3rstand_jax.model.images import load_image

    load_image(folder / "photo.jpg", "probe", 32)
    load_image(folder / "photo.jpg", "dust3r", 32, square_ok=True)
    load_image(folder / "photo.jpg", "vggt", 28)


KINDS = (Kind("photo", _seeds, _load),)
