"""The report's page: what it carries comes back, it stays small, shows text as text, and needs no network."""

import base64
import dataclasses
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from tests.browser import Page, unpack
from tests.page_cases import NASTY, make_report, small_page, small_report
from und3rstand_jax.analysis.attention_maps import tokens_per_cell
from und3rstand_jax.analysis.view_set import Attention
from und3rstand_jax.geometry.cameras import ViewGeometry
from und3rstand_jax.geometry.matching import Correspondences, drawn_matches
from und3rstand_jax.report import page as page_module
from und3rstand_jax.report.page import LARGEST_PAGE, page_text, script_json, write_page
from und3rstand_jax.report.page_arrays import pack
from und3rstand_jax.report.page_attention import pack_attention, pool_attention, quantise_weights
from und3rstand_jax.report.page_geometry import NO_POINT, STEPS_PER_UNIT, mean_distance, pack_geometry, quantise_confidence, quantise_points
from und3rstand_jax.support.errors import UserError


@pytest.mark.parametrize("dtype, differences", [("uint8", True), ("uint8", False), ("int16", True), ("int16", False), ("float32", False)])
def test_arrays_come_back_exactly_also_where_differences_wrap_around(dtype, differences):
    rng = np.random.default_rng(0)
    array = rng.normal(size=(3, 5, 7)).astype(dtype) if dtype == "float32" else rng.integers(*bounds(dtype), (3, 5, 7), dtype)
    packed = pack("name", array, differences)
    np.testing.assert_array_equal(unpack(packed.spec, packed.text), array)
    assert packed == pack("name", array, differences)


def bounds(dtype):
    return np.iinfo(dtype).min, np.iinfo(dtype).max


@pytest.mark.parametrize("dtype, differences", [("float64", False), ("float32", True)])
def test_arrays_that_would_not_come_back_are_refused(dtype, differences):
    with pytest.raises(TypeError, match=f"name.*{dtype}"):
        pack("name", np.zeros(3, dtype), differences)


def test_points_come_back_normalised_within_half_a_step():
    report, arrays = small_report(), Page(small_page()).arrays()
    valid = [view.valid for view in report.truth]
    for index, layer in enumerate(report.layers):
        norms = np.concatenate([np.linalg.norm(view.points, axis=-1)[mask] for view, mask in zip(layer.views, valid, strict=True)])
        for view in (0, 1):
            back = np.moveaxis(arrays[f"points{view + 1}"][index], 0, -1) / STEPS_PER_UNIT
            np.testing.assert_allclose(back, layer.views[view].points / norms.mean(), atol=0.5 / STEPS_PER_UNIT + 1e-5)


def test_layers_that_differ_only_in_their_unit_look_the_same():
    report = small_report()
    layer = report.layers[0]
    twice = dataclasses.replace(layer, views=tuple(ViewGeometry(2 * view.points, view.confidence) for view in layer.views))
    geometry = pack_geometry(dataclasses.replace(report, layers=(layer, twice)), 10**7)
    points = next(unpack(array.spec, array.text) for array in geometry.arrays if array.name == "points1")
    np.testing.assert_array_equal(points[0], points[1])
    assert geometry.scales[1] == pytest.approx(2 * geometry.scales[0])


def test_cameras_are_divided_by_the_same_scale_as_the_points_beside_them():
    report, values = small_report(), Page(small_page()).values()
    for layer, shown in zip(report.layers[1:], values["layers"][1:], strict=True):
        assert shown["poses"][0]["camera"][0][3] * shown["scale"] == pytest.approx(layer.poses[0].camera[0, 3], rel=1e-5)
    truth = mean_distance([view.points for view in report.truth], [view.valid for view in report.truth])
    assert values["true_poses"][0][0][3] == pytest.approx(1.5 / truth, rel=1e-5)
    assert values["layers"][0]["poses"][0] == {"camera": None, "rotation": None, "translation": None}


