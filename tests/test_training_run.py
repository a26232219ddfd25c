"""A run from end to end in this process: what it leaves behind, and how it goes on. Pairs come from files, which compiles fastest."""

import csv
import json
import math
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml
from PIL import Image

from tests import tiny
from tests.conversion import converted
from tests.data_sets import make_views, write_pairs
from tests.orbax_tree import read_tree
from tests.strict import one_document
from und3rstand_jax import load_backbone_and_probe
from und3rstand_jax.checkpoint.format import read_checkpoint_info
from und3rstand_jax.commands.train import main

pytestmark = pytest.mark.quick

STEPS = 12


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    """A tiny backbone with its arguments, and a data set."""
    folder = tmp_path_factory.mktemp("material")
    backbone = converted(tiny.save_backbone(folder / "source"), folder / "backbone")
    views = make_views(5, (48, 64))
    write_pairs(folder / "data", views, [(i, j) for i in range(5) for j in range(5) if i != j])
    return ["--backbone", str(backbone), "--data", f"pairs:{folder / 'data'}", "--workers", "0", "--val-pairs", "2"]


def arguments(material, out, **options):
    given = {"steps": STEPS, "batch-size": 4, "hidden": 8, "depth": 2, "log-every": 5, "save-every": 4, "validate-every": 8} | options
    named = [text for name, value in given.items() for text in (f"--{name}", str(value))]
    return [*material, *named, "--out", str(out)]


@pytest.fixture(scope="module")
def finished(material, tmp_path_factory):
    """The folder of a run that went through."""
    out = tmp_path_factory.mktemp("run") / "out"
    assert main(arguments(material, out)) == 0
    return out


@pytest.mark.slow
def test_probes_end_with_a_card_of_their_own(finished, material):
    card = (finished / "probes" / "README.md").read_text()
    layers = load_backbone_and_probe(finished / "probes")[1].layer_ids
    rows = [line.split("|")[1].strip() for line in card.splitlines() if line.startswith("| decoder.")]
    assert rows == list(layers) and f"{STEPS} steps on pairs:data" in card and "--backbone backbone" in card
    head = yaml.safe_load(card.split("---")[1])
    errors = [metric["value"] for result in head["model-index"][0]["results"] for metric in result["metrics"]]
    with (finished / "layers.csv").open() as file:
        table = list(csv.DictReader(file))
    assert errors == [min(float(row[f"view{view}_relative_mean"]) for row in table if row["layer"] in layers) for view in (1, 2)]
    assert "license" not in head and "Not stated: it has to be before this is published" in card
    assert str(finished.parent) not in card and "README.md" in read_checkpoint_info(finished / "probes").files


def lines(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def saved(out):
    return sorted(int(path.name) for path in (out / "checkpoints").iterdir())


@pytest.mark.slow
def test_losses_are_logged_by_layer_and_view(finished):
    losses = [line for line in lines(finished) if "layers" in line]
    assert [line["step"] for line in losses] == [5, 10, 12]
    for line in losses:
        assert list(line["layers"]) == list(tiny.LAYERS)
        for values in line["layers"].values():
            assert values["total"] == pytest.approx(values["view1"] + values["view2"], rel=1e-5)
            assert all(math.isfinite(value) for value in values.values())
        assert line["pairs_per_second"] > 0
    assert losses[0]["learning_rate"] == pytest.approx(1e-4, rel=0.3)


def test_validations_come_when_asked_and_at_the_end(finished):
    validations = [line for line in lines(finished) if "validation" in line]
    assert [line["step"] for line in validations] == [8, 12]
    assert list(validations[0]["validation"]) == list(tiny.LAYERS)
    assert all(value > 0 for views in validations[0]["validation"].values() for value in views.values())


def test_the_newest_checkpoints_are_kept(finished):
    assert saved(finished) == [8, 12]


def test_tensorboard_has_the_same_figures(finished):
    from tensorboardX.proto import event_pb2

    found = {}
    (file,) = (finished / "tensorboard").iterdir()
    content = file.read_bytes()
    while content:
        # A record: length (8 bytes), its checksum (4), data, checksum (4).
        length = int.from_bytes(content[:8], "little")
        event = event_pb2.Event.FromString(content[12 : 12 + length])
        found |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
        content = content[16 + length :]
    for line in lines(finished):
        for layer, values in line.get("layers", {}).items():
            assert found[f"view2/{layer}", line["step"]] == pytest.approx(values["view2"])
        for layer, values in line.get("validation", {}).items():
            assert found[f"validation_view1/{layer}", line["step"]] == pytest.approx(values["view1"])


def test_the_end_is_a_checkpoint_that_everything_takes(finished):
    backbone, probes = load_backbone_and_probe(finished / "probes")
    assert probes.layer_ids == backbone.probed_layers.layer_ids == tiny.LAYERS
    assert probes.config.groups[0].widths == (16, 8, 1024)
    training = read_checkpoint_info(finished / "probes").provenance["probes"]["training"]
    assert training["step"] == STEPS and training["frozen"] == {} and training["options"]["hidden"] == 8
    newest = read_tree(finished / "checkpoints" / str(STEPS) / "state")
    trained = newest["groups"]["group0"]["params"]
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(trained), jax.tree.leaves(probes.params["group0"]), strict=True))


