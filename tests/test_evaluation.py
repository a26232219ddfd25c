"""Evaluation of whole sets of probes: against probes that say exactly what they are told to, against a plain loop over layers, and as
table, files and figure.
"""

import csv
import dataclasses
import functools
import json
import math
import re

import jax
import numpy as np
import pytest
from PIL import Image

import und3rstand_jax.commands.train as train
from tests import tiny
from tests.conversion import converted
from tests.demo_scene import CAMERAS, camera_axes, render
from und3rstand_jax import load_backbone_and_probe, loading
from und3rstand_jax.analysis.evaluate import Evaluation, LayerResult, PoseResult, ViewResult, evaluate, pose_result
from und3rstand_jax.analysis.evaluation_files import format_table, layers_figure, write_results
from und3rstand_jax.data.example import Example
from und3rstand_jax.geometry.cameras import ViewGeometry, sampled_pixels
from und3rstand_jax.geometry.loss import Target
from und3rstand_jax.geometry.metrics import mean_distance, set_errors
from und3rstand_jax.geometry.pose import camera_errors, camera_of_view, pose_errors
from und3rstand_jax.model.backbone import random_backbone
from und3rstand_jax.model.dust3r.config import BackboneConfig
from und3rstand_jax.probes.config import ProbeConfig, ProbeGroup, probe_config
from und3rstand_jax.probes.probes import PointmapProbes, Probes, init_probes, probe_shapes
from und3rstand_jax.support.errors import UserError

pytestmark = pytest.mark.quick

SIDE = 16  # one patch: a probe without weights but with a bias says one pointmap, whatever it is shown


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation")
    backbone = tiny.save_backbone(folder / "backbone")
    return load_backbone_and_probe(converted(tiny.save_probes(folder / "probes", backbone), folder / "converted"))


def room():
    """Both views' points in view 1's frame, the cameras in the room's world, and their intrinsics."""
    points = [render(camera, SIDE, SIDE, samples=1)[1].astype(np.float64) for camera in (0, 1)]
    poses = []
    for place, target in CAMERAS:
        pose = np.eye(4)
        pose[:3, :3] = camera_axes(place, target).T
        pose[:3, 3] = place
        poses.append(pose)
    middle = (SIDE - 1) / 2
    return points, poses, np.array([[0.77 * SIDE, 0, middle], [0, 0.77 * SIDE, middle], [0, 0, 1]])


def room_example(pairs):
    """The same pair again and again, before images that do not matter."""
    points, poses, intrinsics = room()
    worlds = [view @ poses[0][:3, :3].T + poses[0][:3, 3] for view in points]
    batch = [np.tile(array, (pairs, *[1] * array.ndim)).astype(np.float32) for array in (*worlds, *poses, intrinsics)]
    valid = np.ones((pairs, SIDE, SIDE), bool)
    images = np.random.default_rng(0).uniform(-1, 1, (2, pairs, SIDE, SIDE, 3)).astype(np.float32)
    targets = (Target(batch[0], batch[2], valid), Target(batch[1], batch[3], valid))
    return Example((images[0], images[1]), targets, (batch[4], batch[4]))


def raw(points, confidence=None):
    """The outputs of a probe, in its layout, that decode to this pointmap."""
    channels = [np.moveaxis(points, -1, 0)] + ([] if confidence is None else [np.log(confidence - 1)[None]])
    return np.concatenate(channels).reshape(-1)


