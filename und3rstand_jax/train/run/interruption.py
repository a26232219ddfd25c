"""Being told to stop: SIGTERM, as TPU hosts and batch systems send it before they take the machine away, and Ctrl-C."""

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

import jax


class Interruption:
    """Whether the run was told to stop. Outside of `finishing`, where everything is saved, being told ends the process on the spot."""

    def __init__(self, farewell: str) -> None:
        """Not told yet; `farewell` is the line on stdout of a process that ends on the spot."""
        self._farewell = farewell
        self._told = self._finishing = False

    def __call__(self, step: int) -> bool:
        """Whether to stop instead of taking this step; all processes of a run get the same answer.

        On several hosts JAX's own service passes the news of a SIGTERM on, so that all stop at the same step.
        """
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            self._told = self._told or multihost_utils.reached_preemption_sync_point(step)
        return self._told

    @property
    def told(self) -> bool:
        """Whether this process knows that it is to stop."""
        return self._told

    @contextlib.contextmanager
    def finishing(self) -> Iterator[None]:
        """Inside, what is under way is finished and saved first: whoever runs there asks now and then."""
        self._finishing = True
        try:
            yield
        finally:
            self._finishing = False

    def tell(self, number: int, frame: FrameType | None) -> None:
        """The handler of the signals. A second Ctrl-C is a KeyboardInterrupt."""
        if self._told and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._told = True
        if not self._finishing:
            self._leave()

    def _leave(self) -> NoReturn:
        # Not by an exception: one raised while the garbage collector or a destructor runs, which is a good part of the time when JAX
        # traces a program, is lost, and the run would go on. Everything here outlives a kill, so nothing needs an exception's way out.
        with contextlib.suppress(OSError):  # nobody reads it any more
            os.write(1, f"{self._farewell}\n".encode())
        os._exit(0)


@contextlib.contextmanager
def interruption(farewell: str) -> Iterator[Interruption]:
    """Takes the signals of this process; on several hosts SIGTERM is left to JAX, and Ctrl-C to Python."""
    stop = Interruption(farewell)
    if jax.process_count() > 1:
        yield stop
        return
    earlier = {number: signal.signal(number, stop.tell) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
