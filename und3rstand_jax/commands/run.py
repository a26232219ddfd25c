"""`python -m und3rstand_jax IMG1 IMG2 …` and `python -m und3rstand_jax report …`."""

import sys
from collections.abc import Sequence

from und3rstand_jax.commands.command_line import parse_command, run_command, run_process
from und3rstand_jax.commands.streams import show
from und3rstand_jax.report.options import PointmapOptions, ReportOptions
from und3rstand_jax.support.text import printable


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status: 0, or 2 after one line about what was wrong.

    A photo called "report" or "run" is reached as ./report or ./run.
    """
    commands = {"run": PointmapOptions, "report": ReportOptions}
    options = parse_command(sys.argv[1:] if argv is None else argv, commands, default="run", prog="python -m und3rstand_jax")
    command = _report if isinstance(options, ReportOptions) else _run
    return run_command(lambda: command(options), options.debug)


# JAX is imported only here: --help does not need it.
def _run(options: PointmapOptions) -> None:
    from und3rstand_jax.report.pointmap_files import write_pointmaps

    write_pointmaps(options, progress=True)


def _report(options: ReportOptions) -> None:
    from und3rstand_jax.report.layer_report import PAGE, make_report
    from und3rstand_jax.report.numbers import format_table

    show(f"{format_table(make_report(options, progress=True))}\n\n{printable(options.out / PAGE)}")


def program() -> None:
    """`main` as a process of its own."""
    run_process(main)
