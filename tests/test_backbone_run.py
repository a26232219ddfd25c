"""`python -m train backbone` from end to end in this process: what it leaves behind, and how it goes on."""

import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

import und3rstand_jax as u3d
import und3rstand_jax.commands.convert as convert
from tests import tiny
from tests.conversion import converted
from tests.data_sets import make_views, write_pairs
from tests.orbax_tree import read_tree
from und3rstand_jax.checkpoint.format import read_checkpoint_info
from und3rstand_jax.commands.train import main

pytestmark = [pytest.mark.slow, pytest.mark.quick]

STEPS = 6
ARCHITECTURE = ["--image-size", "32x32", "--enc-depth", "1", "--enc-width", "32", "--enc-heads", "2"]
ARCHITECTURE += ["--dec-depth", "2", "--dec-width", "16", "--dec-heads", "2", "--mlp-ratio", "2"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_pairs(folder, make_views(5, (48, 64)), [(i, j) for i in range(5) for j in range(5) if i != j])
    return ["--data", f"pairs:{folder}", "--workers", "0", "--val-pairs", "2"]


def arguments(data, out, *more, **options):
    given = {"steps": STEPS, "batch-size": 2, "log-every": 2, "save-every": 2, "validate-every": 3, "optimizer": "muon"} | options
    return ["backbone", *data, *[text for name, value in given.items() for text in (f"--{name}", str(value))], *more, "--out", str(out)]


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """The folder of a run from scratch that went through."""
    out = tmp_path_factory.mktemp("run") / "out"
    assert main(arguments(data, out, *ARCHITECTURE)) == 0
    return out


def lines(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def state(out, step=STEPS):
    return read_tree(out / "checkpoints" / str(step) / "state")


def test_the_end_is_a_converted_checkpoint_with_the_last_parameters(finished):
    info = read_checkpoint_info(finished / "backbone")
    assert (info.backbone.img_size, info.backbone.enc_embed_dim, info.backbone.dec_depth, info.backbone.mlp_ratio) == ((32, 32), 32, 2, 2)
    backbone = u3d.load_backbone(finished / "backbone")
    trained = state(finished)["model"]["params"]
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(trained), jax.tree.leaves(backbone.params), strict=True))
    training = info.provenance["backbone"]["training"]
    assert training["step"] == STEPS and training["pairs"] == 2 * STEPS and training["options"]["optimizer"] == "muon"


def test_the_log_the_record_and_the_curve_have_the_same_errors(finished):
    losses = [line for line in lines(finished) if "layers" in line]
    assert [line["step"] for line in losses] == [2, 4, 6] and all(list(line["layers"]) == ["head"] for line in losses)
    validations = [line for line in lines(finished) if "validation" in line]
    assert [line["step"] for line in validations] == [3, 6]
    assert json.loads((finished / "metrics.json").read_text())["errors"] == validations[-1]["validation"]["head"]
    with Image.open(finished / "learning_curve.png") as image:
        assert image.width > 600


def test_a_run_stopped_and_resumed_ends_with_the_same_bits(finished, data, tmp_path):
    # As a run stopped after step 4 leaves it: later checkpoints and the end are not there.
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    shutil.rmtree(copy / "checkpoints" / "6")
    shutil.rmtree(copy / "backbone")
    assert main(arguments(data, copy, *ARCHITECTURE)) == 0
    one, other = state(finished), state(copy)
    assert jax.tree.structure(one) == jax.tree.structure(other)
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))
    assert [line.get("validation") for line in lines(copy)] == [line.get("validation") for line in lines(finished)]


def test_exported_and_converted_again_it_is_the_same_model(finished, tmp_path):
    assert convert.main(["--repo", str(finished / "backbone"), "--to-torch", str(tmp_path / "torch")]) == 0
    assert convert.main(["--repo", str(tmp_path / "torch"), "--out", str(tmp_path / "again"), "--verify"]) == 0
    assert read_checkpoint_info(tmp_path / "again").backbone == read_checkpoint_info(finished / "backbone").backbone
    one, other = (u3d.load_backbone(folder).params for folder in (finished / "backbone", tmp_path / "again"))
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))


def test_an_export_in_float16_holds_every_value_rounded_once(finished, tmp_path):
    for name, more in (("full", []), ("half", ["--float16"])):
        assert convert.main(["--repo", str(finished / "backbone"), "--to-torch", str(tmp_path / name), *more]) == 0
    full, half = (load_file(tmp_path / name / "model.safetensors") for name in ("full", "half"))
    assert full.keys() == half.keys()
    for name, tensor in full.items():
        assert half[name].dtype == np.float16 and np.array_equal(half[name], tensor.astype(np.float16))
    assert convert.main(["--repo", str(tmp_path / "half"), "--out", str(tmp_path / "again"), "--verify"]) == 0