def test_table_and_plot_say_what_the_metrics_say(finished):
    metrics = json.loads((finished / "metrics.json").read_text())
    with (finished / "layers.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["layer"] for row in rows] == [*tiny.LAYERS, "head"]
    for row, layer in zip(rows, metrics["layers"], strict=False):
        assert float(row["view2_invariant"]) == pytest.approx(layer["view2"]["invariant"])
    last = [line for line in lines(finished) if "validation" in line][-1]["validation"]
    for layer in metrics["layers"]:
        assert layer["view1"]["invariant"] == pytest.approx(last[layer["layer_id"]]["view1"], rel=1e-4)
    with Image.open(finished / "layers.png") as image:
        assert image.width > 600


def test_evaluate_finds_again_what_the_run_found(finished, material, tmp_path, capsys):
    data = material[material.index("--data") + 1]
    options = ["--checkpoint", str(finished / "probes"), "--data", data, "--pairs", "2", "--workers", "0", "--out", str(tmp_path / "again")]
    assert main(["evaluate", *options, "--json", "--quiet"]) == 0
    assert one_document(capsys.readouterr().out) == json.loads((tmp_path / "again" / "metrics.json").read_text())
    first, again = (json.loads((folder / "metrics.json").read_text()) for folder in (finished, tmp_path / "again"))
    assert again["layers"] == first["layers"] and again["head"] == first["head"]
    assert again["facts"]["data"] == [data] and (tmp_path / "again" / "layers.png").is_file()


def test_a_run_from_before_an_option_existed_goes_on_with_its_default(finished, material, tmp_path, capsys):
    folder = shutil.copytree(finished, tmp_path / "run")
    config = folder / "config.yaml"
    lines = config.read_text().splitlines()
    config.write_text("\n".join(line for line in lines if not line.startswith("beta1:")) + "\n")
    assert main(arguments(material, folder)) == 0
    assert "resuming after step 12" in capsys.readouterr().err
    assert config.read_text().splitlines() == [f"out: {folder}" if line.startswith("out:") else line for line in lines]


def test_a_finished_run_says_so_and_changes_nothing(finished, material, capsys):
    before = {path: path.stat().st_mtime_ns for path in (finished / "probes").rglob("*")}
    assert main(arguments(material, finished)) == 0
    assert "finished already" in capsys.readouterr().out
    assert main([*arguments(material, finished), "--json", "--quiet"]) == 0
    metrics = json.loads((finished / "metrics.json").read_text())
    assert one_document(capsys.readouterr().out) == {"out": str(finished), "finished": True, "metrics": metrics}
    assert {path: path.stat().st_mtime_ns for path in (finished / "probes").rglob("*")} == before


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"hidden": 16}, "was started with --hidden 8 (now 16)"),
        ({"steps": 13}, "was started with --steps 12 (now 13)"),
        ({"seed": 1, "learning-rate": 1e-3}, "--learning-rate 0.0001 (now 0.001), --seed 0 (now 1)"),
        ({"layers": "decoder.*.mlp"}, "--layers all (now decoder.*.mlp)"),
        ({"resolution": "48x32"}, "--resolution 32x32 (now 48x32)"),
    ],
)
def test_flags_that_do_not_fit_the_checkpoint_are_named(finished, material, capsys, options, told):
    assert main(arguments(material, finished, **options)) == 2
    assert told in capsys.readouterr().err


def test_another_backbone_in_the_same_place_is_noticed(finished, material, capsys, tmp_path):
    record = finished / "run.json"
    content = json.loads(record.read_text())
    try:
        record.write_text(json.dumps(content | {"backbone_sha256": {"model.safetensors": "0"}}))
        assert main(arguments(material, finished)) == 2
        assert "has changed since" in capsys.readouterr().err
    finally:
        record.write_text(json.dumps(content))


