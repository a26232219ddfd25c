"""Pinhole cameras: a view's points, checks of intrinsics and poses, and the focal length of a pointmap.

Camera frames are x right, y down, z forward. Pixel centres are at integers. Poses are 4×4 matrices, camera to world (or to view 1's
frame); intrinsics are [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] in pixels, without distortion.
"""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float

SAMPLES_A_SIDE = 64
"""The sampling grid of an image has at most this many columns and rows."""

_ORTHOGONALITY = 5e-3  # tolerance of a rotation's entries
_LARGEST = 1e12  # of a camera's numbers: national grids in millimetres stay below 1e11
_STEEPEST = np.tan(np.radians(80))
_LEAST_RESIDUAL = 1e-6  # pixels; bounds the weight of points that fit exactly
_ITERATIONS = 100
_CONVERGED = 1e-9  # relative


@dataclasses.dataclass(frozen=True)
class ViewGeometry:
    """One view's geometry as a layer predicts it.

    `points` (H, W, 3) are in the frame of view 1's camera, in the model's own unit, which differs from layer to layer. `confidence`
    (H, W) is at least 1 with DUSt3R's activation, and None if the probes give none.
    """

    points: Float[np.ndarray, "H W 3"]
    confidence: Float[np.ndarray, "H W"] | None

    @classmethod
    def of(cls, pointmap: Mapping[str, object]) -> "ViewGeometry":
        """The first example of a batched `Pointmap` (not imported: this module does without JAX), on the host in float32."""
        confidence = np.asarray(pointmap["conf"], np.float32)[0] if "conf" in pointmap else None
        return cls(np.asarray(pointmap["pts3d"], np.float32)[0], confidence)


@dataclasses.dataclass(frozen=True)
class ViewTruth:
    """One view's true points (H, W, 3) in the frame of view 1's camera, in the data's unit, and the pixels where they are known."""

    points: Float[np.ndarray, "H W 3"]
    valid: Bool[np.ndarray, "H W"]


def sampled_pixels(height: int, width: int) -> Float[np.ndarray, "N 2"]:
    """(column, row) of the sampling grid's pixels in an image of this size, row by row."""
    columns, rows = np.meshgrid(np.arange(width)[sampling(width)], np.arange(height)[sampling(height)])
    return np.stack([columns.ravel(), rows.ravel()], axis=-1).astype(np.float64)


def sampling(side: int) -> slice:
    """The sampling grid's columns (or rows) in an image that has `side` of them."""
    # An odd step: one that divides the patch size would see a few places of every patch and never the others.
    step = math.ceil(side / SAMPLES_A_SIDE) | 1
    return slice((side - 1) % step // 2, None, step)


def focal_length(points: Float[np.ndarray, "H W 3"], confidence: Float[np.ndarray, "H W"] | None = None) -> float | None:
    """The focal length in pixels of a camera from its pointmap in its own frame (DUSt3R, Wang et al., CVPR 2024, section 3.3).

    With the principal point in the image's centre, f minimises Σ conf·‖(u', v') − f·(x, y)/z‖, which is robust to outliers; found by
    Weiszfeld's iteration. Points are ignored if they are not finite, not in front of the camera or more than 80° off its axis. No photo
    shows such points, and a single one could outweigh all others.

    Returns:
        The focal length, or None if no point determines it or it would not be positive.
    """
    height, width = points.shape[:2]
    v, u = np.mgrid[:height, :width]
    pixels = np.stack([u - (width - 1) / 2, v - (height - 1) / 2], axis=-1)
    usable = np.isfinite(points).all(axis=-1) & (np.hypot(points[..., 0], points[..., 1]) < _STEEPEST * points[..., 2])
    rays = points[usable][:, :2].astype(np.float64) / points[usable][:, 2:]
    pixels = pixels[usable]
    weights = np.ones(len(rays)) if confidence is None else np.nan_to_num(confidence[usable].astype(np.float64))
    squared = (rays**2).sum(axis=-1)
    if not (weights * squared).sum() > 0:
        return None
    products = (pixels * rays).sum(axis=-1)
    nonzero = squared > 0
    focal = float(np.median(products[nonzero] / squared[nonzero]))
    for _ in range(_ITERATIONS):
        earlier = focal
        residuals = np.linalg.norm(pixels - earlier * rays, axis=-1)
        robust = weights / np.maximum(residuals, _LEAST_RESIDUAL)
        focal = float((robust * products).sum() / (robust * squared).sum())
        if abs(focal - earlier) <= _CONVERGED * abs(focal):
            break
    return focal if np.isfinite(focal) and focal > 0 else None


def centred_intrinsics(focal: float, size: tuple[int, int]) -> Float[np.ndarray, "3 3"]:
    """The intrinsics of a (height, width) image with square pixels and its principal point in the middle."""
    height, width = size
    return np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]])


