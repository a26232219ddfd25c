"""What all command lines share: subcommands, messages on stderr, and how a process ends.

Expected failures are one line on stderr and exit status 2, Ctrl-C is 130, a closed pipe 141.
"""

import contextlib
import io
import logging
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, Union

import tyro

from und3rstand_jax.support.errors import UserError

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

EXIT_FAILED, EXIT_INTERRUPTED, EXIT_BROKEN_PIPE = 2, 130, 141

EXTRAS = {"cv2": "report", **dict.fromkeys(("grain", "OpenEXR", "tensorboardX"), "train")}
"""Import name of what a bare installation lacks -> the extra that brings it."""


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


def run_command(main: Callable[[], None], debug: bool) -> int:
    """Runs a command and returns its exit status.

    A `UserError`, any `OSError` (full disk, missing permission, no network), and a missing package of an extra become `error: …` on
    stderr and status 2; with `debug` the traceback comes before it. Ctrl-C gives status 130, as a shell expects, and a pipe that its
    reader has closed (`… | head`) 141. Anything else is a bug and propagates with its traceback. Without `debug`, the libraries
    underneath are kept off stderr.
    """
    sys.unraisablehook = _interrupt_again if debug else _interrupt_again_and_drop_others
    if not debug:
        if not sys.warnoptions:
            warnings.simplefilter("ignore")
        for name in ("absl", "asyncio", "huggingface_hub", "jax", "orbax"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        sys.excepthook = _drop_abandoned_reads
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        # A file's name may have bytes that the terminal's encoding cannot show.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with _messages_on_stderr():
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
    except (UserError, OSError, ModuleNotFoundError) as error:
        message = str(error)
        if isinstance(error, ModuleNotFoundError):
            package = (error.name or "").partition(".")[0]
            if package not in EXTRAS:
                raise
            message = f"this command needs {package}, which is not installed: pip install 'und3rstand_jax[{EXTRAS[package]}]'"
        if debug:
            traceback.print_exc()
        if isinstance(error, OSError):
            where = f": {error.filename}" if error.filename is not None else ""
            message = f"{error.strerror}{where}" if error.strerror is not None else " ".join(message.split()) or type(error).__name__
        print(f"error: {message}", file=sys.stderr)
        return EXIT_FAILED
    return 0


def end_process(status: int) -> NoReturn:
    """Ends a command's process with what `run_command` returned.

    After Ctrl-C, immediately: threads of XLA may still be computing, and crash when Python frees what they work on.
    """
    if status == EXIT_INTERRUPTED:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):  # Ctrl-C ends the reader of a pipe as well
                stream.flush()
        os._exit(status)
    sys.exit(status)


class _StderrHandler(logging.Handler):
    """A line on stderr per message, above progress bars."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        tqdm.write(self.format(record), file=sys.stderr)


@contextlib.contextmanager
def _messages_on_stderr() -> Iterator[None]:
    """Shows what the library logs while its block runs. Only commands do: in a program or a notebook the library prints nothing."""
    logger, handler = logging.getLogger("und3rstand_jax"), _StderrHandler()
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


# Python drops an exception raised where nothing can catch it, such as Ctrl-C during garbage collection, which JAX makes long.
def _interrupt_again(unraisable: "UnraisableHookArgs") -> None:
    """Raises a dropped Ctrl-C again; reports everything else as Python does."""
    if not issubclass(unraisable.exc_type, KeyboardInterrupt):
        return sys.__unraisablehook__(unraisable)
    # After the hook returns: raised inside it, the interrupt would be dropped again.
    main = threading.main_thread().ident
    assert main is not None, "it runs"
    timer = threading.Timer(0.1, signal.pthread_kill, (main, signal.SIGINT))
    timer.daemon = True
    timer.start()


def _interrupt_again_and_drop_others(unraisable: "UnraisableHookArgs") -> None:
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        _interrupt_again(unraisable)


def _drop_abandoned_reads(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Reports an uncaught exception as Python does, except a TensorStore read that ends after Orbax, having failed, gave it up."""
    if not (kind is RuntimeError and str(error) == "Event loop is closed"):
        sys.__excepthook__(kind, error, trace)
