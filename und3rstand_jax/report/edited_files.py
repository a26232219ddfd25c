"""An edited run of a model and its probes beside the unedited one, as files in one folder.

layers/, head.npz, point_clouds/   the edited run's pointmaps, see `und3rstand_jax.report.layer_files`
contact_sheet.png                  depth and confidence of both runs, layer by layer, and their differences
edits.npz                          the arrays that edits name, if there are any
run.json                           the edits, what was run, and how far each layer's points moved; `und3rstand_jax.read_edits` reads it
"""

import dataclasses
import logging
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from und3rstand_jax.analysis.inputs import Inputs
from und3rstand_jax.model.affine import SiteEdits
from und3rstand_jax.model.backbone import Backbone
from und3rstand_jax.model.config import ModelConfig
from und3rstand_jax.model.edit_files import edits_to_json
from und3rstand_jax.model.edits import Edits
from und3rstand_jax.model.head_choice import pointmap_head
from und3rstand_jax.model.layer_ids import layer_name
from und3rstand_jax.model.output import BackboneOutput
from und3rstand_jax.model.site_edits import first_edited_layer, resolve_edits
from und3rstand_jax.model.start import token_grids
from und3rstand_jax.probes.probes import Probes
from und3rstand_jax.report.checkpoint import checkpoint_provenance, choose_layers, find_backbone, load_model, tell_what_is_missing
from und3rstand_jax.report.contact_sheet import ContactSheet
from und3rstand_jax.report.edit_effect import MEANING, LayerEffect
from und3rstand_jax.report.given_edits import changeable, edit_files, edit_text, given_edits, neutral
from und3rstand_jax.report.layer_files import FRAME, Views, geometry_by_layer, sizes_text, write_layer
from und3rstand_jax.report.options import EditOptions, PointClouds
from und3rstand_jax.report.views import check_count, check_known_count, check_view_options, make_inputs, open_photos, view_count
from und3rstand_jax.support.machine import machine_facts
from und3rstand_jax.support.output_folder import check_output_folder, output_folder
from und3rstand_jax.support.progress import Stopwatch, with_progress
from und3rstand_jax.support.results import check_apart, marked, result_of
from und3rstand_jax.support.text import JsonObject, to_json

RECORD, ARRAYS, SHEET = "run.json", "edits.npz", "contact_sheet.png"
FORMAT = "und3rstand_jax edited pointmaps"

_KIND = result_of(FORMAT, RECORD)
_LISTED = 4  # edits that the contact sheet and the log name

