"""Pointmaps as coloured point clouds other programs open (PLY)."""

import os

import numpy as np
from jaxtyping import Float, UInt8

_FRAME = "camera frame of the first photo: x right, y down, z forward; the model's own unit of length"


def write_point_cloud(
    path: str | os.PathLike[str], points: Float[np.ndarray, "N 3"], colors: UInt8[np.ndarray, "N 3"], title: str = "und3rstand_jax"
) -> int:
    """Writes points with their colours as binary PLY and returns how many were dropped because they are not finite.

    Points keep the frame and unit DUSt3R gives them: view 1's camera frame (x right, y down, z forward), a unit of the
    model's own (its pointmaps are metric only up to scale). Both are said in the file's header, with `title`.

    Raises:
        OSError: the file cannot be written.
    """
    finite = np.isfinite(points).all(axis=1)
    with open(path, "wb") as file:
        file.write(_with_comments(_ply(points[finite], colors[finite]), (title, _FRAME)))
    return int(len(points) - finite.sum())


def _ply(points: Float[np.ndarray, "N 3"], colors: UInt8[np.ndarray, "N 3"]) -> bytes:
    import trimesh

    cloud = trimesh.PointCloud(points, colors=colors)
    return trimesh.exchange.ply.export_ply(cloud, encoding="binary")


def _with_comments(ply: bytes, comments: tuple[str, ...]) -> bytes:
    """The PLY with comment lines after its `format` line; trimesh has no argument for them."""
    magic, form, rest = ply.split(b"\n", 2)
    lines = [magic, form, *(b"comment " + " ".join(comment.split()).encode("ascii", "replace") for comment in comments)]
    return b"\n".join([*lines, rest])