def test_points_without_a_place_are_marked_and_far_ones_stay_on_their_ray():
    points = np.array([[[np.nan, 0, 1], [0, 0, 1e9], [3e6, 0, 4e6], [0, 0.5, 2]]])
    stored = np.moveaxis(quantise_points(points, 1.0), 0, -1)[0]
    assert (stored[0] == NO_POINT).all()
    np.testing.assert_allclose(stored[1:3] / STEPS_PER_UNIT, [[0, 0, 31.9], [0.6 * 31.9, 0, 0.8 * 31.9]], atol=1e-3)
    np.testing.assert_array_equal(stored[3], [0, STEPS_PER_UNIT / 2, 2 * STEPS_PER_UNIT])


def test_truth_is_shown_only_where_it_is_known():
    truth = Page(small_page()).arrays()["truth1"]
    np.testing.assert_array_equal((truth != NO_POINT).all(0), small_report().truth[0].valid)


def test_confidence_comes_back_within_half_a_step_of_its_logarithm():
    arrays, values = Page(small_page()).arrays(), Page(small_page()).values()
    low, high = values["geometry"]["log_confidence_range"]
    for index, layer in enumerate(small_report().layers):
        back = low + arrays["confidence2"][index] / 255 * (high - low)
        np.testing.assert_allclose(back, np.log(layer.views[1].confidence), atol=(high - low) / 510 + 1e-5)
    np.testing.assert_array_equal(quantise_confidence(np.array([np.nan, -1.0, np.e**2]), (0.0, 2.0)), [0, 0, 255])


def test_attention_comes_back_within_its_bound():
    arrays, info = Page(small_page()).arrays(), Page(small_page()).values()["attention"]
    assert info["pool"] == 1 and info["levels"] == 255
    for index, block in enumerate(small_report().attention):
        for name, given in (("1", block.weights[0]), ("2", block.weights[1])):
            peaks = arrays[f"peaks{name}"][index][..., None]
            back = peaks * (arrays[f"weights{name}"][index] / 255.0) ** 2
            assert (np.abs(back - given) <= peaks * (1 / 255 + 1 / (4 * 255**2)) + 1e-7).all()


def test_pooled_attention_sums_keys_and_averages_queries():
    rng = np.random.default_rng(0)
    weights = rng.random((2, 3 * 5, 4 * 3)).astype(np.float32)
    weights /= weights.sum(-1, keepdims=True)
    pooled = pool_attention(weights, (3, 5), (4, 3), 2)
    assert pooled.shape == (2, 2 * 3, 2 * 2)
    np.testing.assert_allclose(pooled.sum(-1), 1, atol=1e-6)
    by_place = weights.reshape(2, 3, 5, 4, 3)
    np.testing.assert_allclose(pooled[:, 0, 0], by_place[:, :2, :2, :2, :2].sum((3, 4)).mean((1, 2)), atol=1e-6)
    # The last query cell is a single token, the last key cell two tokens high and one wide.
    np.testing.assert_allclose(pooled[:, -1, -1], by_place[:, 2, 4, 2:, 2].sum(-1), atol=1e-6)


def test_a_row_of_zeros_stays_zero():
    weights, peaks = quantise_weights(np.zeros((1, 4), np.float32), 255)
    assert not weights.any() and np.isfinite(peaks).all()


def test_the_page_draws_the_matches_that_the_figure_draws_and_counts_all():
    matches = Page(small_page()).values()["layers"][0]["matches"][0]
    found = small_report().layers[0].correspondences[0]
    drawn = drawn_matches(found)
    assert len(set(drawn.tolist())) == 60
    np.testing.assert_array_equal(matches["pixels2"], found.pixels2[drawn])
    assert matches["offsets"] == [None if np.isnan(offset) else offset for offset in found.offsets[drawn]]
    assert drawn_matches(Correspondences(found.pixels1[:2], found.pixels2[:2], None)).size == 2
    assert matches["count"] == 90 and matches["known"] == 60 and len(matches["pixels1"]) == 60
    assert matches["median_offset"] == np.median(np.arange(90)[np.arange(90) % 3 > 0])


