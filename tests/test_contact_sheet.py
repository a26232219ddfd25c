"""The contact sheet: what its colours stand for, and that no values or sizes break it."""

import time

import numpy as np
import pytest
from PIL import Image

from tests.demo_scene import render
from und3rstand_jax.geometry.cameras import ViewGeometry
from und3rstand_jax.report.contact_sheet import ContactSheet
from und3rstand_jax.report.map_colors import Scale


def photo(height, width, value=90):
    return np.full((height, width, 3), value, np.uint8)


def prediction(depth, confidence):
    depth = np.asarray(depth, np.float32)
    return ViewGeometry(np.stack([np.zeros_like(depth), np.zeros_like(depth), depth], -1), np.asarray(confidence, np.float32))


def flat(shape, depth, confidence=2.0):
    return prediction(np.full(shape, depth), np.full(shape, confidence))


def sheet_of(rows, shape1=(64, 64), shape2=(64, 64)):
    sheet = ContactSheet((photo(*shape1), photo(*shape2, 160)), rows=len(rows), title="test")
    for index, pair in enumerate(rows):
        sheet.add_row(f"decoder.{index}.mlp", pair)
    return sheet


def cells(picture, row_height, sheet):
    """The colour in the middle of every cell, (rows, columns, 3), found by the columns' own layout."""
    lefts, _ = sheet._column_lefts()
    tops = [108 + 74 + index * row_height for index in range(len(sheet._rows))]
    pixels = np.asarray(picture)
    return np.array([[pixels[top + 100, left + 160] for left in lefts.values()] for top in tops])


def test_a_scale_spans_the_middle_of_the_finite_values():
    values = np.concatenate([np.linspace(-5, 5, 1001), [np.nan, np.inf, -np.inf]])
    scale = Scale.of(values, logarithmic=False)
    assert (scale.low, scale.high) == pytest.approx((-4.8, 4.8))
    np.testing.assert_allclose(scale.fractions(np.array([-4.8, 0, 4.8, 99, -99])), [0, 0.5, 1, 1, 0], atol=1e-6)
    assert np.isnan(scale.fractions(np.array([np.nan, np.inf, -np.inf]))).all()
    assert Scale(-4.8, 5.0, False).ticks() == ("-4.8", "0.1", "5")


def test_a_logarithmic_scale_has_the_geometric_mean_in_its_middle():
    scale = Scale(1.0, 100.0, logarithmic=True)
    np.testing.assert_allclose(scale.fractions(np.array([1.0, 10.0, 100.0])), [0, 0.5, 1])
    assert np.isnan(scale.fractions(np.array([0.0, -3.0]))).all()
    assert scale.ticks() == ("1", "10", "100")


@pytest.mark.parametrize("logarithmic", [False, True])
@pytest.mark.parametrize("values", [[], [np.nan], [3.0, 3.0], [0.0], [1e-9, 1e-9], [-2.0, -2.0], [3e38, 3e38, 1e-38]])
def test_a_scale_is_never_empty(values, logarithmic):
    scale = Scale.of(np.array(values, np.float32), logarithmic)
    assert np.isfinite([scale.low, scale.high]).all() and scale.low < scale.high
    fractions = scale.fractions(np.array([scale.low, scale.high]))
    np.testing.assert_allclose(fractions, [0, 1], atol=1e-6)


def test_rows_share_a_scale_per_view_and_views_do_not():
    shape = (64, 64)
    sheet = sheet_of([(flat(shape, 1.0), flat(shape, 30.0)), (flat(shape, 2.0), flat(shape, 10.0)), (flat(shape, 1.0), flat(shape, 20.0))])
    colors = cells(sheet.draw(), 328, sheet)
    photo1, depth1, confidence1, photo2, depth2, _ = colors.transpose(1, 0, 2)
    assert (photo1 == 90).all() and (photo2 == 160).all()
    np.testing.assert_array_equal(depth1[0], depth1[2])
    assert (depth1[0] != depth1[1]).any()
    # Lowest and highest of view 1 look like lowest and highest of view 2, although the depths differ tenfold.
    np.testing.assert_array_equal(depth1[0], depth2[1])
    np.testing.assert_array_equal(depth1[1], depth2[0])
    np.testing.assert_array_equal(confidence1[0], confidence1[1])


