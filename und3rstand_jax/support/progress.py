"""Progress bars, and how long each stage of a command takes.

The library itself prints nothing. Its messages go to the logger of their module (`logging.getLogger(__name__)`, below "und3rstand_jax")
at level INFO; the commands show them on stderr, and a program or notebook can do the same. Raising the level of the logger
"und3rstand_jax" above INFO, as --quiet does, turns off the progress bars too.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

_TOLD_FROM = 2.0  # seconds

_running: list[str] = []
"""Stages that a stopwatch is timing: a bar of the same name need not log its time as well."""

_logger = logging.getLogger(__name__)


@contextlib.contextmanager
def progress_bar(what: str, total: int | None, unit: str, shown: bool) -> Iterator[Callable[[int], object]]:
    """A progress bar on stderr over `total` units, None if unknown; yields a function that advances it by a number of units.

    Only a terminal gets one: in a log file, its carriage returns would run into the lines that follow. A block that takes over two seconds
    is then logged with its time.
    """
    from tqdm import tqdm

    disabled = None if shown and not is_quiet() else True
    start = time.perf_counter()
    with tqdm(total=total, desc=what, unit=unit, unit_scale=unit == "B", disable=disabled, leave=False, delay=0.5) as bar:
        yield bar.update
    if shown and what not in _running:
        _tell(what, time.perf_counter() - start)


def is_quiet() -> bool:
    """Whether the level of this library's logger is above INFO."""
    return logging.getLogger("und3rstand_jax").level > logging.INFO


def with_progress(items: Iterable[T], what: str, total: int | None, unit: str, shown: bool) -> Iterator[T]:
    """The items, with a progress bar that counts each once it has been processed."""
    with progress_bar(what, total, unit, shown) as advance:
        for item in items:
            yield item
            advance(1)


@contextlib.contextmanager
def timed(message: str, *values: object) -> Iterator[None]:
    """Logs what its block does before it begins and, if it took over two seconds, how long it took.

    Args:
        message: what is done, such as "loading %s".
        values: the message's arguments, as for a logger.
    """
    _logger.info(message, *values)
    start = time.perf_counter()
    yield
    _tell(message % values, time.perf_counter() - start)


def _tell(what: str, seconds: float) -> None:
    if seconds >= _TOLD_FROM:
        _logger.info("%s took %.1f s", what, seconds)


class Stopwatch:
    """Seconds by stage, in the order in which stages were first timed; times over two seconds are logged."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def time(self, stage: str) -> Iterator[None]:
        """Adds the duration of its block to the stage."""
        start = time.perf_counter()
        _running.append(stage)
        try:
            yield
        finally:
            _running.remove(stage)
        seconds = time.perf_counter() - start
        _tell(stage, seconds)
        self.seconds[stage] = round(self.seconds.get(stage, 0.0) + seconds, 3)
