"""Time and memory of a conversion: `python -m benchmarks.convert`.

A full-size 512 dpt checkpoint in the hub's layout is converted by the command, in turn with the minimum work: reading the file with
safetensors and writing the same tree with Orbax. The limits are 3 times that time, and 1.5 times the file's size in memory.
"""

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.workers import Worker


def build_conversion(source: Path, out: Path) -> tuple[Callable[[], None], dict[str, Any]]:
    """The command itself, in a new process each time, including start-up and imports."""
    command = [sys.executable, "-m", "convert", "--repo", str(source), "--out", str(out), "--overwrite"]

    def run() -> None:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    return run, {}


def build_reading(source: Path) -> tuple[Callable[[], None], dict[str, Any]]:
    """safetensors' own loader."""
    from safetensors.numpy import load_file

    def run() -> None:
        load_file(source / "model.safetensors")

    return run, {}


def build_writing(converted: Path, out: Path) -> tuple[Callable[[], None], dict[str, Any]]:
    """Orbax with its defaults, on the same tree that the conversion writes."""
    import orbax.checkpoint as ocp

    from und3rstand_jax.checkpoint.format import read_checkpoint_info
    from und3rstand_jax.checkpoint.parts import read_part

    tree = read_part(converted, read_checkpoint_info(converted), "backbone")

    def run() -> None:
        shutil.rmtree(out, ignore_errors=True)
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(out.resolve(), tree)

    return run, {}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="timed runs of each side, after one that is not counted (default: 3)")
    parser.add_argument("--work", type=Path, help="folder to keep the checkpoint in (default: a temporary one)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = args.work or Path(temporary)
        source = work / "backbone"
        if not (source / "model.safetensors").is_file():
            from tests.make_checkpoint import make

            make("full_512_dpt", work, hidden=64)
        size = (source / "model.safetensors").stat().st_size
        # In this order: the writing side reads what the first conversion wrote.
        conversion = Worker("python -m convert", build_conversion, source, work / "converted")
        reading = Worker("reading with safetensors", build_reading, source)
        writing = Worker("writing with Orbax", build_writing, work / "converted", work / "written")
        for _ in range(args.rounds):
            for side in (conversion, reading, writing):
                side.run()
        for side in (conversion, reading, writing):
            side.finish()
        for folder in ("converted", "written"):
            shutil.rmtree(work / folder)
    print(f"checkpoint of {size / 1e9:.2f} GB, {args.rounds} rounds in turn; median [min, max]\n")
    print("| side | seconds | peak GB | peak over the file's size |")
    print("|---|---|---|---|")
    for side in (conversion, reading, writing):
        spread = f"{statistics.median(side.seconds):.1f} [{min(side.seconds):.1f}, {max(side.seconds):.1f}]"
        print(f"| {side.name} | {spread} | {side.details['peak_gb']:.2f} | {side.details['peak_gb'] * 1e9 / size:.2f}× |")
    ratios = [c / (r + w) for c, r, w in zip(conversion.seconds, reading.seconds, writing.seconds, strict=True)]
    print(f"\nconversion over reading plus writing: {statistics.median(ratios):.2f}× [{min(ratios):.2f}, {max(ratios):.2f}]")


if __name__ == "__main__":
    main()
