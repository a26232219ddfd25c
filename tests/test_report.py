"""The analysis of layers with known outputs: the truth, the truth at another scale or rotated, and nonsense."""

import numpy as np
import pytest

from tests.report_cases import HEADS, HEIGHT, WIDTH, StubModel, StubProbes, pointmaps, room, room_inputs, stub_analysis
from und3rstand_jax.analysis.analyse import analyse_views
from und3rstand_jax.geometry.cameras import ViewGeometry, ViewTruth, centred_intrinsics, focal_length
from und3rstand_jax.geometry.matching import mutual_matches, true_places
from und3rstand_jax.geometry.metrics import point_errors
from und3rstand_jax.geometry.pose import PoseEstimate, pose_errors
from und3rstand_jax.model.output import Cameras
from und3rstand_jax.report.attention_figure import place_of_token, salient_token
from und3rstand_jax.report.numbers import format_table
from und3rstand_jax.support import progress
from und3rstand_jax.support.progress import Stopwatch

LAYERS = ("decoder.0.mlp", "decoder.1.self_attn", "decoder.1.cross_attn", "decoder.1.mlp")


def turned(degrees):
    """A turn about view 1's vertical axis."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])


def outputs():
    """Layers that return the truth, the truth five times too large and without confidence, view 2 turned by 20°, and nonsense."""
    _, (view1, view2), _, _ = room()
    rng = np.random.default_rng(0)
    nonsense = (rng.normal(size=view.shape) + [0, 0, 4] for view in (view1, view2))
    layers = [
        pointmaps(view1, view2),
        pointmaps(5 * view1, 5 * view2, confident=False),
        pointmaps(view1, view2 @ turned(20).T),
        pointmaps(*nonsense),
    ]
    return dict(zip(LAYERS, layers, strict=True))


@pytest.fixture(scope="module")
def report():
    return stub_analysis(outputs(), head=pointmaps(*room()[1]))


@pytest.fixture(scope="module")
def photo_report():
    return stub_analysis(outputs(), head=pointmaps(*(2 * view for view in room()[1])), has_truth=False)


def plain_errors(points, true, valid):
    """The normalised errors, written out in float64."""
    scale = np.mean(np.concatenate([np.linalg.norm(p[v], axis=-1) for p, v in zip(points, valid, strict=True)]))
    true_scale = np.mean(np.concatenate([np.linalg.norm(t[v], axis=-1) for t, v in zip(true, valid, strict=True)]))
    return [np.linalg.norm(p[v] / scale - t[v] / true_scale, axis=-1).mean() for p, t, v in zip(points, true, valid, strict=True)]


@pytest.mark.parametrize("place", [0, 1, -1])
def test_layers_that_return_the_truth_at_any_scale_have_no_error(report, place):
    layer = report.layers[place]
    np.testing.assert_allclose(layer.errors, 0, atol=1e-6)
    assert layer.rotation_degrees < 0.01 and layer.translation_degrees < 0.01
    assert layer.accuracy == 1
    (found,) = layer.correspondences
    assert np.isfinite(found.offsets).sum() > 200
    # The nearest pixel is half a diagonal away at most, where the surface faces both cameras.
    assert np.nanmedian(found.offsets) < 0.75


def test_a_turn_of_view_2_is_found_as_a_turn_of_its_camera(report):
    (pose,) = report.layers[2].poses
    true = report.true_poses[1]
    turn = np.eye(4)
    turn[:3, :3] = turned(20)
    np.testing.assert_allclose(pose.camera, turn @ true, atol=1e-3)
    expected = pose_errors(turn @ true, true)
    np.testing.assert_allclose([pose.rotation_degrees, pose.translation_degrees], expected, atol=0.02)
    np.testing.assert_allclose(expected[0], 20)


def cameras(*to_view_1):
    """Of a camera head whose world is no camera's frame."""
    world = np.eye(4)
    world[:3] = np.c_[turned(-35), [0.3, -2.0, 1.1]]
    extrinsics = np.stack([np.linalg.inv(pose) @ world for pose in to_view_1])[None, :, :3]
    return Cameras(np.float32(extrinsics), np.zeros((1, len(to_view_1), 3, 3), np.float32), np.zeros((1, 1, len(to_view_1), 9), np.float32))


