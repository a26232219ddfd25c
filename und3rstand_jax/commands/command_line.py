"""How every command line of this project ends: expected failures are one line on stderr and exit status 2."""

import contextlib
import io
import logging
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Annotated, Any, NoReturn, Union

import tyro

from und3rstand_jax.support.errors import UserError

EXIT_FAILED = 2


EXIT_INTERRUPTED = 130


EXIT_BROKEN_PIPE = 141


def run_command(main: Callable[[], None], debug: bool) -> int:
    """Runs a command and returns its exit status.

    A `UserError`, and any `OSError` (full disk, missing permission, no network), ends in `error: …` on stderr and
    status 2; `debug` prints the traceback before it. Ctrl-C ends in status 130, as a shell expects, and a reader that
    goes away (`… | head`) in 141. Anything else is a bug and propagates with its traceback. Without `debug`, what the
    libraries underneath have to say is kept off stderr.
    """
    sys.unraisablehook = _interrupt_again if debug else _interrupt_again_and_else_be_quiet
    show_messages()
    if not debug:
        _quieten_libraries()
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        # A file's name may have bytes that the terminal's encoding cannot show.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        main()
        sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes stdout once more when it exits, which would fail again, loudly.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except KeyboardInterrupt:
        with contextlib.suppress(OSError):
            print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except (UserError, OSError) as error:
        if debug:
            traceback.print_exc()
        print(f"error: {_one_line(error)}", file=sys.stderr)
        return EXIT_FAILED
    return 0


class _Messages(logging.Handler):
    """What the library has to say on the way, a line each on stderr, above progress bars."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        tqdm.write(self.format(record), file=sys.stderr)


def show_messages() -> None:
    """Shows what the library logs. Commands alone do: in a program or a notebook the library prints nothing by itself."""
    logger = logging.getLogger("und3rstand_jax")
    if not any(isinstance(handler, _Messages) for handler in logger.handlers):
        logger.addHandler(_Messages(logging.INFO))
        logger.setLevel(logging.INFO)
        logger.propagate = False


def end_process(status: int) -> NoReturn:
    """Ends a command's process with what `run_command` returned.

    Interrupted, on the spot: XLA may still be computing in threads of its own, which crash when Python takes down what they work on.
    """
    if status == EXIT_INTERRUPTED:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):  # Ctrl-C ends the reader of a pipe as well
                stream.flush()
        os._exit(status)
    sys.exit(status)


def _one_line(error: UserError | OSError) -> str:
    if isinstance(error, UserError):
        return str(error)
    if error.strerror is None:
        return " ".join(str(error).split()) or type(error).__name__
    where = f": {error.filename}" if error.filename is not None else ""
    return f"{error.strerror}{where}"


def _quieten_libraries() -> None:
    """Silences warnings, logs, and tracebacks of work that Orbax and TensorStore abandon in the background when they fail."""
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    for name in ("absl", "asyncio", "huggingface_hub", "jax", "orbax"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    sys.excepthook = _ignore_abandoned_callbacks


def _interrupt_again_and_else_be_quiet(unraisable: Any) -> None:
    """Takes no notice of exceptions that nobody could have caught, but of Ctrl-C."""
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        _interrupt_soon()


def _interrupt_again(unraisable: Any) -> None:
    """Ctrl-C that came during garbage collection, which JAX makes long, would be lost; all else is told as Python does."""
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        _interrupt_soon()
    else:
        sys.__unraisablehook__(unraisable)


def _interrupt_soon() -> None:
    # Not at once, which would be inside the hook that tells of it, and lost again.
    main = threading.main_thread().ident
    assert main is not None, "it runs"
    timer = threading.Timer(0.1, signal.pthread_kill, (main, signal.SIGINT))
    timer.daemon = True
    timer.start()


def _ignore_abandoned_callbacks(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Prints an exception as Python does, unless it is a TensorStore read that ends after the reading was given up."""
    if not (kind is RuntimeError and str(error) == "Event loop is closed"):
        sys.__excepthook__(kind, error, trace)


def parse_command(argv: Sequence[str], commands: Mapping[str, Any], default: str, prog: str) -> Any:
    """The options of the subcommand that a command line names, or of `default` where it names none.

    Args:
        argv: without the program's name.
        commands: subcommand -> its options: a dataclass whose docstring is its help, or an instance that holds defaults.
        default: the subcommand that may be left out, so that its options follow the program's name directly.
        prog: how the program is called, for usage and errors.

    Raises:
        SystemExit: help was asked for (status 0), or the line is not one of these commands (status 2).
    """
    kinds = tuple(
        Annotated[options, tyro.conf.subcommand(name)]
        if isinstance(options, type)
        else Annotated[type(options), tyro.conf.subcommand(name, default=options)]
        for name, options in commands.items()
    )
    # tyro has default subcommands, but takes their options only behind their name.
    named = bool(argv) and argv[0] in commands
    return tyro.cli(Union[kinds], prog=prog, args=list(argv) if named else [default, *argv])  # type: ignore[call-overload]  # noqa: UP007
