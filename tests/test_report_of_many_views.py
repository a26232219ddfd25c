"""The analysis and the report of four views and more: every number against its definition, and a page that eight views fit on."""

import dataclasses
import functools
import json
import re

import numpy as np
import pytest

from tests.browser import Page, unpack
from tests.page_cases import make_report
from tests.report_cases import StubModel, StubProbes
from und3rstand_jax.analysis.analyse import analyse_views
from und3rstand_jax.analysis.attention_maps import tokens_per_cell
from und3rstand_jax.analysis.inputs import scene_inputs
from und3rstand_jax.analysis.own_head import lens_of_set
from und3rstand_jax.analysis.true_place_attention import set_true_places
from und3rstand_jax.analysis.view_set import Attention, median_known
from und3rstand_jax.geometry.cameras import ViewGeometry
from und3rstand_jax.geometry.matching import mutual_matches, true_places
from und3rstand_jax.geometry.metrics import point_errors
from und3rstand_jax.geometry.pose import camera_of_view, pose_errors
from und3rstand_jax.model.backbone import random_backbone
from und3rstand_jax.model.dust3r.config import BackboneConfig
from und3rstand_jax.probes.config import probe_config
from und3rstand_jax.probes.probes import PointmapProbes, Probes, init_probes
from und3rstand_jax.report.attention_figure import attention_figure
from und3rstand_jax.report.figures import correspondences_figure, errors_figure
from und3rstand_jax.report.numbers import format_table, write_arrays, write_numbers
from und3rstand_jax.report.page import LARGEST_PAGE, page_text
from und3rstand_jax.report.page_attention import pack_attention, pool_attention
from und3rstand_jax.report.view_colours import view_colour, view_style
from und3rstand_jax.support.progress import Stopwatch

pytestmark = pytest.mark.quick

VIEWS = 4
CONFIG = BackboneConfig(
    enc_embed_dim=32, enc_depth=1, enc_num_heads=2, dec_embed_dim=32, dec_depth=2, dec_num_heads=2, head_type="linear", max_views=None
)
PROBED = ("decoder.0.mlp", "decoder.1.cross_attn")


@functools.cache
def model():
    return random_backbone(CONFIG, 0)


@functools.cache
def probes():
    config = probe_config(CONFIG, PROBED, hidden=8, depth=2)
    return Probes(PointmapProbes(config), init_probes(config, 0))


@functools.cache
def inputs():
    return scene_inputs(1, "synthetic", (48, 64), views=VIEWS)


@functools.cache
def analysis():
    return analyse_views(model(), probes(), PROBED, inputs(), {}, Stopwatch())


def layer_named(layer_id):
    return next(layer for layer in analysis().layers if layer.layer_id == layer_id)


def test_every_view_has_its_points_and_its_error():
    output = model()(*inputs().views, capture=PROBED, head=True)
    seen = {layer: probes().read_layer(layer, output) for layer in PROBED} | {"head": output.pointmaps}
    assert [layer.layer_id for layer in analysis().layers] == list(seen)
    for layer in analysis().layers:
        views = tuple(map(ViewGeometry.of, seen[layer.layer_id]))
        assert len(layer.views) == VIEWS
        for found, view in zip(layer.views, views, strict=True):
            np.testing.assert_allclose(found.points, view.points, rtol=1e-5, atol=1e-6)
        expected = point_errors(views, inputs().truth.views)
        assert len(expected) == VIEWS and min(expected) > 0
        np.testing.assert_allclose(layer.errors, expected, rtol=1e-5)


def test_every_later_view_has_a_pose_and_its_matches_with_view_1():
    truth = inputs().truth
    scene_size = np.concatenate([np.linalg.norm(view.points[view.valid], axis=-1) for view in truth.views]).mean()
    for layer in analysis().layers:
        assert len(layer.poses) == len(layer.correspondences) == len(layer.accuracies) == VIEWS - 1
        known = []
        for view, (pose, found, accuracy) in enumerate(zip(layer.poses, layer.correspondences, layer.accuracies, strict=True), start=1):
            camera = camera_of_view(layer.views[view], truth.intrinsics[view])
            assert (camera is None) == (pose.camera is None)
            if camera is not None:
                np.testing.assert_array_equal(pose.camera, camera)
                assert (pose.rotation_degrees, pose.translation_degrees) == pose_errors(camera, truth.poses[view], float(scene_size))
            pixels1, pixels2 = mutual_matches(layer.views[0].points, layer.views[view].points)
            np.testing.assert_array_equal(found.pixels1, pixels1)
            places = true_places((truth.views[0], truth.views[view]), truth.poses[view], truth.intrinsics[view])
            offsets = np.linalg.norm(pixels2 - places[pixels1[:, 1], pixels1[:, 0]], axis=-1)
            np.testing.assert_array_equal(found.offsets, offsets)
            of_view = offsets[~np.isnan(offsets)] <= analysis().match_threshold
            assert accuracy == (of_view.mean() if of_view.size else None)
            known.append(of_view)
        together = np.concatenate(known)
        assert layer.accuracy == (together.mean() if together.size else None)
        assert layer.rotation_degrees == median_known([pose.rotation_degrees for pose in layer.poses])
    assert sum(len(found.pixels1) for found in analysis().layers[-1].correspondences) > 0


