"""`python -m und3rstand_jax edit`: its files are the edited run's, its record says what was edited and what that changed."""

import dataclasses
import json
import math

import numpy as np
import pytest
from PIL import Image

import und3rstand_jax as u3d
from tests import tiny
from tests.conversion import converted
from tests.strict import one_document
from tests.tiny import NO_PROVENANCE
from und3rstand_jax.analysis.analyse import analyse_views
from und3rstand_jax.analysis.inputs import scene_inputs
from und3rstand_jax.checkpoint.format import CheckpointInfo, write_checkpoint_info
from und3rstand_jax.commands.run import main
from und3rstand_jax.geometry.cameras import ViewGeometry
from und3rstand_jax.geometry.metrics import mean_displacements, point_errors
from und3rstand_jax.model import backbone as backbone_module
from und3rstand_jax.model.dust3r.config import BackboneConfig
from und3rstand_jax.model.edits import Edit
from und3rstand_jax.report.contact_sheet import ContactSheet
from und3rstand_jax.report.edit_effect import DISPLACEMENT, ERRORS
from und3rstand_jax.report.edited_files import _plan
from und3rstand_jax.report.given_edits import edit_text
from und3rstand_jax.report.map_colors import Scale
from und3rstand_jax.support.progress import Stopwatch

pytestmark = pytest.mark.quick

CHANGED = ("decoder.0.cross_attn", "decoder.0.mlp", "decoder.1.self_attn", "decoder.1.cross_attn", "decoder.1.mlp")
DIRECTION = np.linspace(-1, 1, 16, dtype=np.float32)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    return converted(tiny.save_probes(folder / "probes", tiny.save_backbone(folder / "backbone")), folder / "converted")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for i, name in enumerate(("a.png", "b.png")):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(folder / name)
    return folder / "a.png", folder / "b.png"


@pytest.fixture(scope="module")
def result(checkpoint, photos, tmp_path_factory):
    """The folder of a run with three edits, given in the three ways."""
    folder = tmp_path_factory.mktemp("result")
    (folder / "given.json").write_text(json.dumps([{"site": "decoder.1.mlp", "view": 1, "tokens": [0, 3], "shift": "direction"}]))
    np.savez(folder / "given.npz", direction=DIRECTION)
    arguments = ["--edits", folder / "given.json", "--knock-out", "decoder.0.cross_attn.heads:0@2", "--skip", "decoder.1.cross_attn"]
    assert edit(*photos, *arguments, "--checkpoint", checkpoint, "--out", folder / "out") == 0
    return folder / "out"


def edit(*arguments):
    return main(["edit", *map(str, arguments)])


def record_of(folder):
    return json.loads((folder / "run.json").read_text())


def arrays_of(folder, layer):
    with np.load(folder / ("head.npz" if layer == "head" else f"layers/{layer}.npz")) as file:
        return dict(file)


def same_edits():
    """Those of `result`, as the library says them."""
    return (
        u3d.steer("decoder.1.mlp", DIRECTION, view=1, tokens=[0, 3])
        + u3d.knock_out("decoder.0.cross_attn.heads:0", view=2)
        + u3d.skip("decoder.1.cross_attn")
    )


def run_by_hand(checkpoint, photos, edits=None):
    """Layer -> both views' geometry, without the command."""
    model, probes = u3d.load_backbone_and_probe(checkpoint)
    features = model(*(u3d.load_image(photo, size=32) for photo in photos), capture=CHANGED, head=True, edits=edits)
    preds = {layer: probes.read_layer(layer, features) for layer in CHANGED} | {"head": (features.pred1, features.pred2)}
    return {layer: tuple(map(ViewGeometry.of, pair)) for layer, pair in preds.items()}


