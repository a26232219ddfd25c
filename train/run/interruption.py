"""Being told to stop: SIGTERM, as TPU hosts and batch systems send it before they take the machine away, and Ctrl-C."""

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType

import jax


@contextlib.contextmanager
def interruption() -> Iterator[Callable[[int], bool]]:
    """Gives a function that says, before a step, whether to stop instead; all processes of a run get the same answer.

    On several hosts JAX's own service passes the news on, so that all stop at the same step. A second Ctrl-C is a KeyboardInterrupt.
    """
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        yield multihost_utils.reached_preemption_sync_point
        return
    told: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and told:
            raise KeyboardInterrupt
        told.append(number)

    earlier = {number: signal.signal(number, remember) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda step: bool(told)
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
