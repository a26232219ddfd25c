"""A report's files and its command: what is written is what was measured, and what cannot be done is reported in one line."""

import dataclasses
import json
import os
import re

import jax
import numpy as np
import pytest
from matplotlib.collections import LineCollection
from PIL import Image

from tests import tiny
from tests.conversion import converted
from tests.report_cases import HEIGHT, WIDTH, pointmaps, room, stub_analysis
from tests.strict import one_document
from tests.tiny import NO_PROVENANCE
from und3rstand_jax.analysis.inputs import photo_inputs, scene_inputs
from und3rstand_jax.checkpoint.format import CheckpointInfo, write_checkpoint_info
from und3rstand_jax.commands.run import main
from und3rstand_jax.geometry.metrics import point_errors
from und3rstand_jax.geometry.pose import PoseEstimate
from und3rstand_jax.model.dust3r.config import BackboneConfig
from und3rstand_jax.model.images import load_image, to_uint8
from und3rstand_jax.model.photos import open_photo
from und3rstand_jax.model.vggt.config import VGGTConfig
from und3rstand_jax.report import layer_report
from und3rstand_jax.report.figures import accuracy_figure, correspondences_figure, errors_figure, pose_figure
from und3rstand_jax.report.numbers import write_arrays, write_numbers
from und3rstand_jax.support.errors import CheckpointError

LAYERS = ("decoder.0.self_attn", "decoder.0.cross_attn", "decoder.1.mlp")


def noisy(spread, seed=0):
    """The truth of both views, its points moved at random by about as much."""
    rng = np.random.default_rng(seed)
    return pointmaps(*(view + spread * rng.normal(size=view.shape) for view in room()[1]), confident=seed != 1)


@pytest.fixture(scope="module")
def report():
    flat = np.zeros((HEIGHT, WIDTH, 3))
    layers = {LAYERS[0]: pointmaps(flat, flat), LAYERS[1]: noisy(0.5, seed=1), LAYERS[2]: noisy(0.05)}
    return stub_analysis(layers, head=noisy(0.01))


@pytest.fixture(scope="module")
def written(report, tmp_path_factory):
    folder = tmp_path_factory.mktemp("numbers")
    write_numbers(folder / "report.json", report)
    write_arrays(folder / "arrays.npz", report)
    return read_strictly(folder / "report.json"), np.load(folder / "arrays.npz")


def read_strictly(file):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(file.read_text(encoding="utf-8"), parse_constant=refuse)


def test_numbers_and_arrays_say_the_same(report, written):
    numbers, arrays = written
    layers = numbers["layers"]
    assert [layer["layer"] for layer in layers] == list(arrays["layer_ids"]) == [*LAYERS, "head"]
    np.testing.assert_array_equal([layer["errors"] for layer in layers], arrays["errors"])
    for index, layer in enumerate(layers):
        name = layer["layer"]
        for key, array in (("accuracy", "accuracies"), ("rotation_degrees",) * 2, ("translation_degrees",) * 2):
            np.testing.assert_array_equal(np.nan if layer[key] is None else layer[key], arrays[array][index])
        assert layer["matches"] == len(arrays[f"{name}/matches1"]) == len(arrays[f"{name}/matches2"])
        known = arrays[f"{name}/offsets"][~np.isnan(arrays[f"{name}/offsets"])]
        assert layer["matches_known"] == len(known)
        if len(known):
            assert layer["accuracy"] == np.mean(known <= numbers["match_threshold_pixels"])
        if layer["camera2_to_1"] is None:
            assert f"{name}/camera2_to_1" not in arrays
        else:
            np.testing.assert_array_equal(layer["camera2_to_1"], arrays[f"{name}/camera2_to_1"])
    np.testing.assert_array_equal(numbers["true_camera2_to_1"], arrays["truth/camera2_to_1"])
    assert numbers["reference"] == "ground truth" and numbers["grids"] == [[4, 6], [4, 6]]


