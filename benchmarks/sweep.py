"""A sweep over every cross-attention head against the same forward passes one by one: `python -m benchmarks.sweep`.

Both sides knock out the same heads of both decoders on the same pairs and measure both views' errors; both get a first round to compile
their programs. Then they take turns: forward passes with `edits=`, one for each head, which start from the images; and one `sweep`, which
starts before each head's block. Prints seconds of each round, their ratio, and the largest difference between the two sides' errors.

    python -m benchmarks.sweep --checkpoint pocket-jax --pairs 16
    python -m benchmarks.sweep --checkpoint dust3r-512-jax --pairs 1 --heads 1 --blocks 1 4 7 10 --rounds 1
"""

import argparse
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

import und3rstand_jax as u3d
from und3rstand_jax.analysis.pair_measures import VIEW1, VIEW2
from und3rstand_jax.geometry.loss import Target, Truth, normalised_truth
from und3rstand_jax.geometry.metrics import normalised_errors
from und3rstand_jax.model.output import BackboneOutput
from und3rstand_jax.support.machine import machine_facts

Errors = list[dict[str, np.ndarray]]
"""Both views' errors for each edit, (S,) each."""


def main() -> None:
    """Prints what was measured, round by round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="a converted checkpoint with a head")
    parser.add_argument("--pairs", type=int, default=16, help="pairs of noise images (default: 16)")
    parser.add_argument("--heads", type=int, default=1000, help="heads of each block, the first ones (default: all)")
    parser.add_argument("--blocks", type=int, nargs="+", help="blocks of the decoders (default: all)")
    parser.add_argument("--batch-size", type=int, default=64, help="most pairs in one pass of the sweep (default: 64)")
    parser.add_argument("--rounds", type=int, default=2, help="timed rounds (default: 2)")
    options = parser.parse_args()

    backbone = u3d.load_backbone(options.checkpoint)
    config = backbone.config
    edits = [
        u3d.knock_out(f"decoder.{block}.cross_attn.heads:{head}", view=view)
        for block in options.blocks or range(config.dec_depth)
        for view in (1, 2)
        for head in range(min(options.heads, config.dec_num_heads))
    ]
    views, truth = made_pairs(options.pairs, config.img_size)

    def one_by_one() -> Errors:
        found = []
        for edit in edits:
            output = backbone(*views, capture=(), head=True, edits=edit)
            found.append({name: np.asarray(values) for name, values in errors(output, truth, ()).items()})
        return found

    def swept() -> Errors:
        return u3d.sweep(backbone, views, edits, errors, truth, batch_size=options.batch_size)

    print(f"{len(edits)} heads × {options.pairs} pairs of {config.img_size[1]}×{config.img_size[0]}, on {machine_facts()['device']}")
    sides: dict[str, Callable[[], Errors]] = {"one by one": one_by_one, "sweep": swept}
    results = {}
    for round_number in range(options.rounds + 1):
        seconds = {}
        for name, side in sides.items():
            start = time.perf_counter()
            results[name] = side()
            seconds[name] = time.perf_counter() - start
        what = "with compilation" if round_number == 0 else f"round {round_number}"
        told = ", ".join(f"{name} {value:.1f} s" for name, value in seconds.items())
        print(f"{what}: {told}: {seconds['one by one'] / seconds['sweep']:.2f}×", flush=True)
    print(f"largest relative difference of an error: {largest_difference(*results.values()):.1e}")


def made_pairs(count: int, size: tuple[int, int]) -> tuple[tuple[np.ndarray, np.ndarray], Truth]:
    """Images of noise, and a ground truth of noise."""
    random = np.random.default_rng(0)
    views = [random.uniform(-1, 1, (count, *size, 3)).astype(np.float32) for _ in range(2)]
    camera, valid = np.tile(np.eye(4, dtype=np.float32), (count, 1, 1)), np.ones((count, *size), bool)
    targets = [Target(random.uniform(1, 2, (count, *size, 3)).astype(np.float32), camera, valid) for _ in range(2)]
    return (views[0], views[1]), jax.tree.map(np.asarray, normalised_truth(jax.tree.map(jnp.asarray, tuple(targets))))


@jax.jit
def errors(output: BackboneOutput, truth: Truth, shared: tuple[()]) -> dict[str, jax.Array]:
    """Both views' errors of the head's pointmaps."""
    one, two = normalised_errors(output.pointmaps, truth)
    return {VIEW1: one, VIEW2: two}


def largest_difference(ours: Errors, theirs: Sequence[dict[str, np.ndarray]]) -> float:
    """The largest difference over all errors of all edits, relative to the other side's."""
    return max(float(np.max(np.abs(a[view] / b[view] - 1))) for a, b in zip(ours, theirs, strict=True) for view in (VIEW1, VIEW2))


if __name__ == "__main__":
    main()
