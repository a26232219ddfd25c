"""A view's camera in view 1's frame from its pointmap alone, by perspective-n-point (PnP) between predicted points and their own pixels.

A pointmap gives 2D–3D correspondences for free (DUSt3R, Wang et al., CVPR 2024, section 3.3): RANSAC with SQPnP (Terzakis and
Lourakis, ECCV 2020) finds the pose, Levenberg-Marquardt refines it on the inliers. OpenCV does both and seeds its random numbers anew
in each call: equal input gives equal poses.
"""

import dataclasses

import cv2
import numpy as np
from jaxtyping import Float, Int

from und3rstand_jax.geometry.cameras import ViewGeometry, sampled_pixels

Pose = Float[np.ndarray, "4 4"]
"""A camera's frame to view 1's."""

INLIER_THRESHOLD = 5 / 512
"""Largest reprojection error of an inlier, as a share of the image's width."""

FAILED_DEGREES = 180.0
"""Error of a pose that was not found."""

_LEAST_POINTS = 6
_ITERATIONS = 100
_CONFIDENCE = 0.999
_REFINEMENTS = 8
LEAST_BASELINE = 1e-3
"""As a share of the scene's size; below it, the direction of a translation means nothing."""


def camera_pose(
    points: Float[np.ndarray, "N 3"], pixels: Float[np.ndarray, "N 2"], intrinsics: Float[np.ndarray, "3 3"], threshold: float = 5.0
) -> Pose | None:
    """The pose of the camera in which `points` appear at `pixels`.

    Args:
        points: in view 1's frame, in any unit; those that are not finite are ignored.
        pixels: (column, row) of each, pixel centres at integers.
        intrinsics: of that camera, without distortion.
        threshold: largest reprojection error of an inlier, in pixels.

    Returns:
        Camera to view 1's frame, its translation in the points' unit; None if there are too few points or no pose fits them.
    """
    finite = np.isfinite(points).all(axis=-1)
    points, pixels = points[finite].astype(np.float64), pixels[finite].astype(np.float64)
    unit = float(np.median(np.linalg.norm(points, axis=-1))) if len(points) >= _LEAST_POINTS else 0.0
    if not (np.isfinite(unit) and unit > 0):
        return None
    points = points / unit  # OpenCV's solvers have absolute tolerances
    try:
        pose = _solve(points, pixels, intrinsics.astype(np.float64), threshold)
    except cv2.error:  # OpenCV's way to report degenerate points
        return None
    if pose is None or not np.isfinite(pose).all():
        return None
    pose[:3, 3] *= unit
    return pose


def _solve(
    points: Float[np.ndarray, "N 3"], pixels: Float[np.ndarray, "N 2"], intrinsics: Float[np.ndarray, "3 3"], threshold: float
) -> Pose | None:
    found, turn, shift, inliers = cv2.solvePnPRansac(
        points,
        pixels,
        intrinsics,
        None,
        iterationsCount=_ITERATIONS,
        reprojectionError=threshold,
        confidence=_CONFIDENCE,
        flags=cv2.SOLVEPNP_SQPNP,
    )
    if not found or inliers is None or len(inliers) < _LEAST_POINTS:
        return None
    chosen = inliers[:, 0]
    for _ in range(_REFINEMENTS):
        turn, shift = cv2.solvePnPRefineLM(points[chosen], pixels[chosen], intrinsics, None, turn, shift)
        # The pose from a minimal sample carries the noise of its points; the refined one has more inliers.
        projected, _ = cv2.projectPoints(points, turn, shift, intrinsics, None)
        more = np.flatnonzero(np.linalg.norm(projected[:, 0] - pixels, axis=-1) <= threshold)
        if len(more) <= len(chosen):
            break
        chosen = more
    rotation, _ = cv2.Rodrigues(turn)
    pose = np.eye(4)
    pose[:3, :3] = rotation.T
    pose[:3, 3] = -rotation.T @ shift[:, 0]
    return pose


