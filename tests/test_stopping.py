"""A run that is told to stop does, wherever in the code that reaches it; its worker processes end with it, whenever it is killed."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

_TOLD = """
import gc, os, signal
from und3rstand_jax.train.run.processes import interruption

def tell(*_):
    os.kill(os.getpid(), signal.SIGTERM)

with interruption(lambda: os.write(1, b"left\\n")) as stop:
    with stop.finishing():
        tell()
        print("finished", stop.requested, flush=True)
    gc.callbacks.append(tell)  # where exceptions are lost, and where JAX has one of its own
    gc.collect()
    print("went on", flush=True)
"""


def test_told_outside_of_what_must_be_finished_a_run_leaves_at_once():
    done = subprocess.run([sys.executable, "-c", _TOLD], capture_output=True, timeout=60, text=True)
    assert (done.returncode, done.stdout) == (0, "finished True\nleft\n"), done.stderr


# Its worker prepares itself at once, or only when the run is gone: killed while a worker starts, a run never sees it ready.
_RUN = """
import multiprocessing, os, signal, sys, time
from und3rstand_jax.data.loader import prepare_worker

def work(run, ready, late):
    while late and os.getppid() == run:
        time.sleep(0.01)
    prepare_worker(0, 1)
    ready.set()
    time.sleep(600)

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    ready, late = context.Event(), {late}
    context.Process(target=work, args=(os.getpid(), ready, late)).start()
    late or ready.wait()
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("late", [False, True])
def test_a_worker_ends_with_a_run_that_is_killed(tmp_path, late):
    (tmp_path / "run.py").write_text(_RUN.replace("{late}", str(late)))
    # The worker holds the run's output open: this returns when both are gone.
    done = subprocess.run([sys.executable, tmp_path / "run.py"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60, text=True)
    assert done.returncode == -9, done.stdout


@pytest.mark.parametrize(("status", "taken_down"), [(0, "down\n"), (2, "down\n"), (130, "")])
def test_an_interrupted_command_ends_before_python_takes_down_what_xla_may_still_work_on(status, taken_down):
    code = (
        f"import atexit, und3rstand_jax.commands.command_line as c; atexit.register(print, 'down'); print('said'); c.end_process({status})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, text=True)
    assert (done.returncode, done.stdout) == (status, f"said\n{taken_down}"), done.stderr


_COLLECTING = """
import gc, signal, sys, time
from und3rstand_jax.commands.command_line import run_command

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what it puts in the background without it

def work():
    def interrupt(phase, info):
        gc.callbacks.remove(interrupt)
        signal.raise_signal(signal.SIGINT)
    gc.callbacks.append(interrupt)
    gc.collect()
    time.sleep(60)

sys.exit(run_command(work, debug={debug}))
"""


@pytest.mark.parametrize("debug", [False, True])
def test_ctrl_c_during_garbage_collection_is_not_lost(debug):
    done = subprocess.run([sys.executable, "-c", _COLLECTING.replace("{debug}", str(debug))], capture_output=True, timeout=50, text=True)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


_PROGRAM = """
import atexit, importlib, sys
package = importlib.import_module(f"{sys.argv[1]}.__main__")
sys.modules[package.program.__module__].main = lambda: 130
atexit.register(print, "down")
package.program()
"""


@pytest.mark.parametrize("package", ["und3rstand_jax", "convert", "train"])
def test_every_command_ends_so(package):
    done = subprocess.run([sys.executable, "-c", _PROGRAM, package], capture_output=True, timeout=120, text=True)
    assert (done.returncode, done.stdout) == (130, ""), done.stderr


def test_every_installed_script_is_such_a_command():
    scripts = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]["scripts"]
    assert sorted(scripts.values()) == [
        "und3rstand_jax.commands.convert:program",
        "und3rstand_jax.commands.run:program",
        "und3rstand_jax.commands.train:program",
    ]


def test_a_path_that_the_output_cannot_show_is_written_out():
    code = (
        "from und3rstand_jax.commands.command_line import run_command, run_process\n"
        "run_process(lambda: run_command(lambda: print('caf\\udce9'), False))"
    )
    strict = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, env=strict)
    assert done.stdout == b"caf\\udce9\n", done.stderr
