"""The model card of what was trained: recorded in the checkpoint, a file of its own, with the command that trains the same."""

import dataclasses
from pathlib import Path

import pytest
import yaml

import und3rstand_jax as u3d
from tests.conversion import converted
from tests.tiny import save_backbone
from und3rstand_jax.analysis.evaluate import Evaluation, LayerResult, ViewResult
from und3rstand_jax.checkpoint.content import Results
from und3rstand_jax.checkpoint.format import checkpoint_files
from und3rstand_jax.commands.command_line import parse_command
from und3rstand_jax.commands.convert import main
from und3rstand_jax.commands.train import COMMANDS
from und3rstand_jax.convert.model_card import add_results, model_card
from und3rstand_jax.train.card import backbone_results, command_of, probes_results
from und3rstand_jax.train.options import BackboneOptions, RunOptions, TrainOptions

RESULTS = Results(
    command="python -m train backbone --steps 20",
    data="synthetic",
    steps=20,
    head=["view", "error"],
    rows=[["view 1", "0.1000"], ["view 2", "0.2000"]],
    note="On 8 held-out pairs.",
    metrics=[{"type": "normalised_point_error", "name": "error of view 1", "value": 0.1}],
)


def test_a_card_is_a_file_of_its_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = save_backbone(tmp_path / "m")
    (source / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    folder = converted(source, tmp_path / "jax")
    card = add_results(folder, "backbone", RESULTS)
    assert main(["--check", str(folder)]) == 0 and "README.md" not in capsys.readouterr().out
    assert "README.md" in (checkpoint_files(folder) or ())
    text = card.read_text()
    head = yaml.safe_load(text.split("---")[1])
    assert (head["license"], head["library_name"], head["tags"][0]) == ("cc-by-nc-4.0", "und3rstand_jax", "dust3r")
    (result,) = head["model-index"][0]["results"]
    assert result["metrics"] == [{"type": "normalised_point_error", "value": 0.1, "name": "error of view 1"}]
    assert result["dataset"] == {"name": "synthetic", "type": "und3rstand_jax"}
    for line in ("20 steps on synthetic:", "    python -m train backbone --steps 20", "| view 2 | 0.2000 |", "On 8 held-out pairs."):
        assert f"\n{line}\n" in text
    # It is made from the checkpoint alone, and replaced with it.
    assert "| view 2 | 0.2000 |" in model_card(u3d.read_checkpoint_info(folder), "someone/name", None)
    assert not (converted(source, folder, "--overwrite") / "README.md").exists()


def test_the_base_model_is_the_hub_id_of_what_training_started_from(tmp_path: Path) -> None:
    info = u3d.read_checkpoint_info(converted(save_backbone(tmp_path / "m"), tmp_path / "jax"))

    def base(**record: object) -> object:
        provenance = {"backbone": {**info.provenance["backbone"], **record}}
        return yaml.safe_load(model_card(dataclasses.replace(info, provenance=provenance), "a/b", None).split("---")[1]).get("base_model")

    assert base() is None
    assert base(kind="hub", source="naver/dust3r") == ["naver/dust3r"]
    start = {"kind": "hub", "source": "naver/dust3r"}
    assert base(kind="training", source="trained", start=start) == ["naver/dust3r"]
    assert base(kind="training", source="trained", start={"kind": "training", "source": "trained", "start": start}) == ["naver/dust3r"]
    assert base(kind="hub", source="someone/probes/backbone") == ["someone/probes"]
    # What an export says of itself, but for what is no hub id.
    assert base(metadata={"base_model": "naver/dust3r, /home/me/x"}) == ["naver/dust3r"]


@pytest.mark.parametrize(
    "options",
    [
        TrainOptions(),
        TrainOptions(layers="decoder.*.mlp,encoder.norm", backbone="naver/x", augment=False, data=("2*synthetic", "pairs:rooms"), hidden=8),
        BackboneOptions(steps=3, fresh_confidence=True, start="naver/x", resolution=("64x64", "64x48"), learning_rate=3e-5, seed=4),
    ],
)
def test_the_command_on_a_card_trains_the_same(options: RunOptions) -> None:
    import shlex

    words = shlex.split(command_of(options))
    assert words[:3] == ["python", "-m", "train"]
    assert parse_command(words[3:], COMMANDS, "probes", "train") == options


def test_paths_on_a_card_are_cut_to_their_last_name() -> None:
    options = TrainOptions(backbone="/home/me/models/mine", data=("0.5*pairs:/home/me/rooms",), workers=7)
    assert command_of(options) == "python -m train --data '0.5*pairs:rooms' --backbone mine"


def test_what_was_not_measured_is_not_on_a_card() -> None:
    results = backbone_results(BackboneOptions(val_pairs=8), 5, {"view1": 0.25, "view2": float("nan")}, "pairs")
    assert results["rows"] == [["view 1", "0.2500"]] and [metric["value"] for metric in results["metrics"]] == [0.25]
    assert backbone_results(BackboneOptions(), 5, None, "pairs")["metrics"] == []


def test_figures_of_probes_are_there_for_every_view_with_a_finite_error() -> None:
    def layer(name: str, *errors: float) -> LayerResult:
        return LayerResult(name, tuple(ViewResult(error, error, error) for error in errors), None)

    layers = (layer("encoder.norm", 0.4, 0.1, float("nan"), 0.3), layer("decoder.norm", 0.2, 0.5, float("inf"), 0.25))
    results = probes_results(TrainOptions(), 5, Evaluation(layers, None, 8, (0, 0, 8, 0), 0))
    assert [(metric["name"], metric["value"]) for metric in results["metrics"]] == [
        ("mean relative point error of view 1, best layer (decoder.norm)", 0.2),
        ("mean relative point error of view 2, best layer (encoder.norm)", 0.1),
        ("mean relative point error of view 4, best layer (decoder.norm)", 0.25),
    ]