def test_values_without_a_place_are_grey_and_do_not_move_the_scale():
    depth = np.tile(np.linspace(1, 2, 64), (64, 1))
    good = prediction(depth, 1 + depth)
    spoilt = prediction(np.where(np.eye(64, dtype=bool), 1e30, depth), 1 + depth)
    nowhere = prediction(np.full((64, 64), np.nan), np.full((64, 64), np.inf))
    clean = sheet_of([(good, good)] * 3)
    dirty = sheet_of([(good, good), (spoilt, good), (nowhere, good)])
    first, second = (np.asarray(sheet.draw())[182:496] for sheet in (clean, dirty))
    # The good row looks the same but for the last bits of the percentiles.
    assert np.abs(first.astype(int) - second).max() <= 24 and (first == second).mean() > 0.8
    grey = cells(dirty.draw(), 328, dirty)[2]
    np.testing.assert_array_equal(grey[[1, 2]], [[200] * 3] * 2)


def test_confidence_may_be_absent():
    shape = (64, 64)
    sheet = sheet_of([(ViewGeometry(flat(shape, 1.0).points, None), flat(shape, 1.0))])
    np.testing.assert_array_equal(cells(sheet.draw(), 328, sheet)[0, 2], [200] * 3)


def test_left_is_left_and_up_is_up():
    depth = np.zeros((64, 64))
    depth[:32, 32:] = 1.0
    sheet = sheet_of([(prediction(depth, 1 + depth), flat((64, 64), 1.0))])
    left = sheet._column_lefts()[0]["depth", 1]
    cell = np.asarray(sheet.draw())[182 : 182 + 320, left : left + 320].astype(int)
    for other in (cell[80, 80], cell[240, 80], cell[240, 240]):
        np.testing.assert_array_equal(other, cell[240, 80])
    assert np.abs(cell[80, 240] - cell[240, 80]).sum() > 50


def test_views_of_different_sizes_and_shapes(tmp_path):
    shapes = (160, 512), (512, 160)
    sheet = sheet_of([(flat(shapes[0], -1.0), flat(shapes[1], 5.0))] * 2, *shapes)
    sheet.write(tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as picture:
        assert picture.format == "PNG"
        width, height = picture.size
    # Photos of 320×100 and 100×320 pixels: columns of 320 and of the least width, rows 320 high.
    assert height == 108 + 74 + 2 * 328 + 20
    assert width == 20 + 182 + 3 * 320 + 3 * 160 + 4 * 12 + 32 + 20


def test_thirty_seven_rows_are_drawn_in_seconds_and_stay_under_15_megabytes(tmp_path):
    rng = np.random.default_rng(0)
    photos = [render(camera, 240, 240, samples=1)[0] for camera in (0, 1)]
    maps = [
        prediction(rng.normal(size=(32, 32)).repeat(16, 0).repeat(16, 1), 1 + rng.random((64, 64)).repeat(8, 0).repeat(8, 1))
        for _ in range(4)
    ]
    start = time.perf_counter()
    sheet = ContactSheet(photos, rows=37, title="test")
    for index in range(37):
        sheet.add_row(f"decoder.{index // 3}.cross_attn", (maps[index % 4], maps[(index + 1) % 4]))
    sheet.write(tmp_path / "sheet.png")
    assert time.perf_counter() - start < 10
    assert (tmp_path / "sheet.png").stat().st_size < 15e6
    with Image.open(tmp_path / "sheet.png") as picture:
        assert picture.size == (1550, 8416)
