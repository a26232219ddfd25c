"""The output folder appears complete or not at all: killed processes, full disks, folders that are somebody else's."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import und3rstand_jax as u3d
from tests.conversion import converted
from tests.orbax_tree import read_tree
from tests.tiny import CONFIG, CROCO_CONFIG, backbone_tensors, croco_tensors, save_backbone, save_probes
from und3rstand_jax.commands.convert import main
from und3rstand_jax.support import output_folder as module
from und3rstand_jax.support.errors import OutputError
from und3rstand_jax.support.output_folder import output_folder
from und3rstand_jax.support.results import ResultKind

ROOT = Path(__file__).parent.parent


def other_weights() -> dict[str, np.ndarray]:
    return {name: tensor + np.float32(1) for name, tensor in backbone_tensors().items()}


def which(checkpoint: Path) -> str:
    """Which of two conversions a folder holds; it must hold one of them whole."""
    assert u3d.read_checkpoint_info(checkpoint).backbone == u3d.BackboneConfig.from_hub_config(CONFIG)
    scale, first = read_tree(checkpoint / "backbone")["encoder"]["norm"]["scale"], backbone_tensors()["enc_norm.weight"]
    assert np.array_equal(scale, first) or np.array_equal(scale, first + np.float32(1))
    return "first" if np.array_equal(scale, first) else "second"


def command(*args: object, script: str = "") -> subprocess.Popen:
    code = f"import sys\n{script}\nfrom und3rstand_jax.commands.convert import main\nsys.exit(main(sys.argv[1:]))"
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


# Killed


@pytest.mark.parametrize("seconds", [0.0, 0.1, 0.25])
def test_killed_at_any_moment_it_leaves_nothing_or_everything(seconds: float, tmp_path: Path) -> None:
    out, source = tmp_path / "jax", save_backbone(tmp_path / "m")
    process = command("--repo", source, "--out", out)
    while not list(tmp_path.glob(".jax.partial-*")) and process.poll() is None:
        time.sleep(0.005)
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    if out.exists():
        assert which(out) == "first"
    else:
        assert len(list(tmp_path.glob(".jax.partial-*"))) == 1
        assert which(converted(source, out)) == "first"
        assert list(tmp_path.glob(".*")) == []  # the next run has tidied up


@pytest.mark.parametrize("renames", range(9))
def test_killed_while_it_replaces_an_earlier_result(renames: int, tmp_path: Path, capsys) -> None:
    """Both results have three parts to move; one more rename says that the new one is complete, another that the old one is out."""
    out = converted(save_backbone(tmp_path / "m"), tmp_path / "jax")
    other = save_backbone(tmp_path / "n", other_weights())
    dies = f"""
import os, signal
from und3rstand_jax.support import output_folder
renamed = []
def rename(source, target):
    if len(renamed) == {renames}:
        os.kill(os.getpid(), signal.SIGKILL)
    renamed.append(target)
    os.replace(source, target)
