"""The layer report: from its options to a folder with a page, figures and numbers.

    report.html               the interactive page, in one file
    report.json, arrays.npz   all numbers, and the arrays they were computed from
    figures/                  PNG and SVG: errors_by_layer, accuracy_by_layer (with ground truth), pose_by_layer (where poses were
                              found), correspondences, attention; PNG: depth_and_confidence

options ─▶ two views ─▶ model and probes ─▶ `analyse_pair` ─▶ `write_report`: numbers, figures, page
"""

import dataclasses
import logging
from pathlib import Path

from PIL.Image import Image

from und3rstand_jax.analysis.inputs import Inputs, photo_inputs, scene_inputs
from und3rstand_jax.analysis.pair import PairAnalysis, analyse_pair
from und3rstand_jax.checkpoint.format import read_checkpoint_info
from und3rstand_jax.loading import converted_checkpoint
from und3rstand_jax.model.config import BackboneConfig
from und3rstand_jax.model.images import open_photo
from und3rstand_jax.model.output import pair
from und3rstand_jax.report.checkpoint import checkpoint_provenance, choose_layers, load_model
from und3rstand_jax.report.figures import write_figures
from und3rstand_jax.report.numbers import ARRAYS, FORMAT, NUMBERS, write_arrays, write_numbers
from und3rstand_jax.report.options import ReportOptions
from und3rstand_jax.report.page import write_page
from und3rstand_jax.support.errors import CheckpointError, OptionError
from und3rstand_jax.support.machine import machine_facts
from und3rstand_jax.support.option_values import parse_image_size
from und3rstand_jax.support.output_folder import check_output_folder, output_folder
from und3rstand_jax.support.progress import Stopwatch
from und3rstand_jax.support.results import check_apart, result_of

PAGE, FIGURES = "report.html", "figures"

_KIND = result_of(FORMAT, NUMBERS)

_logger = logging.getLogger(__name__)


def make_report(options: ReportOptions, progress: bool = False) -> PairAnalysis:
    """Writes the report's folder, which appears complete or not at all, and returns what it shows.

    Args:
        options: of the command.
        progress: whether a terminal shows progress bars, of a conversion too.

    Raises:
        OptionError: the options contradict each other, or name a scene or size that does not exist.
        ImageError: a photo cannot be read.
        CheckpointError: the checkpoint cannot be loaded, or gives no pointmaps.
        LayerError: `layers` selects nothing, or a layer without a probe.
        OutputError: the folder may not be written.
        OSError: a file cannot be written.
    """
    if options.scene is None and len(options.images) != 2:
        raise OptionError(f"expected two images, or --scene NUMBER; found {len(options.images)} images")
    if options.scene is not None and options.images:
        raise OptionError(f"expected two images or --scene {options.scene}, found both; omit one")
    if options.scene is None and options.data is not None:
        raise OptionError(f"--data {options.data} places the cameras of rendered scenes; give --scene NUMBER, or omit --data")
    stopwatch = Stopwatch()
    # What can be refused early is refused before the checkpoint is looked at: converting one may download gigabytes.
    check_apart(options.out, [*options.images, Path(options.checkpoint)])
    check_output_folder(options.out, options.overwrite, _KIND)
    with stopwatch.time("images"):
        photos = tuple(map(open_photo, options.images))
    folder = converted_checkpoint(options.checkpoint, progress=progress)
    info = read_checkpoint_info(folder)
    config = info.backbone
    if config is None:
        raise CheckpointError(f"{options.checkpoint} holds probes and no backbone; convert them again with --backbone")
    layers = choose_layers(config, None if info.probes is None else info.probes.layer_ids, options.layers)
    with stopwatch.time("images"):
        inputs = _inputs(options, photos, config)
    del photos
    with output_folder(options.out, options.overwrite, _KIND) as partial:
        _logger.info("loading %s", options.checkpoint)
        with stopwatch.time("load"):
            model, probes = load_model(folder, options.dtype)
        tokens1, tokens2 = (height * width / config.patch_size**2 for height, width in inputs.sizes)
        gigabytes = 2 * 4 * config.dec_depth * config.dec_num_heads * tokens1 * tokens2 / 1e9  # float32, both directions
        _logger.info("running the model on %s: %d probed layers, %.2f GB of attention", inputs.title, len(layers), gigabytes)
        record = {
            "checkpoint": checkpoint_provenance(options.checkpoint, info),
            **inputs.provenance,
            "layers": list(layers),
            "head": config.head_type is not None,
            "dtype": options.dtype,
            **machine_facts(),
        }
        analysis = analyse_pair(model, probes, layers, inputs, record, stopwatch, progress)
        del model, probes
        _logger.info("writing page, figures and numbers")
        write_report(partial, analysis, stopwatch, progress)
    return analysis


def _inputs(options: ReportOptions, photos: tuple[Image, ...], config: BackboneConfig) -> Inputs:
    """Both views at the size asked for: a rendered scene, or the photos."""
    height, width = config.img_size if options.size is None else parse_image_size(options.size, config.patch_size, "--size")
    if options.scene is not None:
        return scene_inputs(options.scene, "synthetic" if options.data is None else options.data, (height, width))
    if options.size is not None and height != width:
        raise OptionError(f"--size {options.size}: photos are resized to one side, in pixels, such as {max(height, width)}")
    return photo_inputs(pair(options.images), pair(photos), options.preprocessing, max(height, width))


def write_report(folder: Path, analysis: PairAnalysis, stopwatch: Stopwatch, progress: bool = False) -> None:
    """Writes all files of a report into an existing folder; `report.json` comes last, with the time that each of the others took.

    Args:
        folder: to write into.
        analysis: what to report.
        stopwatch: times each file.
        progress: whether a terminal shows a progress bar.

    Raises:
        OSError: a file cannot be written.
    """

    def with_seconds() -> PairAnalysis:
        return dataclasses.replace(analysis, record={**analysis.record, "seconds": dict(stopwatch.seconds)})

    with stopwatch.time("arrays"):
        write_arrays(folder / ARRAYS, analysis)
    with stopwatch.time("figures"):
        write_figures(folder / FIGURES, analysis, progress)
    with stopwatch.time("page"):
        write_page(folder / PAGE, with_seconds())
    write_numbers(folder / NUMBERS, with_seconds())
