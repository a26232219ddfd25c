"""The layer report: from its options to a folder with a page, figures and numbers.

    report.html               the interactive page, in one file
    report.json, arrays.npz   all numbers, and the arrays they were computed from
    figures/                  PNG and SVG: errors_by_layer, accuracy_by_layer (with ground truth), pose_by_layer (if poses were
                              found), correspondences, attention; PNG: depth_and_confidence

options ─▶ views ─▶ model and probes ─▶ `analyse_views` ─┬──────────────────────────────────┬─▶ `write_report`: numbers, figures, page
                                                         └─▶ `use_of_heads`, `lens_of_set` ─┘
"""

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax

from und3rstand_jax.analysis.analyse import analyse_views
from und3rstand_jax.analysis.attention_maps import comes_in_one_pass, held_bytes, pool_of
from und3rstand_jax.analysis.head_use import HeadUse, check_attention, use_of_heads
from und3rstand_jax.analysis.inputs import Inputs
from und3rstand_jax.analysis.own_head import lens_of_set
from und3rstand_jax.analysis.pair_passes import block_flops
from und3rstand_jax.analysis.view_set import SetAnalysis
from und3rstand_jax.model.backbone import Backbone
from und3rstand_jax.model.config import ModelConfig
from und3rstand_jax.model.output import Grids
from und3rstand_jax.model.start import token_grids
from und3rstand_jax.report.checkpoint import checkpoint_provenance, choose_layers, find_backbone, load_model
from und3rstand_jax.report.figures import write_figures
from und3rstand_jax.report.numbers import ARRAYS, FORMAT, NUMBERS, write_arrays, write_numbers
from und3rstand_jax.report.options import ReportOptions
from und3rstand_jax.report.page import write_page
from und3rstand_jax.report.views import PAIR, check_count, check_known_count, check_view_options, make_inputs, open_photos, view_count
from und3rstand_jax.support.errors import CheckpointError, OptionError
from und3rstand_jax.support.machine import machine_facts
from und3rstand_jax.support.output_folder import check_output_folder, output_folder
from und3rstand_jax.support.progress import Stopwatch
from und3rstand_jax.support.results import check_apart, result_of

PAGE, FIGURES = "report.html", "figures"

_KIND = result_of(FORMAT, NUMBERS)
_MOST_ON_A_CPU = 2e13  # flops of the blocks' products

_logger = logging.getLogger(__name__)


class Uses(NamedTuple):
    """What the model uses: each attention head, for a pair, and each layer through the model's own head."""

    heads: HeadUse | None
    lens: Mapping[str, tuple[float, ...]]


def make_report(options: ReportOptions, progress: bool = False) -> SetAnalysis:
    """Writes the report's folder, which appears complete or not at all, and returns what it shows.

    Args:
        options: the command's options.
        progress: whether a terminal shows progress bars, including that of a conversion.

    Raises:
        OptionError: the options contradict each other, or name a scene or size that does not exist.
        ImageError: a photo cannot be read.
        CheckpointError: the checkpoint cannot be loaded, gives no pointmaps, or has no head and `uses` is yes.
        LayerError: `layers` selects nothing, or a layer without a probe.
        OutputError: the folder may not be written.
        OSError: a file cannot be written.
    """
    check_view_options(options)
    if options.uses == "yes" and view_count(options) > PAIR:
        raise OptionError(f"--uses yes: that panel is for pairs of views; found {view_count(options)} views; omit --uses")
    stopwatch = Stopwatch()
    # Everything that can be refused early is checked before the checkpoint: converting one may download gigabytes.
    check_apart(options.out, [*options.images, Path(options.checkpoint)])
    check_known_count(options)
    check_output_folder(options.out, options.overwrite, _KIND)
    with stopwatch.time("images"):
        photos = open_photos(options)
    folder, info, config = find_backbone(options.checkpoint, progress)
    check_count(view_count(options), config, info.probes)
    layers = choose_layers(config, None if info.probes is None else info.probes.layer_ids, options.layers)
    with stopwatch.time("images"):
        inputs = make_inputs(options, photos, config)
    del photos
    with_uses = _with_uses(options.uses, config, token_grids(inputs.sizes, config))
    with output_folder(options.out, options.overwrite, _KIND) as partial:
        _logger.info("loading %s", options.checkpoint)
        with stopwatch.time("load"):
            model, probes = load_model(folder, options.dtype)
        grids = token_grids(inputs.sizes, config)
        gigabytes = held_bytes(config, grids, pool_of(config, grids)) / 1e9
        _logger.info("running the model on %s: %d probed layers, %.2f GB of attention", inputs.title, len(layers), gigabytes)
        record = {
            "checkpoint": checkpoint_provenance(options.checkpoint, info),
            **inputs.provenance,
            "layers": list(layers),
            "head": bool(config.heads),
            "dtype": options.dtype,
            **machine_facts(),
        }
        analysis = analyse_views(model, probes, layers, inputs, record, stopwatch, progress)
        uses = _uses(model, inputs, analysis, stopwatch, progress) if with_uses else None
        del model, probes
        _logger.info("writing page, figures and numbers")
        write_report(partial, analysis, stopwatch, progress, uses)
    return analysis


