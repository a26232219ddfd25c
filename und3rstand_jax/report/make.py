"""Where a report comes from: its checkpoint.

A report as a folder of files.

report.html               to look at: a page of its own, without a server
report.json, arrays.npz   every figure, and what it was computed from
figures/                  errors_by_layer, accuracy_by_layer (with ground truth), pose_by_layer (where poses were found),
                          correspondences, attention: PNG and SVG; depth_and_confidence: PNG

From what was asked for to the folder of a report.
"""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from PIL.Image import Image
from tqdm import tqdm

from und3rstand_jax.analysis.inputs import Inputs, photo_inputs, scene_inputs
from und3rstand_jax.analysis.pair import Report, measure
from und3rstand_jax.checkpoint.format import CheckpointInfo, read_checkpoint_info
from und3rstand_jax.checkpoint.output_folder import check_output_folder, output_folder
from und3rstand_jax.loading import converted_checkpoint, load_backbone, load_backbone_and_probe
from und3rstand_jax.model.backbone import Backbone
from und3rstand_jax.model.config import BackboneConfig
from und3rstand_jax.model.images import open_photo
from und3rstand_jax.model.layer_ids import HEAD
from und3rstand_jax.model.output import pair
from und3rstand_jax.probes.probes import Probes
from und3rstand_jax.report.figures import (
    accuracy_figure,
    attention_figure,
    correspondences_figure,
    drawn_layers,
    errors_figure,
    pose_figure,
    write_depth_sheet,
)
from und3rstand_jax.report.numbers import ARRAYS, NUMBERS, format_table, write_arrays, write_numbers
from und3rstand_jax.report.options import ReportOptions
from und3rstand_jax.report.page import write_page
from und3rstand_jax.report.pointmap_files import Dtype, choose_layers
from und3rstand_jax.support.errors import UserError
from und3rstand_jax.support.machine import machine_facts
from und3rstand_jax.support.option_values import parse_image_size
from und3rstand_jax.support.progress import Stopwatch

# What only the way back to PyTorch needs, a line a tensor.
_LEFT_OUT = ("leaves", "unused", "second_names", "metadata", "config")


def checkpoint_facts(name: str, info: CheckpointInfo) -> dict[str, Any]:
    """Of backbone and probes: source, revision, sha256, what was read, inferred or defaulted, and how probes were trained."""
    parts = {
        part: {key: value for key, value in provenance.items() if key not in _LEFT_OUT} for part, provenance in info.provenance.items()
    }
    return {"path": name, **parts}


PAGE, FIGURES = "report.html", "figures"


def write_report(folder: Path, report: Report, stopwatch: Stopwatch) -> None:
    """Writes all files of a report into an existing folder; `report.json`, written last, tells what the others took.

    Raises:
        OSError: a file cannot be written.
    """
    with stopwatch.time("arrays"):
        write_arrays(folder / ARRAYS, report)
    with stopwatch.time("figures"):
        _write_figures(folder / FIGURES, report)
    with stopwatch.time("page"):
        write_page(folder / PAGE, _with_seconds(report, stopwatch))
    write_numbers(folder / NUMBERS, _with_seconds(report, stopwatch))


def _with_seconds(report: Report, stopwatch: Stopwatch) -> Report:
    return dataclasses.replace(report, facts={**report.facts, "seconds": dict(stopwatch.seconds)})


def _write_figures(folder: Path, report: Report) -> None:
    folder.mkdir()
    for name, figure in tqdm(_figures(report).items(), desc="figures", unit="figure", delay=2, file=sys.stderr, leave=False):
        drawn = figure(report)
        for kind in ("png", "svg"):
            drawn.savefig(folder / f"{name}.{kind}")
    write_depth_sheet(folder / "depth_and_confidence.png", report)


def _figures(report: Report) -> dict[str, Callable[[Report], Figure]]:
    """Those that this report has something to show in."""
    figures: dict[str, Callable[[Report], Figure]] = {"correspondences": correspondences_figure}
    if report.attention:
        figures["attention"] = attention_figure
    if any(layer.layer_id != HEAD for layer in drawn_layers(report)):
        figures["errors_by_layer"] = errors_figure
        if any(layer.pose.rotation_degrees is not None for layer in drawn_layers(report)):
            figures["pose_by_layer"] = pose_figure
        if report.truth is not None:
            figures["accuracy_by_layer"] = accuracy_figure
    return figures


