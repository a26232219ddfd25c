"""`python -m und3rstand_jax IMG1 IMG2 …` and `python -m und3rstand_jax report …`."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

from und3rstand_jax.commands.command_line import parse_command, run_command, run_process
from und3rstand_jax.commands.streams import show
from und3rstand_jax.commands.study import study
from und3rstand_jax.commands.study_options import StudyOptions
from und3rstand_jax.commands.sweep import SweepOptions, sweep
from und3rstand_jax.report.options import EditOptions, MatchOptions, PointmapOptions, ReportOptions
from und3rstand_jax.support.text import printable


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status: 0, or 2 after one line about what was wrong.

    A photo called like one of the commands is reached as ./report, ./run and so on.
    """
    commands = {
        "run": PointmapOptions,
        "report": ReportOptions,
        "edit": EditOptions,
        "match": MatchOptions,
        "sweep": SweepOptions,
        "study": StudyOptions,
    }
    options = parse_command(sys.argv[1:] if argv is None else argv, commands, default="run", prog="python -m und3rstand_jax")
    runs: dict[type, Callable[[Any], None]] = {
        PointmapOptions: _run,
        ReportOptions: _report,
        EditOptions: _edit,
        MatchOptions: _match,
        SweepOptions: sweep,
        StudyOptions: study,
    }
    return run_command(lambda: runs[type(options)](options), options.debug)


# JAX is imported only here: --help does not need it.
def _run(options: PointmapOptions) -> None:
    from und3rstand_jax.report.pointmap_files import write_pointmaps

    write_pointmaps(options, progress=True)


def _report(options: ReportOptions) -> None:
    from und3rstand_jax.report.layer_report import PAGE, make_report
    from und3rstand_jax.report.numbers import format_table

    show(f"{format_table(make_report(options, progress=True))}\n\n{printable(options.out / PAGE)}")


def _edit(options: EditOptions) -> None:
    from und3rstand_jax.report.edit_effect import format_effects
    from und3rstand_jax.report.edited_files import SHEET, write_edited_pointmaps

    show(f"{format_effects(write_edited_pointmaps(options, progress=True))}\n\n{printable(options.out / SHEET)}")


def _match(options: MatchOptions) -> None:
    from und3rstand_jax.report.match_files import FIGURE, write_matches

    show(f"{write_matches(options, progress=True)}\n\n{printable(options.out / f'{FIGURE}.png')}")


def program() -> None:
    """`main` as a process of its own."""
    run_process(main)
