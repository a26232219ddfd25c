"""The commands on a model that takes any number of views, and what those that are for fewer say."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

import und3rstand_jax as u3d
from tests import tiny
from tests.conversion import converted
from tests.tiny import NO_PROVENANCE
from und3rstand_jax.analysis.inputs import scene_inputs
from und3rstand_jax.checkpoint.format import CheckpointInfo, read_checkpoint_info, write_checkpoint_info
from und3rstand_jax.commands.run import main
from und3rstand_jax.geometry.cameras import ViewGeometry
from und3rstand_jax.geometry.metrics import mean_displacements, point_errors
from und3rstand_jax.model.dust3r.config import BackboneConfig
from und3rstand_jax.report.edit_effect import DISPLACEMENT, ERRORS, LayerEffect, format_effects

pytestmark = pytest.mark.quick


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A DUSt3R with probes, whose config says that it takes any number of views."""
    folder = tmp_path_factory.mktemp("checkpoint")
    made = converted(tiny.save_probes(folder / "probes", tiny.save_backbone(folder / "backbone")), folder / "converted")
    info = read_checkpoint_info(made)
    write_checkpoint_info(made, dataclasses.replace(info, backbone=dataclasses.replace(info.backbone, max_views=None)))
    return made


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    paths = [folder / name for name in ("a.png", "b.png", "c.png")]
    for i, path in enumerate(paths):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(path)
    return paths


def command(*words):
    return main([str(word) for word in words])


def test_three_photos_become_three_pointmaps_of_every_layer(checkpoint, photos, tmp_path):
    out = tmp_path / "out"
    assert command(*photos, "--checkpoint", checkpoint, "--out", out, "--size", 32, "--layers", "decoder.1.mlp") == 0
    model, probes = u3d.load_backbone_and_probe(checkpoint)
    features = model(*(u3d.load_image(photo, size=32) for photo in photos), capture=["decoder.1.mlp"], head=True)
    for file, expected in (("head.npz", features.pointmaps), ("layers/decoder.1.mlp.npz", probes.read_layer("decoder.1.mlp", features))):
        with np.load(out / file) as arrays:
            assert sorted(arrays) == ["conf1", "conf2", "conf3", "pts3d1", "pts3d2", "pts3d3"]
            for view, pointmap in enumerate(expected, start=1):
                np.testing.assert_allclose(arrays[f"pts3d{view}"], pointmap["pts3d"][0], rtol=1e-4, atol=1e-5)
    record = json.loads((out / "run.json").read_text())
    assert [photo["path"] for photo in record["photos"]] == list(map(str, photos))
    assert record["outputs"]["head"]["points"] == 3 * 32 * 32


def test_an_edit_of_the_third_view_moves_its_points_first(checkpoint, tmp_path, capsys):
    out = tmp_path / "out"
    words = ("--scene", 1, "--views", 3, "--knock-out", "decoder.0.cross_attn.heads:0@3", "--checkpoint", checkpoint, "--out", out)
    assert command("edit", *words) == 0
    record, inputs = json.loads((out / "run.json").read_text()), scene_inputs(1, "synthetic", (32, 32), views=3)
    first = record["outputs"]["decoder.0.cross_attn"]
    assert first[DISPLACEMENT][:2] == [0, 0] and first[DISPLACEMENT][2] > 1e-3
    assert min(record["outputs"]["decoder.1.cross_attn"][DISPLACEMENT]) > 0
    model, _ = u3d.load_backbone_and_probe(checkpoint)
    edits = u3d.knock_out("decoder.0.cross_attn.heads:0", view=3)
    before, after = (tuple(map(ViewGeometry.of, model(*inputs.views, capture=(), head=True, edits=of).pointmaps)) for of in (None, edits))
    of_head = record["outputs"]["head"]
    np.testing.assert_allclose(of_head[DISPLACEMENT], mean_displacements(after, before), rtol=1e-2, atol=1e-5)
    np.testing.assert_allclose(of_head[ERRORS]["edited"], point_errors(after, inputs.truth.views), rtol=1e-3)
    table = capsys.readouterr().out
    assert "moved" in table and "views 2–3" in table and "error 2–3" in table
    assert len(table.splitlines()[2].split()) == 7


