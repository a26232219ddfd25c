"""`python -m und3rstand_jax sweep`: what it refuses before any work, and what it writes when it measures by probes."""

import csv
import json

import numpy as np
import pytest

import und3rstand_jax.commands.run as und3rstand
from tests.conversion import converted
from tests.strict import one_document
from tests.tiny import LAYERS, save_backbone, save_probes
from und3rstand_jax.support.pieces import Pieces

pytestmark = pytest.mark.quick


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    return converted(save_probes(folder / "probes", save_backbone(folder / "backbone")), folder / "jax")


def swept(checkpoint, out, *options):
    return und3rstand.main(["sweep", "--checkpoint", str(checkpoint), "--out", str(out), *options])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--by", "nothing"], "expected one or more of zero, mean, resample, noise"),
        (["--by", "resample", "--pairs", "1"], "give --pairs 2 or more"),
        (["--pairs", "0"], "--pairs and --batch-size must be at least 1"),
        (["--random-sets", "2"], "--random-sets draws the controls of sets; give --set or --top"),
        (["--like", "decoder.0.cross_attn.heads"], "--like says what controls are drawn from; give --random-sets too"),
        (["--noise", "nan", "--by", "noise"], "--noise must be a positive finite factor; found nan"),
        (["--attribution", "--by", "mean"], "give --by zero and --measure head"),
        (["--sites", "decoder.7.cross_attn.heads"], "no head output matches 'decoder.7.cross_attn.heads'"),
        (["--sites", "decoder.0.cross_attn.scores"], "to block scores, use an edit"),
        (["--set", "decoder.0.cross_attn.heads:9"], "asks for heads that decoder.0.cross_attn.heads does not have: there are 2, 0 to 1"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_any_work(options, message, checkpoint, tmp_path, capsys):
    assert swept(checkpoint, tmp_path / "out", *options) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


SMALL = ("--pairs", "2", "--resolution", "32", "--sites", "decoder.1.cross_attn.heads@2", "--measure", "probes")


@pytest.mark.slow
def test_by_probes_a_loss_is_felt_from_its_layer_on(checkpoint, tmp_path, capsys):
    out = tmp_path / "out"
    assert swept(checkpoint, out, *SMALL) == 0
    assert "view 2's error by decoder.1.mlp" in capsys.readouterr().out
    found = json.loads((out / "effects.json").read_text())
    assert [row["name"] for row in found["ablations"]] == [f"decoder.1.cross_attn.heads:{head}@2" for head in (0, 1)]
    assert found["options"]["measure"] == "probes" and found["options"]["provenance"]["path"] == str(checkpoint)
    for row in found["ablations"]:
        changed = {layer: abs(row["effects"][f"{layer}/view2"]["effect"]) > 1e-7 for layer in LAYERS}
        assert [layer for layer in LAYERS if changed[layer]] == ["decoder.1.cross_attn", "decoder.1.mlp"]
        # View 1's points stay, but errors are in units of both views' mean distance.
        assert [layer for layer in LAYERS if row["effects"][f"{layer}/view1"]["effect"] != 0] == ["decoder.1.cross_attn", "decoder.1.mlp"]
    lines = list(csv.DictReader((out / "effects.csv").open()))
    assert len(lines) == 2 * 2 * len(LAYERS) and {line["pairs"] for line in lines} == {"2"}
    assert {"effects_zero.png", "effects_zero.svg"} < {file.name for file in out.iterdir()}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


@pytest.mark.slow
def test_an_interrupted_sweep_keeps_its_pieces_and_only_the_same_question_goes_on(checkpoint, tmp_path, capsys, monkeypatch):
    out, write = tmp_path / "out", Pieces.write
    written = []

    def interrupted(self, name, arrays):
        write(self, name, arrays)
        written.append(name)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Pieces, "write", interrupted)
        assert swept(checkpoint, out, *SMALL) == 130
    assert not out.exists() and len(list((tmp_path / "out.unfinished").glob("*.npz"))) == 1
    assert swept(checkpoint, out, *SMALL, "--seed", "3") == 2
    assert "unfinished measurement with other options" in capsys.readouterr().err
    later = []
    monkeypatch.setattr(Pieces, "write", lambda self, name, arrays: later.append(name) or write(self, name, arrays))
    capsys.readouterr()
    assert swept(checkpoint, out, *SMALL, "--json", "--quiet") == 0
    shown = capsys.readouterr()
    assert one_document(shown.out) == json.loads((out / "effects.json").read_text()) and shown.err == ""
    assert later and not set(later) & set(written)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    assert np.isfinite(json.loads((out / "effects.json").read_text())["ablations"][0]["effects"]["decoder.1.mlp/view2"]["effect"])