def intrinsics_fault(intrinsics: np.ndarray) -> str | None:
    """Why this is not an intrinsics matrix in pixels without skew (3×3, upper triangular, positive focal lengths); None if it is one."""
    if intrinsics.shape != (3, 3):
        return f"must be 3×3, not {_by(intrinsics.shape)}"
    if not np.isfinite(intrinsics).all():
        return "has numbers that are not finite"
    if not np.allclose(intrinsics[2], (0, 0, 1)) or intrinsics[1, 0] != 0:
        transposed = np.allclose(intrinsics[:, 2], (0, 0, 1)) and intrinsics[0, 1] == 0
        return f"must be [[fx, 0, cx], [0, fy, cy], [0, 0, 1]]{', this looks transposed' if transposed else f', not {intrinsics.tolist()}'}"
    fx, skew, fy = intrinsics[0, 0], intrinsics[0, 1], intrinsics[1, 1]
    if not np.abs(intrinsics).max() < _LARGEST:
        return f"has the value {np.abs(intrinsics).max():g}, which is too large for pixels"
    if fx <= 0 or fy <= 0:
        return f"has focal lengths {fx:g} and {fy:g}, which must be positive"
    if abs(skew) > 1e-4 * fx:
        return f"has a skew of {skew:g}, which is not supported: undistort the photo to a camera without skew"
    return None


def pose_fault(cam2world: np.ndarray) -> str | None:
    """Why this is not a rigid motion (4×4; rotation, translation, last row 0 0 0 1); None if it is one."""
    if cam2world.shape != (4, 4):
        return f"must be 4×4, not {_by(cam2world.shape)}"
    if not np.isfinite(cam2world).all():
        return "has numbers that are not finite"
    if not np.allclose(cam2world[3], (0, 0, 0, 1), atol=1e-6):
        transposed = np.allclose(cam2world[:, 3], (0, 0, 0, 1), atol=1e-6)
        return f"must end in the row 0 0 0 1, {'this looks transposed' if transposed else f'not {cam2world[3].tolist()}'}"
    position = np.abs(cam2world[:3, 3]).max()
    if not position < _LARGEST:
        return f"places the camera {position:g} units from the origin, which is too far to compute with its points"
    rotation = cam2world[:3, :3]
    if np.abs(rotation @ rotation.T - np.eye(3)).max() > _ORTHOGONALITY:
        lengths = ", ".join(f"{length:.4g}" for length in np.linalg.norm(rotation, axis=0))
        return f"has no valid rotation: its columns must be orthogonal and of length 1 (their lengths are {lengths})"
    if np.linalg.det(rotation) < 0:
        return "mirrors (determinant -1): one axis is flipped, or two are swapped, against a right-handed camera"
    return None


def principal_point_fault(intrinsics: np.ndarray, height: int, width: int) -> str | None:
    """Why a photo of this size cannot be cropped around its principal point; None if it can.

    At least a fifth of the photo must be on each side of it (DUSt3R's bound): otherwise a crop symmetric around it leaves too little.
    """
    cx, cy = intrinsics[0, 2] + 0.5, intrinsics[1, 2] + 0.5
    if min(cx, width - cx) >= width / 5 and min(cy, height - cy) >= height / 5:
        return None
    return (
        f"the principal point ({cx - 0.5:.6g}, {cy - 0.5:.6g}) of the intrinsics is too far off the centre of the photo's "
        f"{width}×{height} pixels (are they of another image size?)"
    )


def _by(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "a single number"
