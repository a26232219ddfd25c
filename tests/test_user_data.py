"""Nothing of the user's is lost: what --overwrite removes, inputs beside outputs, locks, planted links, folders that cannot be renamed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import tiny
from tests.conversion import converted
from und3rstand_jax.commands import convert, run, train
from und3rstand_jax.support.errors import OutputError
from und3rstand_jax.support.files import fresh_file, open_own, open_regular, open_to_append, own_folder, replace_text
from und3rstand_jax.support.locks import here, locked
from und3rstand_jax.support.output_folder import LOCK, check_output_folder, output_folder
from und3rstand_jax.support.results import check_apart, files_in, marked, result_of
from und3rstand_jax.support.text import to_json
from und3rstand_jax.train.run.folder import FORMAT, run_files
from und3rstand_jax.train.run.metrics_log import keep_lines

ROOT = Path(__file__).parent.parent
KIND = result_of("words", "words.json")


def contents(folder: Path) -> dict[str, bytes]:
    return {file: (folder / file).read_bytes() for file in files_in(folder)}


def words(folder: Path, text: str, overwrite: bool = False) -> Path:
    """A result of the kind: its text in a folder, and its marker."""
    with output_folder(folder, overwrite, KIND) as partial:
        (partial / "parts").mkdir()
        (partial / "parts" / "words.txt").write_text(text)
        (partial / "words.json").write_text(to_json(marked(partial, "words", "words.json")))
    return folder


def read_words(folder: Path) -> str:
    assert sorted(files_in(folder)) == ["parts/words.txt", "words.json"]
    return (folder / "parts" / "words.txt").read_text()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("user_data")
    return converted(tiny.save_backbone(folder / "source"), folder / "converted")


@pytest.fixture
def photos(tmp_path) -> list[str]:
    files = [tmp_path / "a.png", tmp_path / "b.png"]
    for file in files:
        Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(file)
    return list(map(str, files))


@pytest.fixture
def training_run(tmp_path) -> Path:
    """What a training run leaves, as far as its folder shows."""
    out = tmp_path / "my_training_run"
    files = ["config.yaml", "metrics.jsonl", "checkpoints/12/state/x", "probes/config.json", "tensorboard/events.out.tfevents.1.host"]
    for file in files:
        (out / file).parent.mkdir(parents=True, exist_ok=True)
        (out / file).write_text("work of days")
    (out / "run.json").write_text(json.dumps({"format": FORMAT}))
    return out


# What --overwrite removes


@pytest.mark.parametrize("command", ["run", "report", "convert", "export", "evaluate"])
@pytest.mark.parametrize("marker", ["a training run", "{}", "[]", "other words", "link"])
def test_only_earlier_results_of_the_same_command_are_replaced(command, marker, checkpoint, photos, training_run, tmp_path, capsys):
    out = training_run
    if marker == "link":
        words(tmp_path / "words", "mine")
    for name in ("run.json", "report.json", "config.json", "metrics.json"):
        if marker == "link":
            (out / name).unlink(missing_ok=True)
            (out / name).symlink_to(tmp_path / "words" / "words.json")
        elif marker != "a training run":
            (out / name).write_text(to_json(marked(out, "words", name)) if marker == "other words" else marker)
    before = contents(out)
    model = ["--checkpoint", str(checkpoint), "--out", str(out), "--overwrite"]
    status = {
        "run": lambda: run.main([*photos, *model, "--size", "32"]),
        "report": lambda: run.main(["report", *photos, *model]),
        "convert": lambda: convert.main(["--repo", str(checkpoint.parent / "source"), "--out", str(out), "--overwrite"]),
        "export": lambda: convert.main(["--repo", str(checkpoint), "--to-torch", str(out), "--overwrite"]),
        "evaluate": lambda: train.main(["evaluate", *model]),
    }[command]()
    assert status == 2
    told = capsys.readouterr().err
    assert f"error: {out} does not hold an earlier result of this command" in told
    assert contents(out) == before


def test_other_files_beside_an_earlier_result_are_named_and_kept(tmp_path):
    out = words(tmp_path / "out", "first")
    assert read_words(words(out, "second", overwrite=True)) == "second"
    for name in ("parts/notes.txt", "photos/a.png", ".hidden"):
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text("mine")
    (out / "link").symlink_to(tmp_path)
    before = sorted(files_in(out))
    with pytest.raises(
        OutputError, match=r"holds \.hidden, link, parts/notes\.txt, and 1 more besides an earlier result, which --overwrite"
    ):
        words(out, "third", overwrite=True)
    assert sorted(files_in(out)) == before and (out / "parts" / "words.txt").read_text() == "second"


def test_a_converted_checkpoint_and_an_export_know_their_files(checkpoint, tmp_path, capsys):
    copy, source = tmp_path / "copy", checkpoint.parent / "source"
    shutil.copytree(checkpoint, copy)
    assert convert.main(["--repo", str(source), "--out", str(copy), "--overwrite"]) == 0
    export = ["--repo", str(checkpoint), "--to-torch", str(tmp_path / "torch"), "--overwrite"]
    assert convert.main(export) == convert.main(export) == 0
    for folder, command in ((copy, ["--repo", str(source), "--out", str(copy), "--overwrite"]), (tmp_path / "torch", export)):
        (folder / "README.md").write_text("my model card")
        capsys.readouterr()
        assert convert.main(command) == 2
        assert f"{folder} holds README.md besides an earlier result" in capsys.readouterr().err
        assert (folder / "README.md").read_text() == "my model card"


def test_a_training_run_is_replaced_without_what_it_did_not_write(training_run, checkpoint, capsys):
    (training_run / "probes" / "config.json").unlink()
    assert run_files(training_run) == frozenset(files_in(training_run))
    for name in ("notes.txt", "checkpoints/mine.txt", "checkpoints/12/mine.txt", "tensorboard/plugins.txt", "probes/mine.txt"):
        (training_run / name).write_text("mine")
        command = ["--backbone", str(checkpoint), "--steps", "1", "--out", str(training_run), "--overwrite"]
        before = contents(training_run)
        assert train.main(command) == 2
        assert f"{training_run} holds {name} besides an earlier result" in capsys.readouterr().err
        assert contents(training_run) == before
        (training_run / name).unlink()


def test_a_run_of_a_stranger_lists_no_file_outside_its_folder(training_run, tmp_path):
    listed = ["config.json", "layers", "../../thesis.tex", f"{tmp_path}/thesis.tex", "../run.json/../../thesis.tex"]
    (tmp_path / "thesis.tex").write_text("mine")
    (training_run / "probes" / "layers").write_text("work of days")
    (training_run / "probes" / "config.json").write_text(json.dumps({"format": "und3rstand_jax checkpoint", "version": 2, "files": listed}))
    assert run_files(training_run) == frozenset(files_in(training_run))


def test_single_files_of_results_replace_only_their_like(checkpoint, tmp_path, capsys):
    log, curve = tmp_path / "metrics.jsonl", tmp_path / "curve.png"
    log.write_text('{"step": 1, "validation": {"head": {"view1": 1.0, "view2": 2.0}}}\n')
    command = ["learning-curve", str(log), "--batch-size", "4", "--out"]
    assert train.main([*command, str(curve)]) == train.main([*command, str(curve)]) == 0
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.png")
    (tmp_path / "thesis.tex").write_text("mine")
    (tmp_path / "link.png").symlink_to(curve)
    capsys.readouterr()
    for name in ("photo.png", "thesis.tex"):
        before = (tmp_path / name).read_bytes()
        assert train.main([*command, str(tmp_path / name)]) == 2
        assert f"{tmp_path / name} exists and is not an earlier result of this command" in capsys.readouterr().err
        assert train.main(["two-views", str(checkpoint), "--out", str(tmp_path / name)]) == 2
        assert "is not an earlier result of this command" in capsys.readouterr().err
        assert (tmp_path / name).read_bytes() == before
    assert train.main([*command, str(log)]) == 2
    assert f"is, or is in, the source {log}" in capsys.readouterr().err


# Inputs inside outputs


def test_results_never_replace_what_they_are_made_from(checkpoint, photos, tmp_path, capsys):
    out = tmp_path / "out"
    shutil.copytree(checkpoint, out / "model")
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(out / "photo.png")
    (tmp_path / "same").symlink_to(out)
    inside, model = str(out / "photo.png"), str(out / "model")
    commands = [
        (run.main, [inside, photos[1], "--checkpoint", str(checkpoint)], inside),
        (run.main, [*photos, "--checkpoint", model], model),
        (run.main, ["report", photos[0], inside, "--checkpoint", str(checkpoint)], inside),
        (run.main, ["report", "--scene", "1", "--checkpoint", model], model),
        (convert.main, ["--repo", model, "--to-torch"], model),
        (train.main, ["--backbone", model, "--steps", "1"], model),
        (train.main, ["--backbone", str(checkpoint), "--steps", "1", "--data", f"pairs:{out}"], None),
        (train.main, ["evaluate", "--checkpoint", model], model),
    ]
    before = contents(out)
    for main, command, source in commands:
        for folder in (out, tmp_path / "same"):
            option = [] if command[-1] == "--to-torch" else ["--out"]
            assert main([*command, *option, str(folder), "--overwrite"]) == 2
            told = capsys.readouterr().err.splitlines()[-1]
            if source is not None:
                assert told == f"error: the output {folder} contains the source {source}; choose another --out"
            assert contents(out) == before


def test_inputs_and_outputs_are_compared_by_what_they_are(tmp_path):
    (tmp_path / "real" / "inner").mkdir(parents=True)
    (tmp_path / "other").symlink_to(tmp_path / "real")
    for out, source in (("real", "other"), ("other/inner", "real"), ("real", "other/inner"), ("real/new/../new", "other")):
        with pytest.raises(OutputError, match="the output .* the source"):
            check_apart(tmp_path / out, [tmp_path / source])
    check_apart(tmp_path / "real" / "run", [], may_lie_in=[tmp_path / "other"])
    with pytest.raises(OutputError, match="is, or is in, the source"):
        check_apart(tmp_path / "other", [], may_lie_in=[tmp_path / "real"])
    check_apart(tmp_path, [Path("owner/name")])  # a hub id, which is no file


# Folders that cannot be renamed


def test_the_working_directory_as_output_folder_stays_the_same_folder(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    before = os.stat(".").st_ino
    assert read_words(words(Path("."), "first")) == "first"
    assert read_words(words(Path("."), "second", overwrite=True)) == "second"
    assert os.stat(".").st_ino == before and sorted(os.listdir()) == ["parts", "words.json"]


MOUNTED = """
mkdir -p "$1/volume" && mount -t tmpfs tmpfs "$1/volume" || exit 77
shift
"$@" && "$@"
"""


def test_a_mount_point_as_output_folder(checkpoint, tmp_path):
    code = (
        "import sys; from und3rstand_jax.commands import convert, train; from und3rstand_jax.checkpoint.format import is_checkpoint; "
        "from pathlib import Path; source, out = map(Path, sys.argv[1:]); "
        "assert convert.main(['--repo', str(source), '--out', str(out), '--overwrite']) == 0 and is_checkpoint(out); "
        "assert sorted(p.name for p in out.iterdir()) == ['backbone', 'backbone_unused.safetensors', 'config.json']"
    )
    arguments = [sys.executable, "-c", code, str(checkpoint.parent / "source"), str(tmp_path / "volume")]
    ran = subprocess.run(["unshare", "-m", "sh", "-c", MOUNTED, "sh", str(tmp_path), *arguments], cwd=ROOT, capture_output=True, text=True)
    if ran.returncode == 77 or "unshare" in ran.stderr:
        pytest.skip("mounting needs root")
    assert ran.returncode == 0, ran.stderr


def test_a_planted_complete_result_moves_nothing_of_other_folders(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("mine")
    planted = tmp_path / "out" / f".complete-{'-'.join(here())}-0"
    planted.mkdir(parents=True)
    (planted / "earlier.json").write_text('["../mine", "", ".", ".."]')
    (planted / "new").symlink_to(tmp_path / "mine")
    with pytest.raises(OutputError, match="new is a symbolic link"):
        check_output_folder(tmp_path / "out", True, KIND)
    (planted / "new").unlink()
    check_output_folder(tmp_path / "out", True, KIND)
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "mine"


# One writer


def test_a_lock_is_released_by_death_and_says_who_holds_it(tmp_path):
    file = tmp_path / "lock"
    holder = textwrap.dedent(f"""
        import time
        from pathlib import Path
        from und3rstand_jax.support.locks import locked
        with locked(Path({str(file)!r}), "the run"):
            print("held", flush=True)
            time.sleep(600)
    """)
    process = subprocess.Popen([sys.executable, "-c", holder], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    with pytest.raises(OutputError, match=rf"^the run is in use by process {process.pid} on \S+, since 20\d\d-.*choose another --out"):
        locked(file, "the run").__enter__()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert json.loads(file.read_text())["process"] == process.pid
    with locked(file, "the run"):
        assert json.loads(file.read_text())["process"] == os.getpid()
    assert not file.exists()


def test_a_planted_lock_changes_no_other_file(tmp_path):
    (tmp_path / "victim").write_text("precious")
    for plant in (os.symlink, os.link):
        plant(tmp_path / "victim", tmp_path / "lock")
        with pytest.raises(OutputError, match="has a second hard link; expected a regular file of this program: remove it"):
            locked(tmp_path / "lock", "the run").__enter__()
        assert (tmp_path / "victim").read_text() == "precious"
        (tmp_path / "lock").unlink()


def test_where_a_file_system_has_no_locks_the_lock_file_counts_until_its_process_is_gone(tmp_path, monkeypatch):
    file = tmp_path / "lock"

    def unsupported(*args: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", unsupported)
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True).stdout
    with locked(file, "the run"):
        held = json.loads(file.read_text())
    for change, refused in (({}, True), ({"process": int(gone)}, False), ({"host": "elsewhere"}, True), ({"namespace": "1"}, True)):
        file.write_text(json.dumps(held | {"process": os.getppid()} | change))
        if refused:
            with pytest.raises(OutputError, match=f"in use by process .*if that has ended, remove {file}"):
                locked(file, "the run").__enter__()
        else:
            with locked(file, "the run"):
                assert json.loads(file.read_text()) == held | {"started": json.loads(file.read_text())["started"]}


def test_a_run_folder_that_can_be_none_is_refused_by_name(checkpoint, tmp_path, capsys):
    (tmp_path / "broken").symlink_to(tmp_path / "nothing")
    (tmp_path / "file").touch()
    for out, what in (("broken", "is a broken symlink"), ("file", "is a file"), ("file/run", "cannot be created")):
        assert train.main(["--backbone", str(checkpoint), "--steps", "1", "--out", str(tmp_path / out)]) == 2
        assert f"error: {tmp_path / out} {what}" in capsys.readouterr().err


def test_a_run_folder_has_one_writer(checkpoint, tmp_path, capsys):
    out = tmp_path / "run"
    out.mkdir()
    for overwrite in ([], ["--overwrite"]):
        with locked(out / LOCK, str(out)):
            assert train.main(["--backbone", str(checkpoint), "--steps", "1", "--out", str(out), *overwrite]) == 2
        assert f"error: {out} is in use by process {os.getpid()} on" in capsys.readouterr().err
        assert os.listdir(out) == []


# Planted files


def test_files_are_fresh_ones_whatever_was_planted_in_their_place(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    for plant in (os.symlink, os.link):
        file = tmp_path / plant.__name__
        plant(victim, file)
        replace_text(file, "mine")
        assert not file.is_symlink() and file.read_text() == "mine"
        file.unlink()
        plant(victim, file)
        with pytest.raises(OutputError, match="is a link, pipe or folder, or has a second hard link; expected a regular file"):
            open_to_append(file)
        file.unlink()
    os.symlink(tmp_path / "nowhere", tmp_path / "dangling")
    for refuses in (open_to_append, open_own, own_folder):
        with pytest.raises(OutputError):
            refuses(tmp_path / "dangling")
    with pytest.raises(ZeroDivisionError), fresh_file(tmp_path / "file") as stream:
        stream.write("half")
        raise ZeroDivisionError
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="it is a pipe, expected a file"):
        open_regular(tmp_path / "pipe")
    with pytest.raises(OutputError):
        open_to_append(tmp_path / "pipe")
    assert victim.read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dangling", "pipe", "victim"]


@pytest.mark.parametrize(
    "name", [".config.yaml.partial", "metrics.json", "layers.csv", "checkpoints", "probes", "tensorboard/x", "run.json"]
)
def test_a_run_with_links_in_its_folder_is_not_resumed(name, training_run, checkpoint, tmp_path, capsys):
    victim = tmp_path / "victim"
    shutil.copytree(training_run, victim)
    before = contents(victim)
    if (training_run / name).is_dir():
        shutil.rmtree(training_run / name)
    (training_run / name).unlink(missing_ok=True)
    (training_run / name).symlink_to(victim / name)
    for overwrite in ([], ["--overwrite"]):
        assert train.main(["--backbone", str(checkpoint), "--steps", "1", "--out", str(training_run), *overwrite]) == 2
        told = capsys.readouterr().err.splitlines()[-1]
        assert f"{training_run / name} is a symbolic link" in told or "neither YAML nor JSON" in told or "must contain options" in told
    assert contents(victim) == before


# Records of one line


def test_lines_that_cannot_be_read_are_no_reason_to_stop(tmp_path):
    file = tmp_path / "log"
    file.write_text("1\ta\nsecond line of an error\n5\tb\n\n9" + "9" * 5000 + "\tc\n²\td\n3\tU+2028 \u2028 inside\n2")
    keep_lines(file, lambda line: step_of(line) <= 3)
    assert file.read_text() == "1\ta\n3\tU+2028 \u2028 inside\n2\n"


def step_of(line: str) -> int:
    from und3rstand_jax.train.run.loop import _step_of

    return _step_of(line)


def test_an_output_folder_that_is_whole_is_left_by_a_check(tmp_path):
    out = words(tmp_path / "out", "first")
    check_output_folder(out, True, KIND)
    with pytest.raises(OutputError, match="is not empty"):
        check_output_folder(out, False, KIND)
    assert read_words(out) == "first"


# File names of any bytes


def test_photos_whose_names_are_not_utf_8_are_run_and_recorded(checkpoint, photos, tmp_path, capsys):
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9\n\x1b[31m.png")
    shutil.copy(photos[0], odd)
    out = tmp_path / "out"
    command = [odd, photos[1], "--checkpoint", str(checkpoint), "--out", str(out), "--size", "32"]
    assert run.main(command) == 0
    assert json.loads((out / "run.json").read_text())["photos"][0]["path"] == odd
    # The record, though no strict parser takes it, still says what the folder is.
    assert run.main([*command, "--overwrite"]) == 0
    os.unlink(odd)
    capsys.readouterr()
    assert run.main([*command, "--overwrite"]) == 2
    assert r"caf\xe9\n\x1b[31m.png" in capsys.readouterr().err


def test_a_checkpoint_folder_whose_name_is_not_utf_8_is_refused_before_any_work(checkpoint, tmp_path, capsys):
    out = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    for main, command in (
        (convert.main, ["--repo", str(checkpoint.parent / "source"), "--out", out]),
        (train.main, ["--backbone", str(checkpoint), "--steps", "1", "--out", out]),
    ):
        assert main(command) == 2
        assert r"caf\xe9 is not UTF-8, which Orbax needs; choose another --out" in capsys.readouterr().err
        assert not os.path.exists(out)
