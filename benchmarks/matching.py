"""Time to find the most similar descriptors of another view: `python -m benchmarks.matching`.

Our code is compared with PyTorch, in turn in one run: a running maximum over blocks of 2¹³ × 2¹³ similarities, as users of MASt3R compute
it. Without PyTorch, it is compared with NumPy in the same blocks. A whole `match` from seeds follows.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np

from und3rstand_jax.geometry.descriptor_matches import match, seed_places
from und3rstand_jax.geometry.nearest import Descriptors
from und3rstand_jax.model.output import BackboneOutput

_BLOCK = 2**13


def in_torch(queries: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The most similar target of each query."""
    import torch

    found = []
    for low in range(0, len(queries), _BLOCK):
        some = torch.from_numpy(queries[low : low + _BLOCK])
        best, places = torch.full((len(some),), -torch.inf), torch.zeros(len(some), dtype=torch.long)
        for first in range(0, len(targets), _BLOCK):
            values, there = (some @ torch.from_numpy(targets[first : first + _BLOCK]).T).max(dim=1)
            better = values > best
            best, places = torch.where(better, values, best), torch.where(better, there + first, places)
        found.append(places.numpy())
    return np.concatenate(found)


def in_numpy(queries: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The same in NumPy."""
    found = []
    for low in range(0, len(queries), _BLOCK):
        some = queries[low : low + _BLOCK]
        best, places = np.full(len(some), -np.inf, np.float32), np.zeros(len(some), int)
        for first in range(0, len(targets), _BLOCK):
            similarities = some @ targets[first : first + _BLOCK].T
            there = similarities.argmax(axis=1)
            values = similarities[np.arange(len(some)), there]
            better = values > best
            best, places = np.where(better, values, best), np.where(better, there + first, places)
        found.append(places)
    return np.concatenate(found)


def main() -> None:
    """Prints a row for each number of queries, and the time of a whole match."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=2, default=(384, 512), metavar=("H", "W"), help="size of both views (default: 384 512)")
    parser.add_argument("--rounds", type=int, default=5, help="timed runs of each side, after one that is not counted (default: 5)")
    args = parser.parse_args()
    try:
        import torch

        other, name = in_torch, f"PyTorch {torch.__version__}"
    except ImportError:
        other, name = in_numpy, f"NumPy {np.__version__}"
    rng = np.random.default_rng(0)
    views = []
    for _ in range(2):
        values = rng.standard_normal((*args.size, 24)).astype(np.float32)
        views.append(values / np.linalg.norm(values, axis=-1, keepdims=True))
    one, two = map(Descriptors, views)
    flat1, flat2 = (view.reshape(-1, 24) for view in views)
    print(f"{len(flat2)} targets, {args.rounds} rounds in turn; median [min, max] in seconds\n")
    print(f"| queries | ours | {name} | ratio |\n|---|---|---|---|")
    for spacing in (8, 4):
        seeds = seed_places(tuple(args.size), spacing)
        ours, theirs = (lambda seeds=seeds: two.nearest(one.of(seeds))), (lambda seeds=seeds: other(flat1[seeds], flat2))
        agree = float(np.mean(ours() == theirs()))
        assert agree > 0.999, agree  # except for ties within rounding
        sides = timed([ours, theirs], args.rounds)
        ratio = statistics.median(sides[1]) / statistics.median(sides[0])
        print(f"| {len(seeds)}, every {spacing} pixels | {text(sides[0])} | {text(sides[1])} | {ratio:.2f}× |")
    output = BackboneOutput({}, (tuple(args.size),) * 2, ({"desc": view[None]} for view in views))
    (whole,) = timed([lambda: match(output)], args.rounds)
    print(f"\nmatch(output), seeds every 8 pixels, {len(match(output))} matches of random descriptors: {text(whole)} s")


def timed(sides: list[Callable[[], object]], rounds: int) -> list[list[float]]:
    """Seconds of every run of each side, taken in turn."""
    taken: list[list[float]] = [[] for _ in sides]
    for number in range(rounds + 1):
        for side, seconds in zip(sides, taken, strict=True):
            start = time.perf_counter()
            side()
            if number:
                seconds.append(time.perf_counter() - start)
    return taken


def text(seconds: list[float]) -> str:
    """Median, minimum and maximum."""
    return f"{statistics.median(seconds):.3f} [{min(seconds):.3f}, {max(seconds):.3f}]"


if __name__ == "__main__":
    main()
