"""Photos, depth and lists of any origin: what is refused by name, and what is never unpacked, waited for or believed."""

import io
import json
import os
import struct
import subprocess
import sys
import tracemalloc
import types
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from numpy.lib import format as npy_format
from PIL import Image

from tests.data_sets import make_views, write_blendedmvs, write_pairs, write_view
from und3rstand_jax.data.files import reading
from und3rstand_jax.data.files.file_sets import open_sets
from und3rstand_jax.data.files.reading import read_exr, read_mask, read_npy, read_npz, read_png16, read_rgb
from und3rstand_jax.data.records import UnreadableSet
from und3rstand_jax.model.images import load_image
from und3rstand_jax.model.photos import open_photo
from und3rstand_jax.support.errors import DataError, ImageError

SIZE = (48, 64)
ANYWHERE = Path("depth.png")


@pytest.fixture(scope="module")
def views():
    return make_views(6, SIZE, seed=3, spread=0.3)


def picture(height=32, width=32):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


# Formats


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n", "it seems to be PostScript"),
        (b"%PDF-1.7\n", "it seems to be PDF"),
        (b"v/1\x01" + bytes(60), "it seems to be OpenEXR"),
        (b"\x00\x00\x00\x18ftypcrx ", "it seems to be a camera's raw file"),
        (b"II*\x00" + bytes(60), "such as a camera's raw file"),
        (b"GIF", "convert it"),
    ],
)
def test_a_photo_of_another_format_is_refused_by_name_whatever_it_is_called(tmp_path, monkeypatch, content, found):
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a program was started"))
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=rf"photo.jpg is not an image in a supported format \(JPEG, PNG, .*{found}"):
        load_image(path)
    with pytest.raises(UnreadableSet, match=found):
        read_rgb(path)


@pytest.mark.parametrize("read", [read_png16, read_mask])
def test_depth_and_masks_are_png_only(tmp_path, read):
    picture().convert("L").save(tmp_path / "depth.png", "TIFF")
    with pytest.raises(UnreadableSet, match=r"depth.png is not an image in a supported format \(PNG\)"):
        read(tmp_path / "depth.png")


@pytest.mark.parametrize("tags", [{50706: b"\x01\x04\x00\x00"}, {254: 1}], ids=["DNG", "reduced"])
def test_the_preview_of_a_raw_file_is_never_taken_for_the_photo(tmp_path, tags):
    picture(120, 160).save(tmp_path / "photo.tif", tiffinfo=tags)
    with pytest.raises(ImageError, match="is a camera's raw file, which begins with a preview of 160×120: develop it"):
        load_image(tmp_path / "photo.tif", size=32)
    with pytest.raises(UnreadableSet, match="camera's raw file"):
        read_rgb(tmp_path / "photo.tif")
    picture(120, 160).save(tmp_path / "photo.tif")
    assert read_rgb(tmp_path / "photo.tif").shape == (120, 160, 3)


HEIC = b"\x00\x00\x00\x18ftypheic" + bytes(52)


def test_heic_names_the_package_it_needs(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / "photo.heic").write_bytes(HEIC)
    with pytest.raises(ImageError, match="photo.heic is a HEIC photo, .*: pip install pillow-heif"):
        load_image(tmp_path / "photo.heic")


def test_heic_is_read_where_its_package_is_installed(tmp_path, monkeypatch):
    class Heif(Image.Image):
        def __init__(self, stream, _):
            super().__init__()
            self._mode, self._size = "RGB", (32, 16)
            self.im = Image.new("RGB", (32, 16), (1, 2, 3)).im
            assert stream.read(12) == HEIC[:12]

    def register():
        Image.init()
        Image.register_open("HEIF", Heif, lambda head: head[4:12] == b"ftypheic")

    monkeypatch.setitem(sys.modules, "pillow_heif", types.SimpleNamespace(register_heif_opener=register))
    (tmp_path / "photo.heic").write_bytes(HEIC)
    try:
        assert open_photo(tmp_path / "photo.heic").getpixel((0, 0)) == (1, 2, 3)
    finally:
        Image.OPEN.pop("HEIF")
        Image.ID.remove("HEIF")


# Pipes