def pose_errors(estimated: Pose, true: Pose, scene_size: float = 0.0) -> tuple[float, float]:
    """Two angles in degrees, at most 180: of the rotation between two poses, and between the directions of their translations.

    Args:
        estimated, true: camera to view 1's frame; the units of their translations may differ.
        scene_size: a typical distance of the scene's points, in `true`'s unit. The direction is NaN if the true camera is less than a
            thousandth of it away from view 1's.
    """
    difference = estimated[:3, :3].T @ true[:3, :3]
    # atan2 of sine and cosine keeps small angles exact, where the arc cosine of the trace would lose half the digits.
    sine = np.linalg.norm([difference[2, 1] - difference[1, 2], difference[0, 2] - difference[2, 0], difference[1, 0] - difference[0, 1]])
    rotation = np.degrees(np.arctan2(sine / 2, (np.trace(difference) - 1) / 2))
    a, b = estimated[:3, 3], true[:3, 3]
    if not has_baseline(true, scene_size):
        return float(rotation), float("nan")
    if not a.any():  # finding no direction where there is one counts as finding the opposite one
        return float(rotation), FAILED_DEGREES
    return float(rotation), float(np.degrees(np.arctan2(np.linalg.norm(np.cross(a, b)), a @ b)))


def camera_errors(camera: Pose | None, true: Pose, scene_size: float = 0.0) -> tuple[float, float]:
    """`pose_errors` of a camera that may not have been found: then both angles are 180, the second NaN if no direction has meaning."""
    if camera is None:
        return FAILED_DEGREES, FAILED_DEGREES if has_baseline(true, scene_size) else float("nan")
    return pose_errors(camera, true, scene_size)


def has_baseline(true: Pose, scene_size: float | np.floating) -> bool:
    """Whether a camera is far enough from view 1's for the direction to it to mean something."""
    baseline = float(np.linalg.norm(true[:3, 3]))
    return baseline > 0 and baseline >= LEAST_BASELINE * float(scene_size)


def most_confident_half(confidence: Float[np.ndarray, " N"]) -> Int[np.ndarray, " M"]:
    """Indices of the more confident half, ties by order; NaN counts as least."""
    return np.argsort(-np.nan_to_num(confidence, nan=-np.inf, posinf=np.inf), kind="stable")[: (len(confidence) + 1) // 2]


@dataclasses.dataclass(frozen=True)
class PoseEstimate:
    """Camera of a view in view 1's frame, by PnP on a layer's pointmap of that view or by a model's camera head; its translation is in
    the pointmap's unit.

    Angles (degrees) are relative to the reference's camera; None if no camera was found or there is no reference.
    """

    camera: Pose | None
    rotation_degrees: float | None
    translation_degrees: float | None


def camera_of_view(view: ViewGeometry, intrinsics: Float[np.ndarray, "3 3"]) -> Pose | None:
    """The pose, camera to view 1's frame, in which a view's points appear at their own pixels; None if no pose fits them."""
    size = (view.points.shape[0], view.points.shape[1])
    columns, rows = sampled_pixels(*size).astype(int).T
    confidence = None if view.confidence is None else view.confidence[rows, columns]
    return sampled_camera(view.points[rows, columns], confidence, size, intrinsics)


def sampled_camera(
    points: Float[np.ndarray, "N 3"],
    confidence: Float[np.ndarray, " N"] | None,
    size: tuple[int, int],
    intrinsics: Float[np.ndarray, "3 3"],
) -> Pose | None:
    """As `camera_of_view`, from a view's points and confidence at the `sampled_pixels` of its (height, width) alone.

    Uses PnP on those pixels, at most 64×64, or on the more confident half of them if there is a confidence.
    """
    pixels = sampled_pixels(*size)
    if confidence is not None:
        chosen = most_confident_half(confidence)
        points, pixels = points[chosen], pixels[chosen]
    return camera_pose(points, pixels, intrinsics, INLIER_THRESHOLD * size[1])


def pose_against(camera: Pose | None, reference: Pose | None, scene_size: float) -> PoseEstimate:
    """An estimated camera with its angles to the reference's.

    Args:
        camera, reference: camera to view 1's frame, or None if not found; their units may differ.
        scene_size: a typical distance of the reference's points: if both cameras are in one place, a direction means nothing.
    """
    if camera is None or reference is None:
        return PoseEstimate(camera, None, None)
    rotation, translation = pose_errors(camera, reference, scene_size)
    return PoseEstimate(camera, rotation, None if np.isnan(translation) else translation)
