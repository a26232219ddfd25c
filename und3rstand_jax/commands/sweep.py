"""`python -m und3rstand_jax sweep`: what a model loses without each of its heads and sublayers."""

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from und3rstand_jax.commands.streams import show, show_record
from und3rstand_jax.support.errors import CheckpointError, OptionError
from und3rstand_jax.support.option_kinds import Flag, Real, Several, Whole
from und3rstand_jax.support.option_values import Dtype, check_seed, parse_image_size
from und3rstand_jax.support.progress import timed
from und3rstand_jax.support.text import printable

if TYPE_CHECKING:
    from und3rstand_jax.analysis.ablation_study import Question
    from und3rstand_jax.analysis.pair_measures import Pairs
    from und3rstand_jax.data.loader import Feed
    from und3rstand_jax.data.specification import DataSpec
    from und3rstand_jax.support.pieces import Pieces


_NOT_ASKED = ("out", "overwrite", "quiet", "json", "debug", "workers", "batch_size")
_NOT_OF_PIECES = ("attribution", "constant_pairs")
"""Options that do not affect the sweep's own results."""


@dataclasses.dataclass(frozen=True)
class SweepOptions:
    """Removes heads and sublayers of a DUSt3R, MASt3R or VGGT, one by one and in sets, and measures what that costs on held-out pairs.

    Writes every effect against the unedited run, as mean ± standard error over pairs (effects.json, effects.csv), and figures of blocks ×
    heads (PNG, SVG) to one folder. If interrupted, it continues when the same command is given again.
    """

    out: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """Folder for the results; it appears complete or not at all."""
    checkpoint: Annotated[str, tyro.conf.arg(metavar="SOURCE", help_behavior_hint="(default: the pocket model of a clone)")] = ""
    """Checkpoint with a head: a converted one, or any source of python -m convert."""
    sites: Annotated[str | None, tyro.conf.arg(metavar="PATTERNS", help_behavior_hint="(default: heads between the views)")] = None
    """What to remove, one place at a time: heads (.heads:0-3), what a step adds (.update), layers; @1, @2, … for one view; '' for none."""
    by: Annotated[str, tyro.conf.arg(metavar="zero,mean,resample,noise")] = "zero"
    """How to remove it: zero sets it to zero, mean to its mean over the data, resample to its value in another pair; noise adds noise."""
    set: Annotated[Several, tyro.conf.arg(metavar="PATTERNS", help_behavior_hint="(repeatable)")] = ()
    """What to remove together, such as 'decoder.3.cross_attn.heads:0@2,decoder.4.cross_attn.heads:0@2'."""
    top: Annotated[int, tyro.conf.arg(metavar="K")] = 0
    """Also remove together the K heads between views, among --sites, that attend most to the true place."""
    random_sets: Annotated[int, tyro.conf.arg(metavar="N")] = 0
    """Controls: for each set, N draws of as many random heads of the same blocks, excluding the set's own."""
    like: Annotated[str, tyro.conf.arg(metavar="PATTERNS", help_behavior_hint="(default: the heads of those blocks)")] = ""
    """Draw the controls from these heads."""
    measure: Literal["head", "probes"] = "head"
    """Measure the points, matches and pose of the model's head; or the points of every probe after the edit, to see where it is felt."""
    attribution: Flag = False
    """Also estimate every effect by one backward pass, and correlate that with the sweep by zero."""
    constant_pairs: Annotated[int, tyro.conf.arg(metavar="N")] = 0
    """Also measure the best constant pointmap: the median of N training pairs."""
    data: Annotated[Several, tyro.conf.arg(metavar="[WEIGHT*]SOURCE", help_behavior_hint="(default: synthetic; repeatable)")] = ()
    """Data to take held-out pairs from, given as in training."""
    pairs: Whole = 64
    """Number of held-out pairs; all are held in memory."""
    views: Whole = 2
    """Views in a set: 2 for pairs; more needs a model that takes that many."""
    batch_size: Whole = 64
    """Maximum number of pairs in one pass; fewer are taken if they do not fit into memory."""
    resolution: Annotated[str | None, tyro.conf.arg(metavar="WxH", help_behavior_hint="(default: the backbone's)")] = None
    """Size of all views in pixels, multiples of the patch size."""
    noise: Real = 1.0
    """Standard deviation of --by noise, as a multiple of the activation's own."""
    seed: Whole = 0
    """Seed of the scenes, of noise and of random sets."""
    dtype: Dtype = "float32"
    """Data type of the backbone's computation."""
    workers: Whole = 2
    """Processes that read files."""
    overwrite: Flag = False
    """Replace an earlier sweep in --out. A folder with other files in it is refused."""
    quiet: Flag = False
    """Print results only: no messages and no progress bars. Warnings and errors stay on stderr."""
    json: Flag = False
    """Print the content of effects.json on stdout in place of the table."""
    debug: Flag = False
    """Show the traceback of an error."""


