"""`python -m train inspect`: what a data set holds, and the usual mistakes in its geometry."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro

from und3rstand_jax.commands.command_line import run_command
from und3rstand_jax.train.options import Flag, Several


@dataclasses.dataclass(frozen=True)
class InspectOptions:
    """Reads a sample of a data set's pairs and says what is there: counts, sizes, units, valid pixels, overlap, faults of the geometry."""

    data: Annotated[Several, tyro.conf.arg(metavar="[WEIGHT*]SOURCE")]
    """As for training: synthetic[:overlap=LOW-HIGH], co3d:DIR, blendedmvs:DIR or pairs:DIR; may be repeated."""
    split: Literal["train", "val"] = "train"
    """Which part."""
    pairs: int = 64
    """How many pairs to read."""
    resolution: Annotated[str, tyro.conf.arg(metavar="WxH")] = "512x384"
    """Training size that every pair is tried to be cropped to; that of rendered scenes."""
    seed: int = 0
    """Of rendered scenes."""
    debug: Flag = False
    """Show the traceback of an error."""


def main(argv: list[str]) -> int:
    """Runs the command and returns its exit status."""
    options = tyro.cli(InspectOptions, prog="python -m train inspect", args=argv)
    return run_command(lambda: _inspect(options), options.debug)


def _inspect(options: InspectOptions) -> None:
    from und3rstand_jax.data.files.source import FilePairs, open_pairs
    from und3rstand_jax.data.inspect.inspection import RenderedPairs, inspect_pairs
    from und3rstand_jax.data.inspect.text import describe
    from und3rstand_jax.data.specification import parse_data
    from und3rstand_jax.support.errors import UserError
    from und3rstand_jax.support.option_values import parse_image_size

    if options.pairs < 1:
        raise UserError(f"--pairs must be at least 1; found {options.pairs}")
    if not 0 <= options.seed < 2**32:
        raise UserError(f"--seed must be at least 0 and below 2^32; found {options.seed}")
    shape = parse_image_size(options.resolution, 16, "--resolution")
    for spec in parse_data(options.data):
        if spec.scenes is not None:
            source: RenderedPairs | FilePairs = RenderedPairs(spec.scenes, options.seed, options.split, options.pairs, shape)
        else:
            source = open_pairs(spec.kind, spec.root or Path(), options.split)
        print(describe(inspect_pairs(source, options.pairs, shape)))
