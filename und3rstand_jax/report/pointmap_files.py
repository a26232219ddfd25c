"""Two photos through a model and its probes, and every pointmap that comes out as files in one folder.

layers/LAYER.npz                   pts3d1 (H, W, 3), conf1 (H, W), pts3d2, conf2: float32, both views in view 1's camera frame
point_clouds/LAYER.ply             both views' points in the colours of their photos
head.npz, point_clouds/head.ply    the same for the model's own head
contact_sheet.png                  depth and confidence of every layer beside the photos
run.json                           what was run on which photos, with which versions, and how long it took
"""

import logging
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float, UInt8

from und3rstand_jax.geometry.cameras import ViewGeometry
from und3rstand_jax.model.images import load_image, to_uint8
from und3rstand_jax.model.layer_ids import HEAD, layer_name
from und3rstand_jax.model.output import BackboneOutput, pair
from und3rstand_jax.probes.probes import Probes
from und3rstand_jax.report.checkpoint import choose_layers, load_model
from und3rstand_jax.report.contact_sheet import ContactSheet
from und3rstand_jax.report.options import PointmapOptions
from und3rstand_jax.support.machine import machine_facts
from und3rstand_jax.support.output_folder import output_folder
from und3rstand_jax.support.progress import Stopwatch, with_progress
from und3rstand_jax.support.results import check_apart, marked, result_of
from und3rstand_jax.support.text import to_json

RECORD = "run.json"
FORMAT = "und3rstand_jax pointmaps"
FRAME = "camera frame of the first photo: x right, y down, z forward; the model's own unit of length"

_logger = logging.getLogger(__name__)


def write_pointmaps(options: PointmapOptions, progress: bool = False) -> None:
    """Runs the model on two photos and writes the folder of files, which appears complete or not at all.

    Args:
        options: of the command.
        progress: whether a terminal shows progress bars, of a conversion too.

    Raises:
        ImageError: a photo cannot be read, or nothing is left of it at this size.
        CheckpointError: the checkpoint cannot be loaded, or gives no pointmaps.
        LayerError: `layers` selects nothing, or a layer without a probe.
        OutputError: the folder may not be written.
        OSError: a file cannot be written.
    """
    start = time.perf_counter()
    stopwatch = Stopwatch()
    paths = (options.image1, options.image2)
    check_apart(options.out, [*paths, Path(options.checkpoint)])
    # Photos and folder come first: what can be refused without the model is refused before the time that loading takes.
    view1, view2 = (load_image(path, options.preprocessing, options.size) for path in paths)
    photos = to_uint8(view1[0]), to_uint8(view2[0])
    sizes = [{"height": photo.shape[0], "width": photo.shape[1]} for photo in photos]
    with output_folder(options.out, options.overwrite, result_of(FORMAT, RECORD)) as partial:
        _logger.info("loading %s", options.checkpoint)
        with stopwatch.time("load"):
            model, probes = load_model(options.checkpoint, options.dtype, progress)
        layers = choose_layers(model.config, None if probes is None else probes.layer_ids, options.layers)
        has_head = model.config.head_type is not None
        if probes is None:
            _logger.info("this checkpoint has no probes: writing the output of the model's own head only")
        elif not has_head:
            _logger.info("this checkpoint has no head: writing the output of its probes only (%d layers)", len(layers))

        _logger.info("running the model on %s pixels", " and ".join(f"{size['width']}×{size['height']}" for size in sizes))
        with stopwatch.time("model"):
            # JAX returns before it has computed; without waiting, the first layer would seem to take all the time.
            features = jax.block_until_ready(model(view1, view2, capture=layers, head=has_head))
        with stopwatch.time("probes and files"):
            outputs = _write_outputs(partial, photos, _geometry_by_layer(features, probes, layers), len(layers) + has_head, progress)
        seconds = stopwatch.seconds | {"total": round(time.perf_counter() - start, 3)}
        record = {
            **marked(partial, FORMAT, RECORD),
            "photos": [{"path": str(path), **size} for path, size in zip(paths, sizes, strict=True)],
            "preprocessing": options.preprocessing,
            "size": options.size,
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


def _geometry_by_layer(
    features: BackboneOutput, probes: Probes | None, layers: Sequence[str]
) -> Iterator[tuple[str, tuple[ViewGeometry, ViewGeometry]]]:
    """Both views' geometry on the host, one layer after the other, the head's last. Of all layers only the tokens are held at once."""
    if probes is not None:
        for layer in layers:
            yield layer, pair(map(ViewGeometry.of, probes.read_layer(layer, features)))
    if features.pred1 is not None and features.pred2 is not None:
        yield HEAD, (ViewGeometry.of(features.pred1), ViewGeometry.of(features.pred2))


def _write_outputs(
    folder: Path,
    photos: tuple[UInt8[np.ndarray, "H1 W1 3"], UInt8[np.ndarray, "H2 W2 3"]],
    geometry: Iterator[tuple[str, tuple[ViewGeometry, ViewGeometry]]],
    count: int,
    progress: bool,
) -> dict[str, dict[str, object]]:
    """Writes each layer's files as it comes, then the contact sheet; returns each layer's entry in run.json."""
    (folder / "point_clouds").mkdir()
    colors = np.concatenate([photo.reshape(-1, 3) for photo in photos])
    sheet = ContactSheet(*photos, rows=count, title="What each layer knows about the scene")
    outputs: dict[str, dict[str, object]] = {}
    for layer, views in with_progress(geometry, "writing", count, "layer", progress):
        arrays = {}
        for number, view in enumerate(views, start=1):
            arrays[f"pts3d{number}"] = view.points
            if view.confidence is not None:
                arrays[f"conf{number}"] = view.confidence
        file, cloud = f"{HEAD}.npz" if layer == HEAD else f"layers/{layer}.npz", f"point_clouds/{layer}.ply"
        (folder / file).parent.mkdir(exist_ok=True)
        np.savez(folder / file, allow_pickle=False, **arrays)
        points = np.concatenate([view.points.reshape(-1, 3) for view in views])
        dropped = write_point_cloud(folder / cloud, points, colors, title=f"und3rstand_jax: {layer}")
        if dropped:
            _logger.info("%s: %d of %d points are not finite and are left out of %s", layer, dropped, len(points), cloud)
        outputs[layer] = {"arrays": file, "point_cloud": cloud, "points": len(points) - dropped, "points_not_finite": dropped}
        sheet.add_row(layer_name(layer), *views)
    sheet.write(folder / "contact_sheet.png")
    return outputs


def write_point_cloud(
    path: str | os.PathLike[str], points: Float[np.ndarray, "N 3"], colors: UInt8[np.ndarray, "N 3"], title: str = "und3rstand_jax"
) -> int:
    """Writes coloured points as binary PLY, without those that are not finite, and returns how many were left out.

    Points keep DUSt3R's frame and unit: view 1's camera frame (x right, y down, z forward), and the model's own unit, since its
    pointmaps are defined only up to scale. The file's header says so, after `title`.

    Raises:
        OSError: the file cannot be written.
    """
    import trimesh

    finite = np.isfinite(points).all(axis=1)
    cloud = trimesh.PointCloud(points[finite], colors=colors[finite])
    # trimesh has no argument for comments: they go behind the `format` line.
    magic, form, rest = trimesh.exchange.ply.export_ply(cloud, encoding="binary").split(b"\n", 2)
    comments = [b"comment " + " ".join(comment.split()).encode("ascii", "replace") for comment in (title, FRAME)]
    Path(path).write_bytes(b"\n".join([magic, form, *comments, rest]))
    return int(len(points) - finite.sum())