def test_files_are_those_of_the_edited_run_and_numbers_say_how_far_it_is_from_the_unedited_one(result, checkpoint, photos):
    edited, unedited = run_by_hand(checkpoint, photos, same_edits()), run_by_hand(checkpoint, photos)
    record = record_of(result)
    assert list(record["outputs"]) == [*CHANGED, "head"]
    files = {str(path.relative_to(result)) for path in result.rglob("*") if path.is_file()}
    layers = {f"layers/{layer}.npz" for layer in CHANGED} | {
        f"point_clouds/{layer}.{kind}" for layer in (*CHANGED, "head") for kind in ("ply", "glb")
    }
    assert files == layers | {"head.npz", "contact_sheet.png", "edits.npz", "run.json"} == set(record["files"])
    for layer, output in record["outputs"].items():
        arrays = arrays_of(result, layer)
        for number, view in enumerate(edited[layer], start=1):
            np.testing.assert_allclose(arrays[f"pts3d{number}"], view.points, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(arrays[f"conf{number}"], view.confidence, rtol=1e-4)
        np.testing.assert_allclose(output[DISPLACEMENT], mean_displacements(edited[layer], unedited[layer]), rtol=1e-3, atol=1e-6)
        assert ERRORS not in output
    # Within a block, the other view reads what was there before it.
    first = record["outputs"]["decoder.0.cross_attn"][DISPLACEMENT]
    assert first[0] == 0 and first[1] > 1e-3 and min(record["outputs"]["decoder.1.mlp"][DISPLACEMENT]) > 1e-3
    assert set(record["meaning"]) == {DISPLACEMENT}


def test_the_record_holds_the_edits_and_repeats_the_run(result, checkpoint, photos, tmp_path, capsys):
    record = record_of(result)
    assert record["first_edited_layer"] == "decoder.0.cross_attn" and record["layers"] == list(CHANGED) and record["head"] is True
    assert record["layers_left_out_as_they_cannot_change"] == ["decoder.0.self_attn"]
    assert record["edit_arrays"] == "edits.npz"
    read = u3d.read_edits(result / "run.json", result / "edits.npz")
    for found, given in zip(read, same_edits(), strict=True):
        for field in dataclasses.fields(Edit):
            np.testing.assert_array_equal(getattr(found, field.name), getattr(given, field.name))

    again = ["--edits", result / "run.json", "--edit-arrays", result / "edits.npz", "--layers", "decoder.0.*"]
    assert edit(*photos, *again, "--checkpoint", checkpoint, "--out", tmp_path / "again") == 0
    printed = capsys.readouterr()
    assert [line.split()[0] for line in printed.out.splitlines()[2:6]] == ["decoder.0.self_attn", *CHANGED[:2], "the"]
    assert "edit decoder.1.mlp@1, tokens [0, 3]: x ← x + array (16,)" in printed.err
    output = record_of(tmp_path / "again")["outputs"]
    assert output["decoder.0.self_attn"][DISPLACEMENT] == [0, 0], "it lies before every edit"
    for layer in ("decoder.0.mlp", "head"):
        for name, array in arrays_of(tmp_path / "again", layer).items():
            np.testing.assert_allclose(array, arrays_of(result, layer)[name], rtol=1e-4, atol=1e-5)


def test_what_changes_nothing_has_moved_nothing_at_all_and_both_runs_are_compiled_once(checkpoint, photos, tmp_path, capsys):
    specs = [{"site": "encoder.1.mlp.update", "shift": 0}, {"site": "decoder.*.cross_attn.scores", "keys": [1], "scale": 1}]
    (tmp_path / "nothing.json").write_text(json.dumps({"edits": specs}))
    before = backbone_module._apply._cache_size()
    nothing = ["--edits", tmp_path / "nothing.json", "--checkpoint", checkpoint, "--out", tmp_path / "out"]
    assert edit(*photos, *nothing, "--json", "--point-clouds", "glb") == 0
    assert backbone_module._apply._cache_size() == before + 1
    record = record_of(tmp_path / "out")
    assert {tuple(output[DISPLACEMENT]) for output in record["outputs"].values()} == {(0, 0)}
    assert record["layers"] == list(tiny.LAYERS) and record["edit_arrays"] is None and not list((tmp_path / "out").rglob("*.ply"))
    shown = capsys.readouterr()
    assert one_document(shown.out) == record and "leaving out" not in shown.err


def test_a_layer_behind_all_probes_changes_the_head_alone(checkpoint, photos, tmp_path, capsys):
    assert edit(*photos, "--knock-out", "decoder.norm@1", "--checkpoint", checkpoint, "--out", tmp_path / "out") == 0
    record = record_of(tmp_path / "out")
    assert list(record["outputs"]) == ["head"] and not (tmp_path / "out" / "layers").exists()
    moved = record["outputs"]["head"][DISPLACEMENT]
    assert moved[0] > 0 and moved[1] == 0
    assert "the first edited layer is decoder.norm; layers before it cannot change: leaving out 6 probed" in capsys.readouterr().err


def test_without_a_head_edits_behind_every_probe_show_that_nothing_changes():
    config = BackboneConfig(enc_depth=1, dec_depth=2, head_type=None)
    plan = _plan(u3d.knock_out("decoder.norm"), config, tiny.LAYERS, None)
    assert (plan.layers, plan.left_out, plan.head) == (tiny.LAYERS, (), False)


@pytest.mark.slow
def test_a_scene_has_errors_with_and_without_the_edits(checkpoint, tmp_path, capsys):
    out = tmp_path / "out"
    assert edit("--scene", 3, "--knock-out", "decoder.0.mlp.update", "--checkpoint", checkpoint, "--out", out) == 0
    record, inputs = record_of(out), scene_inputs(3, "synthetic", (32, 32))
    model, probes = u3d.load_backbone_and_probe(checkpoint)
    analysis = analyse_views(model, probes, record["layers"], inputs, {}, Stopwatch())
    assert record["scene"]["number"] == 3 and [layer.layer_id for layer in analysis.layers] == list(record["outputs"])
    for layer in analysis.layers:
        errors = record["outputs"][layer.layer_id][ERRORS]
        np.testing.assert_allclose(errors["unedited"], layer.errors, rtol=1e-4)
        arrays = arrays_of(out, layer.layer_id)
        edited = tuple(ViewGeometry(arrays[f"pts3d{number}"], None) for number in (1, 2))
        np.testing.assert_allclose(errors["edited"], point_errors(edited, inputs.truth.views), rtol=1e-6)
        assert errors["edited"] != errors["unedited"]
    table = capsys.readouterr().out.splitlines()
    assert table[1].split() == ["layer", "view", "1", "view", "2", *["unedited", "edited"] * 2]
    assert table[-1] == str(out / "contact_sheet.png")


@pytest.fixture(scope="module")
def config_alone(tmp_path_factory):
    """A checkpoint without weights: whoever reads them fails, but not with what is expected below."""
    folder = tmp_path_factory.mktemp("config")
    write_checkpoint_info(folder, CheckpointInfo(BackboneConfig(img_size=(32, 32)), provenance={"backbone": NO_PROVENANCE}))
    return folder


FILES = {
    "broken.json": "[{",
    "empty.json": "[]",
    "field.json": '[{"site": "decoder.0.mlp", "head": [0]}]',
    "nameless.json": '[{"site": "decoder.0.mlp", "shift": "direction"}]',
    "long.json": '[{"site": "decoder.0.mlp", "shift": "long"}]',
    "tokens.json": '[{"site": "decoder.0.mlp", "tokens": [4]}]',
    "blocked.json": '[{"site": "decoder.0.cross_attn.scores", "shift": "-inf"}]',
}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected at least one edit by --edits FILE, --knock-out SITE or --skip STEP; found no option"),
        (["--edits", "empty.json"], "found an empty list in empty.json"),
        (["--edit-arrays", "long.npz", "--skip", "decoder.0.mlp"], "give --edits FILE, or omit it"),
        (["--edits", "none.json"], "none.json"),
        (["--edits", "broken.json"], "broken.json"),
        (["--edits", "field.json"], "head"),
        (["--edits", "nameless.json"], "edit 0, 'decoder.0.mlp': shift 'direction' names no array given; given: none"),
        (["--edits", "nameless.json", "--edit-arrays", "long.npz"], "given: long"),
        (["--edits", "long.json", "--edit-arrays", "empty.json"], "empty.json cannot be read as an npz of arrays"),
        (["--edits", "long.json"], "expected shift to be a number or to broadcast to (1, 4, 768); found shape"),
        (["--edits", "tokens.json"], "there are 4 tokens, 0 to 3; found [4]"),
        (["--edits", "blocked.json"], "every key of every query is blocked"),
        (["--knock-out", "decoder.99.mlp"], "no layer matches 'decoder.99.mlp'"),
        (["--knock-out", "decoder.0.mlp.heads:0"], "no head output matches"),
        (["--knock-out", "decoder.0.cross_attn.heads:12"], "there are 12, 0 to 11"),
        (["--knock-out", "decoder.0.cross_attn.heads:2-1"], "heads are written"),
        (["--knock-out", "decoder.0.mlp@3"], "there are 2 views, 1 to 2; found view 3"),
        (["--skip", "decoder.norm"], "no update matches"),
        (["--skip", "decoder.0.mlp", "--layers", "all"], "this checkpoint has no probes"),
        (["--skip", "decoder.0.mlp", "--scene", "1"], "expected images or --scene 1, found both"),
        (["--skip", "decoder.0.mlp", "--out", "earlier", "--overwrite"], "does not hold an earlier result of this command"),
        (["--edits", "tokens.json", "--out", "."], "contains the source tokens.json"),
    ],
)
def test_what_cannot_be_done_is_refused_in_a_line_before_weights_are_read(
    config_alone, photos, tmp_path, monkeypatch, capsys, arguments, message
):
    monkeypatch.chdir(tmp_path)
    for name, content in FILES.items():
        (tmp_path / name).write_text(content)
    np.savez(tmp_path / "long.npz", long=np.zeros(769))
    (tmp_path / "earlier").mkdir()
    (tmp_path / "earlier" / "run.json").write_text('{"format": "und3rstand_jax pointmaps", "version": 1, "files": []}')
    given = [] if "--out" in arguments else ["--out", "out"]
    assert edit(*photos, *arguments, *given, "--checkpoint", config_alone) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error
    assert not (tmp_path / "out").exists()


