"""`python -m und3rstand_jax`: an overview, and `run`, `report`, `edit`, `match`, `sweep` and `study`."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

from und3rstand_jax.commands.command_line import run_command, run_process
from und3rstand_jax.commands.default_checkpoint import with_checkpoint
from und3rstand_jax.commands.front import Program, overview
from und3rstand_jax.commands.streams import show, show_record
from und3rstand_jax.commands.study import study
from und3rstand_jax.commands.study_options import StudyOptions
from und3rstand_jax.commands.sweep import SweepOptions, sweep
from und3rstand_jax.report.options import EditOptions, MatchOptions, PointmapOptions, ReportOptions
from und3rstand_jax.support.text import printable

PROGRAM = Program(
    "und3rstand_jax",
    "und3rstand-jax",
    {
        "run": PointmapOptions,
        "report": ReportOptions,
        "edit": EditOptions,
        "match": MatchOptions,
        "sweep": SweepOptions,
        "study": StudyOptions,
    },
    default="run",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status: 0, or 2 after one line that says what was wrong.

    A photo with the name of a command is given as ./report, ./run and so on.
    """
    words = sys.argv[1:] if argv is None else argv
    if not words:
        return run_command(lambda: show(overview()), debug=False)
    options = PROGRAM.options(words)
    runs: dict[type, Callable[[Any], None]] = {
        PointmapOptions: _run,
        ReportOptions: _report,
        EditOptions: _edit,
        MatchOptions: _match,
        SweepOptions: sweep,
        StudyOptions: study,
    }
    return run_command(lambda: runs[type(options)](with_checkpoint(options)), options.debug, options.quiet)


# JAX is imported only here: --help does not need it.
def _run(options: PointmapOptions) -> None:
    from und3rstand_jax.report.pointmap_files import RECORD, write_pointmaps

    write_pointmaps(options, progress=True)
    if options.json:
        show_record(options.out / RECORD)


def _report(options: ReportOptions) -> None:
    from und3rstand_jax.report.layer_report import PAGE, make_report
    from und3rstand_jax.report.numbers import NUMBERS, format_table

    found = make_report(options, progress=True)
    if options.json:
        show_record(options.out / NUMBERS)
    else:
        show(f"{format_table(found)}\n\n{printable(options.out / PAGE)}")


def _edit(options: EditOptions) -> None:
    from und3rstand_jax.report.edit_effect import format_effects
    from und3rstand_jax.report.edited_files import RECORD, SHEET, write_edited_pointmaps

    found = write_edited_pointmaps(options, progress=True)
    if options.json:
        show_record(options.out / RECORD)
    else:
        show(f"{format_effects(found)}\n\n{printable(options.out / SHEET)}")


def _match(options: MatchOptions) -> None:
    from und3rstand_jax.report.match_files import FIGURE, RECORD, write_matches

    found = write_matches(options, progress=True)
    if options.json:
        show_record(options.out / RECORD)
    else:
        show(f"{found}\n\n{printable(options.out / f'{FIGURE}.png')}")


def program() -> None:
    """Runs `main` as the whole process."""
    run_process(main)
