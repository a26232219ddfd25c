"""The files of examples/: shell that ShellCheck finds nothing in, commands that run what they say, options that the command takes."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.plain_scenes import render_plain_scenes
from tests.tiny import NO_PROVENANCE
from und3rstand_jax.checkpoint.format import CheckpointInfo, write_checkpoint_info
from und3rstand_jax.commands.train import PROGRAM, main, with_config
from und3rstand_jax.model.dust3r.config import BackboneConfig

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "examples"
SCRIPTS = sorted(path.name for path in FOLDER.iterdir() if path.suffix in (".sh", ".sbatch"))
PREFIX = ["-m", "train"]


def stand_in(folder, name, body='printf "%s\\0" "$@" >> "$CALLS"; printf "\\n" >> "$CALLS"'):
    """A program of this name that writes down how it is called."""
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / name
    program.write_text(f"#!/usr/bin/env bash\n{body}\n")
    program.chmod(0o755)


def run(script, tmp_path, *arguments, **environment):
    """Runs a copy of the example with stand-ins for the programs it calls; what each call was given."""
    clone = tmp_path / "clone"
    shutil.copytree(FOLDER, clone / "examples", dirs_exist_ok=True)
    calls = tmp_path / "calls"
    calls.touch()
    path = os.pathsep.join((str(tmp_path / "bin"), os.environ["PATH"]))
    environment = os.environ | {"PATH": path, "CALLS": str(calls), "HOME": str(tmp_path)} | environment
    subprocess.run(["bash", clone / "examples" / script, *arguments], check=True, env=environment, cwd=tmp_path)
    return [line.rstrip("\0").split("\0") for line in calls.read_text().splitlines()]


def options_of(words):
    """The options of a call of `python -m train`, those of its config file included."""
    assert words[:2] == PREFIX
    argv = [str(ROOT / word) if word.startswith("examples/") else word for word in words[2:]]
    return with_config(PROGRAM.options(argv), argv)


@pytest.mark.parametrize("script", SCRIPTS)
def test_shellcheck_finds_nothing(script):
    found = subprocess.run([Path(sys.executable).parent / "shellcheck", FOLDER / script], capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (0, "")


def test_one_machine_trains_on_all_it_has_or_plans_that(tmp_path):
    stand_in(tmp_path / "bin", "python")
    (called,) = run("one_machine.sh", tmp_path)
    options = options_of(called)
    assert (options.batch_size, options.dtype, options.layers, options.steps) == (32, "bfloat16", "all", 10000)
    assert options.resolution == ("512x384", "512x512") and not options.distributed
    _, planned = run("one_machine.sh", tmp_path, "plan")
    assert planned[2] == "plan"
    assert (options_of(planned).topology, options_of(planned).batch_size) == ("gpu", 32)


@pytest.mark.parametrize("finished", [True, False])
def test_a_slurm_job_runs_in_all_tasks_and_comes_back_until_it_is_done(tmp_path, finished):
    clone = tmp_path / "clone"
    stand_in(clone / ".venv" / "bin", "python")
    stand_in(tmp_path / "bin", "srun", '"$@"')
    stand_in(tmp_path / "bin", "scontrol")
    if finished:
        (clone / "runs" / "slurm" / "probes").mkdir(parents=True)
    trained, *requeued = run("slurm.sbatch", tmp_path, PROJECT=str(clone), SLURM_JOB_ID="17")
    options = options_of(trained)
    assert options.distributed and str(options.out) == "runs/slurm"
    assert requeued == ([] if finished else [["requeue", "17"]])
    asked = dict(re.findall(r"^#SBATCH (--[\w-]+)=(\S+)$", (FOLDER / "slurm.sbatch").read_text(), re.MULTILINE))
    # JAX gives each of Slurm's tasks one GPU, and every GPU has to get a share of the batch.
    assert asked["--ntasks-per-node"] == asked["--gpus-per-node"]
    assert options.batch_size % (int(asked["--nodes"]) * int(asked["--gpus-per-node"])) == 0


def test_a_tpu_slice_runs_the_same_command_on_all_hosts(tmp_path):
    stand_in(tmp_path / "bin", "gcloud")
    calls = run("tpu_pod.sh", tmp_path, "slice", "somewhere", "https://host/clone")
    for call in calls:
        assert call[:6] == ["compute", "tpus", "tpu-vm", "ssh", "slice", "--zone"] and "--worker=all" in call
    cloned, installed, trained = (call[-1] for call in calls)
    assert "git clone --depth 1 'https://host/clone' und3rstand_jax" in cloned and "'.[train,tpu]'" in installed
    options = options_of(shlex.split(trained.partition("bin/python ")[2]))
    assert options.distributed and options.batch_size == 64


@pytest.mark.slow
@pytest.mark.quick
def test_the_step_of_the_shared_options_is_planned(tmp_path, monkeypatch, capsys):
    render_plain_scenes(monkeypatch)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    one = {"enc_depth": 1, "enc_num_heads": 1, "dec_depth": 1, "dec_num_heads": 1}
    small = BackboneConfig((96, 96), enc_embed_dim=64, dec_embed_dim=64, head_type="linear", **one)
    write_checkpoint_info(tmp_path, CheckpointInfo(backbone=small, provenance={"backbone": NO_PROVENANCE}))
    smaller = ["--backbone", str(tmp_path), "--resolution", "96x96", "--batch-size", "4"]
    assert main(["plan", "--topology", "cpu", "--quick", "--config", str(FOLDER / "probes.yaml"), *smaller]) == 0
    text = capsys.readouterr().out
    assert f"3 probes on {tmp_path} in bfloat16, 96×96 pixels\n4 pairs a step" in text and "10000 steps" not in text