def test_each_camera_is_drawn_with_its_own_lens():
    report = make_report(((64, 96), (48, 32)), 1, 1)
    lens = report.intrinsics[1].copy()
    lens[0, 2] += 5
    values = Page(page_text(dataclasses.replace(report, intrinsics=(report.intrinsics[0], lens)))).values()
    assert values["shapes"] == [[64, 96], [48, 32]] and values["grids"] == [[4, 6], [3, 2]]
    np.testing.assert_allclose(values["intrinsics"], [report.intrinsics[0], lens], rtol=1e-6)
    unknown = Page(page_text(dataclasses.replace(report, intrinsics=None))).values()
    np.testing.assert_allclose(unknown["intrinsics"][1], [[32, 0, 15.5], [0, 32, 23.5], [0, 0, 1]])


def test_attention_between_views_of_two_sizes_is_pooled_each_on_its_own_grid():
    grids = (8, 12), (5, 3)
    rng = np.random.default_rng(0)
    weights = [rng.dirichlet(np.full(keys, 0.3), (2, queries)).astype(np.float32) for queries, keys in ((96, 15), (15, 96))]
    packed = pack_attention([Attention.to_others(block, weights) for block in range(3)], grids, 4000)
    assert packed.pool == 2 and packed.grids == ((4, 6), (3, 2)) and packed.spans == ((4, 6), (2.5, 1.5))
    arrays = {array.name: unpack(array.spec, array.text) for array in packed.arrays}
    for view, (given, (own, other)) in enumerate(zip(weights, (grids, grids[::-1]), strict=True), start=1):
        expected = pool_attention(given, own, other, 2)
        peaks = arrays[f"peaks{view}"][2][..., None]
        # Cut-off cells are stored as if they were full.
        back = peaks * (arrays[f"weights{view}"][2] / packed.levels) ** 2 * tokens_per_cell(other, 2).ravel() / 4
        assert back.shape == expected.shape == (2, (24, 6)[view - 1], (6, 24)[view - 1])
        assert (np.abs(back - expected) <= peaks * (1 / packed.levels + 1 / (4 * packed.levels**2)) + 1e-7).all()


@pytest.mark.slow
def test_a_full_size_report_fits_and_says_what_was_left_out():
    page = page_text(make_report((384, 512), 12, 12, has_truth=False))
    assert len(page) <= LARGEST_PAGE < 10_000_000
    values = Page(page).values()
    assert values["geometry"]["stride"] > 1 and values["attention"]["pool"] > 1
    assert len(values["layers"]) == 37 and len(values["attention"]["blocks"]) == 12


def test_a_pocket_sized_report_fits_with_every_pixel_and_token():
    page = page_text(make_report((128, 128), 8, 4))
    assert len(page) <= LARGEST_PAGE
    values = Page(page).values()
    assert values["geometry"]["stride"] == 1 and values["attention"]["pool"] == 1


