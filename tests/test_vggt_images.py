"""VGGT's preprocessing against its own loader (`tests/golden/utils_vggt.npz`), and what that leaves open."""

import functools
import json

import numpy as np
import pytest
from PIL import Image

import und3rstand_jax as u3d
from tests.golden import weights_vggt
from tests.golden_cases import GOLDEN
from und3rstand_jax.analysis.inputs import photo_inputs
from und3rstand_jax.model.images import load_image, load_images, to_uint8
from und3rstand_jax.model.photos import open_photo
from und3rstand_jax.report.options import ReportOptions
from und3rstand_jax.report.views import open_photos
from und3rstand_jax.support.errors import UserError

CASE = json.loads((GOLDEN / "utils_vggt.json").read_text())
MODES = {"crop": "vggt", "pad": "vggt-pad"}


@functools.cache
def golden():
    with np.load(GOLDEN / "utils_vggt.npz") as file:
        return dict(file)


@functools.cache
def photo(name):
    height, width = CASE["images"][name]
    pixels = weights_vggt.image(f"preprocess/{name}", height, width, CASE["seed"])
    if name != "rgba":
        return Image.fromarray(pixels)
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.dstack([pixels, ((3 * x + 5 * y) % 256).astype(np.uint8)]))


def stored(image):
    """What the case keeps of an image (1, H, W, 3) in 8 bits."""
    return to_uint8(image)[:, ::7, ::7]


@pytest.mark.parametrize("name", CASE["images"])
@pytest.mark.parametrize("mode", MODES)
def test_every_photo_is_the_originals_bit_for_bit(mode, name):
    ours = load_image(photo(name), MODES[mode])
    batch, channels, *size = CASE["result_shapes"][f"{mode}/{name}"]
    assert (ours.shape, ours.dtype) == ((batch, *size, channels), np.float32)
    np.testing.assert_array_equal(stored(ours), golden()[f"{mode}/{name}"])


def test_a_value_in_0_to_1_comes_back_to_float32_rounding():
    """The model takes x·0.5 + 0.5, the original's input is u / 255."""
    levels = np.repeat(np.arange(256, dtype=np.uint8), 3).reshape(1, 256, 3)
    ours = load_image(Image.fromarray(np.repeat(levels, 14, axis=0)), "vggt", 14 * 256)[0, 0, 7::14]
    image = load_image(Image.fromarray(np.full((14, 14, 3), 255, np.uint8)), "vggt", 14)
    assert (image == 1).all()
    assert ours.shape == (256, 3)
    np.testing.assert_allclose(ours * 0.5 + 0.5, levels[0].astype(np.float32) / 255, atol=3e-8, rtol=0)


def test_photos_of_different_shapes_are_padded_to_one_size():
    names = ("landscape", "portrait", "wide")
    ours = u3d.load_images([photo(name) for name in names], preprocessing="vggt")
    assert [image.shape for image in ours] == [(1, 518, 518, 3)] * 3
    np.testing.assert_array_equal(np.concatenate([stored(image) for image in ours]), golden()["crop/landscape+portrait+wide"])


def test_padding_is_white_and_the_same_on_both_sides():
    wide, landscape = load_images([photo("wide"), photo("landscape")], "vggt")
    white_rows = (wide == 1).all(axis=(0, 2, 3))
    assert (white_rows[:119].all(), white_rows[119:273].any(), white_rows[273:].all(), wide.shape) == (True, False, True, landscape.shape)
    tall = load_image(photo("tall"), "vggt-pad", 98)
    white_columns = (tall == 1).all(axis=(0, 1, 3))
    assert white_columns.nonzero()[0].tolist() == [*range(35), *range(63, 98)]


def test_other_ways_pad_nothing_and_photos_alone_are_as_load_image_has_them():
    photos = [photo("landscape"), photo("portrait")]
    assert [image.shape for image in load_images(photos, "dust3r", 64)] == [(1, 48, 64, 3), (1, 64, 32, 3)]
    for preprocessing in ("probe", "dust3r", "vggt", "vggt-pad"):
        (alone,) = load_images(photos[:1], preprocessing)
        np.testing.assert_array_equal(alone, load_image(photos[0], preprocessing))
    assert load_images([], "vggt") == []


def test_the_default_size_is_the_published_models():
    photos = [photo("landscape")]
    assert [load_images(photos, way)[0].shape[2] for way in ("probe", "dust3r", "vggt", "vggt-pad")] == [512, 512, 518, 518]


@pytest.mark.parametrize("form", ["RGBA", "LA", "P"])
def test_white_shows_through_whatever_is_transparent(tmp_path, form):
    image = Image.new("RGBA", (28, 14), (0, 0, 0, 255))
    image.paste((200, 10, 10, 0), (0, 0, 14, 14))
    (image.convert("LA") if form == "LA" else image.quantize() if form == "P" else image).save(tmp_path / "cut_out.png")
    pixels = to_uint8(load_image(tmp_path / "cut_out.png", "vggt", 28))[0]
    assert (pixels[:, :8] == 255).all() and (pixels[:, 20:] == 0).all()
    opened = open_photo(tmp_path / "cut_out.png", (255, 255, 255))
    np.testing.assert_array_equal(to_uint8(load_image(opened, "vggt", 28))[0], pixels)


def test_exif_orientation_is_applied_unlike_by_the_original(tmp_path):
    upright = photo("portrait")
    exif = Image.Exif()
    exif[0x0112] = 6
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(load_image(tmp_path / "turned.png", "vggt", 140), load_image(upright, "vggt", 140))


def test_views_of_commands_have_one_size(tmp_path):
    photos = (photo("landscape"), photo("wide"))
    inputs = photo_inputs((tmp_path / "a.png", tmp_path / "b.png"), photos, "vggt", 140)
    assert inputs.sizes == ((112, 140), (112, 140))
    assert inputs.provenance["images"][1] == {"path": str(tmp_path / "b.png"), "height": 112, "width": 140}


def test_through_photos_of_commands_shows_what_their_preprocessing_says(tmp_path):
    Image.new("RGBA", (28, 14), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    for preprocessing, value in (("probe", 0), ("vggt", 255), ("vggt-pad", 255)):
        options = ReportOptions(checkpoint="nowhere", out=tmp_path, images=(tmp_path / "clear.png",), preprocessing=preprocessing)
        assert open_photos(options)[0].getpixel((0, 0)) == (value,) * 3


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((64, 64), {"size": 512}, "image size 512 must be a positive multiple of 14"),
        ((64, 64), {"size": 0}, "must be a positive multiple of 14"),
        ((64, 64), {"preprocessing": "vggt-pad", "size": -14}, "must be a positive multiple of 14"),
        # 518·5/370 = 7 is half a patch, which rounds to none.
        ((370, 5), {}, "370×5 pixels leaves 518×0 at size 518"),
        ((5, 370), {"preprocessing": "vggt-pad"}, "5×370 pixels leaves 0×518 at size 518"),
        ((2, 100000), {}, "would be resized to 518×25900000, which is too large"),
    ],
)
def test_sizes_that_leave_nothing_are_refused(shape, options, message):
    with pytest.raises(UserError, match=message):
        load_image(Image.new("RGB", shape), **{"preprocessing": "vggt", **options})


def test_an_unknown_preprocessing_is_refused(unchecked):
    with pytest.raises(UserError, match="'other' is not one of probe, dust3r, vggt, vggt-pad"):
        load_images([photo("small")], "other")