def make_report(options: ReportOptions) -> str:
    """Writes the report's folder, which appears whole or not at all, and returns what is to be printed: a table and the page's path.

    Raises:
        UserError: photos, scene, checkpoint, layers or folder cannot be used.
        OSError: a file cannot be written.
    """
    stopwatch = Stopwatch()
    # What can be refused without the weights is refused before the time that loading takes.
    _check_choice(options)
    check_output_folder(options.out, options.overwrite, _is_report)
    # Photos too: of a checkpoint that is not converted yet, what it is may take gigabytes to find out.
    with stopwatch.time("images"):
        photos = tuple(map(open_photo, options.images))
    folder = converted_checkpoint(options.checkpoint)
    info = read_checkpoint_info(folder)
    if info.backbone is None:
        raise UserError(f"{options.checkpoint} holds probes and no backbone; convert them again with --backbone")
    layers = choose_layers(info.backbone, None if info.probes is None else info.probes.layer_ids, options.layers)
    with stopwatch.time("images"):
        inputs = _inputs(options, photos, info.backbone)
    del photos
    with output_folder(options.out, options.overwrite, _is_report) as written:
        _say(f"loading {options.checkpoint}")
        with stopwatch.time("load"):
            model, probes = _load(folder, info, options.dtype)
        _say(f"running the model on {inputs.title}: {len(layers)} probed layers, {_gigabytes(info.backbone, inputs):.2f} GB of attention")
        facts = {
            "checkpoint": checkpoint_facts(options.checkpoint, info),
            **inputs.facts,
            "layers": list(layers),
            "head": info.backbone.head_type is not None,
            "dtype": options.dtype,
            **machine_facts(),
        }
        report = measure(model, probes, layers, inputs, facts, stopwatch)
        del model, probes
        _say("writing page, figures and numbers")
        write_report(written, report, stopwatch)
    return f"{format_table(report)}\n\n{options.out / PAGE}"


def _check_choice(options: ReportOptions) -> None:
    if options.scene is None and len(options.images) != 2:
        raise UserError(f"expected two images, or --scene NUMBER; found {len(options.images)} images")
    if options.scene is not None and options.images:
        raise UserError(f"expected two images or --scene {options.scene}, found both; leave one out")
    if options.scene is None and options.data is not None:
        raise UserError(f"--data {options.data} chooses how scenes are rendered; give --scene NUMBER, or leave it out")


def _inputs(options: ReportOptions, photos: tuple[Image, ...], config: BackboneConfig) -> Inputs:
    if options.scene is not None:
        size = config.img_size if options.size is None else parse_image_size(options.size, config.patch_size, "--size")
        return scene_inputs(options.scene, "synthetic" if options.data is None else options.data, size)
    height, width = config.img_size if options.size is None else parse_image_size(options.size, config.patch_size, "--size")
    if options.size is not None and height != width:
        raise UserError(f"--size {options.size}: photos are brought to one side, in pixels, such as {max(height, width)}")
    return photo_inputs(pair(options.images), pair(photos), options.preprocessing, max(height, width))


def _load(folder: Path, info: CheckpointInfo, dtype: Dtype) -> tuple[Backbone, Probes | None]:
    return load_backbone_and_probe(folder, dtype=dtype) if info.has_probes else (load_backbone(folder, dtype=dtype), None)


def _gigabytes(config: BackboneConfig, inputs: Inputs) -> float:
    """What the weights of all cross-attention take, of both views, in float32."""
    tokens1, tokens2 = (height * width / config.patch_size**2 for height, width in inputs.sizes)
    return 2 * 4 * config.dec_depth * config.dec_num_heads * tokens1 * tokens2 / 1e9


def _is_report(folder: Path) -> bool:
    return (folder / NUMBERS).is_file() and (folder / PAGE).is_file()


def _say(message: str) -> None:
    print(message, file=sys.stderr)
