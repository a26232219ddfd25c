"""`python -m train learning-curve LOG… --batch-size N`: a backbone's learning curve, as a picture."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from und3rstand_jax.commands.streams import show
from und3rstand_jax.support.errors import DataError
from und3rstand_jax.support.option_kinds import Flag, Whole


@dataclasses.dataclass(frozen=True)
class LearningCurveOptions:
    """Plots the training and validation errors of one backbone run, or of several that each continued the one before.

    Example: python -m train learning-curve runs/easy/metrics.jsonl runs/hard/metrics.jsonl --batch-size 16 --out curve.png
    """

    logs: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="LOG...", help_behavior_hint="(required)")]
    """The metrics.jsonl of each run, in the order in which they ran."""
    batch_size: Whole
    """Pairs per step, the same in all runs."""
    out: Annotated[Path, tyro.conf.arg(metavar="FILE")] = Path("learning_curve.png")
    """PNG file to write. An earlier curve is replaced; any other file is refused."""
    quiet: Flag = False
    """Print results only: no messages and no progress bars. Warnings and errors stay on stderr."""
    debug: Flag = False
    """Show the traceback of an error."""


def learning_curve(options: LearningCurveOptions) -> None:
    """Plots the curve and prints the picture's path.

    Raises:
        DataError: a log does not exist, or cannot be read.
        OutputError: `out` may not be written.
    """
    from und3rstand_jax.support.results import check_output_file
    from und3rstand_jax.train.learning_curve import is_curve, joined, plot_curve, read_curve

    missing = [str(log) for log in options.logs if not log.is_file()]
    if missing or not options.logs:
        raise DataError(f"{', '.join(missing) or 'LOG'} does not exist; expected the metrics.jsonl of one or more runs")
    check_output_file(options.out, options.logs, is_curve)
    plot_curve(options.out, joined([read_curve(log) for log in options.logs]), options.batch_size)
    show(options.out)
