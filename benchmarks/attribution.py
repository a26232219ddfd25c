"""Time and memory of attribution: `python -m benchmarks.attribution --checkpoint DIR`.

The gradient of view 2's error with respect to the scales of all heads and updates of the decoders, once keeping everything inside the
blocks and once recomputing the blocks (`remat`): temporary memory as the compiler counts it, and seconds of a pass over one pair, beside
those of a forward pass.
"""

import argparse
import time

import jax

import und3rstand_jax as u3d
from benchmarks.sweep import errors, made_pairs
from und3rstand_jax.analysis.ablations import places_of
from und3rstand_jax.analysis.attribution import _gradient, unit_scales
from und3rstand_jax.analysis.pair_measures import VIEW2
from und3rstand_jax.geometry.loss import Truth
from und3rstand_jax.model.output import BackboneOutput
from und3rstand_jax.support.machine import machine_facts
from und3rstand_jax.support.text import size_text

SITES = "decoder.*_attn.heads,decoder.*.update"


def main() -> None:
    """Prints a line for each measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="a converted checkpoint with a head")
    parser.add_argument("--rounds", type=int, default=2, help="timed rounds (default: 2)")
    options = parser.parse_args()

    backbone = u3d.load_backbone(options.checkpoint)
    config = backbone.config
    views, truth = made_pairs(1, config.img_size)
    places = places_of(SITES, config)
    scales = unit_scales(tuple(dict.fromkeys(place.site for place in places)), 1, config)
    print(f"{len(places)} places, one pair of {config.img_size[1]}×{config.img_size[0]}, on {machine_facts()['device']}")
    for name, remat in (("everything held", False), ("blocks computed again", True)):
        module = backbone.module.clone(remat=remat)
        program = _gradient.lower(module, _view2, (), True, scales, backbone.params, views, truth, ()).compile()
        memory = program.memory_analysis().temp_size_in_bytes
        seconds = min(_timed(lambda program=program: program(scales, backbone.params, views, truth, ())) for _ in range(options.rounds))
        print(f"{name}: {size_text(memory)} beyond the parameters, {seconds:.1f} s", flush=True)
    seconds = min(_timed(lambda: backbone(*views, capture=(), head=True)) for _ in range(options.rounds + 1))
    print(f"a forward pass: {seconds:.1f} s")


def _timed(run) -> float:  # type: ignore[no-untyped-def]
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def _view2(output: BackboneOutput, truth: Truth, shared: tuple[()]) -> jax.Array:
    return errors(output, truth, shared)[VIEW2]


if __name__ == "__main__":
    main()
