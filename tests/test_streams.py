"""Standard streams that are closed, full or not read, and what a stranger's names may do to a terminal: nothing."""

import contextlib
import io
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import tiny
from und3rstand_jax.commands.command_line import read_options, run_command
from und3rstand_jax.commands.convert import Options
from und3rstand_jax.commands.streams import show
from und3rstand_jax.support.errors import CheckpointError
from und3rstand_jax.support.text import text_table

ROOT = Path(__file__).parent.parent
HOSTILE = "a\x1b[31m\nerror: fake\u202e"
SHOWN = r"a\x1b[31m\nerror: fake\u202e"


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return tiny.save_backbone(tmp_path_factory.mktemp("source") / "model")


def convert(source: Path, out: Path, redirections: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """`python -m convert` with its streams redirected as a shell does."""
    line = f'exec "$0" -m convert --repo "$1" --out "$2" {redirections}'
    call = ["bash", "-c", line, sys.executable, str(source), str(out)]
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(call, capture_output=True, text=True, timeout=120, env=env)


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def expected(source, tmp_path_factory) -> list[str]:
    """The files of a conversion that nothing disturbs."""
    out = tmp_path_factory.mktemp("expected") / "out"
    done = convert(source, out)
    assert (done.returncode, done.stdout) == (0, f"{out}\n"), done.stderr
    return files(out)


FULL = "error: cannot write to standard output: No space left on device; all results were written\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize(
    ("redirections", "status", "told"),
    [
        ("<&- >&- 2>&-", 0, ""),
        (">/dev/full", 2, FULL),
        ("2>/dev/full", 0, ""),
    ],
)
def test_what_is_written_does_not_depend_on_what_can_be_shown(source, expected, tmp_path, redirections, status, told):
    done = convert(source, tmp_path / "out", redirections, PYTHONUNBUFFERED="1" if status else "")
    assert (done.returncode, files(tmp_path / "out")) == (status, expected), done.stderr
    assert done.stderr.endswith(told) and "Traceback" not in done.stderr
    # Nothing of what was said may have ended in a file, under the number of the stream that was closed.
    assert not [name for name in expected if b"writing backbone" in (tmp_path / "out" / name).read_bytes()]


PRELUDE = "import os, sys; from und3rstand_jax.commands.command_line import run_command, run_process\n"


def run(code: str, redirections: str = "") -> subprocess.CompletedProcess[str]:
    call = ["bash", "-c", f'exec "$0" -c "$1" {redirections}', sys.executable, PRELUDE + code]
    return subprocess.run(call, capture_output=True, text=True, timeout=60, env={**os.environ, "PYTHONPATH": str(ROOT)})


def test_a_closed_stream_is_the_null_device_for_this_process_and_those_it_starts(tmp_path):
    code = (
        "def work():\n"
        f"    with open({str(tmp_path / 'file')!r}, 'w') as file:\n"
        "        file.write(str(file.fileno()))\n"
        "        print('shown to nobody'); os.write(1, b'nor this')\n"
        "        os.spawnl(os.P_WAIT, sys.executable, sys.executable, '-c', 'import os; os.write(1, b\"x\"); os.write(2, b\"x\")')\n"
        "run_process(lambda: run_command(work, debug=False))"
    )
    done = run(code, "<&- >&- 2>&-")
    assert done.returncode == 0
    assert int((tmp_path / "file").read_text()) > 2


def test_progress_and_messages_go_on_where_stderr_fails():
    code = (
        "import logging\n"
        "def work():\n"
        "    from tqdm import tqdm\n"
        "    for _ in tqdm(range(3), file=sys.stderr): logging.getLogger('und3rstand_jax').info('said')\n"
        "    print('done', flush=True)\n"
        "run_process(lambda: run_command(work, debug=False))"
    )
    assert (run(code, "2>/dev/full").stdout, run(code, "2>&-").returncode) == ("done\n", 0)


def test_a_failure_is_told_as_itself_though_stdout_is_full():
    code = (
        "from und3rstand_jax.support.errors import DataError\n"
        "def work():\n"
        "    print('x', flush=True)\n"
        "    raise DataError('that')\n"
        "run_process(lambda: run_command(work, debug=False))"
    )
    done = run(code, ">/dev/full")
    assert (done.returncode, done.stderr) == (2, "error: that\n")


def test_help_and_usage_errors_survive_as_well():
    code = "from und3rstand_jax.commands import run; sys.argv[1:] = {}; run.program()"
    assert run(code.format(["--help"]), ">/dev/full").stderr == FULL
    assert run(code.format(["--nonsense"]), "2>/dev/full").returncode == 2


def test_results_errors_and_messages_are_printable(capsys, tmp_path):
    def fail(error: Exception):
        def work() -> None:
            logging.getLogger("und3rstand_jax.x").info("reading %s", HOSTILE)
            raise error

        assert run_command(work, debug=False) == 2
        return capsys.readouterr().err

    show(f"one\n{'two'}\x1b[2J")
    show(tmp_path / HOSTILE)
    assert capsys.readouterr().out == f"one\ntwo\\x1b[2J\n{tmp_path}/{SHOWN}\n"
    assert fail(CheckpointError(f"{HOSTILE} is damaged")) == f"reading {SHOWN}\nerror: {SHOWN} is damaged\n"
    assert fail(OSError(2, "No such file", HOSTILE, None, "b\x07")) == f"reading {SHOWN}\nerror: No such file: {SHOWN} -> b\\x07\n"
    assert fail(ConnectionError("https://me:secret@host\x1b[0m")) == f"reading {SHOWN}\nerror: https://***@host\\x1b[0m\n"


def test_words_that_are_not_understood_are_repeated_printable():
    with contextlib.redirect_stderr(io.StringIO()) as said, pytest.raises(SystemExit) as ended:
        read_options(Options, "convert", ["--repo", "x", "--bo\x1b[31mgus\nerror: fake", "--also", "hf_secretsecretsecretsecretsecret1234"])
    assert ended.value.code == 2
    assert "\x1b[31m" not in said.getvalue() and r"--bo\x1b[31mgus\nerror: fake" in said.getvalue()
    assert "hf_secretsecretsecretsecretsecret1234" not in said.getvalue()
    assert read_options(Options, "convert", ["--repo", HOSTILE]).repo == HOSTILE


def test_in_a_notebook_a_table_is_text_like_anywhere(monkeypatch):
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    assert text_table(["a", "b"], [["1", "2"]]) == "a  b\n1  2"
