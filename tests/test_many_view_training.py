"""Training on rendered scenes of four views, from end to end: a backbone from scratch, probes on it, and their evaluation."""

import csv
import dataclasses
import json

import numpy as np
import pytest

import und3rstand_jax as u3d
from tests import tiny
from tests.conversion import converted
from und3rstand_jax.analysis.evaluate import evaluate_on
from und3rstand_jax.checkpoint.format import read_checkpoint_info
from und3rstand_jax.commands.train import main
from und3rstand_jax.data.loader import Feed, open_sources
from und3rstand_jax.data.specification import parse_data
from und3rstand_jax.train.architecture import starting_point
from und3rstand_jax.train.options import BackboneOptions

pytestmark = pytest.mark.quick

ARCHITECTURE = ["--image-size", "32x32", "--enc-depth", "1", "--enc-width", "32", "--enc-heads", "2"]
ARCHITECTURE += ["--dec-depth", "2", "--dec-width", "16", "--dec-heads", "2", "--mlp-ratio", "2"]
VIEWS = ("view1", "view2", "view3", "view4")


def command(out, *more, steps):
    numbers = {"steps": steps, "batch-size": 2, "log-every": 2, "save-every": 20, "validate-every": 20, "val-pairs": 2}
    given = [text for name, value in numbers.items() for text in (f"--{name}", str(value))]
    return [*more, "--views", "4", "--data", "synthetic", *given, "--out", str(out)]


def lines(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """The folder of a run from scratch."""
    out = tmp_path_factory.mktemp("backbone") / "out"
    assert main(command(out, "backbone", *ARCHITECTURE, steps=4)) == 0
    return out


@pytest.fixture(scope="module")
def run(backbone, tmp_path_factory):
    """That of probes on it."""
    out = tmp_path_factory.mktemp("probes") / "out"
    layers = [
        "--layers",
        "decoder.*.mlp",
        "--backbone",
        str(backbone / "backbone"),
        "--hidden",
        "8",
        "--depth",
        "2",
        "--learning-rate",
        "1e-2",
    ]
    assert main(command(out, *layers, steps=40)) == 0
    return out


@pytest.mark.slow
def test_a_backbone_that_was_trained_on_four_views_takes_any_number(backbone):
    info = read_checkpoint_info(backbone / "backbone")
    assert info.backbone.max_views is None
    model = u3d.load_backbone(backbone / "backbone")
    image = np.zeros((1, 32, 32, 3), np.float32)
    assert [len(model(*[image] * views).pointmaps) for views in (2, 3, 5)] == [2, 3, 5]
    logged = [entry["layers"]["head"] for entry in lines(backbone) if "layers" in entry]
    for entry in logged:
        assert entry["total"] == pytest.approx(sum(entry[view] for view in VIEWS), rel=1e-5)
    errors = [entry["validation"]["head"] for entry in lines(backbone) if "validation" in entry]
    assert list(errors[-1]) == list(VIEWS) and all(np.isfinite(list(error.values())).all() for error in errors)
    assert json.loads((backbone / "metrics.json").read_text())["errors"] == errors[-1]


@pytest.mark.slow
def test_probes_train_on_rendered_scenes_of_four_views(run):
    losses = [entry["layers"] for entry in lines(run) if "layers" in entry]
    early, late = ([entry["decoder.1.mlp"]["total"] for entry in part] for part in (losses[:5], losses[-5:]))
    assert np.mean(late) < 0.9 * np.mean(early)
    for layer in ("decoder.0.mlp", "decoder.1.mlp"):
        assert set(losses[0][layer]) == {"total", *VIEWS, *(f"regression{view}" for view in range(1, 5))}
    model, probes = u3d.load_backbone_and_probe(run / "probes")
    (specs,) = [parse_data(("synthetic",), views=4)]
    feed = Feed(specs, ((32, 32),), 2, 0, crop_jitter=False)
    found, _ = evaluate_on(model, probes, feed, open_sources(specs, "val"), 2, progress=False)
    validation = [entry["validation"] for entry in lines(run) if "validation" in entry][-1]
    with (run / "layers.csv").open() as file:
        rows = {row["layer"]: row for row in csv.DictReader(file)}
    for layer in found.layers:
        assert len(layer.views) == 4
        for number, view in enumerate(layer.views, start=1):
            assert view.invariant == pytest.approx(validation[layer.layer_id][f"view{number}"], rel=1e-4)
            assert float(rows[layer.layer_id][f"view{number}_invariant"]) == pytest.approx(view.invariant, rel=1e-5)


@pytest.mark.slow
def test_the_same_command_resumes_it_and_another_number_of_views_does_not(run, backbone, capsys):
    layers = [
        "--layers",
        "decoder.*.mlp",
        "--backbone",
        str(backbone / "backbone"),
        "--hidden",
        "8",
        "--depth",
        "2",
        "--learning-rate",
        "1e-2",
    ]
    assert main(command(run, *layers, steps=40)) == 0
    assert "is finished already" in capsys.readouterr().out
    other = command(run, *layers, steps=40)
    other[other.index("--views") + 1] = "3"
    assert main(other) == 2
    assert "was started with --views 4 (now 3)" in capsys.readouterr().err


def test_a_model_of_pairs_is_refused_before_anything_is_made(tmp_path, capsys):
    pairs = converted(tiny.save_backbone(tmp_path / "source"), tmp_path / "backbone")
    assert main(command(tmp_path / "out", "--backbone", str(pairs), steps=2)) == 2
    assert "this model takes two views; found 4" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main(["--backbone", str(pairs), "--views", "1", "--out", str(tmp_path / "out")]) == 2
    assert "this model takes two views; found 1" in capsys.readouterr().err


@pytest.mark.parametrize(("views", "most"), [(2, 2), (4, None)])
def test_a_model_of_pairs_goes_on_as_one_of_any_number(tmp_path, views, most):
    """What is trained, and so what the end of the run writes, as the first test has it."""
    pairs = converted(tiny.save_backbone(tmp_path / "source"), tmp_path / "backbone")
    config, source = starting_point(BackboneOptions(start=str(pairs), views=views, data=("synthetic",), out=tmp_path / "out"))
    assert source == pairs and config == dataclasses.replace(read_checkpoint_info(pairs).backbone, max_views=most)
