"""The cost of checking weights: `python -m benchmarks.digests --checkpoint DIR`.

The backbone of a converted checkpoint is read as `load_backbone` reads it, in turn with and without comparing every leaf with its
SHA-256, once from the page cache and, if the system lets us drop that cache, once from the disk.
"""

import argparse
import dataclasses
import os
import statistics
import tempfile
import time
from pathlib import Path

from und3rstand_jax.checkpoint.format import CheckpointInfo, read_checkpoint_info
from und3rstand_jax.checkpoint.parts import read_part
from und3rstand_jax.checkpoint.trees import flatten


def seconds_to_read(folder: Path, info: CheckpointInfo, cold: bool) -> float:
    """Seconds to read the backbone; `cold` empties the page cache first."""
    if cold:
        os.sync()
        Path("/proc/sys/vm/drop_caches").write_text("3")
    start = time.perf_counter()
    read_part(folder, info, "backbone")
    return time.perf_counter() - start


def may_drop_caches() -> bool:
    """Whether the page cache can be emptied, which needs root."""
    try:
        Path("/proc/sys/vm/drop_caches").write_text("1")
    except OSError:
        return False
    return True


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="converted checkpoint (default: a random one of full size, made now)")
    parser.add_argument("--rounds", type=int, default=5, help="timed readings of each side, after one that is not counted (default: 5)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.checkpoint
        if folder is None:
            from tests.conversion import converted
            from tests.make_checkpoint import make

            make("full_512_dpt", Path(temporary), hidden=64)
            folder = converted(Path(temporary) / "backbone", Path(temporary) / "converted")
        checked = read_checkpoint_info(folder)
        sides = {"with digests": checked, "without": dataclasses.replace(checked, digests=None)}
        size = sum(leaf.nbytes for leaf in flatten(read_part(folder, checked, "backbone")).values())
        print(f"backbone of {size / 1e9:.2f} GB, {args.rounds} rounds in turn; median [min, max]\n")
        print("| read from | with digests, s | without, s | ratio |\n|---|---|---|---|")
        for cold in (False, True) if may_drop_caches() else (False,):
            taken: dict[str, list[float]] = {name: [] for name in sides}
            for number in range(args.rounds + 1):
                for name, info in sides.items():
                    seconds = seconds_to_read(folder, info, cold)
                    if number:
                        taken[name].append(seconds)
            spans = [f"{statistics.median(values):.2f} [{min(values):.2f}, {max(values):.2f}]" for values in taken.values()]
            ratios = [one / other for one, other in zip(*taken.values(), strict=True)]
            print(f"| {'disk' if cold else 'page cache'} | {spans[0]} | {spans[1]} | {statistics.median(ratios):.2f}× |")


if __name__ == "__main__":
    main()
