"""The pocket model as the checkpoint that nobody gave: where it is found, what is said, and what is refused."""

import dataclasses
import logging
from pathlib import Path

import pytest

from tests import tiny
from und3rstand_jax.checkpoint.format import read_checkpoint_info
from und3rstand_jax.commands.default_checkpoint import with_checkpoint
from und3rstand_jax.commands.run import PROGRAM, main
from und3rstand_jax.convert.cache import CACHE_VARIABLE
from und3rstand_jax.report.options import PointmapOptions
from und3rstand_jax.support.errors import OptionError, OutputError

COMMANDS = [name for name in PROGRAM.commands if name != "match"]


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A folder with a `pocket/` of tiny models; its conversions go to a cache beside it."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    folder = tmp_path / "clone"
    tiny.save_probes(folder / "pocket" / "probes", "somewhere/else", tiny.probe_tensors())
    tiny.save_backbone(folder / "pocket")
    return folder


def options_of(name, *more):
    words = {"run": ["run", "a.jpg", "b.jpg"], "study": ["study", "layers"]}.get(name, [name])
    return PROGRAM.options([*words, "--out", "out", *more])


def test_this_clone_has_the_pocket_model_where_it_is_looked_for():
    from und3rstand_jax.commands.default_checkpoint import _FILES

    assert all((Path(__file__).parents[1] / file).is_file() for file in _FILES)


def test_it_is_converted_once_with_its_probes_and_told(clone, tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="und3rstand_jax")
    chosen = with_checkpoint(options_of("report"), (tmp_path, clone))
    info = read_checkpoint_info(chosen.checkpoint)
    assert Path(chosen.checkpoint).parent == tmp_path / "cache"
    assert info.backbone.img_size == (32, 32) and info.probes.layer_ids == tiny.LAYERS
    told = caplog.records[-1].getMessage()
    assert told.startswith("no --checkpoint is given: using the pocket model, a small DUSt3R for rendered rooms of 32×32 pixels, not the")
    assert str(clone / "pocket") in told and chosen.checkpoint in told
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*")}
    for name in COMMANDS:
        given = options_of(name)
        expected = dataclasses.replace(given, checkpoint=chosen.checkpoint, **({"size": 32} if name == "run" else {}))
        assert with_checkpoint(given, (clone,)) == expected
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*")} == before


def test_what_is_given_is_taken(clone):
    for name in PROGRAM.commands:
        given = options_of(name, "--checkpoint", "mine")
        assert with_checkpoint(given, (clone,)) is given
    assert with_checkpoint(PointmapOptions((), out=Path("x"), size=64), (clone,)).size == 64


def test_without_a_pocket_at_hand_it_says_what_to_give(tmp_path, clone):
    (clone / "pocket" / "probes" / "model.safetensors").unlink()
    for name in COMMANDS:
        with pytest.raises(OptionError, match="the pocket/ of a clone, was not found; give --checkpoint: a hub id such as jgaubil/"):
            with_checkpoint(options_of(name), (tmp_path, clone))


def test_results_do_not_go_into_it(clone):
    given = dataclasses.replace(options_of("report"), out=clone / "pocket" / "probes", overwrite=True)
    with pytest.raises(OutputError, match="is, or is in, the source"):
        with_checkpoint(given, (clone,))
    assert (clone / "pocket" / "probes" / "model.safetensors").is_file()


def test_match_says_that_it_needs_a_mast3r(capsys, tmp_path):
    assert main(["match", "--scene", "1", "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.startswith("error: match needs the descriptors of a MASt3R: give --checkpoint, a hub id such as naver/")
    assert not list(tmp_path.iterdir())
