"""Progress bars, and how long each stage of a command takes.

The library prints nothing by itself. What it has to say on the way goes to the logger of its module (`logging.getLogger(__name__)`,
below "und3rstand_jax") at level INFO; the command lines show it on stderr, and a program or notebook can.
"""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


@contextlib.contextmanager
def progress_bar(what: str, total: int | None, unit: str, shown: bool) -> Iterator[Callable[[int], object]]:
    """A progress bar on stderr over `total` units, None if unknown; yields a function that advances it by so many.

    Only a terminal gets one: in a log file, its carriage returns would run into the lines that follow.
    """
    from tqdm import tqdm

    with tqdm(total=total, desc=what, unit=unit, unit_scale=unit == "B", disable=None if shown else True, leave=False, delay=0.5) as bar:
        yield bar.update


def with_progress(items: Iterable[T], what: str, total: int | None, unit: str, shown: bool) -> Iterator[T]:
    """The items, with a progress bar that counts each once it has been processed."""
    with progress_bar(what, total, unit, shown) as advance:
        for item in items:
            yield item
            advance(1)


class Stopwatch:
    """Seconds by stage, in the order in which stages were first timed."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def time(self, stage: str) -> Iterator[None]:
        """Adds the duration of its block to the stage."""
        start = time.perf_counter()
        yield
        self.seconds[stage] = round(self.seconds.get(stage, 0.0) + time.perf_counter() - start, 3)