def test_a_view_that_is_turned_has_a_turned_camera_and_no_other_view_has():
    truth = inputs().truth
    cosine, sine = np.cos(np.radians(20)), np.sin(np.radians(20))
    turn = np.array([[cosine, 0, sine], [0, 1, 0], [-sine, 0, cosine]])
    points = [3 * view.points for view in truth.views]
    points[2] = points[2] @ turn.T
    layer = tuple({"pts3d": np.float32(view)[None]} for view in points)
    head = tuple({"pts3d": view.points[None]} for view in truth.views)
    found = analyse_views(StubModel(head), StubProbes({PROBED[0]: layer}), PROBED[:1], inputs(), {}, Stopwatch())
    first, last = found.layers
    np.testing.assert_allclose([pose.rotation_degrees for pose in first.poses], [0, 20, 0], atol=0.2)
    np.testing.assert_allclose([pose.rotation_degrees for pose in last.poses], 0, atol=0.05)
    turned = np.eye(4)
    turned[:3, :3] = turn
    expected = (turned @ truth.poses[2])[:3, 3]
    np.testing.assert_allclose(first.poses[1].camera[:3, 3], 3 * expected, atol=0.02)
    assert first.rotation_degrees == np.median([pose.rotation_degrees for pose in first.poses]) < 0.05
    assert first.errors[2] > 0.1 and max(first.errors[:2] + first.errors[3:]) < 1e-5
    assert first.accuracies[0] == first.accuracies[2] == last.accuracy == 1 and first.accuracies[1] < 0.5 < first.accuracy < 1
    # Without the truth, the head's cameras take its place, and the lens of view 1 is found.
    photos = dataclasses.replace(inputs(), truth=None)
    found = analyse_views(StubModel(head), StubProbes({PROBED[0]: layer}), PROBED[:1], photos, {}, Stopwatch())
    np.testing.assert_allclose([pose.rotation_degrees for pose in found.layers[0].poses], [0, 20, 0], atol=0.2)
    np.testing.assert_allclose([lens[0, 0] for lens in found.intrinsics], [truth.intrinsics[0][0, 0]] * VIEWS, rtol=0.02)


def test_the_median_leaves_out_what_is_not_known():
    assert median_known([3.0, None, 1.0, 8.0]) == 3 and median_known([2.5]) == 2.5 and median_known([None, None]) is None


def test_every_views_tokens_attend_to_those_of_all_others_in_order():
    output = model()(*inputs().views, capture=["decoder.1.cross_attn.weights"], head=False)
    block, tokens = analysis().attention[1], 12
    assert block.keys == ((2, 3, 4), (1, 3, 4), (1, 2, 4), (1, 2, 3))
    for view, weights in enumerate(block.weights, start=1):
        expected = np.asarray(output["decoder.1.cross_attn.weights"][view - 1])[0]
        assert weights.shape == (2, tokens, 3 * tokens)
        np.testing.assert_allclose(weights, expected, rtol=1e-4, atol=1e-6)
        for place, other in enumerate(block.keys[view - 1]):
            part = block.between(view, other, analysis().grids)
            np.testing.assert_array_equal(part, weights[..., place * tokens : (place + 1) * tokens])


def test_photos_of_any_number_are_measured_against_the_head_with_one_lens():
    photos = dataclasses.replace(inputs(), truth=None)
    found = analyse_views(model(), probes(), PROBED, photos, {}, Stopwatch())
    np.testing.assert_allclose(found.layers[-1].errors, np.zeros(VIEWS), atol=1e-6)
    assert found.truth is None and found.true_poses is None and found.layers[0].accuracies == (None,) * (VIEWS - 1)
    if found.intrinsics is not None:
        assert len(found.intrinsics) == VIEWS and len({lens[0, 0] for lens in found.intrinsics}) == 1
        assert found.record["intrinsics"]["estimated"].endswith("for all views")