def test_two_photos_or_a_scene_are_needed(config_alone, tmp_path, capsys):
    assert edit("--skip", "decoder.0.mlp", "--checkpoint", config_alone, "--out", tmp_path / "out") == 2
    assert "expected one image or more, or --scene NUMBER; found 0 images" in capsys.readouterr().err
    one = tmp_path / "one.png"
    Image.new("RGB", (48, 32)).save(one)
    assert edit(one, "--skip", "decoder.0.mlp", "--checkpoint", config_alone, "--out", tmp_path / "out") == 2
    assert "this model takes two views; found 1" in capsys.readouterr().err
    # That of a published model is known without a download.
    published = "naver/DUSt3R_ViTLarge_BaseDecoder_512_dpt"
    assert edit("missing.png", "--skip", "decoder.0.mlp", "--checkpoint", published, "--out", tmp_path / "out") == 2
    assert "this model takes two views; found 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("edits", "text"),
    [
        (u3d.knock_out("decoder.4.cross_attn.heads:0@2"), "decoder.4.cross_attn.heads@2, heads [0]: x ← 0"),
        (u3d.steer("decoder.*.mlp", 0.5, tokens=[5, 6]), "decoder.*.mlp, tokens [5, 6]: x ← x + 0.5"),
        (u3d.replace("decoder.2.mlp", np.ones(3)), "decoder.2.mlp: x ← array (3,)"),
        (u3d.block_attention("decoder.0.self_attn", keys=[1]), "decoder.0.self_attn.scores, keys [1]: x ← x + −∞"),
        (u3d.Edits((Edit("encoder.norm", scale=2, shift=-1),)), "encoder.norm: x ← 2·x + −1"),
        (u3d.Edits((Edit("encoder.norm"),)), "encoder.norm: x ← x"),
    ],
)
def test_edits_are_told_in_words(edits, text):
    (one,) = edits
    assert edit_text(one) == text


