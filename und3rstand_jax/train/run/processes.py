"""The processes of a run: how several hosts find each other and agree, and how a process is asked to stop.

A request to stop is SIGTERM, which TPU hosts and batch systems send before they take the machine away, or Ctrl-C.
"""

import contextlib
import dataclasses
import json
import os
import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TypeVar

import jax
import numpy as np

from und3rstand_jax.support.errors import OptionError
from und3rstand_jax.train.config_file import option_values, typed_options
from und3rstand_jax.train.options import Options, RunOptions
from und3rstand_jax.train.run.folder import resumed_options

_LONGEST = 2**16  # bytes of all options as text

T = TypeVar("T")


def join(options: RunOptions) -> None:
    """Connects this process with the others of the run. Must be called before JAX is used for anything else.

    Raises:
        OptionError: only some of --coordinator, --processes and --process were given.
    """
    given = (options.coordinator, options.processes, options.process)
    if all(value is None for value in given):
        if options.distributed:
            jax.distributed.initialize()
        return
    if any(value is None for value in given):
        raise OptionError(
            "give --coordinator, --processes and --process together; on a TPU pod or under Slurm, --distributed alone is enough"
        )
    jax.distributed.initialize(options.coordinator, options.processes, options.process)


def is_first() -> bool:
    """Whether this is the first process, the one that writes."""
    return jax.process_index() == 0


def from_first(tree: T) -> T:
    """The first process's values of a tree of arrays, on every process."""
    if jax.process_count() == 1:
        return tree
    from jax.experimental import multihost_utils

    return multihost_utils.broadcast_one_to_all(tree)


def agreed_options(options: Options) -> Options:
    """The options, completed from an earlier run in the same folder. Of several hosts, only the first needs to have that folder."""
    if jax.process_count() == 1:
        return resumed_options(options)
    text = json.dumps(option_values(resumed_options(options))).encode() if is_first() else b""
    letters = np.zeros(_LONGEST, np.uint8)
    letters[: len(text)] = np.frombuffer(text, np.uint8)
    sent = bytes(np.asarray(from_first(letters)).astype(np.uint8)).rstrip(b"\0").decode()
    return dataclasses.replace(options, **typed_options(json.loads(sent), "the first process's options", type(options)))


def wait_for_all(name: str) -> None:
    """Returns once every process has called it with this name."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


class Interruption:
    """Whether the run was asked to stop.

    Inside `finishing`, work is finished and saved first. Outside, everything is already saved, and a request ends the process immediately.
    """

    def __init__(self, farewell: Callable[[], None]) -> None:
        """`farewell` is called, from the signal handler, when the process ends immediately."""
        self._farewell = farewell
        self._requested = self._finishing = False

    def __call__(self, step: int) -> bool:
        """Whether to stop instead of taking this step; all processes of a run get the same answer.

        On several hosts, JAX's own service forwards a SIGTERM, so that all of them stop at the same step.
        """
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            self._requested = self._requested or multihost_utils.reached_preemption_sync_point(step)
        return self._requested

    @property
    def requested(self) -> bool:
        """Whether a request to stop has reached this process."""
        return self._requested

    @contextlib.contextmanager
    def finishing(self) -> Iterator[None]:
        """Inside, a request only sets `requested`, which the code there must check from time to time."""
        self._finishing = True
        try:
            yield
        finally:
            self._finishing = False

    def handle(self, number: int, frame: FrameType | None) -> None:
        """The signal handler. A second Ctrl-C raises KeyboardInterrupt."""
        if self._requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._requested = True
        if not self._finishing:
            # Not by an exception: one raised while the garbage collector or a destructor runs is lost, and the run would go on. They run
            # for much of the time while JAX traces a program. All that is written survives a kill, so nothing needs cleaning up.
            self._farewell()
            os._exit(0)


@contextlib.contextmanager
def interruption(farewell: Callable[[], None]) -> Iterator[Interruption]:
    """Handles this process's signals; on several hosts SIGTERM is left to JAX, and Ctrl-C to Python. See `Interruption`."""
    stop = Interruption(farewell)
    if jax.process_count() > 1:
        yield stop
        return
    earlier = {number: signal.signal(number, stop.handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