def turned(points, degrees):
    """Points turned about view 1's camera and its vertical axis."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return points @ np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]]).T


def telling_probes(said):
    """Probes that say the given outputs of both views: layer id -> (raw of view 1, raw of view 2)."""
    by_shape = {}
    for layer, outputs in said.items():
        width = 32 if layer.startswith("encoder") else 16
        by_shape.setdefault((width, len(outputs[0])), []).append(layer)
    groups = tuple(ProbeGroup(tuple(layers), widths, ("linear",), (True,)) for widths, layers in by_shape.items())
    config = ProbeConfig(groups, views="separate", depth_mode=("linear", -math.inf, math.inf))
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), probe_shapes(config))
    for index, group in enumerate(groups):
        params[f"group{index}"]["linear0"]["bias"] = np.float32([said[layer] for layer in group.layer_ids])
    return Probes(PointmapProbes(config), params)


@pytest.fixture(scope="module")
def told(model):
    """Probes that say the truth, the truth five times too large, view 2 turned by 20° about camera 1, the truth where they are sure and
    that turned view where they are not, and nonsense; in groups of several shapes, out of network order.
    """
    (view1, view2), _, _ = room()
    rank = np.random.default_rng(0).permutation(SIDE * SIDE).reshape(SIDE, SIDE)
    confidence = 2.0 + rank
    # Over all pixels, the turned view has the majority; over the more confident half, the truth has.
    divided = np.where(rank[..., None] >= SIDE * SIDE * 5 // 8, view2, turned(view2, 20))
    flat = np.full_like(view1, 3.0)
    said = {
        "decoder.1.mlp": (raw(view1), raw(turned(view2, 20))),
        "decoder.norm": (raw(view1, confidence), raw(divided, confidence)),
        "encoder.norm": (raw(view1), raw(view2)),
        "decoder.0.mlp": (raw(5 * view1), raw(5 * view2)),
        "decoder.1.self_attn": (raw(flat), raw(flat)),
    }
    return model[0], telling_probes(said)


@pytest.fixture(scope="module")
def told_results(told):
    evaluation = evaluate(*told, [room_example(1)] * 2, total=2)
    return evaluation, {result.layer_id: result for result in evaluation.layers}


def true_pose():
    _, poses, _ = room()
    return np.linalg.inv(poses[0]) @ poses[1]


def test_layers_come_in_network_order_whatever_groups_they_are_in(told_results):
    order = ["encoder.norm", "decoder.0.mlp", "decoder.1.self_attn", "decoder.1.mlp", "decoder.norm"]
    assert [result.layer_id for result in told_results[0].layers] == order
    assert told_results[0].head.layer_id == "head" and told_results[0].pairs == 2


@pytest.mark.parametrize("layer", ["encoder.norm", "decoder.0.mlp"])
def test_probes_that_say_the_truth_at_any_scale_have_no_error(told_results, layer):
    result = told_results[1][layer]
    np.testing.assert_allclose([*map(dataclasses.astuple, result.views)], 0, atol=1e-4)
    assert result.pose.rotation_degrees < 0.01 and result.pose.translation_degrees < 0.01
    assert (result.pose.accuracy_15, result.pose.failed) == (1, 0)


def test_a_turn_of_view_2_is_found_as_a_turn_of_its_camera(told_results):
    result = told_results[1]["decoder.1.mlp"]
    turn = np.eye(4)
    turn[:3, :3] = turned(np.eye(3), 20).T
    rotation, direction = pose_errors(turn @ true_pose(), true_pose())
    np.testing.assert_allclose(rotation, 20)
    np.testing.assert_allclose([result.pose.rotation_degrees, result.pose.translation_degrees], [rotation, direction], atol=0.02)
    assert (result.pose.accuracy_15, result.pose.failed) == (0, 0)
    np.testing.assert_allclose(result.views[0].relative_mean, 0, atol=1e-5)
    assert result.views[1].relative_mean > 0.2


def test_the_pose_is_taken_from_the_more_confident_half(told_results):
    result = told_results[1]["decoder.norm"]
    assert result.views[1].relative_mean > 0.2 and result.pose.rotation_degrees < 0.01 and result.pose.translation_degrees < 0.01


def test_a_pose_that_is_not_found_counts_as_180_degrees_off(told_results):
    pose = told_results[1]["decoder.1.self_attn"].pose
    assert dataclasses.astuple(pose) == (180, 180, 0, 2)


def test_pairs_whose_cameras_stand_together_have_no_direction(told):
    example = room_example(1)
    own = example.targets[0].cam2world
    together = example._replace(targets=(example.targets[0], example.targets[1]._replace(cam2world=own)))
    evaluation = evaluate(*told, [example, together], total=None)
    assert evaluation.pairs == 2 and evaluation.without_baseline == 1
    assert evaluation.layers[0].pose.translation_degrees < 0.01  # the other pair's


def test_the_head_has_no_error_on_what_it_says_itself(told):
    backbone, _ = told
    example = room_example(1)
    out = backbone(*example.images, capture=(), head=True)
    nowhere = np.eye(4, dtype=np.float32)[None]
    said = [Target(np.asarray(pred["pts3d"]), nowhere, example.targets[0].valid) for pred in (out.pred1, out.pred2)]
    head = evaluate(*told, [example._replace(targets=tuple(said))], total=1).head
    np.testing.assert_allclose([*map(dataclasses.astuple, head.views)], 0, atol=1e-4)


def random_examples(pairs):
    """Pairs with geometry that has nothing to do with their images; view 2 of the second pair is all invalid."""
    rng = np.random.default_rng(4)
    sizes = ((32, 48), (48, 32))
    images = [rng.uniform(-1, 1, (pairs, *size, 3)).astype(np.float32) for size in sizes]
    poses = np.tile(np.eye(4, dtype=np.float32), (pairs, 1, 1))
    targets = [Target(rng.uniform(1, 4, (pairs, *size, 3)).astype(np.float32), poses, rng.random((pairs, *size)) < 0.8) for size in sizes]
    targets[1].valid[1] = False
    intrinsics = np.tile(np.diag([40, 40, 1]).astype(np.float32), (pairs, 1, 1))
    return Example(tuple(images), tuple(targets), (intrinsics, intrinsics))


def parts(example, size):
    pairs = len(example.images[0])
    return [jax.tree.map(lambda leaf, at=at: leaf[at : at + size], example) for at in range(0, pairs, size)]


@pytest.fixture(scope="module")
def together(model):
    return evaluate(*model, [random_examples(4)], total=4, pose=False)


def figures(evaluation):
    return np.array([[*map(dataclasses.astuple, r.views)] for r in (*evaluation.layers, evaluation.head)])


def test_an_evaluation_is_a_plain_loop_over_layers(model, together):
    backbone, probes = model
    example = random_examples(4)
    features = backbone(*example.images, head=True)
    preds = [probes.read_layer(layer, features) for layer in probes.layer_ids] + [(features.pred1, features.pred2)]
    measure = jax.jit(set_errors)
    expected = [[[np.nanmean(values) for values in view] for view in measure(pair, example.targets)] for pair in preds]
    np.testing.assert_allclose(figures(together), expected, rtol=1e-6)
    assert [result.layer_id for result in together.layers] == list(tiny.LAYERS)
    assert together.without_valid == (0, 1)


def test_batches_change_nothing(model, together):
    apart = evaluate(*model, parts(random_examples(4), 2), total=4, pose=False)
    np.testing.assert_allclose(figures(apart), figures(together), rtol=1e-5)
    assert (apart.pairs, apart.without_valid) == (4, (0, 1))


def test_without_pairs_there_is_a_message(model):
    with pytest.raises(UserError, match="no pair to evaluate on"):
        evaluate(*model, [], total=0)


@pytest.mark.parametrize(("height", "width"), [(512, 384), (16, 32), (224, 224), (65, 64)])
def test_a_sample_is_small_and_sees_every_place_of_a_patch(height, width):
    pixels = sampled_pixels(height, width)
    assert len(pixels) <= 64 * 64 and len(np.unique(pixels, axis=0)) == len(pixels)
    assert pixels.min() >= 0 and (pixels < (width, height)).all()
    for axis, side in enumerate((width, height)):
        places = np.unique(pixels[:, axis])
        assert set(places % 16) == set(range(16))
        assert abs(places.min() - (side - 1 - places.max())) <= 1  # in the middle


def test_a_pose_summary_takes_medians_and_shares():
    result = pose_result([1, 3, 180, 20], [2, math.nan, 180, 4], [False, False, True, False])
    assert result == PoseResult(11.5, 4, 0.5, 1)
    assert math.isnan(pose_result([1], [math.nan], [False]).translation_degrees)


def made_up(layers, pose=True, head=True):
    """An evaluation in which later layers are better, the last but one best at poses."""

    def result(layer, value, rotation):
        found = PoseResult(rotation, 2 * rotation, 1 / rotation, 3) if pose else None
        return LayerResult(layer, (ViewResult(value, value / 2, value / 4), ViewResult(2 * value, value, value / 2)), found)

    count = len(layers)
    results = tuple(result(layer, 1.0 + count - i, 4.0 + abs(count - 2 - i)) for i, layer in enumerate(layers))
    return Evaluation(results, result("head", 0.5, 2.0) if head else None, 12, (0, 1), 2)


def test_files_hold_every_figure(tmp_path):
    evaluation = made_up(tiny.LAYERS)
    (tmp_path / "new").mkdir()
    write_results(tmp_path / "new", evaluation, {"data": "synthetic", "step": 7, "loss": math.nan})
    with (tmp_path / "new" / "layers.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["layer"] for row in rows] == [*tiny.LAYERS, "head"]
    first = evaluation.layers[0]
    assert float(rows[0]["view2_relative_median"]) == first.views[1].relative_median
    assert float(rows[0]["pose_accuracy_15"]) == first.pose.accuracy_15 and rows[0]["pose_failed"] == "3"
    content = json.loads((tmp_path / "new" / "metrics.json").read_text(), parse_constant=pytest.fail)
    assert content["facts"] == {"data": "synthetic", "step": 7, "loss": None}
    assert content["layers"][0]["view1"]["invariant"] == first.views[0].invariant and content["head"]["pose"]["failed"] == 3
    assert content["pairs"] == 12 and content["without_valid"] == [0, 1]
    with Image.open(tmp_path / "new" / "layers.png") as picture:
        assert picture.width > 600 and picture.height > 400


def test_figures_that_are_no_numbers_are_empty_in_csv_and_null_in_json(tmp_path):
    evaluation = made_up(tiny.LAYERS[:2], pose=False, head=False)
    spoilt = dataclasses.replace(evaluation.layers[0], views=(evaluation.layers[0].views[0], ViewResult(math.nan, math.inf, 1.0)))
    write_results(tmp_path, dataclasses.replace(evaluation, layers=(spoilt, evaluation.layers[1])), {})
    with (tmp_path / "layers.csv").open() as file:
        row = next(csv.DictReader(file))
    assert (row["view2_invariant"], row["view2_relative_mean"], row["pose_failed"]) == ("", "inf", "")
    content = json.loads((tmp_path / "metrics.json").read_text(), parse_constant=pytest.fail)
    assert content["layers"][0]["view2"] == {"invariant": None, "relative_mean": "inf", "relative_median": 1.0}
    assert content["head"] is None


def test_the_table_is_aligned_and_marks_the_best_layer_by_each_figure():
    lines = format_table(made_up(tiny.LAYERS)).splitlines()
    rows = {line.split()[0]: line for line in lines[2:8]}
    assert list(rows) == list(tiny.LAYERS)
    assert [line.count("*") for line in lines[2:9]] == [0, 0, 0, 0, 3, 6, 0]  # the head takes no part
    assert rows[tiny.LAYERS[4]].split()[7:] == ["*4.0", "*8.0", "*25%", "3"]
    assert {line[-1] for line in lines[2:9]} == {"3"} and len({len(line) for line in lines[2:9]}) == 1
    ends = [[cell.end() for cell in re.finditer(r"\S+", line)][-10:] for line in lines[2:9]]
    assert ends == [ends[0]] * 7, "the digits of a column end below one another"
    assert "12 pairs" in lines[-1] and "view 2 has no valid pixel in 1" in lines[-1] and "2 pairs have no baseline" in lines[-1]


def test_the_table_leaves_out_poses_that_were_not_asked_for():
    text = format_table(made_up(tiny.LAYERS, pose=False, head=False))
    assert "pose" not in text and "head" not in text and len(text.splitlines()) == 9


def test_the_figure_has_a_marker_a_layer_and_a_line_for_the_head():
    evaluation = made_up(tiny.LAYERS)
    points, pose = layers_figure(evaluation).axes[:2]
    for axes, values, heads in (
        (points, [r.views[0].invariant for r in evaluation.layers], [0.5, 1.0]),
        (pose, [r.pose.rotation_degrees for r in evaluation.layers], [2.0, 4.0]),
    ):
        lines = axes.get_lines()
        marked = {(x, y) for line in lines if line.get_linestyle() == "None" for x, y in zip(*line.get_data(), strict=True)}
        assert set(enumerate(values)) <= marked and len(marked) == 2 * len(values)
        across = [line.get_ydata()[0] for line in lines if list(line.get_xdata()) == [0, 1] and line.get_color() == "#b0243a"]
        assert across == heads
        assert len({line.get_marker() for line in lines} - {"None"}) == 3  # self-attention, cross-attention, MLP
        assert axes.get_yscale() == "log"
    assert [tick.get_text() for tick in pose.get_xticklabels()] == ["0", "1"]


def test_the_figure_copes_with_errors_of_zero_and_without_end():
    evaluation = made_up(("encoder.norm", "decoder.embed", "decoder.0.mlp"), pose=False, head=False)
    exact = dataclasses.replace(evaluation.layers[0], views=(ViewResult(0.0, 0.0, 0.0), ViewResult(math.inf, 1.0, 1.0)))
    figure = layers_figure(dataclasses.replace(evaluation, layers=(exact, *evaluation.layers[1:])))
    axes = figure.axes[0]
    assert axes.get_yscale() == "linear"
    assert [text.get_text() for text in axes.texts] == ["1 value is not finite and not drawn"]
    figure.canvas.draw()
    assert axes.texts[0].get_window_extent().x1 <= figure.bbox.x1  # not cut off


FOUR_SIZES = ((32, 32), (32, 32), (32, 32), (16, 32))


@functools.cache
def of_four():
    """A model that takes any number of views, probes on it, and sets of four views with geometry that has nothing to do with them."""
    config = BackboneConfig(
        img_size=(32, 32), enc_embed_dim=16, enc_depth=1, enc_num_heads=2, dec_embed_dim=16, dec_depth=1, dec_num_heads=2,
        head_type="linear", max_views=None,
    )  # fmt: skip
    probes = probe_config(config, ("decoder.0.self_attn", "decoder.0.mlp"), depth=1)
    rng, sets = np.random.default_rng(5), 3
    images = tuple(rng.uniform(-1, 1, (sets, *size, 3)).astype(np.float32) for size in FOUR_SIZES)
    cameras = np.tile(np.eye(4, dtype=np.float32), (4, sets, 1, 1))
    for view in (1, 2):  # the last view stands where the first does
        cameras[view, :, :3, 3] = rng.normal(size=(sets, 3))
    targets = tuple(
        Target(rng.uniform(1, 4, (sets, *size, 3)).astype(np.float32), camera, rng.random((sets, *size)) < 0.8)
        for size, camera in zip(FOUR_SIZES, cameras, strict=True)
    )
    targets[2].valid[1] = False
    lenses = np.tile(np.diag([40, 40, 1]).astype(np.float32), (sets, 1, 1))
    return random_backbone(config, 0), Probes(PointmapProbes(probes), init_probes(probes, 1)), Example(images, targets, (lenses,) * 4)


@functools.cache
def evaluated_of_four():
    backbone, probes, example = of_four()
    return evaluate(backbone, probes, parts(example, 1), total=3)


@pytest.mark.slow
def test_sets_of_four_views_have_every_views_errors_and_the_poses_of_all_later_views_pooled():
    backbone, probes, example = of_four()
    evaluation = evaluated_of_four()
    features = backbone(*example.images, capture=probes.layer_ids, head=True)
    preds = [probes.read_layer(layer, features) for layer in probes.layer_ids] + [features.pointmaps]
    measure = jax.jit(set_errors)
    for result, pointmaps in zip((*evaluation.layers, evaluation.head), preds, strict=True):
        expected = [[np.nanmean(values) for values in view] for view in measure(pointmaps, example.targets)]
        np.testing.assert_allclose([*map(dataclasses.astuple, result.views)], expected, rtol=1e-5)
    assert (evaluation.views, evaluation.pairs, evaluation.without_valid, evaluation.without_baseline) == (4, 3, (0, 0, 1, 0), 3)
    poses = []
    size = np.asarray(mean_distance(example.targets))
    for view in (1, 2, 3):
        for number in range(3):
            said = ViewGeometry(np.asarray(preds[1][view]["pts3d"][number]), np.asarray(preds[1][view]["conf"][number]))
            camera = camera_of_view(said, example.intrinsics[view][number].astype(np.float64))
            true = np.linalg.inv(example.targets[0].cam2world[number].astype(np.float64)) @ example.targets[view].cam2world[number]
            poses.append((*camera_errors(camera, true, float(size[number])), camera is None))
    pooled = pose_result(*zip(*poses, strict=True))
    assert dataclasses.astuple(evaluation.layers[1].pose) == pytest.approx(dataclasses.astuple(pooled), abs=0.5)


@pytest.mark.slow
def test_files_of_four_views_have_columns_of_each_and_the_table_one_of_the_later_ones(tmp_path):
    evaluation = evaluated_of_four()
    write_results(tmp_path, evaluation, {"views": 4})
    with (tmp_path / "layers.csv").open() as file:
        rows = list(csv.DictReader(file))
    views = [f"view{number}_{metric}" for number in (1, 2, 3, 4) for metric in ("invariant", "relative_mean", "relative_median")]
    assert [name for name in rows[0] if name.startswith("view")] == views and len(rows[0]) == 1 + 12 + 4
    assert float(rows[0]["view4_relative_mean"]) == evaluation.layers[0].views[3].relative_mean
    content = json.loads((tmp_path / "metrics.json").read_text())
    assert content["layers"][0]["view3"]["invariant"] == evaluation.layers[0].views[2].invariant and content["without_baseline"] == 3
    text = format_table(evaluation)
    later = np.mean([view.relative_mean for view in evaluation.layers[0].views[1:]])
    assert "views 2–4" in text and "3 sets of 4 views" in text and "3 cameras have no baseline" in text
    assert f"{later:.4f}" in text.splitlines()[2]


def test_the_views_that_a_model_does_not_take_are_refused_before_its_weights_are_read(tmp_path, capsys, monkeypatch):
    checkpoint = converted(tiny.save_probes(tmp_path / "probes", tiny.save_backbone(tmp_path / "backbone")), tmp_path / "converted")
    monkeypatch.setattr(loading, "_backbone", lambda *_: pytest.fail("weights were read"))
    given = ["evaluate", "--checkpoint", str(checkpoint), "--out", str(tmp_path / "out")]
    assert train.main([*given, "--views", "3"]) == 2
    assert "this model takes two views; found 3" in capsys.readouterr().err
    assert train.main([*given, "--views", "1"]) == 2
    assert "--views 1: expected 2 to 256 views in a set" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
