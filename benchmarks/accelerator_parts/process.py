"""A side of the comparison in its own process, with a time limit on every answer.

Work on a device cannot be interrupted, least of all a compilation: the process is ended instead, which also frees its memory.
"""

import importlib
import multiprocessing
import os
import sys
import traceback
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any

from und3rstand_jax.support.text import one_line


class Failed(Exception):
    """A method raised, or its process died; the message is the error's first line."""


class OutOfTime(Exception):
    """A method did not answer in time."""


class Process:
    """An object in its own process. After a failure, the next call starts a new process."""

    def __init__(self, make: str, *args: object, environment: Mapping[str, str] | None = None) -> None:
        """Starts nothing yet. `make`, MODULE:NAME, is later imported there, once the environment is set, and called with `args`."""
        self._make = make, args, dict(environment or {})
        self._process: Any = None
        self._pipe: Any = None

    @property
    def is_there(self) -> bool:
        """Whether there is a process."""
        return self._process is not None

    def call(self, seconds: float, method: str, *args: object) -> Any:
        """Calls a method of the object and returns its result; see `answer` for the errors."""
        self.begin(method, *args)
        return self.answer(seconds)

    def begin(self, method: str, *args: object) -> None:
        """Calls a method without waiting for its answer. Raises `Failed` if the process has died in the meantime."""
        if self._process is None:
            context = multiprocessing.get_context("spawn")  # a forked JAX or PyTorch hangs
            self._pipe, far_end = context.Pipe()
            self._process = context.Process(target=_serve, args=(far_end, *self._make), daemon=True)
            self._process.start()
            far_end.close()
        try:
            self._pipe.send((method, args))
        except BrokenPipeError as error:
            raise self._died() from error

    def answer(self, seconds: float) -> Any:
        """The result of the method that was begun.

        Raises:
            Failed: the method raised, or the process died.
            OutOfTime: it took longer than `seconds`.
        """
        if not self._pipe.poll(max(seconds, 0)):
            self.end()
            raise OutOfTime
        try:
            succeeded, value = self._pipe.recv()
        except (EOFError, ConnectionResetError) as error:
            raise self._died() from error
        if not succeeded:
            # Only ending the process gives back the device memory that a failed attempt has taken.
            self.end()
            raise Failed(value)
        return value

    def _died(self) -> Failed:
        self._process.join()
        status = self._process.exitcode
        self.end()
        return Failed(f"the process died with exit status {status}")

    def end(self) -> None:
        """Ends the process, whatever it is doing."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._pipe.close()
            self._process = None


def _serve(pipe: Connection, make: str, args: tuple[object, ...], environment: dict[str, str]) -> None:
    os.environ.update(environment)
    module, _, name = make.partition(":")
    side = None
    while True:
        try:
            method, arguments = pipe.recv()
        except EOFError:  # whoever asked is gone
            sys.exit()
        try:
            side = getattr(importlib.import_module(module), name)(*args) if side is None else side
            answer = True, getattr(side, method)(*arguments)
        except Exception as error:
            traceback.print_exc()
            answer = False, first_line(error)
        pipe.send(answer)


def first_line(error: Exception) -> str:
    """An error in one line."""
    lines = str(error).strip().splitlines() or [""]
    return one_line(f"{type(error).__name__}: {lines[0]}")
