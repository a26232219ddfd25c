"""The largest batch that fits, found with few compilations: every further pair takes about as much memory as the one before."""

import dataclasses
import math
from collections.abc import Callable

MOST_COMPILATIONS = 4


@dataclasses.dataclass(frozen=True)
class Largest:
    """`pairs` is the largest batch that was compiled and fits, in `total` bytes; 0 if none does.

    `too_many` is the least batch that does not fit: one that was compiled, or else what a line through the largest two says. None where
    the search ended before it met one.
    """

    pairs: int
    total: float
    too_many: int | None


def largest_batch(measure: Callable[[int], float], limit: float, fixed: float, start: int, total: float, unit: int = 1) -> Largest:
    """Compiles for a few batches, the first of which is given, each chosen by what the ones before took.

    Args:
        measure: compiles for a number of pairs and returns the bytes they take, infinitely many where the compiler gives up.
        limit: bytes there are.
        fixed: bytes that any batch needs; at most what a batch of 0 would take.
        start: pairs of the first batch.
        total: bytes they take, as `measure` says it.
        unit: batches are multiples of it.
    """
    known = {start // unit: total}
    while True:
        low = max((size for size, found in known.items() if found <= limit), default=0)
        high = min((size for size, found in known.items() if found > limit), default=None)
        size = _next_size({0: fixed, **known}, limit, low, high)
        if size is None or len(known) == MOST_COMPILATIONS:
            break
        known[size] = measure(size * unit)
    too_many = low + 1 if size is None else high
    return Largest(low * unit, known.get(low, fixed), None if too_many is None else too_many * unit)


def _next_size(known: dict[int, float], limit: float, low: int, high: int | None) -> int | None:
    """The largest size that should fit; None if nothing between `low`, which does, and `high`, which does not, can."""
    finite = sorted((size, total) for size, total in known.items() if total < math.inf)
    size = 2 * max(known)  # where nothing says how memory grows
    if len(finite) > 1:
        (less, before), (more, after) = finite[-2:]
        if after > before:
            size = math.floor(more + (limit - after) * (more - less) / (after - before))
    size = max(size, 1 if low == 0 else 0)
    if high is not None:
        # Where the compiler gave up, no line says how far to go back.
        size = min(size, high - 1 if known[high] < math.inf else max((low + high) // 2, 1))
    return size if low < size and size != high else None