def test_float16_without_an_export_is_refused(finished, tmp_path, capsys):
    assert convert.main(["--repo", str(tmp_path), "--out", str(tmp_path / "out"), "--float16"]) == 2
    assert "it goes with --to-torch" in capsys.readouterr().err


def test_training_goes_on_from_a_converted_checkpoint(data, tmp_path, capsys):
    start = converted(tiny.save_backbone(tmp_path / "source"), tmp_path / "start")
    before = u3d.load_backbone(start).params
    # With learning rates of 0 nothing moves: what comes out is what went in.
    still = {"learning-rate": 0, "final-learning-rate": 0, "optimizer": "adamw", "steps": 1}
    assert main(arguments(data, tmp_path / "still", "--start", str(start), **still)) == 0
    after = u3d.load_backbone(tmp_path / "still" / "backbone").params
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True))
    record = read_checkpoint_info(tmp_path / "still" / "backbone").provenance["backbone"]
    assert record["start"]["sha256"] == read_checkpoint_info(start).provenance["backbone"]["sha256"]

    assert main(arguments(data, tmp_path / "moved", "--start", str(start), steps=1, **{"warmup-steps": 0})) == 0
    moved = u3d.load_backbone(tmp_path / "moved" / "backbone").params
    # Trunk, both decoders and both heads are trained, every matrix of them.
    changed = jax.tree_util.tree_map_with_path(lambda path, a, b: path[-1].key != "kernel" or not np.array_equal(a, b), before, moved)
    assert all(jax.tree.leaves(changed))


def test_the_architecture_is_the_checkpoints_and_no_option(data, tmp_path, capsys):
    start = converted(tiny.save_backbone(tmp_path / "source"), tmp_path / "start")
    assert main(arguments(data, tmp_path / "out", "--start", str(start), "--dec-depth", "4", "--image-size", "64x64")) == 2
    assert "--dec-depth, --image-size cannot be combined with --start" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_confidence_is_begun_again_where_it_is_asked_for_and_there_is_one(data, tmp_path, capsys):
    start = converted(tiny.save_backbone(tmp_path / "source"), tmp_path / "start")
    still = {"learning-rate": 0, "final-learning-rate": 0, "optimizer": "adamw", "steps": 1}
    assert main(arguments(data, tmp_path / "out", "--start", str(start), "--fresh-confidence", **still)) == 0
    head, before = (u3d.load_backbone(folder).params["head2"]["proj"] for folder in (tmp_path / "out" / "backbone", start))
    for name in ("kernel", "bias"):
        points, confidence = np.split(head[name], [3 * 16 * 16], axis=-1)
        assert np.array_equal(points, before[name][..., : 3 * 16 * 16])
        assert not confidence.any() and before[name][..., 3 * 16 * 16 :].any()

    assert main(arguments(data, tmp_path / "scratch", "--fresh-confidence")) == 2
    assert "--fresh-confidence requires --start" in capsys.readouterr().err


def test_a_trunk_without_a_head_is_refused(data, tmp_path, capsys):
    trunk = tiny.save_backbone(tmp_path / "source", tiny.croco_tensors(), tiny.CROCO_CONFIG)
    start = converted(trunk, tmp_path / "start")
    assert main(arguments(data, tmp_path / "out", "--start", str(start))) == 2
    assert "a backbone without a head" in capsys.readouterr().err


def test_an_architecture_that_cannot_be_is_one_line(data, tmp_path, capsys):
    assert main(arguments(data, tmp_path / "out", "--enc-width", "100", "--enc-heads", "3")) == 2
    assert "enc_embed_dim 100 must be a multiple" in capsys.readouterr().err
    assert main(arguments(data, tmp_path / "out", "--image-size", "100x128")) == 2
    assert "--image-size 100x128: both sides must be multiples of 16" in capsys.readouterr().err


def test_a_folder_of_probes_is_no_place_for_a_backbone_and_the_other_way_round(finished, data, tmp_path, capsys):
    assert main(["--backbone", str(finished / "backbone"), *data, "--steps", "1", "--out", str(finished)]) == 2
    assert "contains a run that trains a backbone, not probes" in capsys.readouterr().err


def test_options_that_do_not_fit_the_checkpoint_are_named(finished, data, capsys):
    assert main(arguments(data, finished, *ARCHITECTURE, optimizer="adamw")) == 2
    assert "was started with --optimizer muon (now adamw)" in capsys.readouterr().err


def test_a_model_whose_loss_is_not_finite_ends_the_run_at_its_last_good_parameters(data, tmp_path, capsys):
    out = tmp_path / "out"
    wild = {"learning-rate": 1e30, "warmup-steps": 0, "log-every": 1, "optimizer": "adamw"}
    assert main(arguments(data, out, *ARCHITECTURE, **wild)) == 2
    told = capsys.readouterr().err
    assert "every loss is non-finite" in told and told.count("frozen at the last good parameters") == 1
    (newest,) = [int(path.name) for path in (out / "checkpoints").iterdir()]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state(out, newest)["model"]["params"]))
