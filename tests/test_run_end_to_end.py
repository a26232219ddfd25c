"""The command on real checkpoints: what its files hold is what model and probes give."""

import json

import numpy as np
import pytest
import trimesh
from PIL import Image

import und3rstand_jax as u3d
from tests import tiny
from tests.conversion import converted
from und3rstand_jax.commands.run import main


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for i, name in enumerate(("a.png", "b.jpg")):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(folder / name)
    return folder / "a.png", folder / "b.jpg"


def run(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["und3rstand_jax", *map(str, arguments)])
    return main()


def test_every_layer_and_the_head_are_written_as_model_and_probes_give_them(photos, tmp_path, monkeypatch):
    tiny.save_backbone(tmp_path / "backbone")
    checkpoint = converted(tiny.save_probes(tmp_path / "probes", tmp_path / "backbone"), tmp_path / "jax")
    out = tmp_path / "out"
    assert run(monkeypatch, *photos, "--checkpoint", checkpoint, "--out", out, "--size", 32) == 0

    model, probes = u3d.load_backbone_and_probe(checkpoint)
    views = [u3d.load_image(photo, size=32) for photo in photos]
    features = model(*views, head=True)
    expected = dict(zip(model.probed_layers.layer_ids, probes(features), strict=True))
    assert {path.stem for path in (out / "layers").iterdir()} == set(tiny.LAYERS)
    for layer, preds in expected.items():
        with np.load(out / "layers" / f"{layer}.npz") as file:
            for view, pred in enumerate(preds, start=1):
                np.testing.assert_allclose(file[f"pts3d{view}"], pred["pts3d"][0], rtol=1e-4, atol=1e-5)
                np.testing.assert_allclose(file[f"conf{view}"], pred["conf"][0], rtol=1e-4)
    with np.load(out / "head.npz") as file:
        np.testing.assert_allclose(file["pts3d2"], features.pred2["pts3d"][0], rtol=1e-4, atol=1e-5)
    cloud = trimesh.load(out / "point_clouds" / "decoder.1.mlp.ply")
    assert cloud.vertices.shape == (2 * 32 * 32, 3)
    with Image.open(out / "contact_sheet.png") as sheet:
        assert sheet.width > 1000 and sheet.height > 6 * 100


def test_a_selection_in_bfloat16_and_the_shape_of_the_photo(photos, tmp_path, monkeypatch):
    tiny.save_backbone(tmp_path / "backbone")
    checkpoint = converted(tiny.save_probes(tmp_path / "probes", tmp_path / "backbone"), tmp_path / "jax")
    options = ("--layers", "decoder.*.mlp", "--dtype", "bfloat16", "--preprocessing", "dust3r", "--size", 48)
    assert run(monkeypatch, *photos, "--checkpoint", checkpoint, "--out", tmp_path / "out", *options) == 0
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["layers"] == ["decoder.0.mlp", "decoder.1.mlp"]
    with np.load(tmp_path / "out" / "layers" / "decoder.1.mlp.npz") as file:
        assert file["pts3d1"].shape == (32, 48, 3)
        assert file["pts3d1"].dtype == np.float32


def test_a_checkpoint_without_probes_gives_its_head_and_says_so(photos, tmp_path, monkeypatch, capsys):
    # A PyTorch folder: it is converted on the way.
    monkeypatch.setenv("UND3RSTAND_JAX_CACHE", str(tmp_path / "cache"))
    source = tiny.save_backbone(tmp_path / "backbone")
    assert run(monkeypatch, *photos, "--checkpoint", source, "--out", tmp_path / "out", "--size", 32) == 0
    assert "no probes: writing the output of the model's own head only" in capsys.readouterr().err
    assert not (tmp_path / "out" / "layers").exists()
    backbone = u3d.load_backbone(source)
    pred = backbone(*(u3d.load_image(photo, size=32) for photo in photos)).pred1
    with np.load(tmp_path / "out" / "head.npz") as file:
        np.testing.assert_allclose(file["conf1"], pred["conf"][0], rtol=1e-4)


def test_a_missing_checkpoint_is_one_line(photos, tmp_path, monkeypatch, capsys):
    assert run(monkeypatch, *photos, "--checkpoint", tmp_path / "nothing", "--out", tmp_path / "out") == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert line.startswith("error: ") and "nothing does not exist" in line
    assert not (tmp_path / "out").exists()
