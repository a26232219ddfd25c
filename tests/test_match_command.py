"""`python -m und3rstand_jax match`: what it writes, on photos and on a rendered scene, and what it refuses before it loads anything."""

import json

import numpy as np
import pytest
from PIL import Image

import und3rstand_jax as u3d
from tests.conversion import converted
from tests.make_checkpoint import save_hub_folder
from tests.strict import one_document
from tests.tiny import CONFIG, MAST3R_CONFIG, backbone_tensors
from und3rstand_jax.analysis.inputs import scene_inputs
from und3rstand_jax.commands.run import main
from und3rstand_jax.geometry.matching import Correspondences
from und3rstand_jax.report import match_files
from und3rstand_jax.report.match_figure import Row, matches_figure


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mast3r")
    return converted(save_hub_folder(folder / "hub", backbone_tensors(MAST3R_CONFIG), MAST3R_CONFIG), folder / "jax")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for name, size in (("a.png", (48, 64)), ("b.png", (64, 48))):
        Image.fromarray(rng.integers(0, 255, (*size, 3), np.uint8)).save(folder / name)
    return [str(folder / "a.png"), str(folder / "b.png")]


def run(*words):
    return main(["match", *map(str, words)])


def test_photos_give_arrays_a_picture_and_a_record(checkpoint, photos, tmp_path, capsys):
    options = [
        "--checkpoint",
        checkpoint,
        "--out",
        tmp_path / "out",
        "--preprocessing",
        "dust3r",
        "--size",
        64,
        "--seeds",
        4,
        "--both-ways",
    ]
    assert run(*photos, *options, "--border", 2, "--json", "--quiet") == 0
    record = json.loads((tmp_path / "out" / "matches.json").read_text())
    shown = capsys.readouterr()
    assert one_document(shown.out) == record and shown.err == ""
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["matches.json", "matches.npz", "matches.png", "matches.svg"]
    model = u3d.load_backbone(checkpoint)
    views = [u3d.load_image(photo, "dust3r", 64) for photo in photos]
    expected = u3d.match(model(*views, head="features"), seeds=4, both_ways=True, border=2)
    with np.load(tmp_path / "out" / "matches.npz") as arrays:
        assert set(arrays) == {"xy1", "xy2", "confidence"}
        np.testing.assert_array_equal(arrays["xy1"], expected.pixels1)
        np.testing.assert_array_equal(arrays["xy2"], expected.pixels2)
        np.testing.assert_allclose(arrays["confidence"], expected.confidence, rtol=1e-5)
    assert record["matches"] == len(expected) > 0
    assert record["matching"] == {"seeds": 4, "tolerance": None, "both_ways": True, "both_orders": False, "border": 2}
    assert record["correct_of_those_that_can_be_checked"] is None
    with Image.open(tmp_path / "out" / "matches.png") as image:
        assert image.width > 1000


def test_a_scene_says_how_many_are_right_and_both_orders_are_one_encoding(checkpoint, tmp_path, capsys):
    words = ["--scene", 1, "--size", "64x48", "--checkpoint", checkpoint, "--out", tmp_path / "out", "--both-orders", "--border", 0]
    assert run(*words) == 0
    record = json.loads((tmp_path / "out" / "matches.json").read_text())
    assert capsys.readouterr().out.startswith(f"{record['matches']} matches")
    with np.load(tmp_path / "out" / "matches.npz") as arrays:
        offsets = arrays["offset"]
        found = dict(arrays)
    known = offsets[~np.isnan(offsets)]
    assert record["correct_within_pixels"] == pytest.approx(0.03 * 64)
    assert record["correct_of_those_that_can_be_checked"] == pytest.approx(np.mean(known <= 0.03 * 64))
    model, views = u3d.load_backbone(checkpoint), scene_inputs(1, "synthetic", (48, 64)).views
    one, two = (model(*some, head="features") for some in (views, views[::-1]))
    expected = u3d.match(one, swapped=two)
    np.testing.assert_array_equal(found["xy1"], expected.pixels1)
    np.testing.assert_allclose(found["confidence"], expected.confidence, rtol=1e-4)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seeds", 0], "seeds of at least 1"),
        (["--tolerance", 2, "--both-orders"], "it cannot be combined with both ways or both orders"),
        (["--border", -1], "a border of at least 0"),
        (["--scene", 1], "expected images or --scene 1, found both"),
        (["--views", 2], "--views 2 counts the cameras of a rendered scene"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_loaded(words, message, photos, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(match_files, "find_backbone", lambda *_: pytest.fail("it was looked at"))
    assert run(*photos, "--checkpoint", "naver/nothing", "--out", tmp_path / "out", *words) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_model_without_descriptors_is_refused(photos, tmp_path, capsys):
    dust3r = converted(save_hub_folder(tmp_path / "hub", backbone_tensors(), CONFIG), tmp_path / "jax")
    capsys.readouterr()
    assert run(*photos, "--checkpoint", dust3r, "--out", tmp_path / "out") == 2
    assert "computes no descriptors; match needs one that does, such as a MASt3R" in capsys.readouterr().err


def test_no_match_is_a_picture_too():
    image = np.zeros((16, 24, 3), np.uint8)
    none = Correspondences(np.empty((0, 2), int), np.empty((0, 2), int), None)
    figure = matches_figure((image, image), [Row("nothing", none, None)], 1.0)
    assert figure.axes[0].get_title(loc="left") == "nothing: 0 matches"
