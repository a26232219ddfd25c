"""`python -m train evaluate`: how accurately probes read the geometry from each layer of a checkpoint."""

import dataclasses
import logging
from pathlib import Path
from typing import Annotated, Literal

import tyro

from und3rstand_jax.commands.streams import show, show_record
from und3rstand_jax.support.errors import OptionError
from und3rstand_jax.support.option_kinds import Flag, Several, Whole
from und3rstand_jax.support.option_values import AttentionImplementation, Dtype, check_seed, parse_image_size
from und3rstand_jax.support.progress import timed
from und3rstand_jax.support.text import printable

_NOT_RECORDED = ("out", "overwrite", "quiet", "json", "debug", "workers")

_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class EvaluateOptions:
    """Evaluates probes on held-out pairs: writes metrics.json, layers.csv and layers.png, and prints a table."""

    checkpoint: Annotated[str, tyro.conf.arg(metavar="DIR")]
    """Checkpoint with probes: the probes/ folder of a run, a converted checkpoint, or any source of python -m convert."""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("evaluation")
    """Output folder; it appears complete or not at all."""
    data: Annotated[Several, tyro.conf.arg(metavar="[WEIGHT*]SOURCE", help_behavior_hint="(default: synthetic; repeatable)")] = ()
    """Data to take held-out pairs from, given as in training."""
    pairs: Whole = 64
    """Number of pairs, or of sets of more views."""
    views: Whole = 2
    """Views in a set: 2 for pairs; more needs a backbone that takes that many."""
    batch_size: Whole = 4
    """Pairs per forward pass."""
    resolution: Annotated[str | None, tyro.conf.arg(metavar="WxH", help_behavior_hint="(default: the backbone's)")] = None
    """Size of all views in pixels, multiples of the patch size."""
    seed: Whole = 0
    """Seed of the scenes. With a run's seed, they are the pairs that the run was validated on."""
    dtype: Dtype = "float32"
    """Data type of the backbone's computation."""
    attention: AttentionImplementation = "auto"
    """Implementation of the backbone's attention."""
    workers: Whole = 2
    """Processes that read files."""
    unreadable: Literal["skip", "fail"] = "skip"
    """What to do about a pair whose files cannot be read: replace it by another, or stop."""
    overwrite: Flag = False
    """Replace an earlier evaluation in DIR. A folder with other files in it is refused."""
    quiet: Flag = False
    """Print results only: no messages and no progress bars. Warnings and errors stay on stderr."""
    json: Flag = False
    """Print the content of metrics.json on stdout in place of the table."""
    debug: Flag = False
    """Show the traceback of an error."""


def evaluate(options: EvaluateOptions) -> None:
    """Evaluates probes, writes the files and prints the table.

    Raises:
        UserError: an option, the checkpoint or the data cannot be used.
    """
    # Imported here because they bring in JAX, which --help does not need.
    from und3rstand_jax.analysis.evaluate import evaluate_on
    from und3rstand_jax.analysis.evaluation_files import FORMAT, METRICS, PLOT, TABLE, format_table, write_results
    from und3rstand_jax.data.loader import Feed, open_sources
    from und3rstand_jax.data.specification import SYNTHETIC, parse_data
    from und3rstand_jax.loading import load_backbone_and_probe
    from und3rstand_jax.report.checkpoint import find_backbone
    from und3rstand_jax.report.views import check_count
    from und3rstand_jax.support.output_folder import check_output_folder, output_folder
    from und3rstand_jax.support.results import check_apart, result_of

    # Everything that can be refused without the weights is checked before they are loaded.
    data = options.data or (SYNTHETIC,)
    specs = parse_data(data, views=options.views)
    if options.pairs < 1 or options.batch_size < 1:
        raise OptionError(f"--pairs and --batch-size must be at least 1; found {options.pairs} and {options.batch_size}")
    check_seed(options.seed)
    check_apart(options.out, [Path(options.checkpoint)], [spec.root for spec in specs if spec.root is not None])
    kind = result_of(FORMAT, METRICS)
    check_output_folder(options.out, options.overwrite, kind)
    _, info, config = find_backbone(options.checkpoint, progress=True)
    check_count(options.views, config, info.probes)
    with timed("loading %s", options.checkpoint):
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
    _logger.info("evaluating %d layers on %d %s of %s", len(probes.layer_ids), options.pairs, feed.things, ", ".join(data))
    sources = open_sources(specs, "val")
    for source in sources:
        if source is not None:
            for note in source.notes:
                _logger.info("%s: %s", source.name, note)
    with output_folder(options.out, options.overwrite, kind) as folder:
        evaluation, unreadable = evaluate_on(backbone, probes, feed, sources, options.pairs, progress=True)
        facts = {name: value for name, value in dataclasses.asdict(options).items() if name not in _NOT_RECORDED}
        facts |= {"unreadable": unreadable, "data": list(data), "resolution": f"{shape[1]}x{shape[0]}"}
        with timed("writing %s", options.out):
            write_results(folder, evaluation, facts)
    if options.json:
        show_record(options.out / METRICS)
        return
    show(format_table(evaluation))
    show(f"table: {printable(options.out / TABLE)}\nplot:  {printable(options.out / PLOT)}")
