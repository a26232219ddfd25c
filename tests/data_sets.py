"""Small data sets with exact geometry, a textured room with a ball in it, written to disk in every format that training reads."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import OpenEXR
from jaxtyping import Float, UInt8
from PIL import Image

from und3rstand_jax.data.records import Shape, View

# World frame: metres, y down. The ball hangs in front of the far wall.
LOW, HIGH = np.array([-2.2, -1.5, -2.5]), np.array([2.2, 1.5, 3.5])
BALL, RADIUS = np.array([0.3, 0.2, 1.8]), 0.6

BLENDEDMVS_PAIR = np.dtype([("seq_high", np.uint32), ("seq_low", np.uint64), ("img1", np.int32), ("img2", np.int32), ("score", np.float32)])


def make_views(count: int, shape: Shape = (96, 128), seed: int = 0, spread: float = 0.6) -> list[View]:
    """Views of the room from around one place, all facing the ball; depth and cameras exact, in metres and float64.

    `spread` is the standard deviation of the cameras' positions sideways; principal points lie a few pixels off the centre.
    """
    rng = np.random.default_rng(seed)
    positions = rng.normal(0, (spread, spread / 2, spread / 2), (count, 3)).clip(LOW + 0.5, HIGH - 0.5)
    targets, rolls = BALL + rng.normal(0, 0.3, (count, 3)), rng.normal(0, 0.2, count)
    height, width = shape
    return [
        render(shape, camera(width * 0.8, height, width), look_at(position, target, roll))
        for position, target, roll in zip(positions, targets, rolls, strict=True)
    ]


def camera(focal: float, height: int, width: int) -> Float[np.ndarray, "3 3"]:
    """Intrinsics with a principal point 2 % of the width to the right and 1 % of the height above the centre."""
    return np.array([[focal, 0, 0.52 * width - 0.5], [0, focal, 0.49 * height - 0.5], [0, 0, 1]])


def look_at(position: np.ndarray, target: np.ndarray, roll: float) -> Float[np.ndarray, "4 4"]:
    """cam2world of a camera (x right, y down, z forward) at a position, facing a target, rotated about its optical axis."""
    forward = (target - position) / np.linalg.norm(target - position)
    down = np.array([np.sin(roll), np.cos(roll), 0.0])
    right = np.cross(down, forward)
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3, :3] = np.stack([right, np.cross(forward, right), forward], axis=-1)
    pose[:3, 3] = position
    return pose


def render(shape: Shape, intrinsics: np.ndarray, cam2world: np.ndarray) -> View:
    """One ray through each pixel's centre; depth is z along the optical axis."""
    rows, columns = np.mgrid[: shape[0], : shape[1]].astype(np.float64)
    (fx, _, cx), (_, fy, cy) = intrinsics[:2]
    rays = np.stack([(columns - cx) / fx, (rows - cy) / fy, np.ones(shape)], axis=-1) @ cam2world[:3, :3].T
    depth = np.minimum(_to_walls(cam2world[:3, 3], rays), _to_ball(cam2world[:3, 3], rays))
    return View(_texture(cam2world[:3, 3] + depth[..., None] * rays), depth, intrinsics, cam2world)


