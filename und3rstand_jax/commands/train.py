"""The command line: `python -m train --layers all`, `python -m train backbone`, and the commands beside them."""

import contextlib
import dataclasses
import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import Any

from und3rstand_jax.commands.command_line import parse_command, run_command, run_process
from und3rstand_jax.commands.evaluate import EvaluateOptions, evaluate
from und3rstand_jax.commands.front import Program
from und3rstand_jax.commands.inspect import InspectOptions, inspect
from und3rstand_jax.commands.learning_curve import LearningCurveOptions, learning_curve
from und3rstand_jax.commands.plan import PlanOptions, plan
from und3rstand_jax.commands.streams import show, show_json
from und3rstand_jax.commands.two_views import TwoViewOptions, two_views
from und3rstand_jax.support.text import printable
from und3rstand_jax.train.config_file import read_config
from und3rstand_jax.train.kept_options import PoseOptions
from und3rstand_jax.train.options import BackboneOptions, RunOptions, TrainOptions

COMMANDS: dict[str, Any] = {
    "probes": TrainOptions,
    "backbone": BackboneOptions,
    "pose": PoseOptions,
    "plan": PlanOptions,
    "evaluate": EvaluateOptions,
    "two-views": TwoViewOptions,
    "inspect": InspectOptions,
    "learning-curve": LearningCurveOptions,
}
"""Name -> options; without a name, probes are trained."""

PROGRAM = Program("train", "und3rstand-train", COMMANDS, default="probes")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status: 0, or 2 with one line on stderr."""
    argv = sys.argv[1:] if argv is None else argv
    options = PROGRAM.options(argv)
    return run_command(lambda: _run(options, argv), options.debug, options.quiet)


def _run(options: Any, argv: Sequence[str]) -> None:
    if isinstance(options, RunOptions):
        options = with_config(options, argv)
    match options:
        case PlanOptions():
            plan(options)
        case RunOptions():
            # Imported here because it brings in JAX and more, which --help does not need.
            from und3rstand_jax.analysis.evaluation_files import METRICS
            from und3rstand_jax.train.run.training import train

            # The command that resumes a run must not replace it again.
            again = printable(shlex.join(word for word in argv if word != "--overwrite"))
            ending = train(options, f"{PROGRAM.prog} {again}", _last_line(options))
            if ending is not None and options.json:
                metrics = json.loads((options.out / METRICS).read_text("utf-8")) if ending.is_finished else None
                show_json({"out": str(options.out), "finished": ending.is_finished, "metrics": metrics})
            elif ending is not None:
                show(ending.text)
        case EvaluateOptions():
            evaluate(options)
        case TwoViewOptions():
            two_views(options)
        case InspectOptions():
            inspect(options)
        case LearningCurveOptions():
            learning_curve(options)


def _last_line(options: RunOptions) -> Callable[[str], None]:
    """Prints a line without Python's buffer, which a signal handler may have interrupted; on stdout, unless that is for JSON."""

    def show_line(line: str) -> None:
        with contextlib.suppress(OSError):  # it may be closed
            os.write(2 if options.json else 1, f"{printable(line)}\n".encode())

    return show_line


def with_config(options: RunOptions, argv: Sequence[str]) -> RunOptions:
    """The options, completed from the file that --config names; options given on the command line take precedence.

    Raises:
        OptionError: the file cannot be read, or contains something else; see `read_config`.
    """
    if options.config is None:
        return options
    kind = next(kind for kind in (BackboneOptions, PoseOptions, TrainOptions) if isinstance(options, kind))
    values = read_config(options.config, kind)
    # The command line is read again, now with the file's values as defaults. Options without a default are on the command line.
    fields = {
        field.name: getattr(options, field.name) if field.default is dataclasses.MISSING else field.default
        for field in dataclasses.fields(options)
    }
    name = next(name for name, kind in COMMANDS.items() if kind is type(options))
    combined: RunOptions = parse_command(argv, COMMANDS | {name: dataclasses.replace(options, **(fields | values))}, "probes", PROGRAM.prog)
    # tyro adds repeated options to a default, but here they must replace the file's values.
    repeated = {name: value for name in ("data", "val_data", "resolution") if (value := getattr(options, name))}
    return dataclasses.replace(combined, **repeated)


def program() -> None:
    """Runs `main` as the whole process."""
    run_process(main)