def test_the_table_of_effects_has_the_mean_over_the_later_views():
    effect = LayerEffect("decoder.0.mlp", (0.5, 1.0, 2.0), (1.0, 2.0, 4.0), (0.25, 0.5, 1.0))
    assert format_effects([effect]).splitlines()[2].split() == [
        "decoder.0.mlp",
        *("0.5000", "1.5000", "0.2500", "1.0000", "0.7500", "3.0000"),
    ]


@pytest.mark.slow
def test_a_scene_of_four_views_becomes_a_page_figures_and_numbers_without_the_panel_for_pairs(checkpoint, tmp_path, capsys):
    out = tmp_path / "out"
    assert command("report", "--scene", 3, "--views", 4, "--checkpoint", checkpoint, "--out", out) == 0
    printed = capsys.readouterr()
    assert "leaving out the panel 'What the model uses', which is for pairs of views; found 4 views" in printed.err
    assert "views 2–4" in printed.out and (out / "report.html").stat().st_size < 10_000_000
    numbers = json.loads((out / "report.json").read_text())
    assert numbers["uses"] is None and [len(layer["errors"]) for layer in numbers["layers"]] == [4] * 7
    # The lens behind the last step is the head itself.
    np.testing.assert_allclose(numbers["layers"][-2]["lens_errors"], numbers["layers"][-1]["errors"], rtol=1e-4)
    for name in ("errors_by_layer", "accuracy_by_layer", "correspondences", "attention", "depth_and_confidence"):
        with Image.open(out / "figures" / f"{name}.png") as picture:
            picture.load()
    with np.load(out / "arrays.npz") as arrays:
        np.testing.assert_array_equal(arrays["image4"], scene_inputs(3, "synthetic", (32, 32), views=4).images[3])
        np.testing.assert_allclose(arrays["attention/1/from_view4"].astype(np.float32).sum(-1), 1, rtol=1e-2)


@pytest.fixture(scope="module")
def config_alone(tmp_path_factory):
    """A checkpoint of a model for up to three views without weights: whoever reads them fails, but not with a word about views."""
    folder = tmp_path_factory.mktemp("config")
    config = BackboneConfig(img_size=(32, 32), max_views=3)
    write_checkpoint_info(folder, CheckpointInfo(config, provenance={"backbone": NO_PROVENANCE}))
    return folder


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("report", "--scene", 1, "--views", 4), "this model takes two views or up to 3; found 4"),
        (("edit", "--scene", 1, "--views", 4, "--skip", "decoder.0.mlp"), "this model takes two views or up to 3; found 4"),
        (("edit", "--scene", 1, "--views", 3, "--skip", "decoder.0.mlp@4"), "there are 3 views, 1 to 3; found view 4"),
        (("report", "--scene", 1, "--views", 3, "--uses", "yes"), "--uses yes: that panel is for pairs of views; found 3 views"),
        (("match", "--scene", 1, "--views", 3), "--views 3: expected 2"),
    ],
)
def test_views_that_are_too_many_are_refused_in_a_line_before_weights_are_read(config_alone, tmp_path, capsys, words, message):
    assert command(*words, "--checkpoint", config_alone, "--out", tmp_path / "out", "--quiet") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error
    assert not (tmp_path / "out").exists()


def test_photos_that_are_too_many_are_refused_before_weights_are_read(config_alone, photos, tmp_path, capsys):
    for name in ("report", "run"):
        assert command(name, *photos, photos[0], "--checkpoint", config_alone, "--out", tmp_path / "out") == 2
        assert "this model takes two views or up to 3; found 4" in capsys.readouterr().err
    assert command("match", *photos, "--checkpoint", config_alone, "--out", tmp_path / "out") == 2
    assert "expected two images, or --scene NUMBER; found 3 images" in capsys.readouterr().err