def test_the_lens_reads_every_views_tokens():
    lens = lens_of_set(model(), inputs(), ("decoder.0.mlp", "decoder.1.mlp"), inputs().truth.views)
    assert {layer: len(errors) for layer, errors in lens.items()} == {"decoder.0.mlp": VIEWS, "decoder.1.mlp": VIEWS}
    # Behind the last step it is the head itself.
    np.testing.assert_allclose(lens["decoder.1.mlp"], layer_named("head").errors, rtol=1e-4)


def test_the_files_have_every_views_numbers_under_keys_that_are_explained(tmp_path):
    write_numbers(tmp_path / "report.json", analysis())
    write_arrays(tmp_path / "arrays.npz", analysis())
    numbers, arrays = json.loads((tmp_path / "report.json").read_text()), np.load(tmp_path / "arrays.npz")
    explained = {key.strip() for keys in numbers["arrays"]["keys"] for key in keys.split(",")}
    names = {re.sub(r"^attention/\d+", "attention/BLOCK", name) for name in arrays}
    for layer in (*PROBED, "head"):
        names = {re.sub(f"^{re.escape(layer)}/", "LAYER/", name) for name in names}
    assert names <= explained and {name for name in explained - names if "camera" not in name} == set()
    assert [camera["view"] for camera in numbers["true_poses"]] == [2, 3, 4]
    np.testing.assert_array_equal(numbers["true_poses"][2]["camera_to_view1"], arrays["truth/camera4_to_1"])
    for index, (layer, told) in enumerate(zip(analysis().layers, numbers["layers"], strict=True)):
        name = layer.layer_id
        np.testing.assert_array_equal(told["errors"], arrays["errors"][index])
        assert told["matches"] == sum(len(found.pixels1) for found in layer.correspondences)
        assert [of_view["matches"] for of_view in told["matches_by_view"]] == [len(found.pixels1) for found in layer.correspondences]
        np.testing.assert_array_equal(arrays[f"{name}/matches1_3"], layer.correspondences[1].pixels1)
        np.testing.assert_array_equal(arrays[f"{name}/matches4"], layer.correspondences[2].pixels2)
        np.testing.assert_array_equal(arrays[f"{name}/offsets3"], layer.correspondences[1].offsets)
        for pose, found in zip(told["poses"], layer.poses, strict=True):
            assert (pose["camera_to_view1"] is None) == (found.camera is None) == (f"{name}/camera{pose['view']}_to_1" not in arrays)
            assert pose["rotation_degrees"] == found.rotation_degrees
        assert told["rotation_degrees"] == layer.rotation_degrees
    assert arrays["attention/0/from_view3"].shape == (2, 12, 36)
    assert arrays["rotation_degrees_by_view"].shape == arrays["accuracies_by_view"].shape == (3, VIEWS - 1)


def test_the_table_has_the_first_views_error_and_the_mean_of_the_others():
    lines = format_table(analysis()).splitlines()
    errors = analysis().layers[0].errors
    assert lines[2].split()[1:3] == [f"{errors[0]:.4f}", f"{np.mean(errors[1:]):.4f}"] and "views 2–4" in lines[1]


def test_the_figures_have_a_line_a_view_and_a_row_for_a_layer_and_view():
    (axes,) = errors_figure(analysis()).axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [f"view {view}" for view in range(1, VIEWS + 1)]
    assert {line.get_color() for line in axes.lines} >= {view_colour(view).light for view in range(1, VIEWS + 1)}
    rows = [axes.get_title(loc="left").partition(": ")[0] for axes in correspondences_figure(analysis()).axes]
    assert rows == [f"{layer}, views 1 and {view}" for layer in (PROBED[0], "the model's own head") for view in (2, 3, 4)]
    titles = [axes.get_title() for axes in attention_figure(analysis()).axes]
    shares = [[int(title.split(": ")[1].rstrip("%")) for title in titles if f"block {block}:" in title] for block in (0, 1)]
    assert all(len(of_block) == 3 and abs(sum(of_block) - 100) <= 1 for of_block in shares)


def test_the_attention_figure_colours_even_attention_evenly_also_in_cells_that_are_cut_off():
    report = make_report((48, 80), 2, 2, has_truth=False, views=3)
    # 3×5 tokens in cells of 2×2: the last row and column have half as many, their corner a quarter.
    cells = tokens_per_cell((3, 5), 2)
    np.testing.assert_array_equal(cells, [[4, 4, 2], [2, 2, 1]])
    even = Attention.to_others(0, [np.tile(cells.ravel() / 30, (2, 6, 2))] * 3)
    _, *maps = attention_figure(dataclasses.replace(report, attention=(even,), pool=2)).axes
    assert [axes.get_title() for axes in maps] == ["view 2, block 0: 50%", "view 3, block 0: 50%"]
    for axes in maps:
        np.testing.assert_allclose(axes.images[1].get_array(), 1, rtol=1e-6)