def test_arrays_hold_what_was_measured(report, written):
    _, arrays = written
    for layer in report.layers:
        for view, geometry in enumerate(layer.views, start=1):
            np.testing.assert_array_equal(arrays[f"{layer.layer_id}/points{view}"], geometry.points)
            assert (f"{layer.layer_id}/confidence{view}" in arrays) == (geometry.confidence is not None)
    assert f"{LAYERS[1]}/confidence1" not in arrays
    for block in report.attention:
        stored = arrays[f"attention/{block.block}/from_view1"]
        assert stored.dtype == np.float16
        np.testing.assert_allclose(stored, block.weights[0], rtol=1e-3, atol=1e-7)
    np.testing.assert_array_equal(arrays["image2"], room()[0][1])
    np.testing.assert_array_equal(arrays["truth/points2"], room()[1][1])


def test_every_array_is_explained(written):
    numbers, arrays = written
    explained = {key.strip() for keys in numbers["arrays"]["keys"] for key in keys.split(",")}
    found = {re.sub(r"^attention/\d+", "attention/BLOCK", name) for name in arrays}
    for layer in (*LAYERS, "head"):
        found = {re.sub(f"^{re.escape(layer)}/", "LAYER/", name) for name in found}
    assert found == explained


def test_the_camera_heads_poses_are_written_and_drawn_as_lines(report, tmp_path):
    turn = np.eye(4)
    turn[:3, 3] = (0.5, 0.0, 0.25)
    own = dataclasses.replace(report, own_poses=(PoseEstimate(turn, 3.5, 7.25),))
    write_numbers(tmp_path / "report.json", own)
    write_arrays(tmp_path / "arrays.npz", own)
    numbers, arrays = read_strictly(tmp_path / "report.json"), np.load(tmp_path / "arrays.npz")
    written = {"view": 2, "camera_to_view1": turn.tolist(), "rotation_degrees": 3.5, "translation_degrees": 7.25}
    assert numbers["own_poses"] == [written] and "own/camera2_to_1" in numbers["arrays"]["keys"]
    np.testing.assert_array_equal(arrays["own/camera2_to_1"], turn)
    (axes,) = pose_figure(own).axes
    assert {3.5, 7.25} <= {line.get_ydata()[0] for line in axes.lines if len(set(line.get_ydata())) == 1}
    assert drawn(pose_figure(own)) == drawn(pose_figure(report))


def test_a_pose_that_was_not_found_is_null_in_json(report, written):
    assert report.layers[0].poses[0].camera is None
    assert written[0]["layers"][0]["camera2_to_1"] is None and written[0]["layers"][0]["rotation_degrees"] is None


def test_numbers_of_photos_whose_names_are_not_utf_8_are_written_and_come_back(report, tmp_path):
    photos = [tmp_path / os.fsdecode(name) for name in (b"caf\xe9.png", "ca\nfé.png".encode())]
    for photo, pixels in zip(photos, room()[0], strict=True):
        Image.fromarray(pixels).save(photo)
    inputs = photo_inputs(tuple(photos), tuple(map(open_photo, photos)), "probe", 32)
    assert inputs.title == "caf\\xe9.png and ca\\nfé.png"
    write_numbers(tmp_path / "report.json", dataclasses.replace(report, title=inputs.title, record=inputs.provenance))
    numbers = read_strictly(tmp_path / "report.json")
    assert [image["path"] for image in numbers["facts"]["images"]] == list(map(str, photos))
    assert "fé.png" in (tmp_path / "report.json").read_text("utf-8")


def drawn(figure):
    """All values that markers stand for in a figure's panel."""
    (axes,) = figure.axes
    points = [line for line in axes.lines if line.get_linestyle() == "None"]
    return sorted(float(value) for line in points for value in line.get_ydata() if not np.isnan(value))


