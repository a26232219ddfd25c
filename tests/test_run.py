"""Section "running it": from two photos to a folder of files, with a stand-in for the model whose outputs are known."""

import dataclasses
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image

from tests.strict import one_document
from tests.tiny import NO_PROVENANCE
from und3rstand_jax.checkpoint.format import CheckpointInfo, write_checkpoint_info
from und3rstand_jax.commands.command_line import parse_command, run_command
from und3rstand_jax.model.backbone import Backbone
from und3rstand_jax.model.dust3r.config import BackboneConfig
from und3rstand_jax.model.dust3r.module import DUSt3R
from und3rstand_jax.model.images import load_image, load_images, to_uint8
from und3rstand_jax.model.output import BackboneOutput
from und3rstand_jax.probes.probes import Probes
from und3rstand_jax.report import pointmap_files
from und3rstand_jax.report.options import PointmapOptions, ReportOptions
from und3rstand_jax.report.pointmap_files import write_pointmaps
from und3rstand_jax.support.errors import UserError
from und3rstand_jax.support.output_folder import output_folder
from und3rstand_jax.support.results import result_of

ENVIRONMENT = {**os.environ, "COLUMNS": "120", "PYTHONPATH": str(Path(__file__).parents[1])}
CONFIG = BackboneConfig(
    enc_embed_dim=32, enc_depth=1, enc_num_heads=2, dec_embed_dim=16, dec_depth=4, dec_num_heads=2, patch_size=16, head_type="linear"
)
PROBED = ("decoder.0.mlp", "decoder.0.self_attn", "decoder.3.cross_attn")  # not in network order, on purpose
IN_ORDER = ("decoder.0.self_attn", "decoder.0.mlp", "decoder.3.cross_attn")


def plane(height, width, depth):
    """The pointmap a camera with a focal length of `width` sees of the plane z = depth, and a confidence growing to the right."""
    v, u = np.mgrid[:height, :width].astype(np.float32)
    points = np.stack([(u - width / 2) / width * depth, (v - height / 2) / width * depth, np.full_like(u, depth)], -1)
    return {"pts3d": points[None], "conf": 1 + np.exp(u / width)[None]}


class FakeModel(Backbone):
    """Returns the plane z = 10. It captures no tokens: the probes below need only the views' sizes."""

    def __init__(self, head_type="linear"):
        super().__init__(DUSt3R(dataclasses.replace(CONFIG, head_type=head_type)), {})
        object.__setattr__(self, "calls", [])

    def __call__(self, view1, view2, *, capture, head):
        self.calls.append((tuple(capture), head))
        sizes = view1.shape[1:3], view2.shape[1:3]
        preds = [plane(*size, 10.0) for size in sizes] if head else ()
        return BackboneOutput({}, sizes, preds)


class FakeProbes(Probes):
    """The probe of the i-th probed layer returns the plane z = i + 1 for view 1 and z = -(i + 1) for view 2."""

    layer_ids = PROBED

    def __init__(self, spoil=None):
        object.__setattr__(self, "spoil", spoil)

    def read_layer(self, layer_id, features):
        depth = PROBED.index(layer_id) + 1.0
        pair = [plane(*size, sign * depth) for size, sign in zip(features.image_sizes, (1, -1), strict=True)]
        if self.spoil:
            self.spoil(pair)
        return tuple(pair)


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(0)
    paths = tmp_path / "a.png", tmp_path / "b.jpg"
    for path, shape in zip(paths, ((60, 80, 3), (90, 64, 3)), strict=True):
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(path)
    return paths


@pytest.fixture
def run(photos, tmp_path, monkeypatch):
    """Runs the two photos through a stand-in model, or through what `load` returns."""

    def run(model=None, probes=None, load=None, **options):
        shown = model or FakeModel()
        info = CheckpointInfo(shown.config)
        monkeypatch.setattr(pointmap_files, "find_backbone", lambda checkpoint, progress: (Path(checkpoint), info, shown.config))
        monkeypatch.setattr(pointmap_files, "load_model", load or (lambda checkpoint, dtype: (shown, probes)))
        given = {"images": photos, "preprocessing": "dust3r", "size": 64, **options}
        write_pointmaps(PointmapOptions(checkpoint="somewhere", out=tmp_path / "results", **given))

    return run