def _with_uses(wanted: str, config: ModelConfig, grids: Grids) -> bool:
    """Whether to find out what the model uses; with more than two views, only what its own head reads from each layer.

    Raises:
        CheckpointError: the option is "yes", but the backbone has no head.
    """
    if not config.heads:
        if wanted == "yes":
            raise CheckpointError(
                "--uses yes: what a head costs is measured on the points of the model's own head, and this checkpoint has none; omit --uses"
            )
        return False
    if wanted == "yes":
        check_attention(config)
    # With more than two views, only the lens is made, which takes a pass and the head for each layer; likewise if heads read all views.
    with_heads = len(grids) == PAIR and comes_in_one_pass(config)
    passes = 4 * len(config.blocks) * config.block_heads if with_heads else 2
    is_long = jax.default_backend() == "cpu" and passes * block_flops(config, grids) > _MOST_ON_A_CPU
    if wanted == "auto" and len(grids) == PAIR and not with_heads:
        _logger.info("leaving out the heads of the panel 'What the model uses': %s reads all views", config.blocks[0].across)
    if wanted == "auto" and len(grids) > PAIR:
        _logger.info("leaving out the panel 'What the model uses', which is for pairs of views; found %d views", len(grids))
    if wanted == "auto" and is_long and with_heads:
        _logger.info("skipping the panel 'What the model uses': its %d passes would take long on this CPU; --uses yes includes it", passes)
    elif wanted == "auto" and is_long:
        _logger.info(
            "leaving out the layers as the model's own head reads them, which would take long on this CPU; a smaller --size has them"
        )
    return wanted == "yes" or (wanted == "auto" and not is_long)


def _uses(model: Backbone, inputs: Inputs, analysis: SetAnalysis, stopwatch: Stopwatch, progress: bool) -> Uses:
    with stopwatch.time("uses"):
        with_heads = len(inputs.views) == PAIR and comes_in_one_pass(model.config)
        heads = use_of_heads(model, inputs, analysis, progress=progress) if with_heads else None
        layers = [layer.layer_id for layer in analysis.layers]
        return Uses(heads, lens_of_set(model, inputs, layers, analysis.reference_points, progress))


def write_report(folder: Path, analysis: SetAnalysis, stopwatch: Stopwatch, progress: bool = False, uses: Uses | None = None) -> None:
    """Writes all files of a report into an existing folder; `report.json` comes last, with the time that each of the others took.

    Args:
        folder: the folder to write into.
        analysis: what to report.
        stopwatch: times each file.
        progress: whether a terminal shows a progress bar.
        uses: what the model uses on these views, if that was measured.

    Raises:
        OSError: a file cannot be written.
    """

    def with_seconds() -> SetAnalysis:
        return dataclasses.replace(analysis, record={**analysis.record, "seconds": dict(stopwatch.seconds)})

    with stopwatch.time("arrays"):
        write_arrays(folder / ARRAYS, analysis)
    with stopwatch.time("figures"):
        write_figures(folder / FIGURES, analysis, progress)
    with stopwatch.time("page"):
        write_page(folder / PAGE, with_seconds(), *(uses or ()))
    write_numbers(folder / NUMBERS, with_seconds(), *(uses or ()))
