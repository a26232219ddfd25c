"""What all command lines share: how options are read, how failures are reported, and how a process ends.

Expected failures give one line on stderr and exit status 2; Ctrl-C gives status 130, a closed pipe 141.
"""

import contextlib
import dataclasses
import io
import logging
import os
import re
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, Union

import tyro

from und3rstand_jax.commands.streams import StandardStreams, messages_on_stderr
from und3rstand_jax.support.device_faults import device_fault
from und3rstand_jax.support.errors import UserError
from und3rstand_jax.support.files import in_home
from und3rstand_jax.support.text import printable

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

EXIT_FAILED, EXIT_INTERRUPTED = 2, 130

_TRUE = ("1", "true", "t", "yes", "y", "on")
"""The values that JAX reads as true in an environment variable."""

_logger = logging.getLogger(__name__)

EXTRAS = {"cv2": "report", **dict.fromkeys(("grain", "OpenEXR", "tensorboardX"), "train")}
"""Import name of a package that a bare installation lacks -> the extra that installs it."""


def parse_command(argv: Sequence[str], commands: Mapping[str, Any], default: str, prog: str) -> Any:
    """The options of the subcommand that a command line names, or of `default` if it names none.

    Args:
        argv: the words of the command line, without the program's name.
        commands: subcommand -> its options: a dataclass whose docstring is its help, or an instance with defaults.
        default: the subcommand that may be omitted, so that its options follow the program's name directly.
        prog: how the program is called, for usage and errors.

    Raises:
        SystemExit: help was requested (status 0), or the line is not one of these commands (status 2).
    """
    # tyro has default subcommands, but accepts their options only after their name.
    named = bool(argv) and argv[0] in commands
    return read_options(any_of(commands), prog, argv if named else [default, *argv])


def any_of(commands: Mapping[str, Any]) -> Any:
    """The type that tyro parses for several subcommands; see `parse_command`."""
    kinds = tuple(
        Annotated[options, tyro.conf.subcommand(name)]
        if isinstance(options, type)
        else Annotated[type(options), tyro.conf.subcommand(name, default=options)]
        for name, options in commands.items()
    )
    return Union[kinds]  # noqa: UP007


def read_options(kind: Any, prog: str, argv: Sequence[str]) -> Any:
    """The options given on a command line, with paths expanded.

    Args:
        kind: the type for tyro to parse: a dataclass, or several.
        prog: how the program is called, for usage and errors.
        argv: the words of the command line, without the program's name.

    Raises:
        SystemExit: as raised by `parse_command`.
    """

    def parse(words: Sequence[str]) -> Any:
        return tyro.cli(kind, prog=prog, args=words)

    shown = [printable(word) for word in argv]
    if shown == list(argv):
        return expanded(parse(argv))
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            return expanded(parse(argv))
    except SystemExit:
        # tyro prints the words that it does not understand. Parse again with words that can be shown.
        parse(shown)
        raise


_HOME = re.compile(r"((?:[^*:]+\*)?\w+:)?(~.*)", re.DOTALL)
"""~ at the beginning, or after the kind of a data source: 0.5*pairs:~/rooms."""


def expanded(value: Any) -> Any:
    """Options with ~ and ~user replaced by the home folder wherever a path begins with it.

    A shell does this only at the beginning of a word. In `--out=~/x`, and in a config file, it is left to the program.
    """
    if isinstance(value, Path):
        return Path(expanded(str(value)))
    if isinstance(value, str):
        matched = _HOME.fullmatch(value)
        # ~ before a name that is no user's is an ordinary file name; the absolute path keeps it from being expanded again.
        return value if matched is None else (matched[1] or "") + os.path.abspath(in_home(matched[2]))
    if isinstance(value, tuple):
        return tuple(map(expanded, value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.replace(value, **{field.name: expanded(getattr(value, field.name)) for field in dataclasses.fields(value)})
    return value


def run_command(main: Callable[[], None], debug: bool, quiet: bool = False) -> int:
    """Runs a command and returns its exit status.

    A `UserError`, any `OSError` (full disk, missing permission, no network), a missing package of an extra, too little memory and a
    missing device become `error: …` on stderr and status 2; with `debug`, the traceback comes first. Ctrl-C gives status 130, as a
    shell expects. Anything else is a bug and propagates with its traceback. Without `debug`, the underlying libraries are kept off
    stderr; with `quiet`, so are this library's progress bars and all of its messages except warnings.
    """
    sys.unraisablehook = _interrupt_again if debug else _interrupt_again_and_drop_others
    if not debug:
        if not sys.warnoptions:
            warnings.simplefilter("ignore")
        for name in ("absl", "asyncio", "huggingface_hub", "jax", "orbax"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        sys.excepthook = _drop_abandoned_reads
    try:
        with messages_on_stderr(logging.WARNING if quiet else logging.INFO):
            if os.environ.pop("JAX_DISABLE_JIT", "").lower() in _TRUE:
                # Without jit, a second of work takes hours. A user's own program may still choose that: the library runs either way.
                _logger.info("JAX_DISABLE_JIT is ignored: commands compile what they run")
            main()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except Exception as error:
        message = _expected(error)
        if message is None:
            raise
        if debug:
            traceback.print_exception(error)
        print(f"error: {message}", file=sys.stderr)
        return EXIT_FAILED
    return 0


def _expected(error: Exception) -> str | None:
    """The message for a failure that is not a bug; None for a bug."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError):
        names = " -> ".join(printable(os.fsdecode(name)) for name in (error.filename, error.filename2) if isinstance(name, str | bytes))
        said = " ".join(str(error if error.strerror is None else error.strerror).split())
        return f"{printable(said) or type(error).__name__}{f': {names}' if names else ''}"
    if isinstance(error, ModuleNotFoundError):
        package = (error.name or "").partition(".")[0]
        if package in EXTRAS:
            return f"this command needs {package}, which is not installed: pip install 'und3rstand_jax[{EXTRAS[package]}]'"
    fault = device_fault(error)
    return None if fault is None else printable(fault)


def run_process(main: Callable[[], int]) -> NoReturn:
    """Runs a command's `main` as the whole process, whose standard streams may be closed, full or without a reader."""
    streams = StandardStreams()
    try:
        status = main()
    except SystemExit as end:  # --help, or options that cannot be read
        status = end.code if isinstance(end.code, int) else EXIT_FAILED
    end_process(streams.close(status))


def end_process(status: int) -> NoReturn:
    """Ends a command's process with the status that `run_command` returned.

    After Ctrl-C it ends immediately: XLA's threads may still be computing, and would crash when Python frees what they work on.
    """
    if status == EXIT_INTERRUPTED:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(status)
    sys.exit(status)


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
    """Reports an uncaught exception as Python does, except for a TensorStore read that ends after Orbax failed and abandoned it."""
    if not (kind is RuntimeError and str(error) == "Event loop is closed"):
        sys.__excepthook__(kind, error, trace)
