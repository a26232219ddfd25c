"""The cost of edits: `python -m benchmarks.edit_cost --checkpoint DIR`.

A forward pass without edits, with neutral edits (scale 1, shift 0) of all heads of all attentions in both views, and with neutral edits of
one block's cross-attention scores, in turn. Prints the median of each, its ratio to the pass without edits, the median of the ratios round
by round, and flops and temporary memory as the compiler counts them.
"""

import argparse
import statistics
import time
from typing import Any

import jax
import numpy as np

import und3rstand_jax as u3d
from und3rstand_jax.model.backbone import _apply
from und3rstand_jax.support.machine import machine_facts
from und3rstand_jax.support.text import size_text, text_table


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="a converted checkpoint with a head")
    parser.add_argument("--pairs", type=int, default=1, help="pairs in a pass (default: 1)")
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds (default: 7)")
    options = parser.parse_args()

    backbone = u3d.load_backbone(options.checkpoint)
    config, random = backbone.config, np.random.default_rng(0)
    views = [random.uniform(-1, 1, (options.pairs, *config.img_size, 3)).astype(np.float32) for _ in range(2)]
    sides = {
        "no edits": u3d.Edits(),
        "all heads of all blocks": u3d.Edits((u3d.Edit("*_attn.heads", heads=[0], scale=1.0, shift=0.0),)),
        "one block's cross-attention scores": u3d.Edits((u3d.Edit("decoder.1.cross_attn.scores", keys=[0], scale=1.0, shift=0.0),)),
    }
    programs: dict[str, tuple[Any, ...]] = {}
    for name, edits in sides.items():
        arguments = (*views, backbone.resolve(edits, (views[0], views[1])) if edits.edits else None, None)
        one, two, *rest = arguments
        lowered = _apply.lower(backbone.module, backbone.params, one, two, (), True, *rest)
        programs[name] = lowered.compile(), (backbone.params, *arguments)
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for round_number in range(options.rounds + 1):
        for name, (program, arguments) in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(program(*arguments))
            if round_number:
                seconds[name].append(time.perf_counter() - start)
    plain = seconds["no edits"]
    rows = []
    for name, (program, _) in programs.items():
        ratio = statistics.median(own / other for own, other in zip(seconds[name], plain, strict=True))
        flops, memory = program.cost_analysis()["flops"], program.memory_analysis().temp_size_in_bytes
        middle = statistics.median(seconds[name])
        rows.append(
            [name, f"{middle * 1e3:.1f}", f"{middle / statistics.median(plain):.3f}", f"{ratio:.3f}", f"{flops:.4e}", size_text(memory)]
        )
    print(f"{options.pairs} pairs of {config.img_size[1]}×{config.img_size[0]}, on {machine_facts()['device']}")
    print(text_table(["edits", "ms", "of medians", "by round", "flops", "temporary"], rows, numbers_from=1))
    print("flops count the body of a loop over blocks once")


if __name__ == "__main__":
    main()