@pytest.mark.slow
def test_the_best_checkpoint_can_be_what_the_run_ends_with(finished, material, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    # As if the first validation had been the better one.
    for step, error in ((8, 1.0), (12, 2.0)):
        (metrics,) = (copy / "checkpoints" / str(step) / "metrics").glob("metrics")
        metrics.write_text(json.dumps({"error": error}))
    assert main(arguments(material, copy, export="best")) == 0
    assert json.loads((copy / "metrics.json").read_text())["facts"]["step"] == 8
    expected = read_tree(copy / "checkpoints" / "8" / "state")["groups"]["group0"]["params"]
    found = read_tree(copy / "probes" / "probes")["group0"]
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True))
    assert main(arguments(material, copy, export="last")) == 0
    assert json.loads((copy / "metrics.json").read_text())["facts"]["step"] == 12


def test_a_folder_of_somebody_else_is_left_alone(material, tmp_path, capsys):
    (tmp_path / "letter.txt").write_text("dear")
    assert main(arguments(material, tmp_path)) == 2
    assert "is not empty and not a training run" in capsys.readouterr().err
    assert main([*arguments(material, tmp_path), "--overwrite"]) == 2
    assert (tmp_path / "letter.txt").read_text() == "dear"


def test_a_damaged_checkpoint_is_one_line_that_says_what_to_do(finished, material, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    for file in (copy / "checkpoints" / str(STEPS) / "state").rglob("*"):
        if file.is_file() and file.name not in ("_METADATA", "_CHECKPOINT_METADATA"):
            file.write_bytes(b"")
    assert main(arguments(material, copy)) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told.startswith("error: checkpoint 12 in") and "--overwrite" in told


@pytest.mark.slow
def test_unreadable_files_are_counted_and_listed(material, tmp_path, capsys):
    source = Path(material[material.index("--data") + 1].removeprefix("pairs:"))
    shutil.copytree(source, tmp_path / "data")
    broken = sorted((tmp_path / "data").glob("*.image.png"))[1]
    broken.write_bytes(b"no image")
    given = [text.replace(str(source), str(tmp_path / "data")) for text in arguments(material, tmp_path / "out", steps=3)]
    assert main(given) == 0
    told = capsys.readouterr().err
    assert f"cannot read {broken}" in told and "another pair takes its place" in told
    listed = (tmp_path / "out" / "skipped.txt").read_text().splitlines()
    counted = [line for line in lines(tmp_path / "out") if "unreadable" in line][-1]["unreadable"]
    assert counted == len(listed) > 0 and all(broken.name in line for line in listed)
    assert main([*given[:-1], str(tmp_path / "strict"), "--unreadable", "fail"]) == 2
    assert "--unreadable skip continues without it" in capsys.readouterr().err


def test_data_that_cannot_be_validated_on_is_refused_before_anything_is_done(material, tmp_path, capsys):
    source = Path(material[material.index("--data") + 1].removeprefix("pairs:"))
    shutil.copytree(source, tmp_path / "data")
    listed = json.loads((tmp_path / "data" / "pairs.json").read_text())
    listed["pairs"] = [{"view1": one, "view2": two, "split": "train"} for one, two in listed["pairs"]]
    (tmp_path / "data" / "pairs.json").write_text(json.dumps(listed))
    given = [text.replace(str(source), str(tmp_path / "data")) for text in arguments(material, tmp_path / "out")]
    assert main(given) == 2
    assert "no pairs for the split 'val'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_overwriting_starts_anew_but_never_removes_what_the_new_run_needs(finished, material, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    own, folder = ["--backbone", str(copy / "probes"), *material[2:]], copy.stat().st_ino
    assert main([*arguments(own, copy), "--overwrite"]) == 2
    assert f"the output {copy} contains the source {copy / 'probes'}" in capsys.readouterr().err
    assert (copy / "probes" / "config.json").is_file()
    assert main([*arguments(material, copy, steps=2, hidden=16), "--overwrite"]) == 0
    assert saved(copy) == [2] and [line["step"] for line in lines(copy)] == [2, 2]
    assert copy.stat().st_ino == folder  # it may be a mount point, which cannot be made anew


@pytest.mark.slow
def test_a_run_killed_while_its_folder_was_made_starts_again(finished, material, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    shutil.copy(finished / "run.json", copy)
    assert main(arguments(material, copy, steps=2)) == 0
    assert json.loads((copy / "metrics.json").read_text())["facts"]["options"]["steps"] == 2


@pytest.mark.slow
def test_a_run_without_a_probe_left_saves_and_ends(material, tmp_path, capsys):
    assert main(arguments(material, tmp_path / "out", **{"learning-rate": 1e30, "warmup-steps": 0, "log-every": 1})) == 2
    told = capsys.readouterr().err
    assert "every loss is non-finite" in told
    assert told.count("frozen at the last good parameters") == len(tiny.LAYERS)
    assert saved(tmp_path / "out")
    events = [line["event"] for line in lines(tmp_path / "out") if "event" in line]
    assert len(events) == len(tiny.LAYERS)