def sweep(options: SweepOptions) -> None:
    """Runs the study, writes the files and prints the table.

    Raises:
        UserError: an option, the checkpoint or the data cannot be used.
    """
    # Imported here because they bring in JAX, which --help does not need.
    from und3rstand_jax.analysis.ablation_files import FORMAT, RECORD
    from und3rstand_jax.analysis.ablation_study import Question
    from und3rstand_jax.analysis.ablations import check_by, places_of
    from und3rstand_jax.analysis.steps import kinds_of, pattern_of
    from und3rstand_jax.data.specification import SYNTHETIC, parse_data
    from und3rstand_jax.model.sites import HEADS
    from und3rstand_jax.report.checkpoint import checkpoint_provenance, find_backbone
    from und3rstand_jax.report.views import check_count
    from und3rstand_jax.support.locks import locked
    from und3rstand_jax.support.output_folder import check_output_folder
    from und3rstand_jax.support.pieces import Pieces
    from und3rstand_jax.support.results import check_apart, result_of
    from und3rstand_jax.support.versions import own_version

    # Everything that can be refused without the weights is checked before they are loaded.
    _check(options)
    data = options.data or (SYNTHETIC,)
    specs = parse_data(data, views=options.views)
    by = check_by([name.strip() for name in options.by.split(",") if name.strip()], options.pairs)
    check_apart(options.out, [Path(options.checkpoint)], [spec.root for spec in specs if spec.root is not None])
    check_output_folder(options.out, options.overwrite, result_of(FORMAT, RECORD))
    folder, info, config = find_backbone(options.checkpoint, progress=True)
    check_count(options.views, config, info.probes if options.measure == "probes" else None)
    if options.sites is None:
        options = dataclasses.replace(options, sites=pattern_of(kinds_of(config).across, config, HEADS))
    sites = options.sites or ""
    for pattern in (sites, *options.set, options.like):
        places_of(pattern, config, options.views)
    if options.measure == "probes" and info.probes is None:
        raise CheckpointError(f"{options.checkpoint} has no probes to measure by; give a checkpoint with probes, or --measure head")
    question = Question(
        sites=sites,
        by=by,
        sets=options.set,
        top=options.top,
        random_sets=options.random_sets,
        like=options.like,
        measure=options.measure,
        noise=options.noise,
        attribute=options.attribution,
        seed=options.seed,
    )
    asked = {name: value for name, value in dataclasses.asdict(options).items() if name not in _NOT_ASKED} | {"data": list(data)}
    provenance = checkpoint_provenance(options.checkpoint, info)
    # Unfinished sweeps of earlier versions, which were all of pairs, can be resumed.
    of_pieces = {name: value for name, value in asked.items() if name not in _NOT_OF_PIECES and (name, value) != ("views", 2)}
    out = options.out.resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    with locked(out.with_name(f".{out.name}.sweep.lock"), str(options.out)):
        pieces = Pieces(out.with_name(f"{out.name}.unfinished"), of_pieces | {"checkpoint": provenance, "version": own_version()})
        _measure_and_write(options, question, specs, folder, asked | {"provenance": provenance}, pieces)


