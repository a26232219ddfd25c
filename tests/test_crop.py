import numpy as np
import pytest

from und3rstand_jax.data.files.file_sets import JITTER, crop_view
from und3rstand_jax.data.records import View

IMAGE_SIZES = [(96, 128), (128, 96), (97, 131), (60, 200)]


def ramp(height, width, cx=None, cy=None, focal=(90.0, 80.0)):
    """A view whose red and green say each pixel's column and row, and whose depth says both: 1 + column + row / 1000."""
    rows, columns = np.mgrid[:height, :width]
    intrinsics = np.array(
        [[focal[0], 0, (width - 1) / 2 if cx is None else cx], [0, focal[1], (height - 1) / 2 if cy is None else cy], [0, 0, 1]]
    )
    image = np.stack([columns, rows, 0 * rows], axis=-1).astype(np.uint8)
    return View(image, (1 + columns + rows / 1000).astype(np.float32), intrinsics, np.eye(4))


def source_pixels(cropped, original):
    """Where in the original photo each pixel's ray goes through, by the two intrinsics: columns (W,) and rows (H,)."""
    height, width = cropped.image.shape[:2]
    new, old = cropped.intrinsics, original.intrinsics
    columns = (np.arange(width) - new[0, 2]) / new[0, 0] * old[0, 0] + old[0, 2]
    rows = (np.arange(height) - new[1, 2]) / new[1, 1] * old[1, 1] + old[1, 2]
    return columns, rows


@pytest.mark.parametrize("shape", [(48, 64), (32, 80), (64, 48), (160, 208), (96, 128)])
@pytest.mark.parametrize("size", IMAGE_SIZES)
@pytest.mark.parametrize("seed", [None, 3])
def test_photo_and_depth_follow_the_intrinsics_at_every_size(size, shape, seed):
    original = ramp(*size, cx=size[1] * 0.45, cy=size[0] * 0.53)
    cropped = crop_view(original, shape, None if seed is None else np.random.default_rng(seed))
    assert cropped.image.shape == (*shape, 3) and cropped.depth.shape == shape
    columns, rows = source_pixels(cropped, original)
    inner = slice(4, -4)  # filters see less at the border of the photo
    assert np.abs(cropped.image[..., 0] - columns)[inner, inner].max() < 0.75
    assert np.abs(cropped.image[..., 1] - rows[:, None])[inner, inner].max() < 0.75
    # Nearest: never more than half a pixel of the original away.
    depth_columns = np.floor(cropped.depth) - 1
    depth_rows = (cropped.depth - np.floor(cropped.depth)) * 1000
    assert np.abs(depth_columns - columns).max() <= 0.5 + 1e-4
    assert np.abs(depth_rows - rows[:, None]).max() <= 0.5 + 0.05  # float32 keeps thousandths to 0.02


@pytest.mark.parametrize("size", IMAGE_SIZES)
def test_the_principal_point_ends_up_in_the_middle(size):
    height, width = size
    cropped = crop_view(ramp(height, width, cx=width * 0.4, cy=height * 0.55), (48, 64))
    assert np.abs(cropped.intrinsics[:2, 2] - (31.5, 23.5)).max() <= 1


def test_without_augmentation_the_field_of_view_is_the_largest_that_fits():
    cropped = crop_view(ramp(96, 128), (48, 64))
    np.testing.assert_allclose(cropped.intrinsics, [[45, 0, 31.5], [0, 40, 23.5], [0, 0, 1]])
    # An upright photo: its whole width, and of its height the middle.
    upright = crop_view(ramp(128, 96), (48, 64))
    columns, rows = source_pixels(upright, ramp(128, 96))
    np.testing.assert_allclose(columns[[0, -1]], [0.25, 94.75])
    np.testing.assert_allclose((rows[0] + rows[-1]) / 2, 63.5, atol=0.76)  # half a pixel of the crop


def test_halving_scales_about_the_corner_and_takes_the_depth_under_each_centre():
    cropped = crop_view(ramp(8, 12, cx=5.5, cy=3.5), (4, 6))
    np.testing.assert_allclose(cropped.intrinsics, [[45, 0, 2.5], [0, 40, 1.5], [0, 0, 1]])
    np.testing.assert_array_equal(cropped.depth, ramp(8, 12).depth[1::2, 1::2])


def test_an_off_centre_principal_point_costs_the_far_side():
    original = ramp(40, 100, cx=39.5)
    cropped = crop_view(original, (40, 80))
    np.testing.assert_array_equal(cropped.image, original.image[:, :80])
    np.testing.assert_array_equal(cropped.depth, original.depth[:, :80])
    np.testing.assert_allclose(cropped.intrinsics, original.intrinsics)


def test_a_view_of_the_right_size_is_left_as_it_is():
    original = ramp(48, 64)
    cropped = crop_view(original, (48, 64))
    for given, kept in zip(original, cropped, strict=True):
        np.testing.assert_array_equal(given, kept)


def test_jitter_draws_every_enlargement_below_sixteen_about_as_often_and_keeps_the_centre():
    original, rng = ramp(96, 128), np.random.default_rng(0)
    crops = [crop_view(original, (48, 64), rng) for _ in range(800)]
    # A height of 48 + n pixels is what the photo's 96 were brought to, or a little more where the width decided.
    scales = np.array([crop.intrinsics[1, 1] / original.intrinsics[1, 1] for crop in crops])
    grown = np.rint(scales * 96).astype(int) - 48
    counts = np.bincount(grown)
    assert set(grown) == set(range(JITTER))
    assert counts.min() > 25 and counts.max() < 85  # 50 expected, standard deviation 7
    assert max(np.abs(crop.intrinsics[:2, 2] - (31.5, 23.5)).max() for crop in crops) < 0.501


def test_jitter_depends_on_the_generator_alone():
    first, again, other = (crop_view(ramp(96, 128), (48, 64), np.random.default_rng(seed)) for seed in (1, 1, 5))
    for one, same in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, same)
    assert first.intrinsics[0, 0] != other.intrinsics[0, 0]


def test_lanczos_shrinks_without_aliasing():
    stripes = np.zeros((96, 128, 3), np.uint8)
    stripes[:, ::2] = 255
    cropped = crop_view(ramp(96, 128)._replace(image=stripes), (24, 32))
    assert np.abs(cropped.image[:, 2:-2].astype(int) - 127).max() <= 3