_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What is run on a set of views.

    Attributes:
        layers: the probed layers to decode, in network order.
        left_out: probed layers that are not decoded because they are before `first`.
        first: the first edited layer.
        head: whether the head runs.
    """

    layers: tuple[str, ...]
    left_out: tuple[str, ...]
    first: str
    head: bool


def write_edited_pointmaps(options: EditOptions, progress: bool = False) -> list[LayerEffect]:
    """Runs the model with and without the edits, and writes the folder of files, which appears complete or not at all.

    Both runs use one compiled program with different numbers: what the edits do not affect is equal in both, bit for bit.

    Args:
        options: the command's options.
        progress: whether a terminal shows progress bars, including that of a conversion.

    Returns:
        What the edits change in each layer and in the head.

    Raises:
        OptionError: the options contradict each other, give no edit, or name a scene or size that does not exist.
        EditError: the edits cannot be read, or cannot be made on this model and these views.
        ImageError: a photo cannot be read.
        CheckpointError: the checkpoint cannot be loaded, or gives no pointmaps.
        LayerError: `layers` selects nothing, or a layer without a probe; a site or its heads do not exist.
        OutputError: the folder may not be written.
        OSError: a file cannot be written.
    """
    check_view_options(options, least=1)
    stopwatch = Stopwatch()
    # Everything that can be refused early is checked before the checkpoint: converting one may download gigabytes.
    check_apart(options.out, [*options.images, *edit_files(options), Path(options.checkpoint)])
    check_known_count(options)
    check_output_folder(options.out, options.overwrite, _KIND)
    edits = given_edits(options)
    photos = open_photos(options)
    folder, info, config = find_backbone(options.checkpoint, progress)
    check_count(view_count(options), config, info.probes)
    plan = _plan(edits, config, None if info.probes is None else info.probes.layer_ids, options.layers)
    with stopwatch.time("images"):
        inputs = make_inputs(options, photos, config)
    sites = resolve_edits(edits, config, token_grids(inputs.sizes, config), 1)
    with output_folder(options.out, options.overwrite, _KIND) as partial:
        _logger.info("loading %s", options.checkpoint)
        with stopwatch.time("load"):
            model, probes = load_model(folder, options.dtype)
        _tell(edits, plan, probes is not None)
        unedited = _run(model, inputs, plan, neutral(sites), "unedited, with compilation", stopwatch)
        edited = _run(model, inputs, plan, sites, "edited", stopwatch)
        with stopwatch.time("probes and files"):
            layers = _both(unedited, edited, probes, plan)
            effects, outputs = _write_outputs(partial, inputs, edits, layers, len(plan.layers) + plan.head, options.point_clouds, progress)
        meaning = {name: MEANING[name] for name in effects[0].as_json}
        record = _edits_record(partial, edits, plan)
        record |= {"checkpoint": checkpoint_provenance(options.checkpoint, info), **inputs.provenance, "dtype": options.dtype}
        record |= {"frame": FRAME, "outputs": outputs, "meaning": meaning, "seconds": dict(stopwatch.seconds), **machine_facts()}
        text = to_json({**marked(partial, FORMAT, RECORD), **record}, indent=2)
        (partial / RECORD).write_text(text, encoding="utf-8")
    _logger.info("wrote %s in %.1f s", options.out, sum(stopwatch.seconds.values()))
    return effects


def _plan(edits: Edits, config: ModelConfig, probed: tuple[str, ...] | None, selection: str | None) -> _Plan:
    """Which layers to decode: those selected, by default all that the edits can change."""
    first, layers = first_edited_layer(edits, config), choose_layers(config, probed, selection)
    has_head = bool(config.heads)
    # Edits behind every layer leave only the head to decode; without one, all layers are shown, unchanged.
    changed = changeable(layers, first, config) if selection is None else layers
    decoded = changed if changed or has_head else layers
    return _Plan(decoded, tuple(layer for layer in layers if layer not in decoded), first, has_head)


def _tell(edits: Edits, plan: _Plan, has_probes: bool) -> None:
    """Logs what is edited, and what is left out."""
    tell_what_is_missing(has_probes, plan.head, len(plan.layers))
    for line in _edit_lines(edits):
        _logger.info("edit %s", line)
    if plan.left_out:
        count = f"{len(plan.left_out)} probed layers" if len(plan.left_out) > 1 else plan.left_out[0]
        _logger.info("the first edited layer is %s; layers before it cannot change: leaving out %s (--layers)", plan.first, count)


def _edit_lines(edits: Edits) -> list[str]:
    """The first few edits in words."""
    more = [f"and {len(edits) - _LISTED} more"] if len(edits) > _LISTED else []
    return [*map(edit_text, list(edits)[:_LISTED]), *more]


def _run(model: Backbone, inputs: Inputs, plan: _Plan, edits: SiteEdits, name: str, stopwatch: Stopwatch) -> BackboneOutput:
    """One pass over all views."""
    sizes = sizes_text(inputs.sizes)
    _logger.info("running the model on %s, %s pixels: %s", inputs.title, sizes, name.partition(",")[0])
    with stopwatch.time(name):
        # JAX returns before it has finished; without waiting, the first layer would seem to take all the time.
        return jax.block_until_ready(model(*inputs.views, capture=plan.layers, head=pointmap_head(model.config), edits=edits))


def _both(unedited: BackboneOutput, edited: BackboneOutput, probes: Probes | None, plan: _Plan) -> Iterator[tuple[str, Views, Views]]:
    """Each layer's geometry in the unedited and in the edited run, with the head's last."""
    runs = (geometry_by_layer(features, probes, plan.layers) for features in (unedited, edited))
    for (layer, before), (_, after) in zip(*runs, strict=True):
        yield layer, before, after


def _write_outputs(
    folder: Path,
    inputs: Inputs,
    edits: Edits,
    layers: Iterator[tuple[str, Views, Views]],
    count: int,
    clouds: PointClouds,
    progress: bool,
) -> tuple[list[LayerEffect], dict[str, JsonObject]]:
    """Writes each layer's files in turn, then the contact sheet; returns the measurements, and each layer's entry in run.json."""
    notes = "\n".join(f"Edit: {line}" for line in _edit_lines(edits))
    sheet = ContactSheet(inputs.images, rows=3 * count, title=f"What edits change on {inputs.title}", notes=notes)
    truth = None if inputs.truth is None else inputs.truth.views
    effects: list[LayerEffect] = []
    outputs: dict[str, JsonObject] = {}
    for layer, before, after in with_progress(layers, "writing", count, "layer", progress):
        effect = LayerEffect.of(layer, before, after, truth)
        effects.append(effect)
        outputs[layer] = {**write_layer(folder, layer, after, inputs.images, clouds), **effect.as_json}
        sheet.add_comparison(layer_name(layer), before, after)
    sheet.write(folder / SHEET)
    return effects, outputs


def _edits_record(folder: Path, edits: Edits, plan: _Plan) -> dict[str, object]:
    """The edits and the layers they concern, for run.json; their arrays are written beside it."""
    specs, arrays = edits_to_json(edits)
    if arrays:
        np.savez(folder / ARRAYS, allow_pickle=False, **arrays)
    return {
        "edits": specs,
        "edit_arrays": ARRAYS if arrays else None,
        "first_edited_layer": plan.first,
        "layers": plan.layers,
        "layers_left_out_as_they_cannot_change": plan.left_out,
        "head": plan.head,
    }