def test_figures_show_the_layers_figures_and_the_head_as_a_line(report):
    layers = report.layers[:-1]
    np.testing.assert_allclose(drawn(errors_figure(report)), sorted(error for layer in layers for error in layer.errors))
    shown = [angle for layer in layers for angle in (layer.rotation_degrees, layer.translation_degrees) if angle is not None]
    np.testing.assert_allclose(drawn(pose_figure(report)), sorted(shown))
    figure = accuracy_figure(report)
    np.testing.assert_allclose(drawn(figure), sorted(layer.accuracy for layer in layers if layer.accuracy is not None))
    (axes,) = figure.axes
    assert axes.get_yscale() == "linear" and axes.get_ylim() == (-0.02, 1.02)
    assert report.layers[-1].accuracy in [line.get_ydata()[0] for line in axes.lines if len(line.get_ydata())]


def test_axes_name_the_reference_that_there_is():
    layers = {layer: noisy(0.05) for layer in LAYERS}
    labels = [
        pose_figure(stub_analysis(layers, head, has_truth)).axes[0].get_ylabel()
        for head, has_truth in ((None, True), (noisy(0.01), False), (None, False))
    ]
    assert labels == [
        f"angle in degrees\nto {named}" for named in ("ground truth", "the model's final points", "the last probed layer's points")
    ]


def test_correct_matches_are_blue_and_wrong_ones_orange(report):
    figure = correspondences_figure(report)
    assert len(figure.axes) == len(report.layers)
    for axes, layer in zip(figure.axes, report.layers, strict=True):
        (lines,) = [found for found in axes.collections if isinstance(found, LineCollection)] or [None]
        (found,) = layer.correspondences
        if lines is None:
            assert not len(found.pixels1)
            continue
        ends = {tuple(pixel): offset for pixel, offset in zip(found.pixels1, found.offsets, strict=True)}
        for segment, colour in zip(lines.get_segments(), lines.get_colors(), strict=True):
            offset = ends[tuple(segment[0].astype(int))]
            if not np.isnan(offset):
                assert (colour[2] > colour[0]) == (offset <= report.match_threshold)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    return converted(tiny.save_probes(folder / "probes", tiny.save_backbone(folder / "backbone")), folder / "converted")