def geometry(points, confidence=None):
    return ViewGeometry(np.asarray(points, np.float32), None if confidence is None else np.asarray(confidence, np.float32))


def test_displacement_is_in_units_of_the_unedited_pair_and_nothing_is_rescaled():
    before = geometry([[[0, 0, 1], [0, 0, 3]]]), geometry([[[0, 2, 0], [2, 0, 0]]])
    assert mean_displacements(before, before) == (0, 0)
    assert mean_displacements(tuple(geometry(3 * view.points) for view in before), before) == (2, 2)
    assert mean_displacements((before[0], geometry(before[1].points + [0, 0, 5])), before) == (0, 2.5)
    lost = geometry([[[0, 0, 1], [0, np.nan, 3]]])
    assert mean_displacements((lost, before[1]), before) == (math.inf, 0)
    assert mean_displacements(before, (lost, before[1])) == (0, 0)
    nothing = geometry(np.full((1, 2, 3), np.nan))
    assert all(map(math.isnan, mean_displacements(before, (nothing, nothing))))


def test_a_scale_of_differences_has_zero_in_its_middle_and_is_never_empty():
    scale = Scale.about_zero(np.array([0.0] * 900 + [*np.linspace(-5, 1, 101), np.nan, np.inf]))
    assert scale.low == -scale.high == pytest.approx(-4.88, abs=0.05) and scale.fractions(np.array([0.0]))[0] == 0.5
    for values in ([], [0.0, 0.0], [np.nan], [1e-30], [3e38]):
        scale = Scale.about_zero(np.array(values, np.float32))
        np.testing.assert_array_equal(scale.fractions(np.array([scale.low, 0, scale.high])), [0, 0.5, 1])


