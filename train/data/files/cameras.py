"""Whether numbers can be a camera: what is wrong with intrinsics or a pose, in words."""

import numpy as np

_TOLERANCE = 5e-3


def intrinsics_fault(intrinsics: np.ndarray) -> str | None:
    """Why this is no intrinsics matrix without skew in pixels (3×3, upper triangular, positive focal lengths); None if it is one."""
    if intrinsics.shape != (3, 3):
        return f"must be 3×3, not {_by(intrinsics.shape)}"
    if not np.isfinite(intrinsics).all():
        return "holds numbers that are not finite"
    if not np.allclose(intrinsics[2], (0, 0, 1)) or intrinsics[1, 0] != 0:
        transposed = np.allclose(intrinsics[:, 2], (0, 0, 1)) and intrinsics[0, 1] == 0
        return f"must be [[fx, 0, cx], [0, fy, cy], [0, 0, 1]]{', this looks transposed' if transposed else f', not {intrinsics.tolist()}'}"
    fx, skew, fy = intrinsics[0, 0], intrinsics[0, 1], intrinsics[1, 1]
    if fx <= 0 or fy <= 0:
        return f"has focal lengths {fx:g} and {fy:g}, which must be positive"
    if abs(skew) > 1e-4 * fx:
        return f"has a skew of {skew:g}, which is not supported: undistort the photo to a camera without"
    return None


def pose_fault(cam2world: np.ndarray) -> str | None:
    """Why this is no rigid motion (4×4; rotation, translation, last row 0 0 0 1); None if it is one."""
    if cam2world.shape != (4, 4):
        return f"must be 4×4, not {_by(cam2world.shape)}"
    if not np.isfinite(cam2world).all():
        return "holds numbers that are not finite"
    if not np.allclose(cam2world[3], (0, 0, 0, 1), atol=1e-6):
        transposed = np.allclose(cam2world[:, 3], (0, 0, 0, 1), atol=1e-6)
        return f"must end in the row 0 0 0 1, {'this looks transposed' if transposed else f'not {cam2world[3].tolist()}'}"
    rotation = cam2world[:3, :3]
    if np.abs(rotation @ rotation.T - np.eye(3)).max() > _TOLERANCE:
        lengths = ", ".join(f"{length:.4g}" for length in np.linalg.norm(rotation, axis=0))
        return f"holds no rotation: its columns must be orthogonal and of length 1 (their lengths are {lengths})"
    if np.linalg.det(rotation) < 0:
        return "mirrors (determinant -1): one axis is flipped, or two are swapped, against a right-handed camera"
    return None


def principal_point_fault(intrinsics: np.ndarray, height: int, width: int) -> str | None:
    """Why a photo of this size cannot be cropped around its principal point; None if it can.

    A fifth of the side must lie on each side of it, DUSt3R's bound: a crop symmetric around it would leave too little else.
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
