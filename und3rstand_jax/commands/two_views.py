"""`python -m train two-views`: whether a model uses its other views."""

import dataclasses
import logging
from pathlib import Path
from typing import Annotated

import tyro

from und3rstand_jax.commands.streams import show
from und3rstand_jax.support.errors import OptionError
from und3rstand_jax.support.option_kinds import Flag, Several, Whole
from und3rstand_jax.support.option_values import Dtype, check_seed, parse_image_size
from und3rstand_jax.support.progress import timed
from und3rstand_jax.support.text import printable

_NOT_RECORDED = ("out", "quiet", "json", "debug", "workers")

_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class TwoViewOptions:
    """Compares a model's errors on held-out sets of views with those of the best constant, and with its own when images are removed."""

    checkpoint: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="CHECKPOINT")]
    """Checkpoint with a head: a converted one, or any source of python -m convert."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE.json", help_behavior_hint="(optional)")] = None
    """Output file for all numbers. An earlier result of this command is replaced; any other file is refused."""
    data: Annotated[Several, tyro.conf.arg(metavar="[WEIGHT*]SOURCE", help_behavior_hint="(default: synthetic; repeatable)")] = ()
    """Data, given as in training: held-out sets to measure on, training sets for the constant."""
    views: Whole = 2
    """Views in a set; the model must take that many."""
    pairs: Whole = 512
    """Number of held-out sets."""
    constant_pairs: Whole = 2048
    """Number of training sets whose median is the constant; all are held in memory."""
    batch_size: Whole = 32
    """Sets per forward pass."""
    resolution: Annotated[str | None, tyro.conf.arg(metavar="WxH", help_behavior_hint="(default: the model's)")] = None
    """Size of all views in pixels, multiples of the patch size."""
    seed: Whole = 0
    """Seed of the scenes and of the order of training sets."""
    dtype: Dtype = "float32"
    """Data type of the model's computation."""
    workers: Whole = 2
    """Processes that read files."""
    quiet: Flag = False
    """Print results only: no messages and no progress bars. Warnings and errors stay on stderr."""
    json: Flag = False
    """Print all numbers as one JSON document on stdout in place of the table."""
    debug: Flag = False
    """Show the traceback of an error."""


def two_views(options: TwoViewOptions) -> None:
    """Measures the model, prints the table, and writes all numbers to `options.out`.

    Raises:
        UserError: an option, the checkpoint or the data cannot be used.
    """
    # Imported here because they bring in JAX, which --help does not need.
    from und3rstand_jax.analysis.two_views import as_json, format_result, is_two_views, predictor, two_views_on
    from und3rstand_jax.data.loader import Feed, open_sources
    from und3rstand_jax.data.specification import SYNTHETIC, parse_data
    from und3rstand_jax.loading import load_backbone
    from und3rstand_jax.support.files import replace_text
    from und3rstand_jax.support.results import check_output_file

    _check(options)
    data = options.data or (SYNTHETIC,)
    specs = parse_data(data, views=options.views)
    if options.out is not None:
        # Checked before the measurement, which takes minutes and would be lost.
        roots = [spec.root for spec in specs if spec.root is not None]
        check_output_file(options.out, [Path(options.checkpoint), *roots], is_two_views)
    with timed("loading %s", options.checkpoint):
        backbone = load_backbone(options.checkpoint, dtype=options.dtype)
    backbone.config.check_view_count(options.views)
    predict = predictor(backbone)
    height, width = backbone.config.img_size
    shape = parse_image_size(options.resolution or f"{width}x{height}", backbone.config.patch_size, "--resolution")
    feed = Feed(specs, (shape,), options.batch_size, options.seed, crop_jitter=False, workers=options.workers)
    opened = open_sources(specs, "val"), open_sources(specs, "train")
    result = two_views_on(predict, feed, *opened, options.pairs, options.constant_pairs, progress=True)
    if result.unreadable:
        _logger.warning("%d sets could not be read and were replaced by others", result.unreadable)
    asked = {name: value for name, value in dataclasses.asdict(options).items() if name not in _NOT_RECORDED}
    document = as_json(result, asked | {"data": data, "resolution": f"{shape[1]}x{shape[0]}"})
    show((document if options.json else format_result(result)).rstrip("\n"))
    if options.out is not None:
        replace_text(options.out, document)
        if not options.json:
            show(f"figures: {printable(options.out)}")


def _check(options: TwoViewOptions) -> None:
    if options.views < 2:
        raise OptionError(f"--views must be at least 2, since a single view has no others; found {options.views}")
    if options.pairs < 2 or options.batch_size < 2:
        raise OptionError(
            f"--pairs and --batch-size must be at least 2, so that one pair can take another's image; "
            f"found {options.pairs} and {options.batch_size}"
        )
    if options.constant_pairs < 1:
        raise OptionError(f"--constant-pairs must be at least 1; found {options.constant_pairs}")
    check_seed(options.seed)