@pytest.fixture
def messages(caplog):
    """What the library logs."""
    caplog.set_level(logging.INFO, logger="und3rstand_jax")
    return caplog


def files_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(("preprocessing", "side"), [("probe", 512), ("vggt", 518)])
def test_the_size_is_by_default_that_of_the_models_the_preprocessing_is_for(run, tmp_path, preprocessing, side):
    run(preprocessing=preprocessing, size=None)
    record = json.loads((tmp_path / "results" / "run.json").read_text())
    assert (record["preprocessing"], record["size"]) == (preprocessing, side)
    # VGGT's ways pad 392×518, of the first photo, to the size of the second.
    assert [(photo["height"], photo["width"]) for photo in record["photos"]] == [(side, side)] * 2


@pytest.mark.parametrize("size", [56, None])
def test_photos_are_prepared_as_the_model_says_once_it_is_known(run, photos, tmp_path, monkeypatch, size):
    @dataclasses.dataclass(frozen=True)
    class Config(BackboneConfig):
        preprocessing = "vggt-pad"

    model = FakeModel()
    object.__setattr__(model, "module", DUSt3R(Config(head_type="linear")))
    Image.new("RGBA", (28, 28), (0, 0, 0, 0)).save(photos[0])
    prepared = []
    monkeypatch.setattr(pointmap_files, "load_images", lambda *given: prepared.append(given[1:]) or load_images(*given))
    run(model, preprocessing=None, size=size)
    record = json.loads((tmp_path / "results" / "run.json").read_text())
    side = size or 518
    assert prepared == [("vggt-pad", side)] == [(record["preprocessing"], record["size"])]
    assert [(photo["height"], photo["width"]) for photo in record["photos"]] == [(side, side)] * 2
    cloud = trimesh.load(tmp_path / "results" / "point_clouds" / "head.ply")
    assert (cloud.colors[: side * side, :3] == 255).all()  # white shows through the first photo


def test_every_layer_and_the_head_become_arrays_clouds_a_sheet_and_a_record(run, photos, tmp_path):
    model = FakeModel()
    run(model, FakeProbes())
    out = tmp_path / "results"
    layers = [f"layers/{layer}.npz" for layer in IN_ORDER]
    clouds = [f"point_clouds/{layer}.{kind}" for layer in (*IN_ORDER, "head") for kind in ("ply", "glb")]
    assert files_in(out) == sorted([*layers, *clouds, "head.npz", "contact_sheet.png", "run.json"])
    assert model.calls == [(IN_ORDER, ("pointmap",))]

    arrays = np.load(out / "layers" / "decoder.0.self_attn.npz")
    assert {name: (array.shape, array.dtype.name) for name, array in arrays.items()} == {
        "pts3d1": ((48, 64, 3), "float32"),
        "conf1": ((48, 64), "float32"),
        "pts3d2": ((64, 32, 3), "float32"),
        "conf2": ((64, 32), "float32"),
    }
    np.testing.assert_array_equal(arrays["pts3d1"], plane(48, 64, 2.0)["pts3d"][0])
    np.testing.assert_array_equal(arrays["pts3d2"], plane(64, 32, -2.0)["pts3d"][0])
    np.testing.assert_array_equal(arrays["conf2"], plane(64, 32, 1.0)["conf"][0])
    np.testing.assert_array_equal(np.load(out / "head.npz")["pts3d2"], plane(64, 32, 10.0)["pts3d"][0])

    cloud = trimesh.load(out / "point_clouds" / "decoder.3.cross_attn.ply")
    points = np.concatenate([plane(48, 64, 3.0)["pts3d"].reshape(-1, 3), plane(64, 32, -3.0)["pts3d"].reshape(-1, 3)])
    pixels = [to_uint8(load_image(photo, "dust3r", 64))[0].reshape(-1, 3) for photo in photos]
    np.testing.assert_array_equal(np.asarray(cloud.vertices, np.float32), points)
    np.testing.assert_array_equal(cloud.colors[:, :3], np.concatenate(pixels))

    with Image.open(out / "contact_sheet.png") as sheet:
        sheet.load()
        assert sheet.mode == "RGB"

    record = json.loads((out / "run.json").read_text())
    assert record["layers"] == list(IN_ORDER) and record["head"] is True
    assert record["photos"][1] == {"path": str(photos[1]), "height": 64, "width": 32}
    assert record["outputs"]["head"] == {
        "arrays": "head.npz",
        "point_cloud": "point_clouds/head.ply",
        "point_cloud_glb": "point_clouds/head.glb",
        "points": 48 * 64 + 64 * 32,
        "points_not_finite": 0,
    }
    assert record["versions"]["jax"] and set(record["seconds"]) == {"load", "model", "probes and files", "total"}