@pytest.fixture(scope="module")
def config_alone(tmp_path_factory):
    """A checkpoint without weights: whoever reads them fails, but not with a UserError about what was asked."""
    folder = tmp_path_factory.mktemp("config")
    write_checkpoint_info(folder, CheckpointInfo(BackboneConfig(img_size=(32, 48)), provenance={"backbone": NO_PROVENANCE}))
    return folder


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "expected two images or more, or --scene NUMBER; found 0 images"),
        (("a.png",), "expected two images or more, or --scene NUMBER; found 1 image"),
        (("a.png", "b.png", "--scene", "3"), "expected images or --scene 3, found both"),
        (("a.png", "b.png", "--views", "2"), "--views 2 counts the cameras of a rendered scene"),
        (("--scene", "0", "--views", "1"), "--views 1: expected 2 or more"),
        (("--scene", "0", "--views", "3"), "this model takes two views; found 3"),
        (("--scene", "0", "--views", "3", "--uses", "yes"), "--uses yes: that panel is for pairs of views; found 3 views; omit --uses"),
        (("a.png", "b.png", "--data", "synthetic"), "--data synthetic places the cameras of rendered scenes"),
        (("a.png", "b.png"), "no image at a.png"),
        (("--scene", "-1"), "expected the number of a held-out scene, 0 to"),
        (("--scene", str(2**30)), "expected the number of a held-out scene, 0 to"),
        (("--scene", "0", "--data", "co3d:somewhere"), "expected synthetic"),
        (("--scene", "0", "--data", "synthetic:overlap=2"), "fractions of view 1's pixels"),
        (("--scene", "0", "--data", ""), "--data '' is not"),
        (("--scene", "0", "--layers", "decoder.0.mlp"), "--layers decoder.0.mlp: this checkpoint has no probes"),
        (("--scene", "0", "--size", "40"), "both sides must be multiples of 16; found 40×40"),
        (("--scene", "0", "--size", "big"), "neither a side nor WIDTHxHEIGHT"),
    ],
)
def test_what_cannot_be_reported_on_is_refused_in_a_line_before_weights_are_read(config_alone, tmp_path, capsys, arguments, message):
    assert main(["report", *arguments, "--checkpoint", str(config_alone), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error
    assert not (tmp_path / "out").exists()


def test_photos_are_brought_to_one_side_and_no_other_size(config_alone, tmp_path, capsys):
    photos = tmp_path / "a.png", tmp_path / "b.png"
    for photo, pixels in zip(photos, room()[0], strict=True):
        Image.fromarray(pixels).save(photo)
    command = ["report", *map(str, photos), "--checkpoint", str(config_alone), "--out", str(tmp_path / "out"), "--size", "32x48"]
    assert main(command) == 2
    assert "--size 32x48: photos are resized to one side, in pixels, such as 48" in capsys.readouterr().err


def test_a_photo_that_is_not_there_is_refused_before_a_checkpoint_is_converted(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("UND3RSTAND_JAX_CACHE", str(tmp_path / "cache"))
    source = tiny.save_backbone(tmp_path / "source")
    command = ["report", str(tmp_path / "a.png"), str(tmp_path / "b.png"), "--checkpoint", str(source), "--out", str(tmp_path / "out")]
    assert main(command) == 2
    assert f"no image at {tmp_path / 'a.png'}" in capsys.readouterr().err
    assert not (tmp_path / "cache").exists()


@pytest.mark.slow
def test_a_scene_becomes_a_page_figures_and_numbers(checkpoint, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["report", "--scene", "3", "--checkpoint", str(checkpoint), "--out", str(out)]
    assert main(command) == 0
    table = capsys.readouterr().out
    assert [line.split()[0] for line in table.splitlines()[2:8]] == list(tiny.LAYERS)
    assert table.splitlines()[-1] == str(out / "report.html")

    files = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    numbers = read_strictly(out / "report.json")
    poses = {"pose_by_layer"} if any(layer["rotation_degrees"] is not None for layer in numbers["layers"]) else set()
    names = {"errors_by_layer", "accuracy_by_layer", "correspondences", "attention"} | poses
    figures = {f"figures/{name}.{kind}" for name in names for kind in ("png", "svg")}
    assert files == figures | {"figures/depth_and_confidence.png", "report.html", "report.json", "arrays.npz"}
    for figure in out.glob("figures/*.png"):
        with Image.open(figure) as picture:
            picture.load()

    facts = numbers["facts"]
    assert facts["scene"]["number"] == 3 and facts["images"] == [{"height": 32, "width": 32}] * 2
    assert set(facts["checkpoint"]["backbone"]["sha256"]) == {"model.safetensors", "config.json"}
    stages = ["images", "load", "forward", "probes", "errors", "poses", "matches", "uses", "arrays", "figures", "page"]
    assert list(facts["seconds"]) == stages
    # The lens behind the last step is the head itself.
    np.testing.assert_allclose(numbers["layers"][-2]["lens_errors"], numbers["layers"][-1]["errors"], rtol=1e-4)
    assert len(numbers["uses"]["heads"]) == 4 * 2 * 2 and numbers["uses"]["measure"] == "error"
    assert facts["layers"] == list(tiny.LAYERS) and facts["head"] is True and "jax" in facts["versions"]

    arrays = np.load(out / "arrays.npz")
    scene = scene_inputs(3, "synthetic", (32, 32))
    np.testing.assert_array_equal(arrays["image1"], scene.images[0])
    np.testing.assert_allclose(arrays["attention/1/from_view2"].astype(np.float32).sum(-1), 1, rtol=1e-2)
    np.testing.assert_array_equal(arrays["truth/points2"], scene.truth.views[1].points)

    assert main(command) == 2
    assert "is not empty" in capsys.readouterr().err


@pytest.mark.slow
def test_two_photos_are_measured_against_the_head_and_an_earlier_report_is_replaced_only_on_request(checkpoint, tmp_path, capsys):
    photos = tmp_path / "a.png", tmp_path / "b.png"
    for photo, pixels in zip(photos, room()[0], strict=True):
        Image.fromarray(pixels).save(photo)
    out = tmp_path / "out"
    command = ["report", *map(str, photos), "--checkpoint", str(checkpoint), "--out", str(out)]
    out.mkdir()
    (out / "report.json").write_text("somebody else's")
    assert main([*command, "--overwrite"]) == 2
    (out / "report.json").unlink()
    capsys.readouterr()
    assert main([*command, "--overwrite", "--json", "--quiet"]) == 0
    numbers = read_strictly(out / "report.json")
    shown = capsys.readouterr()
    assert one_document(shown.out) == numbers and shown.err == ""
    assert numbers["reference"] == "the model's own final pointmaps"
    np.testing.assert_allclose(numbers["layers"][-1]["errors"], 0, atol=1e-6)
    assert [image["path"] for image in numbers["facts"]["images"]] == [str(photo) for photo in photos]
    assert {layer["accuracy"] for layer in numbers["layers"]} == {None}
    assert not (out / "figures" / "accuracy_by_layer.png").exists()
    np.testing.assert_array_equal(np.load(out / "arrays.npz")["image1"], to_uint8(load_image(photos[0], "probe", 32))[0])


@pytest.mark.slow
def test_a_scenes_true_points_lie_behind_the_pixels_that_see_them():
    scene = scene_inputs(3, "synthetic", (32, 32)).truth
    v, u = np.mgrid[:32, :32]
    for true, pose, intrinsics in zip(scene.views, (np.eye(4), scene.pose), scene.intrinsics, strict=True):
        assert true.valid.mean() > 0.5
        in_camera = (true.points[true.valid] - pose[:3, 3]) @ pose[:3, :3]
        projected = in_camera @ intrinsics.T
        pixels = np.stack([u, v], -1)[true.valid]
        np.testing.assert_allclose(projected[:, :2] / projected[:, 2:], pixels, atol=1e-3)
    assert 0.1 <= np.linalg.norm(scene.pose[:3, 3]) <= 3


@pytest.mark.slow
@pytest.mark.optimised
def test_a_scene_that_is_told_by_its_truth_has_no_error():
    truth = scene_inputs(3, "synthetic", (32, 32)).truth.views
    views = [dataclasses.replace(view, points=view.points * 7) for view in truth]
    np.testing.assert_allclose(point_errors(tuple(map(as_layer, views)), truth), 0, atol=1e-6)


def as_layer(view):
    from und3rstand_jax.geometry.cameras import ViewGeometry

    return ViewGeometry(view.points, None)


@pytest.mark.parametrize(("wanted", "side", "expected"), [("auto", 64, True), ("auto", 224, False), ("yes", 224, True), ("no", 64, False)])
def test_what_the_model_uses_is_left_out_only_where_it_takes_long(wanted, side, expected, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    config, grid = BackboneConfig.dust3r_224_linear(), (side // 16, side // 16)
    assert layer_report._with_uses(wanted, config, (grid, grid)) is expected
    headless = dataclasses.replace(config, head_type=None)
    if wanted == "yes":
        with pytest.raises(CheckpointError, match="--uses yes"):
            layer_report._with_uses(wanted, headless, (grid, grid))
    else:
        assert not layer_report._with_uses(wanted, headless, (grid, grid))


@pytest.mark.parametrize(("views", "expected"), [(2, True), (3, True), (4, False)])
def test_a_lens_that_takes_long_is_not_left_out_without_a_word(views, expected, monkeypatch, caplog):
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    with caplog.at_level("INFO", logger="und3rstand_jax"):
        assert layer_report._with_uses("auto", VGGTConfig(), ((37, 37),) * views) is expected
    assert ("the model's own head reads them, which would take long" in caplog.text) is not expected
    assert "--uses yes" not in caplog.text  # it is refused
