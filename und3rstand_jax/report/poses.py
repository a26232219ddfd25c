"""View 2's camera by a layer's points, and the focal length by a pointmap, where the camera is not known."""

import numpy as np
from jaxtyping import Float

from und3rstand_jax.pixel_grid import sampled_pixels
from und3rstand_jax.pose import INLIER_THRESHOLD, camera_pose, most_confident_half, pose_errors
from und3rstand_jax.report.content import Pose, ViewGeometry

_STEEPEST = np.tan(np.radians(80))
_LEAST_RESIDUAL = 1e-6  # pixels; bounds the weight of points that fit exactly
_ITERATIONS = 100
_CONVERGED = 1e-9  # relative


def focal_length(points: Float[np.ndarray, "H W 3"], confidence: Float[np.ndarray, "H W"] | None = None) -> float | None:
    """The focal length in pixels of the camera in whose frame its own pointmap is (DUSt3R, Wang et al., CVPR 2024, section 3.3).

    With the principal point in the image's centre, f minimises Σ conf·‖(u', v') − f·(x, y)/z‖, which is robust to outliers; found by
    Weiszfeld's iteration. Left out are points that are not finite, not before the camera or more than 80° off its axis, where no photo
    reaches: one such point could outweigh all others.

    Returns:
        The focal length, or None where no point says anything about it or what they say is not positive.
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
    """The camera of a (height, width) image with square pixels and its principal point in the middle, pixel centres at integers."""
    height, width = size
    return np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]])


def second_camera(view2: ViewGeometry, intrinsics: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, "4 4"] | None:
    """The pose, camera 2 to view 1's frame, in which view 2's points appear at their own pixels; None where none explains them.

    By PnP on at most 64×64 pixels of a grid, the more confident half of them where there is a confidence.
    """
    height, width = view2.points.shape[:2]
    pixels = sampled_pixels(height, width)
    columns, rows = pixels.astype(int).T
    points = view2.points[rows, columns]
    if view2.confidence is not None:
        chosen = most_confident_half(view2.confidence[rows, columns])
        points, pixels = points[chosen], pixels[chosen]
    return camera_pose(points, pixels, intrinsics, INLIER_THRESHOLD * width)


def pose_against(camera: Float[np.ndarray, "4 4"] | None, reference: Float[np.ndarray, "4 4"] | None, scene_size: float) -> Pose:
    """A found camera with its angles to the reference's.

    Args:
        camera, reference: camera 2 to view 1's frame, or None where not found; their units may differ.
        scene_size: a typical distance of the reference's points: where the cameras stand in one place, a direction means nothing.
    """
    if camera is None or reference is None:
        return Pose(camera, None, None)
    rotation, translation = pose_errors(camera, reference, scene_size)
    return Pose(camera, rotation, None if np.isnan(translation) else translation)
