"""Runs a model and its probes on photos, and writes every resulting pointmap as files in one folder.

layers/, head.npz, point_clouds/   every layer's pointmaps and the head's, see `und3rstand_jax.report.layer_files`
contact_sheet.png                  depth and confidence of every layer beside the photos
run.json                           what was run on which photos, with which versions, and how long it took
"""

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float
from PIL.Image import Image

from und3rstand_jax.loading import known_config
from und3rstand_jax.model.head_choice import pointmap_head
from und3rstand_jax.model.images import load_images, to_uint8
from und3rstand_jax.model.layer_ids import layer_name
from und3rstand_jax.model.preprocessing import Preprocessing, way_of
from und3rstand_jax.report.checkpoint import choose_layers, find_backbone, load_model, tell_what_is_missing
from und3rstand_jax.report.contact_sheet import ContactSheet
from und3rstand_jax.report.layer_files import FRAME, Photos, Views, geometry_by_layer, sizes_text, write_layer
from und3rstand_jax.report.options import PointClouds, PointmapOptions
from und3rstand_jax.report.views import check_count, check_photos, open_photos, photos_for
from und3rstand_jax.support.machine import machine_facts
from und3rstand_jax.support.output_folder import output_folder
from und3rstand_jax.support.progress import Stopwatch, with_progress
from und3rstand_jax.support.results import check_apart, marked, result_of
from und3rstand_jax.support.text import to_json

RECORD = "run.json"
FORMAT = "und3rstand_jax pointmaps"
SHEET = "contact_sheet.png"

_logger = logging.getLogger(__name__)


def write_pointmaps(options: PointmapOptions, progress: bool = False) -> None:
    """Runs the model on the photos and writes the folder of files, which appears complete or not at all.

    Args:
        options: the command's options.
        progress: whether a terminal shows progress bars, including that of a conversion.

    Raises:
        OptionError: there are fewer or more photos than the model takes.
        ImageError: a photo cannot be read, or nothing is left of it at this size.
        CheckpointError: the checkpoint cannot be loaded, or gives no pointmaps.
        LayerError: `layers` selects nothing, or a layer without a probe.
        OutputError: the folder may not be written.
        OSError: a file cannot be written.
    """
    start = time.perf_counter()
    stopwatch = Stopwatch()
    paths = options.images
    known = known_config(options.checkpoint)
    check_photos(paths, known)
    check_apart(options.out, [*paths, Path(options.checkpoint)])
    # Photos and folder come first: everything that can be refused without the model is checked before it is loaded.
    opened = open_photos(options, known)
    preprocessing = options.preprocessing or (None if known is None else known.preprocessing)
    prepared = None if preprocessing is None else _prepared(options, preprocessing, opened)
    with output_folder(options.out, options.overwrite, result_of(FORMAT, RECORD)) as partial:
        folder, info, config = find_backbone(options.checkpoint, progress)
        check_count(len(opened), config, info.probes)
        prepared = prepared or _prepared(options, config.preprocessing, photos_for(config, options, opened))
        del opened
        photos = tuple(to_uint8(view[0]) for view in prepared.views)
        sizes = [{"height": photo.shape[0], "width": photo.shape[1]} for photo in photos]
        _logger.info("loading %s", options.checkpoint)
        with stopwatch.time("load"):
            model, probes = load_model(folder, options.dtype)
        layers = choose_layers(model.config, None if probes is None else probes.layer_ids, options.layers)
        has_head = bool(model.config.heads)
        tell_what_is_missing(probes is not None, has_head, len(layers))

        _logger.info("running the model on %s pixels", sizes_text([photo.shape[:2] for photo in photos]))
        with stopwatch.time("model"):
            # JAX returns before it has finished; without waiting, the first layer would seem to take all the time.
            features = jax.block_until_ready(model(*prepared.views, capture=layers, head=pointmap_head(model.config)))
        with stopwatch.time("probes and files"):
            outputs = _write_outputs(
                partial, photos, geometry_by_layer(features, probes, layers), len(layers) + has_head, options.point_clouds, progress
            )
        seconds = stopwatch.seconds | {"total": round(time.perf_counter() - start, 3)}
        record = {
            **marked(partial, FORMAT, RECORD),
            "photos": [{"path": str(path), **size} for path, size in zip(paths, sizes, strict=True)],
            "preprocessing": prepared.preprocessing,
            "size": prepared.size,
            "checkpoint": options.checkpoint,
            "dtype": options.dtype,
            "layers": layers,
            "head": has_head,
            "frame": FRAME,
            "outputs": outputs,
            "seconds": seconds,
            **machine_facts(),
        }
        (partial / RECORD).write_text(to_json(record, indent=2), encoding="utf-8")
    _logger.info("wrote %s in %.1f s", options.out, seconds["total"])


class _Prepared(NamedTuple):
    """The photos as model inputs, their preprocessing, and the requested size."""

    views: tuple[Float[np.ndarray, "1 _H _W 3"], ...]
    preprocessing: Preprocessing
    size: int


def _prepared(options: PointmapOptions, preprocessing: Preprocessing, photos: tuple[Image, ...]) -> _Prepared:
    size = way_of(preprocessing).size if options.size is None else options.size
    return _Prepared(tuple(load_images(photos, preprocessing, size)), preprocessing, size)


def _write_outputs(
    folder: Path, photos: Photos, geometry: Iterator[tuple[str, Views]], count: int, clouds: PointClouds, progress: bool
) -> dict[str, dict[str, object]]:
    """Writes each layer's files in turn, then the contact sheet; returns each layer's entry in run.json."""
    sheet = ContactSheet(photos, rows=count, title="What each layer knows about the scene")
    outputs: dict[str, dict[str, object]] = {}
    for layer, views in with_progress(geometry, "writing", count, "layer", progress):
        outputs[layer] = write_layer(folder, layer, views, photos, clouds)
        sheet.add_row(layer_name(layer), views)
    sheet.write(folder / SHEET)
    return outputs
