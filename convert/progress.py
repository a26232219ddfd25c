"""Progress on stderr, for everything that takes more than a moment."""

import contextlib
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def progress_bar(what: str, total: int, unit: str, shown: bool) -> Iterator[Callable[[int], object]]:
    """A progress bar over `total` units; the block calls what it is given with the number just done.

    A terminal alone gets one: in a log, its carriage returns would run into the lines that follow.
    """
    from tqdm import tqdm

    with tqdm(total=total, desc=what, unit=unit, unit_scale=unit == "B", disable=None if shown else True, leave=False, delay=0.5) as bar:
        yield bar.update


def say(text: str, shown: bool) -> None:
    """One line on stderr for a stage that has no bar."""
    import sys

    if shown:
        print(text, file=sys.stderr, flush=True)