def flat(depth, confidence=2.0):
    points = np.zeros((64, 64, 3))
    points[..., 2] = depth
    return geometry(points, np.full((64, 64), confidence))


def test_a_comparison_has_rows_of_both_runs_on_one_scale_and_of_differences_around_white():
    photo = np.full((64, 64, 3), 90, np.uint8)
    sheet = ContactSheet((photo, photo), rows=6, title="test", notes="Edit: one\nEdit: two")
    sheet.add_comparison("decoder.0.mlp", (flat(1), flat(4, 8)), (flat(1), flat(2, 2)))
    sheet.add_comparison("decoder.1.mlp", (flat(1), flat(3)), (flat(3), flat(np.nan)))
    assert [(row.label, row.below_label) for row in sheet._rows][:3] == [
        ("decoder.0.mlp", "unedited"),
        ("decoder.0.mlp", "edited"),
        ("decoder.0.mlp", "Δ edited − unedited"),
    ]
    pixels = np.asarray(sheet.draw())
    # Title, notes and six lines of text; a heading with two bars; rows of 320 pixels, 24 between the layers.
    top = 48 + 8 * 20 + 74 + 52
    assert pixels.shape[0] == top + 6 * 328 + 24 + 20
    lefts, _ = sheet._column_lefts()
    tops = [top + 328 * row + (24 if row >= 3 else 0) for row in range(6)]
    depth1, confidence1, depth2, confidence2 = (
        np.array([pixels[row + 100, lefts[column] + 160] for row in tops], int)
        for column in (("depth", 1), ("confidence", 1), ("depth", 2), ("confidence", 2))
    )
    white = np.array([247, 247, 247])
    np.testing.assert_array_equal(depth1[0], depth1[1])
    assert np.abs(depth1[0] - depth1[4]).max() > 50, "both runs of both layers have one scale"
    assert np.abs(np.stack([depth1[2], confidence1[2], confidence1[5]]) - white).max() <= 1, "nothing changed"
    red, blue = depth1[5], depth2[2]
    assert red[0] > red[2] + 50 and blue[2] > blue[0] + 50
    assert confidence2[2][2] > confidence2[2][0] + 50, "less confident"
    np.testing.assert_array_equal(depth2[5], [200] * 3)


def test_differences_of_depth_are_in_each_layers_own_unit_and_of_confidence_logarithms():
    photo = np.full((64, 64, 3), 90, np.uint8)
    sheet = ContactSheet((photo, photo), rows=6, title="test")
    for unit in (1, 1000):
        sheet.add_comparison("any", (flat(1 * unit, 4), flat(3 * unit, 1)), (flat(2 * unit, 2), flat(3 * unit, 0)))
    for row in (2, 5):
        maps = sheet._rows[row].maps
        np.testing.assert_allclose(maps["depth", 1], 0.5)  # one more, where points are two away in the mean
        np.testing.assert_array_equal(maps["depth", 2], 0)
        np.testing.assert_allclose(maps["confidence", 1], -math.log(2), rtol=1e-6)
        assert np.isnan(maps["confidence", 2]).all()