def test_the_camera_heads_poses_are_in_view_1s_frame_whatever_its_world():
    _, points, true, _ = room()
    turn = np.eye(4)
    turn[:3, :3] = turned(20)
    for pose, expected in ((true, (0, 0)), (turn @ true, pose_errors(turn @ true, true))):
        found = stub_analysis({}, pointmaps(*points), cameras=cameras(np.eye(4), pose))
        (own,) = found.own_poses
        np.testing.assert_allclose(own.camera, pose, atol=1e-5)
        np.testing.assert_allclose([own.rotation_degrees, own.translation_degrees], expected, atol=0.001)
        assert format_table(found).endswith(f"rotation by the model's camera head: {own.rotation_degrees:.2f}°")


def test_a_camera_that_is_not_finite_is_unknown_and_a_model_without_a_camera_head_has_none(report):
    assert report.own_poses is None and "camera head" not in format_table(report)
    _, points, true, _ = room()
    for broken in ((np.eye(4), np.full((4, 4), np.nan)), (np.eye(4) * np.nan, true)):
        own = Cameras(np.float32(broken)[None, :, :3], np.zeros((1, 2, 3, 3), np.float32), np.zeros((1, 1, 2, 9), np.float32))
        found = stub_analysis({}, pointmaps(*points), cameras=own)
        assert found.own_poses == (PoseEstimate(None, None, None),)


def test_unrelated_points_match_at_random(report):
    nonsense = report.layers[3]
    assert nonsense.accuracy < 0.1
    assert min(nonsense.errors) > 0.2
    assert len(nonsense.correspondences[0].pixels1) > 100


def test_errors_are_those_of_the_definition(report):
    true = [view.points.astype(np.float64) for view in report.truth]
    valid = [view.valid for view in report.truth]
    for layer in report.layers[2:4]:
        points = [view.points.astype(np.float64) for view in layer.views]
        np.testing.assert_allclose(layer.errors, plain_errors(points, true, valid), rtol=1e-4, atol=1e-6)


def test_pixels_without_truth_change_no_error_whatever_a_layer_returns_there():
    rng = np.random.default_rng(1)
    points, true = (rng.normal(size=(2, 4, 6, 3)).astype(np.float32) for _ in range(2))
    valid = rng.random((2, 4, 6)) < 0.6
    expected = plain_errors(points, true, valid)
    points[~valid] = np.nan
    views = tuple(ViewGeometry(p, None) for p in points)
    truth = tuple(ViewTruth(t, v) for t, v in zip(true, valid, strict=True))
    np.testing.assert_allclose(point_errors(views, truth), expected, rtol=1e-5)


def test_a_layer_that_is_not_finite_is_infinitely_wrong_and_a_view_without_truth_has_no_error():
    true = np.ones((2, 4, 6, 3), np.float32)
    known = np.ones((4, 6), bool)
    spoilt = true.copy()
    spoilt[0, 1, 2, 0] = np.nan
    truth = tuple(ViewTruth(view, known) for view in true)
    assert point_errors(tuple(ViewGeometry(p, None) for p in spoilt), truth) == (np.inf, np.inf)
    unknown = (truth[0], ViewTruth(true[1], ~known))
    np.testing.assert_array_equal(point_errors(tuple(ViewGeometry(p, None) for p in true), unknown), (0, np.nan))