def test_a_selection_of_layers_is_all_the_model_is_asked_for(run, tmp_path):
    model = FakeModel()
    run(model, FakeProbes(), layers="decoder.0.*")
    assert model.calls == [(("decoder.0.self_attn", "decoder.0.mlp"), ("pointmap",))]
    assert not (tmp_path / "results" / "layers" / "decoder.3.cross_attn.npz").exists()


@pytest.mark.parametrize(("layers", "message"), [("decoder.1.mlp", "no layer matches 'decoder.1.mlp'"), (" , ", "selects nothing")])
def test_a_layer_without_a_probe_is_refused_and_leaves_nothing(run, tmp_path, layers, message):
    with pytest.raises(UserError, match=message):
        run(probes=FakeProbes(), layers=layers)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.jpg"]


def test_without_probes_only_the_head_is_written_and_a_message_says_so(run, tmp_path, messages):
    run()
    assert files_in(tmp_path / "results") == ["contact_sheet.png", "head.npz", "point_clouds/head.glb", "point_clouds/head.ply", "run.json"]
    assert "no probes: writing the output of the model's own head only" in messages.text


@pytest.mark.parametrize("kind", ["ply", "glb"])
def test_point_clouds_of_one_kind_alone(run, tmp_path, kind):
    run(point_clouds=kind)
    assert files_in(tmp_path / "results") == ["contact_sheet.png", "head.npz", f"point_clouds/head.{kind}", "run.json"]
    head = json.loads((tmp_path / "results" / "run.json").read_text())["outputs"]["head"]
    assert (head["point_cloud"], head["point_cloud_glb"]) == (
        ("point_clouds/head.ply", None) if kind == "ply" else (None, "point_clouds/head.glb")
    )
    assert (head["points"], head["points_not_finite"]) == (48 * 64 + 64 * 32, 0)


def test_json_is_the_record_and_nothing_else_is_on_stdout(run, photos, tmp_path, monkeypatch, capsys):
    from und3rstand_jax.commands.run import main

    run()
    monkeypatch.setattr(pointmap_files, "find_backbone", lambda checkpoint, progress: (Path(checkpoint), CheckpointInfo(CONFIG), CONFIG))
    capsys.readouterr()
    words = [*map(str, photos), "--preprocessing", "dust3r", "--size", "64", "--checkpoint", "somewhere", "--out", str(tmp_path / "again")]
    assert main([*words, "--json", "--quiet"]) == 0
    shown = capsys.readouterr()
    record = one_document(shown.out)
    assert record == json.loads((tmp_path / "again" / "run.json").read_text()) and shown.err == ""
    assert record["outputs"]["head"]["points"] == 48 * 64 + 64 * 32


def test_layers_asked_of_a_checkpoint_without_probes_are_refused(run):
    with pytest.raises(UserError, match="has no probes to decode layers with"):
        run(layers="all")


def test_without_a_head_the_probes_alone_are_written(run, tmp_path, messages):
    model = FakeModel(head_type=None)
    run(model, FakeProbes())
    assert model.calls == [(IN_ORDER, ())]
    assert not (tmp_path / "results" / "head.npz").exists()
    assert "no head" in messages.text


def test_a_trunk_without_head_and_probes_is_refused(run):
    with pytest.raises(UserError, match="neither a head nor probes"):
        run(FakeModel(head_type=None))