def _measure_and_write(
    options: SweepOptions, question: "Question", specs: "tuple[DataSpec, ...]", folder: Path, facts: dict[str, Any], pieces: "Pieces"
) -> None:
    from und3rstand_jax.analysis.ablation_files import FORMAT, RECORD, TABLE, as_csv, as_json, effects_figure, format_table, record_head
    from und3rstand_jax.analysis.ablation_study import ablation_study
    from und3rstand_jax.analysis.held_out import held_out_pairs
    from und3rstand_jax.data.loader import Feed
    from und3rstand_jax.report.checkpoint import load_model
    from und3rstand_jax.support.machine import machine_facts
    from und3rstand_jax.support.output_folder import output_folder
    from und3rstand_jax.support.results import marked, result_of
    from und3rstand_jax.support.text import to_json

    with timed("loading %s", options.checkpoint):
        backbone, probes = load_model(folder, options.dtype, progress=True)
    height, width = backbone.config.img_size
    shape = parse_image_size(options.resolution or f"{width}x{height}", backbone.config.patch_size, "--resolution")
    feed = Feed(specs, (shape,), min(options.batch_size, options.pairs), options.seed, crop_jitter=False, workers=options.workers)
    pairs = held_out_pairs(feed, options.pairs, progress=True)
    constant = _constant(feed, options.constant_pairs, pairs) if options.constant_pairs else None
    study = ablation_study(backbone, probes, pairs, question, options.batch_size, pieces, progress=True)
    with timed("writing %s", options.out), output_folder(options.out, options.overwrite, result_of(FORMAT, RECORD)) as partial:
        (partial / TABLE).write_text(as_csv(study), encoding="utf-8")
        for way in question.by:
            figure = effects_figure(study, way)
            if figure is not None:
                for suffix in ("png", "svg"):
                    figure.savefig(partial / f"effects_{way}.{suffix}", dpi=150)
        record = {**record_head(facts, constant), **as_json(study), **machine_facts()}
        (partial / RECORD).write_text(to_json({**marked(partial, FORMAT, RECORD), **record}), encoding="utf-8")
    pieces.remove()
    if options.json:
        show_record(options.out / RECORD)
        return
    show(format_table(study, constant))
    show(f"\neffects: {printable(options.out / TABLE)}\nfigures: {printable(options.out)}")


def _check(options: SweepOptions) -> None:
    if options.pairs < 1 or options.batch_size < 1:
        raise OptionError(f"--pairs and --batch-size must be at least 1; found {options.pairs} and {options.batch_size}")
    if min(options.top, options.random_sets, options.constant_pairs) < 0:
        raise OptionError("--top, --random-sets and --constant-pairs must be at least 0")
    if options.attribution and ("zero" not in options.by or options.measure != "head"):
        raise OptionError("--attribution is compared with the sweep by zero, measured on the head; give --by zero and --measure head")
    if options.random_sets and not (options.set or options.top):
        raise OptionError("--random-sets draws the controls of sets; give --set or --top")
    if options.like and not options.random_sets:
        raise OptionError("--like says what controls are drawn from; give --random-sets too")
    if not (math.isfinite(options.noise) and options.noise > 0):
        raise OptionError(f"--noise must be a positive finite factor; found {options.noise}")
    check_seed(options.seed)


def _constant(feed: "Feed", count: int, pairs: "Pairs") -> tuple[float, ...]:
    from und3rstand_jax.analysis.batch_errors import assembled
    from und3rstand_jax.analysis.constant_pointmap import best_constant, constant_errors
    from und3rstand_jax.data.loader import open_sources, training_batches

    feed = dataclasses.replace(feed, batch_size=min(feed.batch_size, count))
    batches = assembled(feed, training_batches(feed, open_sources(feed.specs, "train"), 0), count, [])
    return constant_errors(best_constant(batches, count, progress=True), pairs.truth.truth)
