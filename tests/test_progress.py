"""What commands say on the way: stages with their times, bars on a terminal, and nothing of it where somebody wants quiet."""

import contextlib
import io
import logging

import pytest

from und3rstand_jax.commands.command_line import run_command
from und3rstand_jax.support import progress
from und3rstand_jax.support.progress import Stopwatch, is_quiet, progress_bar, timed

LIBRARY = logging.getLogger("und3rstand_jax.x")


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """Time that passes only where a test says so."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    return lambda seconds: now.__setitem__(0, now[0] + seconds)


def work(clock, seconds):
    with timed("loading %s", "it"):
        clock(seconds)
    stopwatch = Stopwatch()
    with stopwatch.time("poses"), progress_bar("poses", 1, "layer", True) as advance:
        clock(seconds)
        advance(1)
    with stopwatch.time("page"), progress_bar("figures", 1, "figure", True) as advance:
        clock(seconds)
    with progress_bar("unshown", 1, "figure", False):
        clock(seconds)
    assert stopwatch.seconds == {"poses": seconds, "page": seconds}


def test_stages_over_two_seconds_say_how_long_they_took(clock, capsys):
    assert run_command(lambda: work(clock, 2.5), debug=False) == 0
    # A stage and its bar of the same name, once.
    lines = ["loading it", "loading it took 2.5 s", "poses took 2.5 s", "figures took 2.5 s", "page took 2.5 s"]
    assert capsys.readouterr().err.splitlines() == lines


def test_shorter_stages_have_no_time(clock, capsys):
    assert run_command(lambda: work(clock, 1.9), debug=False) == 0
    assert capsys.readouterr().err == "loading it\n"


def test_a_stage_that_fails_has_no_time_and_is_over(clock, capsys):
    stopwatch = Stopwatch()
    with pytest.raises(ValueError), stopwatch.time("poses"):
        clock(5)
        raise ValueError
    assert stopwatch.seconds == {} and progress._running == []


def test_quiet_leaves_warnings_errors_and_results(clock, capsys):
    def main():
        work(clock, 9)
        LIBRARY.info("said")
        LIBRARY.warning("warned")
        print("result")
        raise OSError(28, "No space left on device")

    assert run_command(main, debug=False, quiet=True) == 2
    assert capsys.readouterr() == ("result\n", "warned\nerror: No space left on device\n")
    assert not is_quiet()


@pytest.mark.parametrize("quiet", [False, True])
def test_a_terminal_has_bars_unless_it_is_to_be_quiet(quiet, monkeypatch):
    def main():
        # Without a delay: a bar of a short stage does not appear.
        monkeypatch.setattr("tqdm.std.tqdm.__init__", _at_once(), raising=True)
        with progress_bar("reading", 2, "B", True) as advance:
            advance(2)

    with contextlib.redirect_stderr(Terminal()) as shown:
        assert run_command(main, debug=False, quiet=quiet) == 0
    assert ("reading" in shown.getvalue()) is not quiet


def _at_once():
    from tqdm.std import tqdm

    original = tqdm.__init__

    def begin(self, *values, **options):
        original(self, *values, **{**options, "delay": 0, "mininterval": 0})

    return begin