def test_the_model_runs_once_for_layers_head_and_the_cross_attention_of_every_block():
    model = StubModel(head=pointmaps(*room()[1]), blocks=2)
    stopwatch = Stopwatch()
    found = analyse_views(model, StubProbes(outputs()), LAYERS, room_inputs(), {"source": "here"}, stopwatch)
    weights = ("decoder.0.cross_attn.weights", "decoder.1.cross_attn.weights")
    assert model.calls == [((*LAYERS, *weights), ("pointmap",))]
    assert [layer.layer_id for layer in found.layers] == [*LAYERS, "head"]
    assert found.grids == ((HEIGHT // 16, WIDTH // 16),) * 2
    tokens = HEIGHT * WIDTH // 256
    assert [block.block for block in found.attention] == [0, 1]
    for block in found.attention:
        assert block.weights[0].shape == block.weights[1].shape == (HEADS, tokens, tokens)
        np.testing.assert_allclose(block.weights[1].sum(-1), 1, rtol=1e-5)
    assert list(stopwatch.seconds) == ["forward", "probes", "errors", "poses", "matches"]
    assert found.record["source"] == "here" and found.record["intrinsics"]["view2"][0][0] == pytest.approx(0.77 * WIDTH)
    assert (found.reference, found.match_threshold) == ("ground truth", pytest.approx(0.03 * WIDTH))
    assert found.layers[1].views[0].confidence is None


def test_every_stage_says_once_how_long_it_took(monkeypatch, caplog):
    monkeypatch.setattr(progress, "_TOLD_FROM", 0)
    model = StubModel(head=pointmaps(*room()[1]), blocks=2)
    with caplog.at_level("INFO", logger="und3rstand_jax"):
        stopwatch = Stopwatch()
        analyse_views(model, StubProbes(outputs()), LAYERS, room_inputs(), {}, stopwatch, progress=True)
    assert [message.partition(" took ")[0] for message in caplog.messages] == list(stopwatch.seconds)


def test_without_truth_layers_are_measured_against_the_head(photo_report):
    assert photo_report.reference == "the model's own final pointmaps"
    assert photo_report.truth is None and photo_report.true_poses is None
    truthful, scaled, rotated, nonsense, head = photo_report.layers
    for layer in (truthful, scaled, head):
        np.testing.assert_allclose(layer.errors, 0, atol=1e-6)
        assert layer.rotation_degrees < 0.01
        assert layer.accuracy is None and layer.correspondences[0].offsets is None
    np.testing.assert_allclose(rotated.rotation_degrees, 20, atol=0.05)
    assert rotated.errors[0] < 0.05 < rotated.errors[1] and min(nonsense.errors) > 0.2
    focal = photo_report.record["intrinsics"]["view1"][0][0]
    np.testing.assert_allclose(focal, 0.77 * WIDTH, rtol=1e-4)


def test_without_truth_and_head_the_last_layer_is_the_reference():
    reverse = dict(list(outputs().items())[::-1])
    found = stub_analysis(reverse, head=None, has_truth=False)
    assert found.reference == f"the last probed layer's pointmaps ({LAYERS[0]})"
    assert [layer.layer_id for layer in found.layers] == list(reverse)
    np.testing.assert_allclose(found.layers[-1].errors, 0, atol=1e-6)
    assert found.layers[0].errors[0] > 0.2


@pytest.mark.parametrize("has_truth", [True, False])
def test_views_of_two_sizes_have_each_their_own_camera_and_grid(has_truth):
    sizes = (64, 96), (48, 32)
    _, points, pose, intrinsics = room(sizes)
    layers = {LAYERS[0]: pointmaps(*points)}
    found = stub_analysis(layers, head=None if has_truth else pointmaps(*points), has_truth=has_truth, sizes=sizes)
    assert found.grids == ((4, 6), (3, 2)) and found.attention[0].weights[1].shape == (HEADS, 6, 24)
    layer = found.layers[0]
    np.testing.assert_allclose(layer.errors, 0, atol=1e-6)
    assert layer.correspondences[0].pixels1.max() > 63 and (layer.correspondences[0].pixels2.max(axis=0) < (32, 48)).all()
    if has_truth:
        np.testing.assert_array_equal(found.intrinsics, intrinsics)
        np.testing.assert_allclose(layer.poses[0].camera, pose, atol=1e-3)
        assert layer.accuracy == 1
    else:
        # For photos, one lens is assumed: view 1's, in pixels, about the middle of each view.
        np.testing.assert_allclose(found.intrinsics[0], intrinsics[0], rtol=1e-4)
        np.testing.assert_allclose(found.intrinsics[1], centred_intrinsics(found.intrinsics[0][0, 0], sizes[1]))


def test_a_focal_length_that_cannot_be_told_leaves_poses_unknown():
    flat = np.ones((HEIGHT, WIDTH, 3)) * [0, 0, 2]
    found = stub_analysis({LAYERS[0]: pointmaps(*room()[1])}, head=pointmaps(flat, flat), has_truth=False)
    assert found.record["intrinsics"] is None and found.intrinsics is None
    assert {(layer.poses[0].camera, layer.rotation_degrees) for layer in found.layers} == {(None, None)}


def seen_points(focal, height=48, width=64):
    """The pointmap of a wavy surface in its own camera."""
    v, u = np.mgrid[:height, :width].astype(float)
    depth = 3 + np.sin(u / 9) + 0.5 * np.cos(v / 7)
    return np.stack([(u - (width - 1) / 2) / focal * depth, (v - (height - 1) / 2) / focal * depth, depth], -1)


@pytest.mark.parametrize("focal", [40.0, 300.0])
def test_the_focal_length_of_exact_points_is_found(focal):
    np.testing.assert_allclose(focal_length(seen_points(focal)), focal, rtol=1e-6)


def test_the_focal_length_stands_outliers_and_heeds_confidence():
    points = seen_points(55.0)
    rng = np.random.default_rng(0)
    wrong = rng.random(points.shape[:2]) < 0.3
    points[wrong] = rng.normal(size=(wrong.sum(), 3)) * 3
    points[0, 0] = np.nan
    np.testing.assert_allclose(focal_length(points), 55, rtol=0.01)
    # A majority is wrong alike; what is sure of itself is right.
    halved = seen_points(55.0)
    halved[:, 20:, :2] *= 2
    confidence = np.where(np.arange(halved.shape[1]) < 20, 50.0, 1.0) * np.ones(halved.shape[:2])
    np.testing.assert_allclose(focal_length(halved, confidence), 55, rtol=1e-3)


def test_points_behind_the_camera_or_on_its_axis_tell_no_focal_length():
    assert focal_length(-seen_points(55.0)) is None
    assert focal_length(np.ones((8, 8, 3)) * [0, 0, 1]) is None


def test_matches_of_the_same_points_are_the_same_pixels_and_of_shifted_points_shifted():
    points = seen_points(60.0)
    pixels1, pixels2 = mutual_matches(points, points)
    np.testing.assert_array_equal(pixels1, pixels2)
    assert len(pixels1) == points.shape[0] * points.shape[1]
    pixels1, pixels2 = mutual_matches(points, points[:, 5:])
    np.testing.assert_array_equal(pixels1 - pixels2, np.broadcast_to([5, 0], pixels1.shape))
    assert len(pixels1) == points.shape[0] * (points.shape[1] - 5)


def test_points_that_are_not_finite_match_nothing():
    points = seen_points(60.0)
    holed = points.copy()
    holed[:, 10] = np.nan
    pixels1, pixels2 = mutual_matches(holed, points)
    assert 10 not in pixels1[:, 0] and len(pixels1) == points.shape[0] * (points.shape[1] - 1)
    assert [len(pixels) for pixels in mutual_matches(points, np.full_like(points, np.nan))] == [0, 0]


def test_of_a_large_view_a_grid_is_matched_with_every_pixel_of_the_other():
    points = seen_points(200.0, 96, 200)
    pixels1, pixels2 = mutual_matches(points, points[:, 1:])
    # Every fifth column and every third row; none of them is the first column, which view 2 has lost.
    assert len(pixels1) == (200 // 5) * (96 // 3)
    np.testing.assert_array_equal(pixels1 - pixels2, np.broadcast_to([1, 0], pixels1.shape))


def test_a_pixel_is_found_where_view_2_sees_its_point_and_nowhere_behind_what_hides_it():
    height, width, focal = 24, 32, 20.0
    intrinsics = centred_intrinsics(focal, (height, width))
    v, u = np.mgrid[:height, :width].astype(float)

    def plane(depth):
        return np.stack([(u - intrinsics[0, 2]) / focal * depth, (v - intrinsics[1, 2]) / focal * depth, depth], -1)

    pose = np.eye(4)
    pose[0, 3] = 1.0  # a metre to the right of view 1: a plane at 4 m moves 5 pixels to the left
    depth2 = np.full((height, width), 4.0)
    depth2[:, 20:] = 2.0
    truth = ViewTruth(plane(np.full((height, width), 4.0)), v > 0), ViewTruth(plane(depth2) + pose[:3, 3], np.ones((height, width), bool))
    places = true_places(truth, pose, intrinsics)
    seen = (u >= 5) & (u < 25) & (v > 0)  # not left of view 2, not behind what stands at 2 m, not unknown
    np.testing.assert_array_equal(~np.isnan(places).any(-1), seen)
    np.testing.assert_allclose(places[seen], np.stack([u - 5, v], -1)[seen], atol=1e-9)


def test_the_patch_whose_attention_is_shown_has_matches_where_the_cross_is(report):
    token = salient_token(report)
    x, y = place_of_token(report, token, 2)
    columns = report.grids[0][1]
    matches = report.layers[-1].correspondences[0]
    inside = (matches.pixels1 // 16 == [token % columns, token // columns]).all(axis=-1)
    assert inside.sum() > 10
    np.testing.assert_allclose((x, y), np.median(matches.pixels2[inside], axis=0))


def test_the_table_has_a_line_a_layer_and_a_dash_for_what_is_not_known(report, photo_report):
    lines = format_table(report).splitlines()
    assert lines[2].split() == ["decoder.0.mlp", "0.0000", "0.0000", "100.0%", f"{report.layers[0].rotation_degrees:.2f}"]
    assert lines[-2].startswith("the model's own head") and len(lines) == 2 + 5 + 1
    assert lines[-1] == "errors and rotation against ground truth; matches within 2.88 pixels of the true place"
    assert format_table(photo_report).splitlines()[2].split()[3] == "–"