def _to_walls(origin: np.ndarray, rays: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.maximum((LOW - origin) / rays, (HIGH - origin) / rays).min(axis=-1)


def _to_ball(origin: np.ndarray, rays: np.ndarray) -> np.ndarray:
    squared, along = (rays**2).sum(-1), rays @ (BALL - origin)
    discriminant = along**2 - squared * ((BALL - origin) @ (BALL - origin) - RADIUS**2)
    return np.where(discriminant > 0, (along - np.sqrt(np.maximum(discriminant, 0))) / squared, np.inf)


def _texture(points: np.ndarray) -> UInt8[np.ndarray, "H W 3"]:
    phases = points @ np.array([[2.0, 1.3, 0.7], [0.9, 2.3, 1.1], [1.7, 0.4, 2.9]])
    return np.rint(127.5 + 100 * np.sin(phases)).astype(np.uint8)


def write_pairs(
    root: Path,
    views: Sequence[View],
    pairs: Sequence[tuple[int, int]],
    depth: str = "png",
    extra: Mapping[str, Any] | None = None,
    sets: Sequence[Sequence[int]] = (),
) -> Path:
    """Our own format: pairs.json with a table of views named v0, v1, …; depth as "png" (16 bits, millimetres) or "npy" (float32, metres).

    `extra` goes into every view. `sets` of more views are listed beside the pairs, if there are any. Returns the list's path.
    """
    root.mkdir(parents=True, exist_ok=True)
    table = {f"v{number}": {**write_view(root, f"v{number}", view, depth), **(extra or {})} for number, view in enumerate(views)}
    listed = root / "pairs.json"
    entries = {"pairs": [[f"v{i}", f"v{j}"] for i, j in pairs]}
    if sets:
        entries["sets"] = [[f"v{number}" for number in one] for one in sets]
    listed.write_text(json.dumps({"views": table, **entries}))
    return listed


def write_view(root: Path, name: str, view: View, depth: str = "png") -> dict[str, Any]:
    """The photo and depth of a view as root/name.*; what a list of pairs says of it."""
    Image.fromarray(view.image).save(root / f"{name}.image.png")
    if depth == "png":
        Image.fromarray(np.rint(view.depth * 1000).astype(np.uint16)).save(root / f"{name}.png")
    else:
        np.save(root / f"{name}.npy", view.depth.astype(np.float32))
    return {"image": f"{name}.image.png", "depth": f"{name}.{depth}", "K": view.intrinsics.tolist(), "cam2world": view.cam2world.tolist()}


def write_co3d(root: Path, sequences: Mapping[str, Sequence[View]], split: str = "train", first_frame: int = 1) -> Path:
    """A Co3D tree: sequences by "category/name", frames numbered from `first_frame`; split is "train" or "test". Returns the list's path.

    The mask of a view is where its depth is known; the stored depth is known everywhere, 1 m outside the mask.
    """
    selected: dict[str, dict[str, list[int]]] = {}
    for name, views in sequences.items():
        category, sequence = name.split("/")
        selected.setdefault(category, {})[sequence] = [first_frame + position for position in range(len(views))]
        for folder in ("images", "depths", "masks"):
            (root / name / folder).mkdir(parents=True, exist_ok=True)
        for position, view in enumerate(views):
            _write_co3d_view(root / name, f"frame{first_frame + position:06d}", view)
    listed = root / f"selected_seqs_{split}.json"
    listed.write_text(json.dumps(selected))
    return listed


def _write_co3d_view(folder: Path, frame: str, view: View) -> None:
    maximum = float(view.depth.max())
    stored = np.rint(np.where(view.depth > 0, view.depth, 1.0) / maximum * 65535).astype(np.uint16)
    Image.fromarray(view.image).save(folder / "images" / f"{frame}.jpg", quality=95, subsampling=0)
    Image.fromarray(stored).save(folder / "depths" / f"{frame}.jpg.geometric.png")
    Image.fromarray(np.where(view.depth > 0, 255, 0).astype(np.uint8)).save(folder / "masks" / f"{frame}.png")
    np.savez(
        folder / "images" / f"{frame}.npz",
        camera_pose=view.cam2world.astype(np.float32),
        camera_intrinsics=view.intrinsics.astype(np.float32),
        maximum_depth=np.float32(maximum),
    )


def write_blendedmvs(
    root: Path,
    sequences: Mapping[tuple[int, int], Sequence[View]],
    pairs: Sequence[tuple[int, int, int, int]],
    scores: Sequence[float] | None = None,
) -> Path:
    """A BlendedMVS tree: sequences by (seq_high, seq_low), their frames numbered from 0; `pairs` as listed, of score 0.5 unless `scores`
    has theirs. Returns the list's path.
    """
    for (high, low), views in sequences.items():
        folder = root / f"{high:08x}{low:016x}"
        folder.mkdir(parents=True, exist_ok=True)
        for number, view in enumerate(views):
            _write_blendedmvs_view(folder / f"{number:08d}", view)
    listed = root / "blendedmvs_pairs.npy"
    given = [0.5] * len(pairs) if scores is None else scores
    np.save(listed, np.array([(*pair, score) for pair, score in zip(pairs, given, strict=True)], BLENDEDMVS_PAIR))
    return listed


def _write_blendedmvs_view(stem: Path, view: View) -> None:
    Image.fromarray(view.image).save(stem.with_suffix(".jpg"), quality=95, subsampling=0)
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    OpenEXR.File(header, {"Y": view.depth.astype(np.float32)}).write(str(stem.with_suffix(".exr")))
    np.savez(stem.with_suffix(".npz"), intrinsics=view.intrinsics, R_cam2world=view.cam2world[:3, :3], t_cam2world=view.cam2world[:3, 3])
