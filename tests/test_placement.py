"""From a model's image back to the photo: photos that hold their own coordinates go through the real loader and must come back."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import und3rstand_jax as u3d
from und3rstand_jax.geometry.cameras import centred_intrinsics
from und3rstand_jax.model.images import to_uint8
from und3rstand_jax.model.preprocessing import WAYS
from und3rstand_jax.support.errors import UserError

# Each with a size of its own, small, and DUSt3R's other ways.
SETTINGS = (
    {"preprocessing": "probe", "size": 64},
    {"preprocessing": "dust3r", "size": 64},
    {"preprocessing": "dust3r", "size": 64, "square_ok": True},
    {"preprocessing": "dust3r", "size": 224},
    {"preprocessing": "vggt", "size": 70},
    {"preprocessing": "vggt-pad", "size": 70},
)
SHAPES = ((20, 30), (31, 17), (24, 24), (97, 64), (64, 97), (150, 201), (333, 150))  # (height, width)
sides = st.integers(1, 3000)


def ramp(height, width):
    """A photo whose red is the column and whose green the row, each from 0 to 255, before they are rounded to 8 bits."""
    v, u = np.mgrid[:height, :width]
    return np.stack([u * 255 / (width - 1), v * 255 / (height - 1)], axis=-1)


def picture(values):
    return Image.fromarray(np.dstack([np.rint(values), np.zeros(values.shape[:2])]).astype(np.uint8))


def places_of(size):
    """(u, v) of every pixel of an image."""
    v, u = np.mgrid[: size[0], : size[1]]
    return np.stack([u, v], axis=-1).astype(np.float64)


def inside(places, size, margin=0.0):
    """Which places lie in an image, that far from its edges."""
    height, width = size
    beyond = np.array([width, height]) - 0.5 - margin
    return ((places >= -0.5 + margin) & (places < beyond)).all(axis=-1)


def placed(shape, setting):
    """The placement, or None where the loader refuses the photo too."""
    try:
        return u3d.placement_of(shape, **setting)
    except u3d.ImageError:
        with pytest.raises(u3d.ImageError):
            u3d.load_image(Image.new("RGB", shape[::-1]), **setting)
        return None


def test_every_preprocessing_is_tested():
    assert {setting["preprocessing"] for setting in SETTINGS} == set(WAYS)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: "-".join(map(str, setting.values())))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_pixel_of_the_models_image_shows_the_place_it_is_said_to(shape, setting):
    """Filters that are symmetric leave a ramp as it is, but for its ends and what is rounded to 8 bits: once each, in the middle 0."""
    photo = ramp(*shape)
    placement = u3d.placement_of(picture(photo), **setting)
    pixels = to_uint8(u3d.load_image(picture(photo), **setting))[0]
    assert pixels.shape[:2] == placement.size
    places = placement.to_photo(places_of(placement.size))
    expected = places * 255 / (np.array(shape[::-1]) - 1)
    per_pixel = np.array(shape) / np.array(placement.resized)
    usual = inside(places, shape, margin=3 * max(1, *per_pixel))  # Lanczos reaches three pixels, of the smaller of the two images
    error = pixels[..., :2][usual] - expected[usual]
    assert len(error) > 100 and np.abs(error).max() < 1.25 and np.abs(error.mean(axis=0)).max() < 0.1
    assert (pixels[~inside(places, shape)] == 255).all(), "padding is white"

    # And back, at every pixel of the photo that the model saw; linearly between its outermost pixels, beyond which there is no slope.
    models = placement.from_photo(places_of(shape))
    seen, between = (inside(models, placement.size, margin) for margin in (0, 0.5))
    for method, bound in (("linear", 1.5), ("nearest", 1.5 + 0.5 * (per_pixel * 255 / (np.array(shape) - 1)).max())):
        back = placement.on_photo(pixels[..., :2], method)
        assert back.shape == (*shape, 2)
        np.testing.assert_array_equal(np.isnan(back).any(axis=-1), ~seen)
        usual = (between if method == "linear" else seen) & inside(places_of(shape), shape, margin=3 * max(1, *per_pixel))
        assert usual.any() and np.abs(back[usual] - photo[usual]).max() < bound


# Worked out by hand from what each way does: photo (height, width), options, places in the model's image, places in the photo.
BY_HAND = [
    ((700, 1000), {"preprocessing": "dust3r"}, (0, 0), (0.5 * 1000 / 512 - 0.5, 3.5 * 700 / 358 - 0.5)),
    ((640, 480), {}, (0, 0), (0.5 * 480 / 512 - 0.5, 85.5 * 640 / 682 - 0.5)),  # 512 · 640/480 = 682, (682 - 512)/2 = 85
    ((1036, 518), {"preprocessing": "vggt"}, (10, 20), (10, 20 + 259)),
    ((259, 518), {"preprocessing": "vggt-pad"}, (10, 138), (10, 5.5 * 259 / 252 - 0.5)),  # 18.5 · 14 -> 252, (518 - 252)/2 = 133
    ((512, 512), {}, (-0.5, 511.5), (-0.5, 511.5)),
    ((1024, 1024), {}, (-0.5, 511.5), (-0.5, 1023.5)),
    ((1024, 1024), {}, (0, 0), (0.5, 0.5)),  # between the first two pixels of each axis
]


@pytest.mark.parametrize(("shape", "options", "models", "photos"), BY_HAND)
def test_places_are_those_worked_out_by_hand(shape, options, models, photos):
    placement = u3d.placement_of(shape, **options)
    np.testing.assert_allclose(placement.to_photo(models), photos, atol=1e-9)
    np.testing.assert_allclose(placement.from_photo(photos), models, atol=1e-9)
    np.testing.assert_allclose(placement.matrix @ (*models, 1), (*photos, 1), atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(sides, sides, st.sampled_from(SETTINGS), st.lists(st.tuples(*[st.floats(-5000, 5000)] * 2), min_size=1, max_size=4))
def test_the_whole_photo_is_the_whole_resized_one_and_places_go_both_ways(height, width, setting, places):
    placement = placed((height, width), setting)
    if placement is None:
        return
    (top, left), (rows, columns) = placement.offset, placement.resized
    edges = [(-left - 0.5, -top - 0.5), (columns - left - 0.5, rows - top - 0.5)]
    np.testing.assert_allclose(placement.to_photo(edges), [(-0.5, -0.5), (width - 0.5, height - 0.5)], atol=1e-6)
    np.testing.assert_allclose(placement.to_photo(placement.from_photo(places)), places, rtol=1e-9, atol=1e-6)
    np.testing.assert_allclose((placement.matrix @ np.insert(places, 2, 1, axis=1).T).T[:, :2], placement.to_photo(places), atol=1e-6)
    # The middle of the model's image is the photo's, to a pixel of either.
    middle = placement.to_photo((np.array(placement.size[::-1]) - 1) / 2)
    assert (np.abs(middle - (np.array([width, height]) - 1) / 2) <= 1 + np.array([width / columns, height / rows])).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.sampled_from(SETTINGS))
def test_the_nearest_value_is_that_of_the_pixel_a_place_is_in(height, width, setting):
    placement = placed((height, width), setting)
    if placement is None:
        return
    rows, columns = placement.size
    numbers = np.arange(rows * columns, dtype=np.float64).reshape(rows, columns)
    back = placement.on_photo(numbers)
    places = placement.from_photo(places_of((height, width)))
    seen = inside(places, placement.size)
    u, v = np.floor(places[seen] + 0.5).astype(int).T
    assert seen.any()
    np.testing.assert_array_equal(back[seen], numbers[v, u])
    assert np.isnan(back[~seen]).all()
    np.testing.assert_array_equal(placement.on_photo(numbers >= 0), seen)


@pytest.mark.parametrize("shape", [(1, 20), (20, 1), (1, 1)])
def test_photos_one_pixel_wide_come_back_whole_or_as_far_as_they_were_seen(shape):
    image = Image.fromarray(np.arange(20, dtype=np.uint8).reshape(-1, 1, 1).repeat(3, 2)[: shape[0] * shape[1]].reshape(*shape, 3))
    back = u3d.placement_of(image, size=16).on_photo(to_uint8(u3d.load_image(image, size=16))[0, ..., 0])
    assert np.isfinite(back).sum() == 1 and back.shape == shape
    padded = u3d.placement_of(image, "vggt-pad", 280).on_photo(to_uint8(u3d.load_image(image, "vggt-pad", 280))[0, ..., 0])
    np.testing.assert_allclose(padded, np.asarray(image)[..., 0], atol=1)


def test_linear_values_of_a_plane_are_the_planes_between_the_models_outermost_pixels():
    placement = u3d.placement_of((41, 67), "dust3r", 32)

    def plane(places):
        return np.stack([3 * places[..., 0] - places[..., 1] + 2, 0.5 * places[..., 1]], axis=-1)

    back = placement.on_photo(plane(placement.to_photo(places_of(placement.size))), "linear")
    places = placement.from_photo(places_of((41, 67)))
    between = inside(places, placement.size, margin=0.5)
    assert between.mean() > 0.7
    np.testing.assert_allclose(back[between], plane(places_of((41, 67)))[between], atol=1e-9)
    # Around them, half a pixel wide, the outermost pixels' own values: a mean of neighbours goes no further than they do.
    assert np.isfinite(back[inside(places, placement.size)]).all()


@pytest.mark.parametrize("shape", [(20, 50), (200, 500)])
def test_padding_is_never_read(shape):
    """A photo that was made smaller has pixels outside of the outermost centres, where a linear method would reach for padding."""
    placement = u3d.placement_of(shape, "vggt-pad", 140)
    values = np.full((140, 140), 1e9, np.float32)
    values[42:98] = 1
    for method in ("nearest", "linear"):
        np.testing.assert_array_equal(placement.on_photo(values, method), np.ones(shape, np.float32))


def test_unknown_values_stay_where_they_are():
    placement = u3d.placement_of((4 * 16, 4 * 16), size=16)
    values = np.ones((16, 16), np.float32)
    values[5, 7], values[0, 0] = np.nan, np.inf
    back = placement.on_photo(values)
    assert np.isnan(back).sum() == np.isinf(back).sum() == 16 and np.isnan(back[20:24, 28:32]).all()
    same = u3d.placement_of((16, 16), size=16).on_photo(values, "linear")
    np.testing.assert_array_equal(same, values)
    assert np.isnan(placement.on_photo(values, "linear")).sum() == 8 * 8, "as far as its neighbours' centres"


def test_photos_of_one_scene_are_placed_as_load_images_pads_them():
    photos = [picture(ramp(40, 100)), picture(ramp(90, 100)), picture(ramp(300, 100))]
    images = u3d.load_images(photos, "vggt", 70)
    placements = u3d.placements_of(photos, "vggt", 70)
    assert [placement.size for placement in placements] == [(70, 70)] * 3
    assert [placement.offset for placement in placements] == [(-21, 0), (-7, 0), (70, 0)]  # of 28, 56 and 210 rows
    for image, placement, photo in zip(images, placements, photos, strict=True):
        back = placement.on_photo(to_uint8(image)[0], "linear")
        seen = np.isfinite(back).all(axis=-1)
        assert seen.any(axis=0).all() and np.abs(back - np.asarray(photo))[seen].mean() < 1.5
    assert u3d.placements_of([], "vggt") == []
    assert u3d.placements_of(photos, "dust3r", 64) == [u3d.placement_of(photo, "dust3r", 64) for photo in photos]


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_turned_photo_is_placed_upright(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = picture(ramp(40, 64))
    turns = {1: None, 3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    stored = upright if orientation == 1 else upright.transpose(turns[orientation])
    stored.save(tmp_path / "turned.png", exif=exif)
    placement = u3d.placement_of(tmp_path / "turned.png", size=32)
    assert placement == u3d.placement_of((40, 64), size=32) == u3d.placement_of(upright, size=32)
    back = placement.on_photo(to_uint8(u3d.load_image(tmp_path / "turned.png", size=32))[0], "linear")
    seen = np.isfinite(back[..., 0])
    assert seen.sum() == 40 * 40 and np.abs(back - np.asarray(upright))[seen].mean() < 1.5


def test_intrinsics_of_the_models_image_become_the_photos():
    # Uncropped, the middle stays the middle; focal lengths grow with the photo.
    whole = u3d.placement_of((750, 1000), "dust3r")
    assert whole.size == whole.resized == (384, 512)
    np.testing.assert_allclose(whole.matrix @ centred_intrinsics(400.0, (384, 512)), centred_intrinsics(781.25, (750, 1000)))
    # VGGT's principal point, w/2 of pixels from 0, lies half a pixel of the model's image beyond the middle of the photo.
    vggt = u3d.placement_of((518, 1036), "vggt")
    assert vggt.size == (252, 518)
    camera = vggt.matrix @ np.array([[500.0, 0, 259], [0, 500, 126], [0, 0, 1]])
    np.testing.assert_allclose(camera[:2], [[1000, 0, 1035 / 2 + 1], [0, 518 / 252 * 500, 517 / 2 + 518 / 252 / 2]])
    # A point is seen where the model sees it, cropped or padded, whatever the camera.
    points = np.random.default_rng(0).normal(size=(50, 3)) + [0, 0, 5]
    for shape, setting in ((s, t) for s in SHAPES for t in SETTINGS):
        placement = u3d.placement_of(shape, **setting)
        intrinsics = np.array([[70.0, 0.3, 31.0], [0, 65.0, 30.0], [0, 0, 1]])
        models, photos = (points @ camera.T for camera in (intrinsics, placement.matrix @ intrinsics))
        np.testing.assert_allclose(placement.to_photo(models[:, :2] / models[:, 2:]), photos[:, :2] / photos[:, 2:], atol=1e-9)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda p: p.on_photo(np.zeros((1, 32, 32, 3))),
            r"values of the model's image, \(32, 32, …\); found \(1, 32, 32, 3\); this has a batch axis: take \[0\]",
        ),
        (lambda p: p.on_photo(np.zeros((40, 64))), r"found \(40, 64\)$"),
        (lambda p: p.on_photo(np.zeros((32, 32)), "cubic"), "method 'cubic' is not one of nearest, linear"),
        (lambda p: p.to_photo([1, 2, 3]), r"expected places \(…, 2\), column and row; found shape \(3,\)"),
        (lambda p: u3d.placement_of((0, 5)), r"\(height, width\) of at least one pixel each; found \(0, 5\)"),
        (lambda p: u3d.placement_of((5, 5), size=5), "multiple of 16"),
        (lambda p: u3d.placement_of((1, 3000), "dust3r"), "3000×1 pixels leaves 512×0"),
        (lambda p: u3d.placement_of((2, 100000)), "100000×2 pixels would be resized to 25600000×512"),
        (lambda p: u3d.placement_of("missing.png"), "no image at missing.png"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(call, message, unchecked):
    with pytest.raises(UserError, match=message):
        call(u3d.placement_of((40, 64), size=32))
