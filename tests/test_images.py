"""Preprocessing against the arithmetic of the facts, worked out here on its own, and every kind of image Pillow opens."""

import numpy as np
import pytest
from PIL import Image

from und3rstand_jax.model.images import load_image, to_uint8
from und3rstand_jax.support.errors import UserError


def picture(width, height, seed=0):
    """A picture whose every pixel differs from its neighbours."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def pixels(photo, *args, **options):
    return to_uint8(load_image(photo, *args, **options))[0]


@pytest.mark.parametrize(
    ("width", "height"), [(640, 480), (480, 640), (512, 512), (513, 512), (37, 101), (1000, 999), (300, 700), (224, 224), (50, 512), (1, 1)]
)
def test_probe_preprocessing_is_the_facts_arithmetic(width, height):
    image = picture(width, height)
    # Short side to 512, long side = int(512·long/short), centre crop with offset round((size − 512)/2).
    wide = (int(512 * width / height), 512) if width > height else (512, int(512 * height / width))
    left, top = round((wide[0] - 512) / 2), round((wide[1] - 512) / 2)
    expected = np.asarray(image.resize(wide, Image.Resampling.BILINEAR))[top : top + 512, left : left + 512]
    result = load_image(image)
    assert (result.shape, result.dtype) == ((1, 512, 512, 3), np.float32)
    np.testing.assert_array_equal(to_uint8(result)[0], expected)


def test_the_offset_of_an_odd_margin_rounds_to_even():
    # 516 wide would give offset 2; 515 gives 1.5, which rounds to 2; 513 gives 0.5, which rounds to 0.
    image = picture(515, 512)
    np.testing.assert_array_equal(pixels(image), np.asarray(image)[:, 2:514])
    image = picture(512, 513)
    np.testing.assert_array_equal(pixels(image), np.asarray(image)[:512])


# (width, height) of the photo, size -> (left, top, right, bottom) of the crop, size it is taken from; by hand.
DUST3R = [
    ((640, 480), 512, (512, 384), (0, 0, 512, 384)),
    ((480, 640), 512, (384, 512), (0, 0, 384, 512)),
    ((1000, 700), 512, (512, 358), (0, 3, 512, 355)),  # 358.4 -> 358; half height 358 // 16 · 8 = 176 about 179
    ((701, 1003), 512, (358, 512), (3, 0, 355, 512)),
    ((100, 75), 512, (512, 384), (0, 0, 512, 384)),  # enlarged
    ((512, 333), 512, (512, 333), (0, 6, 512, 326)),  # 2 · 166 = 332; half height 160 about 166
    ((600, 600), 512, (512, 512), (0, 64, 512, 448)),  # a square is cropped to 4:3
    ((600, 600), 400, (400, 400), (0, 56, 400, 344)),  # 3/4 of 400 is no multiple of 16: 288
    ((640, 480), 224, (299, 224), (37, 0, 261, 224)),  # 224 · 4/3 = 298.7 -> 299, centre 149
    ((480, 640), 224, (224, 299), (0, 37, 224, 261)),
    ((500, 500), 224, (224, 224), (0, 0, 224, 224)),
    ((100, 50), 224, (448, 224), (112, 0, 336, 224)),
]


@pytest.mark.parametrize(("photo", "size", "resized", "box"), DUST3R)
def test_dust3r_preprocessing_is_the_facts_arithmetic(photo, size, resized, box):
    image = picture(*photo)
    shrinks = max(resized) < max(photo)
    expected = image.resize(resized, Image.Resampling.LANCZOS if shrinks else Image.Resampling.BICUBIC).crop(box)
    result = pixels(image, "dust3r", size)
    assert result.shape[0] % 16 == result.shape[1] % 16 == 0
    np.testing.assert_array_equal(result, np.asarray(expected))


def test_square_ok_keeps_a_square():
    image = picture(512, 512)
    np.testing.assert_array_equal(pixels(image, "dust3r", square_ok=True), np.asarray(image))


@pytest.mark.parametrize("preprocessing", ["probe", "dust3r"])
def test_sizes_are_always_multiples_of_16(preprocessing):
    rng = np.random.default_rng(1)
    for width, height, size in rng.integers((40, 40, 4), (300, 300, 20), (40, 3)):
        if preprocessing == "dust3r" and 16 * size * min(width, height) < 17 * max(width, height):
            continue
        shape = load_image(picture(width, height), preprocessing, 16 * int(size)).shape
        assert shape[1] % 16 == shape[2] % 16 == 0 and min(shape) > 0


def test_values_are_scaled_to_minus_one_to_one_and_back():
    levels = np.repeat(np.arange(256, dtype=np.uint8), 3).reshape(16, 16, 3)
    result = load_image(Image.fromarray(levels), size=16)
    np.testing.assert_allclose(result[0], (levels.astype(np.float64) / 255 - 0.5) / 0.5, atol=1e-7)
    assert result.min() == -1 and result.max() == 1
    np.testing.assert_array_equal(to_uint8(result)[0], levels)
    np.testing.assert_array_equal(to_uint8(np.array([[[-2.0, 0.0, 3.0]]], np.float32)), [[[0, 128, 255]]])


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("preprocessing", ["probe", "dust3r"])
def test_exif_orientation_is_applied(tmp_path, orientation, preprocessing):
    upright = np.asarray(picture(48, 32))
    # What the camera stored, so that the orientation tag (EXIF 2.3, table 6) turns it upright again.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    image = Image.fromarray(np.ascontiguousarray(stored))
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(tmp_path / "turned.png", exif=exif)
    size = 32 if preprocessing == "probe" else 48
    expected = upright[:, 8:40] if preprocessing == "probe" else upright
    np.testing.assert_array_equal(pixels(tmp_path / "turned.png", preprocessing, size), expected)


def gray(*values):
    return np.repeat(np.array(values, np.uint8)[:, None], 3, axis=1)


def first_pixels(image, count=3):
    """The left of a 16-pixel row, as the model sees it."""
    return pixels(image, size=16)[0, :count]


def row(values, dtype):
    """A 16×16 image with these values at the left of every row."""
    array = np.zeros((16, 16), dtype)
    array[:, : len(values)] = values
    return array


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.fromarray(row([0, 100, 255], np.uint8)), gray(0, 100, 255)),
        (Image.fromarray(row([0, 257 * 100, 65535], np.uint16)), gray(0, 100, 255)),
        (Image.fromarray(row([0, 257 * 100, 65535], np.int32)), gray(0, 100, 255)),
        (Image.fromarray(row([0, 100, 255], np.int32)), gray(0, 100, 255)),
        (Image.fromarray(row([0.0, 0.2, 1.0], np.float32)), gray(0, 51, 255)),
        (Image.fromarray(row([np.nan, 51, 255], np.float32)), gray(0, 51, 255)),
        (Image.fromarray(row([0, 255, 0], np.uint8)).convert("1"), gray(0, 255, 0)),
        (Image.new("RGBA", (16, 16), (10, 20, 30, 0)), [[10, 20, 30]] * 3),
        (Image.new("LA", (16, 16), (77, 128)), gray(77, 77, 77)),
        (Image.new("CMYK", (16, 16), (0, 255, 255, 0)), [[255, 0, 0]] * 3),
        (Image.new("RGB", (16, 16), (1, 2, 3)).quantize(4), [[1, 2, 3]] * 3),
        (Image.new("YCbCr", (16, 16), (90, 128, 128)), gray(90, 90, 90)),
    ],
    ids=["L", "I;16", "I of 16 bits", "I of 8 bits", "F to 1", "F to 255", "1", "RGBA", "LA", "CMYK", "P", "YCbCr"],
)
def test_every_mode_becomes_rgb(image, expected):
    np.testing.assert_array_equal(first_pixels(image), expected)


def test_a_16_bit_png_keeps_its_greys(tmp_path):
    Image.fromarray(row([0, 257 * 100, 65535], np.uint16)).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(first_pixels(tmp_path / "deep.png"), gray(0, 100, 255))


@pytest.mark.filterwarnings("error")
def test_of_an_animation_the_first_frame_is_taken(tmp_path):
    frames = [Image.new("RGB", (16, 16), color) for color in ((200, 0, 0), (0, 200, 0))]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:], transparency=1)
    np.testing.assert_array_equal(first_pixels(tmp_path / "moving.gif"), [[200, 0, 0]] * 3)


def test_an_image_that_is_given_open_is_left_as_it_was():
    image = picture(40, 30)
    before = image.tobytes()
    load_image(image, "dust3r", 32)
    assert (image.size, image.tobytes()) == ((40, 30), before)


def damaged(tmp_path):
    picture(64, 64).save(tmp_path / "cut.png")
    whole = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    return tmp_path / "cut.png"


def test_what_is_no_image_is_refused_in_a_sentence(tmp_path):
    (tmp_path / "notes.txt").write_text("not a picture")
    (tmp_path / "empty.png").write_bytes(b"")
    for path, message in [
        (tmp_path / "missing.png", "no image at .*missing.png: there is no such file"),
        (tmp_path / "notes.txt", "notes.txt is not an image in a supported format"),
        (tmp_path / "empty.png", "empty.png is not an image"),
        (tmp_path, "cannot open .*: it is a folder, expected a file"),
        (damaged(tmp_path), "cannot read .*cut.png, the file seems damaged"),
    ]:
        with pytest.raises(UserError, match=message):
            load_image(path)


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((64, 64), {"size": 100}, "image size 100 must be a positive multiple of 16"),
        ((64, 64), {"size": 0}, "multiple of 16"),
        ((64, 64), {"preprocessing": "dust3r", "size": -5}, "must be positive"),
        ((64, 64), {"preprocessing": "dust3r", "size": 16}, "64×64 pixels leaves 16×0 at size 16"),
        ((1000, 20), {"preprocessing": "dust3r"}, "1000×20 pixels leaves 512×0 at size 512"),
        ((3000, 1), {"preprocessing": "dust3r"}, "3000×1 pixels leaves 512×0"),
        ((100000, 2), {}, "would be resized to 25600000×512"),
    ],
)
def test_sizes_that_leave_nothing_are_refused(shape, options, message):
    with pytest.raises(UserError, match=message):
        load_image(picture(*shape), **options)


def test_an_unknown_preprocessing_is_refused(unchecked):
    with pytest.raises(UserError, match="'other' is not one of probe, dust3r"):
        load_image(picture(64, 64), preprocessing="other")
