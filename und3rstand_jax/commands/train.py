"""The command line: `python -m train --layers all`, `python -m train backbone`, and what is measured beside them."""

import shlex
import sys
from collections.abc import Callable

from und3rstand_jax.commands.command_line import end_process, run_command
from und3rstand_jax.commands.options import parse
from und3rstand_jax.train.options import RunOptions, TrainOptions


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit status: 0, or 2 with one line on stderr."""
    argv = sys.argv[1:] if argv is None else argv
    # Commands are told apart by hand: training itself has no name of its own, so that its options come right after `train`.
    if argv and argv[0] in _COMMANDS:
        return _COMMANDS[argv[0]](argv[1:])
    return _train(argv)


def _train(argv: list[str]) -> int:
    return _start(argv, TrainOptions, "python -m train")


def _backbone(argv: list[str]) -> int:
    from und3rstand_jax.train.options import BackboneOptions

    return _start(argv, BackboneOptions, "python -m train backbone")


def _start(argv: list[str], kind: type[RunOptions], prog: str) -> int:

    options = parse(argv, kind, prog)
    return options if isinstance(options, int) else run_command(lambda: _run(options, argv, prog), options.debug)


def _run(options: RunOptions, argv: list[str], prog: str) -> None:
    # Imported here because it brings in JAX and more, which --help does not need.
    from und3rstand_jax.train.run.training import train

    # To go on with what was saved is not to replace it once more.
    train(options, f"{prog} {shlex.join(word for word in argv if word != '--overwrite')}")


def _two_views(argv: list[str]) -> int:
    from und3rstand_jax.commands.two_views import main

    return main(argv)


def _inspect(argv: list[str]) -> int:
    from und3rstand_jax.commands.inspect import main

    return main(argv)


def _evaluate(argv: list[str]) -> int:
    from und3rstand_jax.commands.evaluate import main

    return main(argv)


def _plan(argv: list[str]) -> int:
    from und3rstand_jax.commands.plan import main

    return main(argv)


def _learning_curve(argv: list[str]) -> int:
    from und3rstand_jax.commands.learning_curve import main

    return main(argv)


_COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "backbone": _backbone,
    "two-views": _two_views,
    "inspect": _inspect,
    "evaluate": _evaluate,
    "plan": _plan,
    "learning-curve": _learning_curve,
}


def program() -> None:
    """`main` as a process of its own."""
    end_process(main())


if __name__ == "__main__":
    program()
