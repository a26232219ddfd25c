"""`pointmaps`, `edit`, `report` and `train pose` on a VGGT, through their command line."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import und3rstand_jax as u3d
from tests.conversion import converted
from tests.make_checkpoint import save_hub_folder
from tests.test_vggt_convert import HUB_OF_SMALL, tensors
from und3rstand_jax.commands.run import main
from und3rstand_jax.commands.train import main as train

pytestmark = [pytest.mark.slow, pytest.mark.quick]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A converted checkpoint and four photos."""
    folder = tmp_path_factory.mktemp("vggt")
    hub = HUB_OF_SMALL | {"enc_num_heads": 4, "camera_num_heads": 4}
    converted(save_hub_folder(folder / "VGGT-1B", tensors(), hub), folder / "jax")
    for number in range(1, 5):
        pixels = np.random.default_rng(number).integers(0, 256, (60, 84, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def run(folder: Path, *arguments: object) -> int:
    return main([*map(str, arguments), "--checkpoint", str(folder / "jax"), "--size", "56"])


def test_one_photo_has_pointmaps_and_can_be_edited(folder, capsys):
    photo = folder / "1.png"
    assert run(folder, photo, "--out", folder / "pointmaps") == 0, capsys.readouterr().err
    arrays = np.load(folder / "pointmaps" / "head.npz")
    # 60×84 as VGGT's own loader prepares it, which nobody asked for.
    assert {name: array.shape for name, array in arrays.items()} == {"pts3d1": (42, 56, 3), "conf1": (42, 56)}
    assert run(folder, "edit", photo, "--skip", "global.0.mlp", "--out", folder / "edited") == 0, capsys.readouterr().err
    edited = np.load(folder / "edited" / "head.npz")
    assert not np.array_equal(edited["pts3d1"], arrays["pts3d1"])
    assert run(folder, "report", photo, "--out", folder / "one") == 2
    assert "expected two images or more, or --scene NUMBER; found 1 image" in capsys.readouterr().err


def test_four_photos_have_a_report_with_global_attention(folder, capsys):
    assert run(folder, "report", *(folder / f"{n}.png" for n in range(1, 5)), "--out", folder / "report") == 0, capsys.readouterr().err
    numbers = json.loads((folder / "report" / "report.json").read_text())
    assert [len(layer["errors"]) for layer in numbers["layers"]] == [4] and "global attention weights" in str(numbers["arrays"]["keys"])
    arrays = np.load(folder / "report" / "arrays.npz")
    # Of the model's own cameras, which are no layer's.
    backbone = u3d.load_backbone(str(folder / "jax"))
    views = u3d.load_images([folder / f"{n}.png" for n in range(1, 5)], size=56, preprocessing="vggt")
    first, *later = (np.vstack([of_view, [0, 0, 0, 1]]) for of_view in np.asarray(backbone(*views, head="camera").cameras.extrinsics)[0])
    assert [pose["view"] for pose in numbers["own_poses"]] == [2, 3, 4]
    for pose, extrinsics in zip(numbers["own_poses"], later, strict=True):
        np.testing.assert_allclose(pose["camera_to_view1"], first @ np.linalg.inv(extrinsics), atol=1e-4)
    weights = arrays["attention/0/from_view2"].astype(np.float32)
    tokens = int(np.prod(numbers["grids"][0]))
    assert weights.shape[1:] == (tokens, 4 * tokens) and (weights.sum(axis=-1) < 1).all()
    assert (folder / "report" / "figures" / "attention.png").exists()


def test_pose_probes_are_trained_and_end_with_a_card(folder, capsys):
    out, layers = folder / "poses", ("global.0.mlp", "global.1.mlp")
    size = ("--resolution", "56x56", "--views", "3", "--pairs", "8", "--val-pairs", "4", "--batch-size", "4", "--at-once", "4")
    command = ["pose", "--backbone", folder / "jax", "--layers", ",".join(layers), *size, "--steps", "4", "--out", out]
    assert train([*map(str, command)]) == 0, capsys.readouterr().err
    numbers = json.loads((out / "metrics.json").read_text())
    assert list(numbers["layers"]) == [*layers, "constant"]
    rotations = {layer: errors["rotation"]["mean"] for layer, errors in numbers["layers"].items()}
    assert all(0 < angle < 180 for angle in rotations.values())
    card = (out / "README.md").read_text()
    header = yaml.safe_load(card.split("---")[1])
    assert header["library_name"] == "und3rstand_jax" and {"vggt", "probes"} <= set(header["tags"])
    metrics = {metric["type"]: metric["value"] for metric in header["model-index"][0]["results"][0]["metrics"]}
    assert metrics["rotation_error"] == min(rotations[layer] for layer in layers)
    assert (
        "4 steps on synthetic:\n\n    python -m train pose --" in card and f"--layers {','.join(layers)} --backbone jax --pairs 8" in card
    )
    for layer, row in numbers["layers"].items():
        cells = (f"{row[measure]['mean']:.2f} ± {row[measure]['error']:.2f}" for measure in ("rotation", "translation", "field_of_view"))
        assert f"| {layer} | {' | '.join(cells)} |" in card
    assert str(folder) not in card
    assert train([*map(str, command)]) == 0
    assert "is finished already" in capsys.readouterr().out
