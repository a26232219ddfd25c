"""`python -m und3rstand_jax report`: what every layer of a model makes of two views."""

import tyro

from und3rstand_jax.commands.command_line import run_command
from und3rstand_jax.report.options import ReportOptions


def main(argv: list[str]) -> int:
    """Runs the command and returns its exit status: 0, or 2 after one line about what was wrong."""
    options = tyro.cli(ReportOptions, prog="python -m und3rstand_jax report", args=argv)
    return run_command(lambda: _run(options), options.debug)


def _run(options: ReportOptions) -> None:
    # Imported here because it brings in JAX and more, which --help does not need.
    from und3rstand_jax.report.make import make_report

    print(make_report(options))