def test_attention_is_pooled_part_by_part_and_whatever_views_the_keys_are_of():
    grids = (4, 6), (2, 4), (5, 3)
    counts = [rows * columns for rows, columns in grids]
    rng = np.random.default_rng(0)
    weights = [rng.dirichlet(np.full(sum(counts), 0.3), (2, count)).astype(np.float32) for count in counts]
    everywhere = Attention(0, tuple(weights), ((1, 2, 3),) * 3)
    packed = pack_attention([everywhere], grids, 900)
    assert packed.pool == 2 and packed.info["keys"] == ((1, 2, 3),) * 3
    arrays = {array.name: unpack(array.spec, array.text) for array in packed.arrays}
    for view in (1, 2, 3):
        parts = [pool_attention(everywhere.between(view, other, grids), grids[view - 1], grids[other - 1], 2) for other in (1, 2, 3)]
        expected = np.concatenate(parts, axis=-1)
        np.testing.assert_allclose(expected.sum(axis=-1), 1, atol=1e-5)
        peaks = arrays[f"peaks{view}"][0][..., None]
        fills = np.concatenate([tokens_per_cell(grid, 2).ravel() / 4 for grid in grids])
        back = peaks * (arrays[f"weights{view}"][0] / packed.levels) ** 2 * fills
        assert (np.abs(back - expected) <= peaks * (1 / packed.levels + 1 / (4 * packed.levels**2)) + 1e-7).all()


def test_marks_tell_the_places_in_every_other_view_and_what_none_sees():
    values = Page(page_text(analysis())).values()
    places = set_true_places(inputs().truth, analysis().grids)
    for of_view, marks in zip(places, values["attention"]["marks"], strict=True):
        assert marks["places"] == {str(other): place.token.tolist() for other, place in of_view.items()}
        assert marks["hidden"] == np.flatnonzero(~np.any([place.seen for place in of_view.values()], axis=0)).tolist()


def test_the_page_has_every_views_photo_points_poses_and_matches():
    page = Page(page_text(analysis()))
    values, arrays = page.values(), page.arrays()
    photos = [name for _, attribute, name in page.attributes if attribute == "id" and name.startswith("photo")]
    assert photos == ["photo1", "photo2", "photo3", "photo4"] and "4 views of 64×48 pixels" in page.words
    assert {name for name in arrays if name.startswith("points")} == {f"points{view}" for view in range(1, VIEWS + 1)}
    assert all(arrays[f"confidence{view}"].shape == (3, 48, 64) for view in range(1, VIEWS + 1))
    assert len(values["true_poses"]) == 3
    for layer, told in zip(analysis().layers, values["layers"], strict=True):
        assert len(told["errors"]) == VIEWS and len(told["poses"]) == len(told["matches"]) == VIEWS - 1
        assert [matches["count"] for matches in told["matches"]] == [len(found.pixels1) for found in layer.correspondences]


def test_colours_of_views_are_those_of_pairs_and_then_all_different():
    assert (view_colour(1).light, view_colour(2).light, view_colour(1).dark, view_colour(2).dark) == (
        *("#1f6fb2", "#cf6412"),
        *("#62aeee", "#f2994f"),
    )
    for background in range(2):
        assert len({view_colour(view)[background] for view in range(1, 17)}) == 16
    assert ".view11, .of-view11 { --own: var(--view11); }" in view_style(11) and "--view12" not in view_style(11)


@pytest.mark.slow
def test_eight_views_at_full_size_fit_on_a_page():
    report = make_report((384, 512), 4, 1, views=8)
    # Twelve heads of one block's weights: a hundredth of the memory, and for a compressor as long as others.
    weights = [np.broadcast_to(of_view, (12, *of_view.shape[1:])) for of_view in report.attention[0].weights]
    page = page_text(dataclasses.replace(report, attention=tuple(Attention.to_others(block, weights) for block in range(4))))
    assert len(page) <= LARGEST_PAGE < 10_000_000
    values = Page(page).values()
    assert values["geometry"]["stride"] <= 6 and values["attention"]["pool"] <= 6
    assert [len(values[name]) for name in ("layers", "shapes")] == [13, 8] and len(values["attention"]["blocks"]) == 4
