"""`python -m train evaluate`: how well each layer of any checkpoint with probes can be read."""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro

from und3rstand_jax.commands.command_line import run_command
from und3rstand_jax.train.options import Flag, Several


@dataclasses.dataclass(frozen=True)
class EvaluateOptions:
    """Evaluates probes on held-out pairs: writes metrics.json, layers.csv and layers.png, and prints the table."""

    checkpoint: Annotated[str, tyro.conf.arg(metavar="DIR")]
    """The probes/ of a run, a converted checkpoint with probes, or what python -m convert takes."""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("evaluation")
    """Folder for table and plot; files of their names are replaced."""
    data: Annotated[Several, tyro.conf.arg(metavar="[WEIGHT*]SOURCE")] = ()
    """As for training; its held-out pairs are taken. By default synthetic."""
    pairs: int = 64
    """How many pairs."""
    batch_size: int = 4
    """Pairs at once."""
    resolution: Annotated[str | None, tyro.conf.arg(metavar="WxH")] = None
    """Size of both views in pixels; by default the backbone's."""
    seed: int = 0
    """Of scenes: that of a run gives the pairs it was validated on."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What the backbone computes in."""
    attention: Literal["auto", "per_head", "xla", "cudnn"] = "auto"
    """How its attention is computed."""
    workers: int = 2
    """Processes that read files."""
    unreadable: Literal["skip", "fail"] = "skip"
    """What a pair does whose files cannot be read: another takes its place, or the evaluation ends."""
    debug: Flag = False
    """Show the traceback of an error."""


def main(argv: list[str]) -> int:
    """Runs the command and returns its exit status."""
    options = tyro.cli(EvaluateOptions, prog="python -m train evaluate", args=argv)
    return run_command(lambda: _evaluate(options), options.debug)


def _evaluate(options: EvaluateOptions) -> None:
    from und3rstand_jax.analysis.evaluate import evaluate_on
    from und3rstand_jax.analysis.tables import format_table, write_results
    from und3rstand_jax.data.loader import Feed, open_sources
    from und3rstand_jax.data.specification import SYNTHETIC, parse_data
    from und3rstand_jax.loading import load_backbone_and_probe
    from und3rstand_jax.support.errors import UserError
    from und3rstand_jax.support.option_values import parse_image_size

    data = options.data or (SYNTHETIC,)
    specs = parse_data(data)
    if options.pairs < 1 or options.batch_size < 1:
        raise UserError(f"--pairs and --batch-size must be at least 1; found {options.pairs} and {options.batch_size}")
    if not 0 <= options.seed < 2**32:
        raise UserError(f"--seed must be at least 0 and below 2^32; found {options.seed}")
    if options.out.exists() and not options.out.is_dir():
        raise UserError(f"{options.out} is a file; --out must name a folder")
    backbone, probes = load_backbone_and_probe(options.checkpoint, dtype=options.dtype, attention=options.attention)
    height, width = backbone.config.img_size
    shape = parse_image_size(options.resolution or f"{width}x{height}", backbone.config.patch_size, "--resolution")
    feed = Feed(
        specs=specs,
        shapes=(shape,),
        batch_size=min(options.batch_size, options.pairs),
        seed=options.seed,
        crop_jitter=False,
        unreadable=options.unreadable,
        workers=options.workers,
    )
    print(f"evaluating {len(probes.layer_ids)} layers on {options.pairs} pairs of {', '.join(data)}", file=sys.stderr, flush=True)
    sources = open_sources(specs, "val")
    for source in sources:
        if source is not None:
            for note in source.notes:
                print(f"{source.name}: {note}", file=sys.stderr)
    evaluation, unreadable = evaluate_on(backbone, probes, feed, sources, options.pairs, show_progress=True)
    facts = {name: value for name, value in dataclasses.asdict(options).items() if name not in ("out", "debug", "workers")}
    facts |= {"unreadable": unreadable}
    write_results(options.out, evaluation, facts | {"data": list(data), "resolution": f"{shape[1]}x{shape[0]}"})
    print(format_table(evaluation))
    print(f"table: {options.out / 'layers.csv'}\nplot:  {options.out / 'layers.png'}")