def test_points_that_are_not_finite_are_counted_and_left_out_of_the_cloud_only(run, tmp_path, messages):
    def spoil(pair):
        pair[0]["pts3d"][0, 0, :5, 1] = np.nan
        pair[1]["pts3d"][0, 3, 2] = np.inf

    run(probes=FakeProbes(spoil=spoil), layers="decoder.0.mlp")
    out = tmp_path / "results"
    output = json.loads((out / "run.json").read_text())["outputs"]["decoder.0.mlp"]
    assert (output["points"], output["points_not_finite"]) == (48 * 64 + 64 * 32 - 6, 6)
    assert len(trimesh.load(out / "point_clouds" / "decoder.0.mlp.ply").vertices) == 48 * 64 + 64 * 32 - 6
    assert np.isnan(np.load(out / "layers" / "decoder.0.mlp.npz")["pts3d1"][0, :5, 1]).all()
    assert "6 of 5120 points are not finite" in messages.text


def test_probes_without_confidence_are_written_without_it(run, tmp_path):
    run(probes=FakeProbes(spoil=lambda pair: [prediction.pop("conf") for prediction in pair]))
    assert set(np.load(tmp_path / "results" / "layers" / "decoder.0.mlp.npz")) == {"pts3d1", "pts3d2"}


def test_earlier_results_are_replaced_only_when_asked_and_only_whole(run, tmp_path):
    out = tmp_path / "results"
    run(probes=FakeProbes())
    with pytest.raises(UserError, match="not empty.*--overwrite"):
        run(probes=FakeProbes())

    def fail(pair):
        raise OSError(28, "No space left on device")

    before = (out / "run.json").read_bytes()
    with pytest.raises(OSError, match="No space left"):
        run(probes=FakeProbes(spoil=fail), overwrite=True)
    assert (out / "run.json").read_bytes() == before

    run(overwrite=True)
    assert "layers/decoder.0.mlp.npz" not in files_in(out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.jpg", "results"]


def test_a_folder_that_is_no_earlier_result_is_never_replaced(run, tmp_path):
    precious = tmp_path / "results" / "thesis.tex"
    precious.parent.mkdir()
    precious.write_text("do not lose")
    with pytest.raises(UserError, match="does not hold an earlier result"):
        run(overwrite=True)
    assert precious.read_text() == "do not lose"


def test_refusals_come_before_the_model_is_loaded(run, photos, tmp_path):
    def load(checkpoint, dtype):
        raise AssertionError("loaded")

    with pytest.raises(UserError, match="this model takes two views; found 1"):
        run(load=load, images=photos[:1])
    with pytest.raises(UserError, match="this model takes two views; found 3"):
        run(load=load, images=(*photos, photos[0]))
    (tmp_path / "results").write_text("a file")
    with pytest.raises(UserError, match="is a file; --out must name a folder"):
        run(load=load)
    with pytest.raises(UserError, match="no image at"):
        run(load=load, images=(photos[0], tmp_path / "missing.png"))
    with pytest.raises(UserError, match="expected one image or more; found 0 images"):
        run(load=load, images=())


def test_what_a_known_model_refuses_is_refused_before_its_checkpoint_is_made(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(pointmap_files, "find_backbone", lambda *_: pytest.fail("it was looked at"))

    def refused(count, checkpoint, **options):
        given = PointmapOptions(photos[:1] * count, checkpoint=checkpoint, out=tmp_path / "results", **options)
        with pytest.raises(UserError) as caught:
            write_pointmaps(given)
        assert not (tmp_path / "results").exists()
        return str(caught.value)

    published = "naver/DUSt3R_ViTLarge_BaseDecoder_512_dpt"
    folder = tmp_path / "converted"
    folder.mkdir()
    write_checkpoint_info(folder, CheckpointInfo(CONFIG, provenance={"backbone": NO_PROVENANCE}))
    for checkpoint in (published, str(folder)):
        assert "this model takes two views; found 1" in refused(1, checkpoint)
        assert "this model takes two views; found 3" in refused(3, checkpoint)
        assert refused(2, checkpoint, size=518) == "image size 518 must be a positive multiple of 16"
    assert refused(1, "facebook/VGGT-1B", size=512) == "image size 512 must be a positive multiple of 14"


def test_an_output_folder_is_made_with_its_parents_and_the_usual_permissions(tmp_path):
    target = tmp_path / "new" / "deeper"
    with output_folder(target, False, result_of("words", "run.json")) as partial:
        (partial / "run.json").write_text("{}")
        assert not target.exists()
    ordinary = tmp_path / "ordinary"
    ordinary.mkdir()
    assert target.stat().st_mode == ordinary.stat().st_mode
    with output_folder(ordinary, False, result_of("words", "run.json")) as partial:  # empty: may be written
        (partial / "run.json").write_text("{}")
    assert files_in(ordinary) == ["run.json"]


def raising(error):
    def main():
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (UserError("expected this; found that"), 2, "error: expected this; found that\n"),
        (OSError(28, "No space left on device", "/x/y"), 2, "error: No space left on device: /x/y\n"),
        (PermissionError(13, "Permission denied", "/x"), 2, "error: Permission denied: /x\n"),
        (ConnectionError("no route\n  to the hub"), 2, "error: no route to the hub\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_expected_failures_are_one_line_and_a_status(capsys, error, status, line):
    assert run_command(raising(error), debug=False) == status
    assert capsys.readouterr().err == line


def test_debug_adds_the_traceback_and_a_bug_is_never_hidden(capsys):
    assert run_command(raising(UserError("that")), debug=True) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("Traceback") and printed.endswith("error: that\n")
    with pytest.raises(ZeroDivisionError):
        run_command(raising(ZeroDivisionError()), debug=False)
    assert run_command(lambda: None, debug=False) == 0


def command(*arguments, cwd=None):
    call = [sys.executable, "-m", "und3rstand_jax", *arguments]
    return subprocess.run(call, capture_output=True, text=True, timeout=60, cwd=cwd, env=ENVIRONMENT)


def test_help_names_every_option_without_the_heavy_imports():
    code = (
        "import runpy, sys; sys.argv = ['x', '--help']\n"
        "try: runpy.run_module('und3rstand_jax', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "print('heavy:', sorted({'jax', 'torch', 'flax', 'orbax', 'matplotlib', 'trimesh', 'huggingface_hub'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=ENVIRONMENT)
    assert "usage: python -m und3rstand_jax" in done.stdout and done.stdout.endswith("heavy: []\n")
    for option in ("--checkpoint", "--layers", "--out", "--preprocessing", "--size", "--dtype", "--overwrite", "--debug"):
        assert option in done.stdout


def test_the_command_that_needs_no_name_is_run_and_report_is_the_other():
    rest = ["--checkpoint", "somewhere", "--out", "results"]

    def parse(*words):
        return parse_command([*words, *rest], {"run": PointmapOptions, "report": ReportOptions}, "run", "und3rstand-jax")

    expected = PointmapOptions((Path("a.png"), Path("b.png")), checkpoint="somewhere", out=Path("results"))
    assert parse("a.png", "b.png") == parse("run", "a.png", "b.png") == expected
    assert parse("./report", "b.png").images[0] == Path("report")
    assert parse("report", "a.png", "b.png") == ReportOptions((Path("a.png"), Path("b.png")), checkpoint="somewhere", out=Path("results"))
    assert parse("report", "--scene", "1").images == ()


def test_messages_reach_stderr_while_a_command_runs_and_logging_is_left_as_it_was(capsys):
    logger = logging.getLogger("und3rstand_jax")
    before = logger.level, logger.propagate, list(logger.handlers)
    assert run_command(lambda: logging.getLogger("und3rstand_jax.report").info("wrote %s", "it"), debug=False) == 0
    assert capsys.readouterr() == ("", "wrote it\n")
    assert (logger.level, logger.propagate, logger.handlers) == before


def test_usage_errors_and_missing_photos_exit_with_status_2(tmp_path):
    usage = command("a.png", "b.png", "--checkpoint", "nowhere")
    assert usage.returncode == 2 and "--out" in usage.stderr + usage.stdout
    missing = command("a.png", "b.png", "--checkpoint", "nowhere", "--out", "results", cwd=tmp_path)
    assert (missing.returncode, missing.stdout, missing.stderr) == (2, "", "error: no image at a.png: there is no such file\n")


def test_a_reader_that_goes_away_is_no_error():
    code = (
        "from und3rstand_jax.commands.command_line import run_command, run_process\n"
        "run_process(lambda: run_command(lambda: [print('x' * 100) for _ in range(10000)], debug=False))"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT) as process:
        process.stdout.readline()
        process.stdout.close()
        assert (process.stderr.read(), process.wait(timeout=60)) == (b"", 141)
