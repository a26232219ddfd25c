"""How fast synthetic pairs are rendered: `python -m benchmarks.synthetic`.

Each round renders one batch of new pairs. Sizes take turns, so that other load on the machine affects both. Compilation is timed
separately.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from und3rstand_jax.data.records import ViewSet
from und3rstand_jax.data.synthetic.config import SyntheticConfig
from und3rstand_jax.data.synthetic.render import render_sets
from und3rstand_jax.support.text import markdown_table

SIDES = (128, 512)
BATCH_PIXELS = 2**20
"""Pixels of one view in a round."""


def build(side: int, batch: int) -> tuple[Callable[[Array], ViewSet], float]:
    """A compiled function from indices (batch,) to square pairs, and the seconds it took to trace and compile."""
    shape, config = (side, side), SyntheticConfig()
    start = time.perf_counter()
    program = jax.jit(lambda indices: render_sets(0, indices, shape, config)).lower(jnp.arange(batch)).compile()
    return program, time.perf_counter() - start


def pairs_per_second(program: Callable[[Array], ViewSet], indices: Array) -> float:
    """The rate of one batch, from the call until its result is ready."""
    start = time.perf_counter()
    jax.block_until_ready(program(indices))
    return len(indices) / (time.perf_counter() - start)


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="timed batches of each size (default: 7)")
    rounds = parser.parse_args().rounds
    batches = {side: BATCH_PIXELS // side**2 for side in SIDES}
    built = {side: build(side, batch) for side, batch in batches.items()}
    rates: dict[int, list[float]] = {side: [] for side in SIDES}
    for turn in range(rounds + 1):
        for side, batch in batches.items():
            rate = pairs_per_second(built[side][0], turn * batch + jnp.arange(batch))
            # The first batch warms up.
            if turn:
                rates[side].append(rate)
    print(f"Synthetic pairs on {jax.devices()[0].device_kind} ({os.cpu_count()} CPU cores), {rounds} alternating rounds\n")
    rows = [
        (
            f"{side}×{side}",
            str(batches[side]),
            f"{statistics.median(values):.1f} [{min(values):.1f}, {max(values):.1f}]",
            f"{built[side][1]:.1f}",
        )
        for side, values in rates.items()
    ]
    print(markdown_table(("size", "pairs per round", "pairs/s, median [min, max]", "compile s"), rows))


if __name__ == "__main__":
    main()