@pytest.mark.parametrize(
    "read", [read_rgb, read_png16, read_mask, read_npy, read_exr, lambda path: read_npz(path, {"pose": (4, 4)})], ids=range(6)
)
def test_a_pipe_is_refused_without_waiting(tmp_path, read):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UnreadableSet, match="pipe.* it is a pipe, expected a file"):
        read(tmp_path / "pipe")
    with pytest.raises(ImageError, match="it is a pipe, expected a file"):
        load_image(tmp_path / "pipe")


@pytest.mark.parametrize(
    ("kind", "name"),
    [("pairs", "pairs.json"), ("pairs", "pairs.jsonl"), ("co3d", "selected_seqs_train.json"), ("blendedmvs", "blendedmvs_pairs.npy")],
)
def test_a_list_that_is_a_pipe_is_refused_without_waiting(tmp_path, kind, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(DataError, match=f"{name}.* it is a pipe, expected a file"):
        open_sets(kind, tmp_path, "train")


# Sizes


def png(width, height, depth, colour):
    """A PNG that claims a size and has no pixels."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [13_000, 100_000])
def test_more_pixels_than_are_read_are_refused_before_they_are_unpacked(tmp_path, side):
    (tmp_path / "grey.png").write_bytes(png(side, side, 16, 0))
    (tmp_path / "colour.png").write_bytes(png(side, side, 8, 2))
    for read, name in ((load_image, "grey"), (load_image, "colour"), (read_png16, "grey"), (read_mask, "grey"), (read_rgb, "colour")):
        with pytest.raises((ImageError, UnreadableSet), match=r"has too many pixels \(.*at most 134 million are read\)"):
            read(tmp_path / f"{name}.png")


def peak_of(call):
    """Greatest memory that NumPy and Python held during a call, in bytes."""
    tracemalloc.start()
    try:
        result = call()
        return result, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_sixteen_bits_become_eight_exactly_and_in_little_memory():
    every = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    expected = np.rint(every.astype(np.float64) / 65535 * 255)
    np.testing.assert_array_equal(np.asarray(open_photo(Image.fromarray(every)))[..., 0], expected)
    large = Image.fromarray(np.full((3000, 3000), 40_000, np.uint16))
    photo, peak = peak_of(lambda: open_photo(large))
    assert photo.getpixel((2999, 2999)) == (156, 156, 156)
    assert peak < 80e6  # float64 of the image would be 72 MB alone, and was there three times


def test_depth_of_16_bits_is_scaled_exactly_and_in_little_memory():
    every = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    found = reading.looked_up(every, np.arange(2**16) * 0.001, ANYWHERE)
    np.testing.assert_array_equal(found, (every * np.float64(0.001)).astype(np.float32))
    large = np.full((3000, 3000), 40_000, np.uint16)
    found, peak = peak_of(lambda: reading.looked_up(large, np.arange(2**16) * 0.001, ANYWHERE))
    assert found[-1, -1] == np.float32(40) and peak < 60e6
    stored = np.random.default_rng(0).random((3000, 3000), np.float32)
    found, peak = peak_of(lambda: reading.scaled(stored, 0.3, ANYWHERE))
    np.testing.assert_array_equal(found[:9], (stored[:9] * np.float64(0.3)).astype(np.float32))
    assert peak < 60e6


def npy(shape, dtype, content=b"", version=(1, 0)):
    """An .npy file whose header claims what it likes."""
    out = io.BytesIO()
    header = {"descr": npy_format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    (npy_format.write_array_header_1_0 if version == (1, 0) else npy_format.write_array_header_2_0)(out, header)
    return out.getvalue() + content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (npy((30_000_000, 30_000_000), "u1"), "has 900000000 million pixels, at most 134 million are read"),
        (npy((10_000, 10_000), "f8", bytes(99)), "its header says 800000000 bytes, the file has"),
        (npy((4, 4), "f8", bytes(100)), "cannot be read; it seems damaged .*Failed to read all data"),
        (npy((4, 4, 4), "f4", bytes(256)), r"expected depth of shape \(height, width\), found an array of float32 of shape \(4, 4, 4\)"),
        (npy((4, 4), "O"), "found an array of object"),
        (npy((10**9, 10**9), "V0"), r"found an array of \|V0"),
        (npy((4, 4), "f4", bytes(64))[:8] + b"\x00\x30" + bytes(70), "cannot be read; it seems damaged"),
        (b"\x93NUMPY\x03\x00" + bytes(80), "version 3.0 of the .npy format"),
    ],
)
def test_an_npy_header_is_not_believed(tmp_path, content, message):
    (tmp_path / "depth.npy").write_bytes(content)

    def read():
        with pytest.raises(UnreadableSet, match=f"depth.npy: .*{message}") as caught:
            read_npy(tmp_path / "depth.npy")
        assert "\n" not in str(caught.value)

    assert peak_of(read)[1] < 5e6


@pytest.mark.parametrize(
    "member",
    [
        npy((2**21,), "f8", bytes(2**24)),  # 16 MiB for a pose, 16 kB in the file
        npy((4, 4), "f8", bytes(2**24)),
        b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**24) + bytes(2**24),  # a header of 16 MiB
        npy((10**12,), "f8"),
        npy((4, 4), "f8", bytes(9)),
        npy((4, 4), "O"),
    ],
    ids=["large", "long", "header", "claims", "short", "objects"],
)
def test_an_npz_member_of_another_size_is_not_unpacked(tmp_path, member):
    with zipfile.ZipFile(tmp_path / "camera.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("pose.npy", member)

    def read():
        with pytest.raises(UnreadableSet, match=r"camera.npz: (expected pose of shape \(4, 4\), found|cannot be read)"):
            read_npz(tmp_path / "camera.npz", {"pose": (4, 4)})

    assert peak_of(read)[1] < 2e6


def test_other_members_of_an_npz_are_left_alone(tmp_path):
    np.savez_compressed(tmp_path / "camera.npz", pose=np.eye(4), more=np.zeros(2**21))
    ([pose], peak) = peak_of(lambda: read_npz(tmp_path / "camera.npz", {"pose": (4, 4)}))
    np.testing.assert_array_equal(pose, np.eye(4))
    assert peak < 2e6


def test_an_exr_with_too_many_values_is_refused_by_its_header(tmp_path, views, monkeypatch):
    write_blendedmvs(tmp_path, {(1, 1): views[:2]}, [(1, 1, 0, 1)])
    [path, _] = sorted(tmp_path.rglob("*.exr"))
    np.testing.assert_array_equal(read_exr(path), views[0].depth.astype(np.float32))
    monkeypatch.setattr(reading, "LARGEST_PIXELS", 48 * 64 - 1)
    with pytest.raises(UnreadableSet, match="million pixels, at most"):
        read_exr(path)


LISTED = [("seq_high", "<u8"), ("seq_low", "<u8"), ("img1", "<i4"), ("img2", "<i4")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (npy((10**12,), LISTED), "seems damaged: its header says 24000000000000 bytes"),
        (npy((3,), [(name, "V0") for name, _ in LISTED]), "expected the fields seq_high, seq_low, img1, img2, integers"),
        (npy((3,), [(name, "f8") for name, _ in LISTED], bytes(96)), "integers, found"),
        (npy((1,), LISTED, struct.pack("<QQii", 1, 1, -1, 0)), "found img1 from -1 to -1"),
        (npy((3,), "O"), "found an array of object"),
        (b"\x93NUMPY\x01\x00\x00\x30{", "seems damaged"),
    ],
)
def test_a_blendedmvs_list_is_not_believed(tmp_path, content, message):
    (tmp_path / "blendedmvs_pairs.npy").write_bytes(content)
    with pytest.raises(DataError, match=f"blendedmvs_pairs.npy .*{message}") as caught:
        open_sets("blendedmvs", tmp_path, "train")
    assert "\n" not in str(caught.value)


# EXIF


@pytest.mark.parametrize(
    ("suffix", "orientation"),
    [*((suffix, number) for suffix in ("jpg", "png", "tif") for number in (0, 1, 9, 65535)), ("jpg", None), ("png", None)],
)
def test_an_orientation_out_of_range_or_damaged_metadata_turn_nothing(tmp_path, suffix, orientation):
    path = tmp_path / f"photo.{suffix}"
    plain = tmp_path / f"plain.{suffix}"
    picture(32, 48).save(plain)
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    damaged = b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\xff\xff\x01\x12"
    picture(32, 48).save(path, exif=damaged if orientation is None else exif)
    np.testing.assert_array_equal(read_rgb(path), read_rgb(plain))
    np.testing.assert_array_equal(load_image(path, size=32), load_image(plain, size=32))


# Depth


@pytest.mark.parametrize("kind", ["png", "npy"])
def test_a_scale_that_overflows_is_named(tmp_path, views, kind):
    write_pairs(tmp_path, views[:2], [(0, 1)], kind, {"depth_scale": 1e300})
    with pytest.raises(UnreadableSet, match=f"v0.{kind}: contains depths that its scale takes beyond 3.4e38"):
        open_sets("pairs", tmp_path, "train").read(0)


def test_depth_beyond_float32_is_named_and_infinite_depth_is_unknown(tmp_path):
    np.save(tmp_path / "depth.npy", np.array([[1.0, np.inf, np.nan]]))
    np.testing.assert_array_equal(read_npy(tmp_path / "depth.npy"), np.array([[1, np.inf, np.nan]], np.float32))
    np.save(tmp_path / "depth.npy", np.array([[1.0, 1e39]]))
    with pytest.raises(UnreadableSet, match="beyond 3.4e38"):
        read_npy(tmp_path / "depth.npy")


def test_a_depth_map_smaller_than_its_photo_gets_advice(tmp_path, views):
    write_pairs(tmp_path, views[:2], [(0, 1)], "npy")
    np.save(tmp_path / "v0.npy", views[0].depth[::2, ::2])
    with pytest.raises(UnreadableSet, match="has 32×24 pixels, .* has 64×48; .*: shrink the photo to 32×24 and scale K"):
        open_sets("pairs", tmp_path, "train").read(0)


# Lists


def test_lines_of_a_list_may_hold_any_character_and_a_byte_order_mark(tmp_path, views):
    one, two = (write_view(tmp_path, f"v\u2028{number}\x85", view) for number, view in enumerate(views[:2]))
    text = json.dumps({"view1": one, "view2": two}, ensure_ascii=False) + "\n"
    assert "\u2028" in text
    (tmp_path / "pairs.jsonl").write_text(text, encoding="utf-8-sig")
    assert len(open_sets("pairs", tmp_path, "train")) == 1


@pytest.mark.parametrize(
    ("view", "message"),
    [
        (None, "input should be"),
        ({"K": "x"}, "K: input should be a valid array"),
        ({"K": [[10**400, 0, 1], [0, 1, 1], [0, 0, 1]]}, "K has numbers that are not finite"),
        ({"K": [[True, 0, 1], [0, 1, 1], [0, 0, 1]]}, r"K\[0\]\[0\]: input should be a valid number"),
        ({"depth_scale": float("inf")}, "depth_scale: input should be less than inf"),
        ({"image": "a" * 5000}, "there is no image"),
        ({"image": "a\0b"}, "there is no image"),
        ({"image": "/dev/zero"}, "there is no image"),
    ],
)
def test_a_fault_of_a_view_is_one_line(tmp_path, views, view, message):
    listed = write_pairs(tmp_path, views[:2], [(1, 0)])
    content = json.loads(listed.read_text())
    content["views"]["v0"] = view and content["views"]["v0"] | view
    listed.write_text(json.dumps(content))
    with pytest.raises(DataError, match=message) as caught:
        open_sets("pairs", tmp_path, "train")
    head, fault = str(caught.value).splitlines()
    assert head.endswith("pairs.json has 1 fault:") and fault.startswith("view 'v0'")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"pairs": [' * 300, "[1e999999999999", "9" * 10_000, '"\\ud800"', "\xff", "3", "{}"])
@pytest.mark.parametrize("name", ["pairs.json", "pairs.jsonl"])
def test_a_list_of_nonsense_is_told_in_one_line_each(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="latin-1")
    with pytest.raises(DataError, match=name) as caught:
        open_sets("pairs", tmp_path, "train")
    assert len(str(caught.value).splitlines()) <= 2 and len(str(caught.value)) < 1000
