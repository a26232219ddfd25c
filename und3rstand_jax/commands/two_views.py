"""`python -m train two-views`: whether a DUSt3R uses both views."""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro

from und3rstand_jax.analysis.two_views_result import as_json, format_result
from und3rstand_jax.commands.command_line import run_command
from und3rstand_jax.train.options import Flag, Several


@dataclasses.dataclass(frozen=True)
class TwoViewOptions:
    """Compares a DUSt3R's errors on held-out pairs with a constant's, and with its own where one view's image is taken away."""

    checkpoint: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="CHECKPOINT")]
    """A converted checkpoint, or what python -m convert takes; it must have a head."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE.json")] = None
    """File for all figures; replaced if it is there."""
    data: Annotated[Several, tyro.conf.arg(metavar="[WEIGHT*]SOURCE")] = ()
    """As for training: held-out pairs to measure on, training pairs for the constant. By default synthetic."""
    pairs: int = 512
    """How many held-out pairs."""
    constant_pairs: int = 2048
    """How many training pairs the constant is the median of; they are held in memory."""
    batch_size: int = 32
    """Pairs at once."""
    resolution: Annotated[str | None, tyro.conf.arg(metavar="WxH")] = None
    """Size of both views in pixels; by default the model's."""
    seed: int = 0
    """Of scenes and of the order of training pairs."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What the model computes in."""
    workers: int = 2
    """Processes that read files."""
    debug: Flag = False
    """Show the traceback of an error."""


def main(argv: list[str]) -> int:
    """Runs the command and returns its exit status."""
    options = tyro.cli(TwoViewOptions, prog="python -m train two-views", args=argv)
    return run_command(lambda: _two_views(options), options.debug)


def _two_views(options: TwoViewOptions) -> None:
    from und3rstand_jax.analysis.two_views import predictor, two_views_on
    from und3rstand_jax.data.loader import Feed, open_sources
    from und3rstand_jax.data.specification import SYNTHETIC, parse_data
    from und3rstand_jax.loading import load_backbone
    from und3rstand_jax.support.option_values import parse_image_size

    _check(options)
    data = options.data or (SYNTHETIC,)
    specs = parse_data(data)
    backbone = load_backbone(options.checkpoint, dtype=options.dtype)
    predict = predictor(backbone)
    height, width = backbone.config.img_size
    shape = parse_image_size(options.resolution or f"{width}x{height}", backbone.config.patch_size, "--resolution")
    feed = Feed(specs, (shape,), options.batch_size, options.seed, crop_jitter=False, workers=options.workers)
    opened = open_sources(specs, "val"), open_sources(specs, "train")
    result = two_views_on(predict, feed, *opened, options.pairs, options.constant_pairs, show_progress=True)
    if result.unreadable:
        print(f"{result.unreadable} pairs could not be read: others took their places", file=sys.stderr)
    print(format_result(result))
    if options.out is not None:
        asked = {name: value for name, value in dataclasses.asdict(options).items() if name not in ("out", "debug", "workers")}
        options.out.write_text(as_json(result, asked | {"data": data, "resolution": f"{shape[1]}x{shape[0]}"}), encoding="utf-8")
        print(f"figures: {options.out}")


def _check(options: TwoViewOptions) -> None:
    from und3rstand_jax.support.errors import UserError

    if options.pairs < 2 or options.batch_size < 2:
        raise UserError(
            f"--pairs and --batch-size must be at least 2, so that one pair can lend another its image; "
            f"found {options.pairs} and {options.batch_size}"
        )
    if options.constant_pairs < 1:
        raise UserError(f"--constant-pairs must be at least 1; found {options.constant_pairs}")
    if not 0 <= options.seed < 2**32:
        raise UserError(f"--seed must be at least 0 and below 2^32; found {options.seed}")
    if options.out is not None and options.out.is_dir():
        raise UserError(f"{options.out} is a folder; --out must name a file")
    if options.out is not None:
        # Before the measurement, which takes minutes: a folder that cannot be made would lose it.
        options.out.parent.mkdir(parents=True, exist_ok=True)
