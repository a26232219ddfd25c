"""`python -m und3rstand_jax study`: what it refuses before any work, what it writes, and that it goes on where it was."""

import csv
import json

import pytest

import und3rstand_jax.commands.run as und3rstand
from tests.conversion import converted
from tests.data_sets import make_views, write_pairs
from tests.strict import one_document
from tests.tiny import LAYERS, save_backbone, save_probes
from und3rstand_jax.analysis.studies import catalogue
from und3rstand_jax.analysis.studies.catalogue import STUDIES
from und3rstand_jax.analysis.studies.study_files import read_study
from und3rstand_jax.commands import study_setting
from und3rstand_jax.commands.study import BEGUN
from und3rstand_jax.commands.study_setting import takes_views, with_trained
from und3rstand_jax.data.records import held_out_scenes
from und3rstand_jax.support.pieces import Pieces

pytestmark = pytest.mark.quick

SMALL = ("--pairs", "2", "--resolution", "32", "--control-steps", "0")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    return converted(save_probes(folder / "probes", save_backbone(folder / "backbone")), folder / "jax")


def run(name, checkpoint, out, *options):
    return und3rstand.main(["study", name, "--checkpoint", str(checkpoint), "--out", str(out), *options])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("nothing", (), "there is no study 'nothing'; there are layers, heads"),
        ("heads", ("--pairs", "1"), "--pairs must be at least 2 (each pair's control is another pair)"),
        ("heads", ("--batch-size", "0"), "and --batch-size at least 1; found 64 and 0"),
        (
            "layers",
            ("--control-steps", "-1"),
            "--control-steps must be at least 0, --epipolar-steps and --epipolar-pairs at least 1; found -1",
        ),
        (
            "heads",
            ("--views", "3"),
            "--views 3: the study heads is for pairs only, since it asks where in the other view a head looks; omit",
        ),
        ("epipolar", ("--views", "4"), "for pairs only, since a fundamental matrix relates two views; omit --views"),
        ("layers", ("--views", "1"), "--views 1: expected 2 to 256 views in a set"),
        ("layers", ("--views", "3"), "this model takes two views; found 3"),
        ("heads", ("--resolution", "33"), "--resolution"),
        ("heads", ("--data", "nowhere"), "nowhere"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_any_work(name, options, message, checkpoint, tmp_path, capsys):
    assert run(name, checkpoint, tmp_path / "out", *options) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_study_writes_every_number_its_figures_and_a_page(checkpoint, tmp_path, capsys):
    out = tmp_path / "out"
    assert run("heads", checkpoint, out, *SMALL) == 0
    shown = capsys.readouterr()
    assert "Heads by label" in shown.out and str(out / "index.html") in shown.out
    assert "alignment of points by scale: all views' points divided" in shown.err and "heads: about 2 forward passes of a pair" in shown.err
    assert "running heads\n" in shown.err
    assert {file.name for file in out.iterdir()} == {
        "heads.json", "heads.csv", "heads.png", "heads.svg", "index.html", "studies.json"
    }  # fmt: skip
    found = read_study(out / "heads.json")
    assert (
        found["facts"]["held_out"] == [[0, scene] for scene in held_out_scenes()[:2]]
        and found["facts"]["seed"] == 0
        and found["facts"]["alignment"] == "scale"
    )
    assert found["facts"]["provenance"]["path"] == str(checkpoint)
    lines = list(csv.DictReader((out / "heads.csv").open()))
    assert len(lines) == len(found["records"]) == 2 * 2 * 2 * 2
    assert float(lines[3]["sink"]) == pytest.approx(found["records"][3]["sink"]["mean"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


@pytest.mark.slow
def test_an_interrupted_study_goes_on_and_only_the_same_question_does(checkpoint, tmp_path, capsys, monkeypatch):
    out, write, written = tmp_path / "out", Pieces.write, []

    def interrupted(self, name, arrays):
        write(self, name, arrays)
        if name != BEGUN:
            written.append(name)
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Pieces, "write", interrupted)
        assert run("layers", checkpoint, out, *SMALL, "--batch-size", "1") == 130
    assert len(written) == 1 and not out.exists() and (tmp_path / "out.unfinished").is_dir()
    assert run("layers", checkpoint, out, *SMALL, "--batch-size", "1", "--seed", "1") == 2
    assert "holds an unfinished measurement with other options" in capsys.readouterr().err
    with monkeypatch.context() as patched:
        patched.setattr(Pieces, "write", lambda self, name, arrays: (written.extend({name} - {BEGUN}), write(self, name, arrays)))
        capsys.readouterr()
        assert run("layers", checkpoint, out, *SMALL, "--batch-size", "1", "--json", "--quiet") == 0
    shown = capsys.readouterr()
    assert one_document(shown.out) == {"studies": {"layers": json.loads((out / "layers.json").read_text())}} and shown.err == ""
    assert len(written) == len(set(written)) == 2  # one batch before, one after it
    assert [record["layer"] for record in read_study(out / "layers.json")["records"]] == [*LAYERS, "head"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


@pytest.mark.slow
def test_probes_are_trained_on_random_weights_as_a_control(checkpoint, tmp_path, capsys, monkeypatch):
    # One pair at a time, as the interrupted study takes them: their programs are compiled once.
    out, asked = tmp_path / "out", ("--pairs", "2", "--resolution", "32", "--batch-size", "1", "--control-steps", "2")

    def interrupted(*given):
        with_trained(*given)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(study_setting, "with_trained", interrupted)
        assert run("layers", checkpoint, out, *asked) == 130
    assert "compiling the step" in capsys.readouterr().err
    assert run("layers", checkpoint, out, *asked[:-1], "1") == 2  # its probes would be others
    assert "holds an unfinished measurement with other options" in capsys.readouterr().err
    assert run("layers", checkpoint, out, *asked) == 0
    assert "compiling the step" not in capsys.readouterr().err
    found = read_study(out / "layers.json")
    assert found["facts"]["control"].startswith("2 steps of 8 pairs")
    for record in found["records"][:-1]:
        assert record["random2"]["mean"] != record["same2"]["mean"] and record["same2"]["mean"] > 0
    assert (out / "layers_control.png").is_file() and sorted(path.name for path in tmp_path.iterdir()) == ["out"]


@pytest.mark.slow
def test_a_backbone_alone_has_the_studies_that_need_no_probes(tmp_path, capsys):
    alone = converted(save_backbone(tmp_path / "backbone"), tmp_path / "jax")
    assert run("layers", alone, tmp_path / "out", *SMALL) == 2
    assert "the study layers needs probes on its layers" in capsys.readouterr().err
    assert run("heads", alone, tmp_path / "out", *SMALL) == 0
    assert len(read_study(tmp_path / "out" / "heads.json")["records"]) == 16


@pytest.mark.slow
def test_all_studies_make_one_page(checkpoint, tmp_path, monkeypatch):
    """Three of them stand for all, one of which trains probes: each has tests of its own, and all of them take minutes to compile."""
    some = {name: STUDIES[name] for name in ("heads", "epipolar", "inputs")}
    monkeypatch.setattr(catalogue, "STUDIES", some)
    out = tmp_path / "out"
    # Two pairs at a time, as the studies of two alone take them.
    few = ("--pairs", "4", "--batch-size", "2", "--resolution", "32", "--epipolar-steps", "1", "--epipolar-pairs", "4")
    assert run("all", checkpoint, out, *few) == 0
    assert [file.stem for file in sorted(out.glob("*.csv"))] == sorted(some)
    page = (out / "index.html").read_text(encoding="ascii")
    for name in some:
        found = read_study(out / f"{name}.json")
        assert f'id="{name}"' in page and found["facts"]["pairs"] == 4 and found["findings"]
        assert all((out / f"{name}{kind}").stat().st_size for kind in (".csv", ".png", ".svg"))
    assert not list(tmp_path.glob("out.*"))


def test_of_all_studies_those_of_pairs_alone_are_left_out_with_more_views(checkpoint, tmp_path, capsys):
    assert run("all", checkpoint, tmp_path / "out", "--views", "3") == 2  # a model that takes two views is refused after that
    shown = capsys.readouterr().err
    left_out = {name for name in STUDIES if f"skipping {name}: it is for pairs only" in shown}
    assert left_out == {"heads", "knock-out", "patching", "similarity", "epipolar", "inputs"}
    assert all(takes_views(name, STUDIES[name], 2, True) for name in STUDIES)


@pytest.mark.slow
def test_pairs_on_disk_are_studied_and_what_needs_rendered_ones_says_so(checkpoint, tmp_path, capsys):
    write_pairs(tmp_path / "data", make_views(5, (48, 64)), [(i, j) for i in range(5) for j in range(5) if i != j])
    given = ("--data", f"pairs:{tmp_path / 'data'}", *SMALL)
    assert run("patching", checkpoint, tmp_path / "out", *given) == 2
    assert "the study patching needs pairs that share view 1, which rendered scenes have" in capsys.readouterr().err
    assert run("heads", checkpoint, tmp_path / "out", *given) == 0
    found = read_study(tmp_path / "out" / "heads.json")
    assert [source for source, _ in found["facts"]["held_out"]] == [0, 0] and found["facts"]["data"] == [given[1]]
    assert 0 < found["records"][0]["entropy"]["mean"] <= 1


def test_the_help_names_every_study(capsys):
    with pytest.raises(SystemExit, match="0"):
        und3rstand.main(["study", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert all(name in shown for name in (*STUDIES, "or all"))
