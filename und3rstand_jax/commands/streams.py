"""What commands print: results on stdout and messages on stderr. All of it is printable, and none of it can stop the work.

A standard stream may be closed (`>&-`), full (`>/dev/full`) or lose its reader (`| head`). What is computed and written to files does not
depend on this: a failed write is remembered, and determines the exit status at the end.
"""

import contextlib
import io
import json
import logging
import os
import select
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from und3rstand_jax.support.text import JsonObject, printable, to_json


def show(result: str | Path) -> None:
    """Prints a text of one or more lines, or a path, which is always printed as one line.

    Names inside a text must already be printable: here their line feeds could not be told from the text's own.
    """
    print(printable(result, keep="\n" if isinstance(result, str) else ""))


def show_json(document: JsonObject) -> None:
    """Prints one document of strict JSON, in ASCII: NaN is null, an infinity a string. Secrets become ***, as in `show`."""
    sys.stdout.write(printable(to_json(document), keep="\n"))


def show_record(file: Path) -> None:
    """Prints the JSON document that a command wrote."""
    show_json(json.loads(file.read_text(encoding="utf-8")))


class _Sink(io.RawIOBase):
    """Receives a standard stream's bytes. The first failure is remembered; from then on, bytes are dropped."""

    def __init__(self, stream: io.TextIOWrapper) -> None:
        self._stream = stream  # which would be closed with the last reference to it
        # An unbuffered stream has no raw stream underneath: it is the raw one itself.
        self._raw: Any = getattr(stream.buffer, "raw", stream.buffer)
        self.failure: OSError | None = None

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        number: int = self._raw.fileno()
        return number

    def isatty(self) -> bool:
        return bool(self._raw.isatty())

    def write(self, data: Any) -> int:
        try:
            while self.failure is None:
                written: int | None = self._raw.write(data)
                if written is not None:
                    return written
                # Another process has made it non-blocking, and its reader is slow.
                select.select([], [self._raw], [])
        except OSError as failure:
            self.failure = failure
        return len(data)


class StandardStreams:
    """The standard streams of a process, made safe to write to. Create it once, before the process opens any file.

    The next file opened would get a closed descriptor's number, and messages would end up in that file. A closed descriptor is therefore
    opened on the null device. A closed stream is a user's choice, not a failure.
    """

    def __init__(self) -> None:
        for number in range(3):
            try:
                os.fstat(number)
            except OSError:
                # It gets the lowest free number. Processes started later inherit it, as they do a standard stream.
                os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
        for name in ("stdin", "stdout", "stderr"):
            if getattr(sys, name) is None:
                setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: SIM115
        sys.stdout, self._stdout = _safe(sys.stdout)
        sys.stderr, _ = _safe(sys.stderr)

    def close(self, status: int) -> int:
        """Flushes both, and returns the exit status of a process that would have ended with `status`.

        If all went well but stdout could not be written: 141 if its reader went away, as a shell expects, else 2 with a line on stderr.
        """
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        failure = self._stdout.failure if self._stdout is not None else None
        if failure is None or status != 0:
            return status
        if isinstance(failure, BrokenPipeError):
            return 141
        print(f"error: cannot write to standard output: {failure.strerror}; all results were written", file=sys.stderr)
        return 2


def _safe(stream: Any) -> tuple[Any, _Sink | None]:
    """A text stream that writes where the given one does and never fails; a stream that is not the system's is returned unchanged."""
    if not isinstance(stream, io.TextIOWrapper):
        return stream, None
    sink = _Sink(stream)
    by_line = stream.line_buffering or stream.write_through
    # A file's name may have bytes or letters that the encoding lacks.
    return io.TextIOWrapper(io.BufferedWriter(sink), stream.encoding, "backslashreplace", line_buffering=by_line), sink


class _StderrHandler(logging.Handler):
    """Prints each message as a line on stderr, above progress bars."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        tqdm.write(printable(self.format(record)), file=sys.stderr)


@contextlib.contextmanager
def messages_on_stderr(level: int = logging.INFO) -> Iterator[None]:
    """Shows what the library logs, from a level on, while its block runs.

    Only commands do this: in a program or a notebook, the library prints nothing.
    """
    logger, handler = logging.getLogger("und3rstand_jax"), _StderrHandler()
    level_before, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(level)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level_before)
        logger.propagate = propagate
