"""From what was asked for to the folder of a report."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from PIL.Image import Image

from und3rstand_jax.checkpoint import CheckpointInfo, read_checkpoint_info
from und3rstand_jax.config import BackboneConfig
from und3rstand_jax.errors import UserError
from und3rstand_jax.image_size import parse_image_size
from und3rstand_jax.images import open_photo
from und3rstand_jax.loading import converted_checkpoint, load_backbone, load_backbone_and_probe
from und3rstand_jax.machine import machine_facts
from und3rstand_jax.model import Backbone, Probes
from und3rstand_jax.output import pair
from und3rstand_jax.output_folder import check_output_folder, output_folder
from und3rstand_jax.report.facts import checkpoint_facts
from und3rstand_jax.report.inputs import Inputs, photo_inputs, scene_inputs
from und3rstand_jax.report.measure import measure
from und3rstand_jax.report.numbers import NUMBERS
from und3rstand_jax.report.stopwatch import Stopwatch
from und3rstand_jax.report.table import format_table
from und3rstand_jax.report.writing import PAGE, write_report
from und3rstand_jax.run import Dtype, choose_layers

if TYPE_CHECKING:
    from und3rstand_jax.report.command import ReportOptions


def make_report(options: "ReportOptions") -> str:
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


def _check_choice(options: "ReportOptions") -> None:
    if options.scene is None and len(options.images) != 2:
        raise UserError(f"expected two images, or --scene NUMBER; found {len(options.images)} images")
    if options.scene is not None and options.images:
        raise UserError(f"expected two images or --scene {options.scene}, found both; leave one out")
    if options.scene is None and options.data is not None:
        raise UserError(f"--data {options.data} chooses how scenes are rendered; give --scene NUMBER, or leave it out")


def _inputs(options: "ReportOptions", photos: tuple[Image, ...], config: BackboneConfig) -> Inputs:
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
