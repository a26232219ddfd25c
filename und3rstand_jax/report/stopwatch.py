"""How long each stage of a report takes."""

import contextlib
import time
from collections.abc import Iterator


class Stopwatch:
    """Seconds by stage, in the order in which stages were first timed."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def time(self, stage: str) -> Iterator[None]:
        """Adds what its block takes to the stage."""
        start = time.perf_counter()
        yield
        self.seconds[stage] = round(self.seconds.get(stage, 0.0) + time.perf_counter() - start, 3)
