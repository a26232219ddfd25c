"""One layer's pointmaps as files: arrays, and coloured point clouds.

layers/LAYER.npz                   pts3d1 (H, W, 3), conf1 (H, W), pts3d2, conf2, …: float32, all views in view 1's camera frame
point_clouds/LAYER.ply             all views' points in the colours of their photos
point_clouds/LAYER.glb             the same for viewers and slides, in glTF's axes
head.npz, point_clouds/head.*      the same for the model's own head
"""

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from und3rstand_jax.geometry.cameras import ViewGeometry
from und3rstand_jax.model.layer_ids import HEAD
from und3rstand_jax.model.output import BackboneOutput
from und3rstand_jax.probes.probes import Probes
from und3rstand_jax.report.glb import glb_bytes
from und3rstand_jax.report.options import PointClouds

FRAME = "camera frame of the first photo: x right, y down, z forward; the model's own unit of length"

Photos = tuple[UInt8[np.ndarray, "_H _W 3"], ...]
Views = tuple[ViewGeometry, ...]

_logger = logging.getLogger(__name__)


def sizes_text(sizes: Sequence[tuple[int, int]]) -> str:
    """(height, width) of every view as `W×H and W×H`; with more than two views, equal sizes are named once."""
    named = [f"{width}×{height}" for height, width in sizes]
    return " and ".join(named if len(named) == 2 else dict.fromkeys(named))


def geometry_by_layer(features: BackboneOutput, probes: Probes | None, layers: Sequence[str]) -> Iterator[tuple[str, Views]]:
    """All views' geometry on the host, one layer after the other, the head's last. Only the tokens of all layers are in memory at once."""
    if probes is not None:
        for layer in layers:
            yield layer, tuple(map(ViewGeometry.of, probes.read_layer(layer, features)))
    if features.pointmaps:
        yield HEAD, tuple(map(ViewGeometry.of, features.pointmaps))


def write_layer(folder: Path, layer: str, views: Views, photos: Photos, clouds: PointClouds = "both") -> dict[str, object]:
    """Writes a layer's files, or the head's, and returns the entry of a record that names them.

    Args:
        folder: the result's folder.
        layer: a layer id, or HEAD.
        views: the layer's geometry of every view.
        photos: the views' pixels, of the same sizes.
        clouds: which point clouds to write: ply, glb or both.

    Raises:
        OSError: a file cannot be written.
    """
    arrays = {}
    for number, view in enumerate(views, start=1):
        arrays[f"pts3d{number}"] = view.points
        if view.confidence is not None:
            arrays[f"conf{number}"] = view.confidence
    file = f"{HEAD}.npz" if layer == HEAD else f"layers/{layer}.npz"
    written = {kind: f"point_clouds/{layer}.{kind}" for kind in ("ply", "glb") if clouds in (kind, "both")}
    for path in (file, *written.values()):
        (folder / path).parent.mkdir(exist_ok=True)
    np.savez(folder / file, allow_pickle=False, **arrays)
    points, colors = (
        np.concatenate([array.reshape(-1, 3) for array in of_views]) for of_views in ([view.points for view in views], photos)
    )
    dropped = 0
    for cloud in written.values():
        dropped = write_point_cloud(folder / cloud, points, colors, title=f"und3rstand_jax: {layer}")
    if dropped:
        told = "%s: %d of %d points are not finite and are left out of %s"
        _logger.warning(told, layer, dropped, len(points), " and ".join(written.values()))
    clouds_of = {"point_cloud": written.get("ply"), "point_cloud_glb": written.get("glb")}
    return {"arrays": file, **clouds_of, "points": len(points) - dropped, "points_not_finite": dropped}


def write_point_cloud(
    path: str | os.PathLike[str], points: Float[np.ndarray, "N 3"], colors: UInt8[np.ndarray, "N 3"], title: str = "und3rstand_jax"
) -> int:
    """Writes coloured points as binary PLY or, if the path ends in .glb, as binary glTF; returns how many were left out as not finite.

    Points have the model's own unit, since its pointmaps are defined only up to scale. In a .ply they keep DUSt3R's frame, view 1's
    camera frame (x right, y down, z forward). In a .glb, y and z change sign, since glTF's axes are x right, y up, z backward. Both
    files say so in the header, beside `title`.

    Raises:
        OSError: the file cannot be written.
    """
    finite = np.isfinite(points).all(axis=1)
    left_out = int(len(points) - finite.sum())
    if Path(path).suffix == ".glb":
        Path(path).write_bytes(glb_bytes(points[finite], colors[finite], title))
        return left_out
    import trimesh

    cloud = trimesh.PointCloud(points[finite], colors=colors[finite])
    # trimesh has no argument for comments: they are inserted after the `format` line.
    magic, form, rest = trimesh.exchange.ply.export_ply(cloud, encoding="binary").split(b"\n", 2)
    comments = [b"comment " + " ".join(comment.split()).encode("ascii", "replace") for comment in (title, FRAME)]
    Path(path).write_bytes(b"\n".join([magic, form, *comments, rest]))
    return left_out