def test_a_budget_that_is_short_coarsens_the_grid():
    finest = pack_geometry(small_report(), 10**7)
    coarse = pack_geometry(small_report(), sum(len(array.text) for array in finest.arrays) // 3)
    assert finest.stride == 1 and coarse.stride > 1
    assert coarse.arrays[0].spec["shape"][2:] == [
        -(-(64 - coarse.stride // 2) // coarse.stride),
        -(-(96 - coarse.stride // 2) // coarse.stride),
    ]


def test_a_page_that_cannot_be_made_small_enough_is_refused_with_what_to_change(monkeypatch):
    monkeypatch.setattr(page_module, "LARGEST_PAGE", 500_000)
    message = r"would take [\d.]+ MB, more than 0.5, with 10 layers and views of 96×64 pixels; choose fewer --layers or a smaller --size"
    with pytest.raises(UserError, match=message):
        page_text(small_report())


def test_large_photos_are_brought_to_1024_pixels_and_small_ones_left_alone():
    report = small_report()
    images = (np.zeros((1500, 2048, 3), np.uint8), report.images[1])
    large = dataclasses.replace(report, layers=report.layers[:1], attention=(), images=images)
    page = Page(page_text(large))
    photos = [
        Image.open(io.BytesIO(base64.b64decode(value.partition(",")[2])))
        for _, name, value in page.attributes
        if name == "src" and value.startswith("data:image/")
    ]
    assert [photo.size for photo in photos] == [(1024, 750), (96, 64)]
    np.testing.assert_array_equal(np.asarray(photos[1]), report.images[1])
    assert page.values()["shapes"] == [[1500, 2048], [64, 96]]


def test_a_page_of_the_head_alone_speaks_of_no_probes():
    report = small_report()
    alone = Page(page_text(dataclasses.replace(report, layers=report.layers[-1:]))).words
    assert "own probe" not in alone and "The model’s own head predicts a 3D point" in alone
    assert "read out by its own probe" in Page(small_page()).words


def test_a_report_without_confidence_attention_or_truth_makes_a_page():
    bare = dataclasses.replace(make_report((32, 48), 1, 1, has_truth=False, confident=False), attention=())
    page = Page(page_text(bare))
    assert sorted(page.arrays()) == ["points1", "points2"]
    assert page.values()["attention"] is None and page.values()["true_poses"] is None


def test_text_of_the_report_is_shown_and_never_run():
    page = Page(small_page())
    assert page.values()["title"] == NASTY and page.values()["facts"]["checkpoint"] == NASTY
    assert page.words.count(NASTY) == 2  # in <title> and <h1>
    assert not any(text.startswith("document.body") for _, text in page.scripts)


def test_numbers_that_json_lacks_are_null_among_results_and_strict_json_everywhere():
    assert json.loads(script_json({"a": float("nan"), "b": [float("-inf"), 1.0], "c": np.float32(2)})) == {
        "a": None,
        "b": ["-inf", 1.0],
        "c": 2.0,
    }
    layers = [dataclasses.replace(layer, errors=(np.inf, np.nan)) for layer in small_report().layers[1:]]
    report = dataclasses.replace(small_report(), layers=(small_report().layers[0], *layers), match_threshold=0.03 * 176)
    values = Page(page_text(report)).values()
    assert [layer["errors"] for layer in values["layers"]] == [[0.5, None]] + [[None, None]] * len(layers)
    assert values["error_range"] == 0.5 and values["match_threshold"] == 5.28
    assert values["facts"]["not finite"] == "inf"


def test_the_page_names_nothing_outside_itself():
    page = Page(small_page())
    fetched = [value for _, name, value in page.attributes if name in ("src", "href", "srcset", "action", "data", "poster")]
    assert fetched and all(value.startswith("data:") for value in fetched)
    imports = json.loads(next(text for script, text in page.scripts if script.get("type") == "importmap"))["imports"]
    assert all(url.startswith("data:text/javascript;") for url in imports.values())
    modules = {name: base64.b64decode(url.partition(",")[2]).decode() for name, url in imports.items()}
    named = {found for text in modules.values() for found in re.findall(r"https?://[^\s\"'`]+", text)}
    assert named == {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xhtml"}  # names of languages, not addresses
    wanted = {found for name, text in modules.items() if name != "three" for found in re.findall(r'from "([^"]+)"', text)}
    assert wanted <= set(modules) and wanted | {"report/main"} == set(modules)
    assert "url(" not in small_page() and "@import" not in small_page()
    assert any(name == "content" and value.startswith("default-src 'none'") for _, name, value in page.attributes)


def test_the_page_carries_the_licence_of_the_library_inside_it():
    assert "Permission is hereby granted" in small_page() and "three.js authors" in small_page()


def test_the_page_is_ascii_so_that_characters_are_bytes(tmp_path):
    write_page(tmp_path / "report.html", small_report())
    assert (tmp_path / "report.html").read_bytes() == small_page().encode("ascii")
