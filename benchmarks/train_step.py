"""Time and memory of a training step of all probes, PyTorch against JAX: `python -m benchmarks.train_step`.

36 probes of the default form on the full-size backbone, 512×512, on pairs that both sides get as arrays. PyTorch runs in two orders:
all outputs before the first loss, as the published probes are called, and probe by probe, which needs the least memory. Sides run in
turn, each in its own process; `benchmarks.train_step_sides` says what they are and what counts as memory beyond the backbone.

The bars, against the first order: 1.5 times PyTorch's pairs/s, half its memory beyond the backbone.
"""

import argparse
import ctypes
import dataclasses
import gc
import os
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.matmul_rate import jax_matmul_rate, torch_matmul_rate
from benchmarks.train_step_sides import Workload, build_ours, build_torch, measure_parts, measure_side_by_side, restart_peak, step_flops
from benchmarks.workers import Worker, both_layouts
from und3rstand_jax.support.text import markdown_table

SPEED_BAR, MEMORY_BAR = 1.5, 0.5
ORDERS = {"step_after_all_outputs": "PyTorch, all outputs first", "step_probe_by_probe": "PyTorch, probe by probe"}
"""The PyTorch way's loops, by the name of their function."""


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="timed steps of each side (default: 3)")
    parser.add_argument("--batch", type=int, default=1, help="pairs per step (default: 1)")
    parser.add_argument("--case", default="full_512_dpt", help="model, a case of tests/golden (default: full_512_dpt)")
    parser.add_argument("--size", default="512x512", metavar="WxH", help="size of both views in pixels (default: 512x512)")
    parser.add_argument("--side-by-side", metavar="N,N,…", help="instead, time our step with N layers computed at once")
    parser.add_argument("--work", type=Path, help="folder to keep the checkpoints in, 4.6 GB at full size (default: a temporary one)")
    args = parser.parse_args()
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # several processes share a GPU
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # one device on either side
    width, height = map(int, args.size.split("x"))
    with tempfile.TemporaryDirectory() as temporary:
        folders = both_layouts(args.case, args.work or Path(temporary))
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        restart_peak(0)  # a process's peak starts at that of the one that started it
        work = Workload(*folders, args.batch, (height, width))
        if args.side_by_side:
            _print_side_by_side(work, measure_side_by_side(work, list(map(int, args.side_by_side.split(","))), args.rounds))
        else:
            _compare(work, args.rounds)


def _compare(work: Workload, rounds: int) -> None:
    import torch

    on_gpu = torch.cuda.is_available()
    for dtype in ("float32", "bfloat16") if on_gpu else ("float32",):
        sized = dataclasses.replace(work, dtype=dtype)
        sides = [*(Worker(name, build_torch, sized, order) for order, name in ORDERS.items()), Worker("JAX", build_ours, sized)]
        for _ in range(rounds):
            for side in sides:
                side.run()
        for side in sides:
            side.finish()
        # The rates for the backbone's products, and for the probes'.
        rates = [max(jax_matmul_rate(name), torch_matmul_rate("cuda" if on_gpu else "cpu", name)) for name in (dtype, "float32")]
        least = sum(flops / rate for flops, rate in zip(step_flops(sized), rates, strict=True))
        _print_sides(sized, sides, least)
        _print_parts(measure_parts(sized, rounds))


def _print_sides(work: Workload, sides: Sequence[Worker], least: float) -> None:
    """The comparison; `least` are the seconds of a step whose products all run at the measured ceilings and whose rest takes no time."""
    ours = sides[-1]
    print(f"36 probes, {work.shape[1]}×{work.shape[0]}, {work.batch} pairs a step, backbone in {work.dtype}, on {ours.details['device']}")
    print(
        f"({os.cpu_count()} CPU cores); {len(ours.seconds)} steps in turn, median [min, max]; compilation {ours.details['compile_s']:.1f} s"
    )
    print(f"all matrix products at the measured ceiling: {least:.2f} s")
    head = ("side", "seconds", "pairs/s", "peak GB", "base GB", "beyond the backbone GB", "of the matrix-product ceiling")
    rows = [
        (
            side.name,
            _spread(side.seconds),
            _spread([work.batch / seconds for seconds in side.seconds]),
            f"{side.details['peak_gb']:.2f}",
            f"{side.details['base_gb']:.2f}",
            f"{_beyond(side):.2f}",
            f"{least / statistics.median(side.seconds):.0%}",
        )
        for side in sides
    ]
    print(markdown_table(head, rows))
    for bars, theirs in zip((True, False), sides[:-1], strict=True):
        speed = statistics.median(a / b for a, b in zip(theirs.seconds, ours.seconds, strict=True))
        memory = _beyond(ours) / _beyond(theirs)
        print(f"JAX against {theirs.name}: {speed:.2f}× the pairs/s{_verdict(speed >= SPEED_BAR, SPEED_BAR) if bars else ''}, ", end="")
        print(f"{memory:.2f}× the memory beyond the backbone{_verdict(memory <= MEMORY_BAR, MEMORY_BAR) if bars else ''}")


def _print_parts(parts: Mapping[str, Sequence[float]]) -> None:
    """Prints the shares of our step when it renders its pairs."""
    step, backbone, rendering, given = (statistics.median(parts[name]) for name in ("step", "backbone", "rendering", "given"))
    print(f"our step with rendering: {_spread(parts['step'])} s, of it backbone {backbone / step:.0%}, ", end="")
    print(
        f"probes {(step - backbone - rendering) / step:.0%}, data {rendering / step:.1%} ({rendering:.3f} s; of given pairs {given:.3f} s)"
    )


def _print_side_by_side(work: Workload, table: Mapping[int, tuple[Sequence[float], int]]) -> None:
    rows = [
        (str(value), _spread([work.batch / taken for taken in seconds]), _spread(seconds), f"{temporaries / 1e9:.2f}")
        for value, (seconds, temporaries) in table.items()
    ]
    print(markdown_table(("layers side by side", "pairs/s", "seconds", "XLA's temporaries GB"), rows))


def _beyond(side: Worker) -> float:
    return side.details["peak_gb"] - side.details["base_gb"]


def _verdict(met: bool, bar: float) -> str:
    return f" (bar {bar}: {'met' if met else 'MISSED'})"


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.3g} [{min(values):.3g}, {max(values):.3g}]"


if __name__ == "__main__":
    main()
