"""What a device lacks is told in one line: memory, or being there at all."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from und3rstand_jax.commands.command_line import run_command
from und3rstand_jax.support.device_faults import device_fault

ROOT = Path(__file__).parent.parent
ADVICE = "use a smaller image size or batch, fewer layers, or bfloat16\n"


def too_much_for_the_host() -> None:
    np.empty(2**60, np.uint8)


def too_much_for_the_device() -> None:
    jnp.zeros(10**13, jnp.float32).block_until_ready()


@pytest.mark.parametrize(
    ("work", "begins"),
    [(too_much_for_the_host, "error: out of memory: "), (too_much_for_the_device, "error: the device is out of memory: ")],
)
def test_too_little_memory_is_one_line_with_advice(capsys, work, begins):
    assert run_command(work, debug=False) == 2
    told = capsys.readouterr().err
    assert told.startswith(begins) and told.endswith(ADVICE) and told.count("\n") == 1
    assert run_command(work, debug=True) == 2
    assert capsys.readouterr().err.startswith("Traceback")


def test_other_failures_are_no_faults_of_the_device():
    assert jax.devices() and device_fault(AssertionError()) is None
    assert device_fault(RuntimeError("RESOURCE_EXHAUSTED")) is None
    assert device_fault(ValueError("Unable to initialize backend")) is None


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=120, env=env)


# JAX says nothing at all where its plugin for NVIDIA is missing: a bare AssertionError.
@pytest.mark.parametrize("platform", ["nonsense", "cuda"])
@pytest.mark.parametrize("debug", [False, True])
def test_a_platform_that_is_not_there_is_named_with_one_that_is(platform, debug):
    if platform == "cuda" and any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13)):
        pytest.skip("it may be there")
    code = "from und3rstand_jax.commands.command_line import *; import jax; run_process(lambda: run_command(jax.devices, {}))"
    done = run("-c", code.format(debug), JAX_PLATFORMS=platform)
    told = f"error: JAX_PLATFORMS names {platform}, which JAX cannot use on this machine; there is "
    *before, line = done.stderr.splitlines()
    assert done.returncode == 2 and line.startswith(told), done.stderr
    assert line.endswith("or unset it") and bool(before) == debug


def test_converting_needs_no_device(tmp_path):
    source = tiny.save_backbone(tmp_path / "model")
    done = run("-m", "convert", "--repo", str(source), "--out", str(tmp_path / "out"), "--verify", JAX_PLATFORMS="nonsense")
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 'out'}\n"), done.stderr


def test_commands_compile_whatever_the_shell_says():
    code = "from und3rstand_jax.commands.command_line import *\ndef work():\n    import jax; print(jax.config.jax_disable_jit)\n"
    done = run("-c", f"{code}run_process(lambda: run_command(work, False))", JAX_DISABLE_JIT="1")
    assert (done.stdout, done.stderr) == ("False\n", "JAX_DISABLE_JIT is ignored: commands compile what they run\n")