output_folder.os = type("os", (), dict(vars(os), rename=staticmethod(rename)))
"""
    process = command("--repo", other, "--out", out, "--overwrite", script=dies)
    process.communicate()
    assert process.returncode == (-signal.SIGKILL if renames < 8 else 0)
    if u3d.is_checkpoint(out):
        assert which(out) == ("first" if renames < 2 else "second")
    else:
        assert 2 <= renames < 8
    # The next run, refused as it is, has put things in order.
    capsys.readouterr()
    assert main(["--repo", str(other), "--out", str(out)]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert which(out) == ("first" if renames == 0 else "second")
    assert sorted(path.name for path in out.iterdir()) == ["backbone", "backbone_unused.safetensors", "config.json"]
    assert list(tmp_path.glob(".*")) == []


NOTHING = ResultKind("marker", lambda folder: None)


def test_what_another_machine_or_namespace_is_writing_is_left_alone(tmp_path: Path) -> None:
    host, namespace = module.here()
    left = [f"another.machine-{namespace}-0123abcd", f"{host}-1{namespace}-0123abcd", f"{host}-{namespace}-0123abcd"]
    for beginning in (tmp_path / ".jax.partial-", tmp_path / "there" / ".partial-"):
        for owner in left:
            Path(f"{beginning}{owner}").mkdir(parents=True)
    for name in ("jax", "there"):
        with output_folder(tmp_path / name, False, NOTHING) as folder:
            (folder / "marker").write_text("{}")
    assert sorted(tmp_path.glob(".jax*")) == sorted(tmp_path / f".jax.partial-{owner}" for owner in left[:2])
    inside = [*(f".partial-{owner}" for owner in left[:2]), "marker"]
    assert sorted(path.name for path in (tmp_path / "there").iterdir()) == sorted(inside)


@pytest.mark.parametrize("exists", [False, True])
def test_two_processes_cannot_write_one_folder(exists: bool, tmp_path: Path) -> None:
    out = tmp_path / "jax"
    if exists:
        out.mkdir()
    with output_folder(out, False, NOTHING) as outer:
        used = pytest.raises(OutputError, match=rf"{out} is in use by process {os.getpid()} on \S+, since 20\d\d-")
        with used, output_folder(out, False, NOTHING):
            raise AssertionError("both write")
        (outer / "marker").write_text("{}")
    assert [path.name for path in out.iterdir()] == ["marker"]
    assert list(tmp_path.glob(".*")) == []


def test_an_interrupted_conversion_leaves_nothing(tmp_path: Path, capsys, monkeypatch) -> None:
    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("und3rstand_jax.convert.writing.write_tree", interrupted)
    source = save_backbone(tmp_path / "m")
    assert main(["--repo", str(source), "--out", str(tmp_path / "jax")]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "interrupted"
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


# Full disks


def test_a_disk_without_room_is_refused_before_any_work(tmp_path: Path, capsys, monkeypatch) -> None:
    probes = save_probes(tmp_path / "probes", save_backbone(tmp_path / "m"))
    size = sum(tensor.nbytes for tensor in backbone_tensors().values())
    croco_size = sum(tensor.nbytes * (2 if name.startswith("dec_blocks.") else 1) for name, tensor in croco_tensors().items())
    croco = save_backbone(tmp_path / "croco", croco_tensors(), CROCO_CONFIG)

    def status(source: Path, free: int) -> int:
        monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=free))
        capsys.readouterr()
        return main(["--repo", str(source), "--out", str(tmp_path / "jax"), "--overwrite"])

    for source, needed in ((tmp_path / "m", size), (croco, croco_size)):
        assert status(source, needed) == 0
        assert status(source, needed - 1) == 2
    assert capsys.readouterr().err.startswith("error: disk full: ")
    assert status(probes, size) == 2
    assert u3d.read_checkpoint_info(tmp_path / "jax").probes is None


FULL = """
mkdir -p "$1" && mount -t tmpfs -o size="$2" tmpfs "$1" || exit 77
shift 2
"$@"
status=$?
ls -A "$MOUNT" >&3
exit $status
"""


@pytest.mark.parametrize("size", ["300k", "560k"], ids=["backbone", "probes"])
def test_a_disk_that_fills_up_on_the_way(size: str, tmp_path: Path) -> None:
    probes = save_probes(tmp_path / "probes", save_backbone(tmp_path / "m"))
    on_full_disk(tmp_path, size, "--repo", probes, "--out", tmp_path / "mount" / "jax")


def test_an_export_to_a_disk_that_fills_up(tmp_path: Path) -> None:
    checkpoint = converted(save_backbone(tmp_path / "m"), tmp_path / "jax")
    on_full_disk(tmp_path, "100k", "--repo", checkpoint, "--to-torch", tmp_path / "mount" / "jax", "--quiet")


def on_full_disk(tmp_path: Path, size: str, *args: object) -> None:
    """Runs the command in a mount namespace of its own, with a small disk in tmp_path/mount; it must fail and leave nothing there."""
    if subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", str(tmp_path)], capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    code = (
        "import shutil, sys, types; shutil.disk_usage = lambda path: types.SimpleNamespace(free=1e12); "
        "from und3rstand_jax.commands.convert import main; sys.exit(main(sys.argv[1:]))"
    )
    listing = tmp_path / "listing"
    shell = ["unshare", "-m", "sh", "-c", f'exec 3>"{listing}"; {FULL}', "sh", str(tmp_path / "mount"), size]
    run = subprocess.run(
        [*shell, sys.executable, "-c", code, *map(str, args)],
        cwd=ROOT,
        env=os.environ | {"MOUNT": str(tmp_path / "mount")},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 2, run.stderr
    *notes, last = run.stderr.splitlines()
    assert [line for line in notes if not line.startswith(("note: ", "writing "))] == []
    assert last == f"error: No space left on device; nothing was kept: free some, or choose another --out: {tmp_path / 'mount' / 'jax'}"
    assert listing.read_text() == ""


# Somebody else's folders


def test_folders_that_may_not_be_written(tmp_path: Path, capsys) -> None:
    source = save_backbone(tmp_path / "m")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "a.txt").write_text("mine")

    def refused(out: Path, *options: str) -> str:
        capsys.readouterr()
        assert main(["--repo", str(source), "--out", str(out), *options]) == 2
        return capsys.readouterr().err.removeprefix("error: ").rstrip("\n")

    for options in ((), ("--overwrite",)):
        assert refused(tmp_path / "file", *options) == f"{tmp_path / 'file'} is a file; --out must name a folder"
        below = f"{tmp_path / 'file' / 'jax'} cannot be created: {tmp_path / 'file'} is a file; choose another --out"
        assert refused(tmp_path / "file" / "jax", *options) == below
        inside_link = f"{tmp_path / 'link' / 'jax'} cannot be created: {tmp_path / 'link'} is a broken symlink; choose another --out"
        assert refused(tmp_path / "link" / "jax", *options) == inside_link
        assert refused(tmp_path / "link", *options) == f"{tmp_path / 'link'} is a broken symlink; --out must name a folder"
        inside = f"the output {source / 'jax'} is, or is in, the source {source}; choose another --out"
        assert refused(source / "jax", *options) == inside
    assert refused(tmp_path / "letters") == f"{tmp_path / 'letters'} is not empty; choose another --out, or give --overwrite to replace it"
    told = f"{tmp_path / 'letters'} does not hold an earlier result of this command and is not replaced; choose another --out"
    assert refused(tmp_path / "letters", "--overwrite") == told
    assert refused(source, "--overwrite") == f"the output {source} is, or is in, the source {source}; choose another --out"
    assert refused(tmp_path, "--overwrite") == f"the output {tmp_path} contains the source {source}; choose another --out"
    assert (tmp_path / "letters" / "a.txt").read_text() == (tmp_path / "file").read_text() == "mine"
    assert sorted(path.name for path in source.iterdir()) == ["config.json", "model.safetensors"]


def test_an_earlier_result_is_replaced_only_on_request(tmp_path: Path, capsys) -> None:
    out = converted(save_backbone(tmp_path / "m"), tmp_path / "jax")
    other = save_backbone(tmp_path / "n", other_weights())
    assert main(["--repo", str(other), "--out", str(out)]) == 2
    assert which(out) == "first"
    assert which(converted(other, out, "--overwrite")) == "second"
    # Not even then, where the source would go with it.
    inner = save_backbone(out / "inner")
    assert main(["--repo", str(inner), "--out", str(out), "--overwrite"]) == 2
    assert f"the output {out} contains the source {inner}" in capsys.readouterr().err
    probes = save_probes(tmp_path / "probes", "nobody/nothing")
    assert main(["--repo", str(probes), "--backbone", str(out), "--out", str(out), "--overwrite"]) == 2
    assert which(out) == "second"


def test_a_failed_conversion_keeps_the_earlier_result(tmp_path: Path) -> None:
    out = converted(save_backbone(tmp_path / "m"), tmp_path / "jax")
    bad = save_backbone(tmp_path / "bad", backbone_tensors() | {"enc_norm.weight": np.full(32, np.nan, np.float32)})
    assert main(["--repo", str(bad), "--out", str(out), "--overwrite"]) == 2
    assert which(out) == "first"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad", "jax", "m"]


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "jax").mkdir()
    assert which(converted(save_backbone(tmp_path / "m"), tmp_path / "jax")) == "first"
