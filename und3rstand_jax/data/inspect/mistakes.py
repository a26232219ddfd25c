"""The usual mistakes in poses and intrinsics, each with its symptom, its remedy, and the correction that tries it out.

The type of a mistake comes first, then corrections of poses and of intrinsics, and last `POSES` and `INTRINSICS`, which list them all.
Mistakes in depth are in `depth_mistakes`.

A camera's axes are the rows of a matrix, in terms of x right, y down, z forward: a point p in our camera's frame is axes @ p in its frame.
"""

import dataclasses
import itertools
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int, Num

from und3rstand_jax.data.inspect.agreement import ThinPair, ThinView

_DIRECTIONS = (("right", "left"), ("down", "up"), ("forward", "backward"))

_CONVENTIONS = {
    ("right", "up", "backward"): " (as in OpenGL, Blender)",
    ("forward", "left", "up"): " (as in ROS)",
    ("forward", "right", "down"): " (as in aviation)",
    ("left", "up", "forward"): " (as in PyTorch3D)",
}

_UNITY, _UNREAL = np.array([[1, 0, 0], [0, -1, 0], [0, 0, 1]]), np.array([[0, 0, 1], [1, 0, 0], [0, -1, 0]])
_MIRROR = np.diag([1.0, -1, 1, 1])

_SIZE_RATIOS = tuple(
    p / q for p, q in itertools.product((1, 2, 3, 4, 5, 6, 8), repeat=2) if 1 in (p, q) or (p, q) in ((2, 3), (3, 2), (3, 4), (4, 3))
)


@dataclasses.dataclass(frozen=True)
class Mistake:
    """`symptom` is a clause ("cam2world looks like world2cam"), `remedy` the subject of one ("inverting it")."""

    symptom: str
    remedy: str
    correct: Callable[[ThinPair], ThinPair]


def of_views(symptom: str, remedy: str, correct: Callable[[ThinView], ThinView]) -> Mistake:
    """A mistake that concerns each view separately."""
    return Mistake(symptom, remedy, lambda pair: (correct(pair[0]), correct(pair[1])))


def _of_poses(symptom: str, remedy: str, correct: Callable[[Float[np.ndarray, "4 4"]], Float[np.ndarray, "4 4"]]) -> Mistake:
    return of_views(symptom, remedy, lambda view: view._replace(cam2world=correct(view.cam2world)))


def _of_intrinsics(symptom: str, remedy: str, correct: Callable[[Float[np.ndarray, "3 3"], ThinView], Float[np.ndarray, "3 3"]]) -> Mistake:
    return of_views(symptom, remedy, lambda view: view._replace(intrinsics=correct(view.intrinsics, view)))


def _rigid(rotation: Num[np.ndarray, "3 3"], translation: Float[np.ndarray, "3"] | None = None) -> Float[np.ndarray, "4 4"]:
    motion = np.eye(4)
    motion[:3, :3] = rotation
    if translation is not None:
        motion[:3, 3] = translation
    return motion


def _directions(axes: Int[np.ndarray, "3 3"]) -> tuple[str, str, str]:
    x, y, z = (_DIRECTIONS[int(row.nonzero()[0][0])][int(row.sum() < 0)] for row in axes)
    return x, y, z


def _described(axes: Int[np.ndarray, "3 3"]) -> str:
    x, y, z = _directions(axes)
    return f"x {x}, y {y}, z {z}{_CONVENTIONS.get((x, y, z), '')}"


def _other_axes(axes: Int[np.ndarray, "3 3"]) -> Mistake:
    symptom = f"cam2world looks like that of a camera with axes {_described(axes)}"
    return _of_poses(symptom, "rotating the camera's axes to x right, y down, z forward", lambda pose: pose @ _rigid(axes))


def _inverted_other_axes(axes: Int[np.ndarray, "3 3"]) -> Mistake:
    symptom = f"cam2world looks like world2cam of a camera with axes {_described(axes)}"
    remedy = "inverting it and rotating the camera's axes to x right, y down, z forward"
    return _of_poses(symptom, remedy, lambda pose: np.linalg.inv(pose) @ _rigid(axes))


def _left_handed(name: str, axes: Int[np.ndarray, "3 3"]) -> Mistake:
    symptom = f"cam2world looks left-handed ({name}: {_described(axes)})"
    return _of_poses(symptom, "mirroring the world and rotating the camera's axes", lambda pose: _MIRROR @ pose @ _rigid(axes))


def _matrix(fx: float, fy: float, cx: float, cy: float) -> Float[np.ndarray, "3 3"]:
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])


def _is_normalised(given: Float[np.ndarray, "3 3"]) -> bool:
    return bool(0 < given[0, 2] < 1 and 0 < given[1, 2] < 1)


def _scaled_to_photo(given: Float[np.ndarray, "3 3"], view: ThinView) -> Float[np.ndarray, "3 3"]:
    """Intrinsics of another image size, scaled to the photo's. Only a roughly central principal point reveals that size."""
    if _is_normalised(given):
        return given
    scales = []
    for side, centre in ((view.shape[1], given[0, 2]), (view.shape[0], given[1, 2])):
        ratio = side / (2 * centre + 1)
        if not ratio > 0:
            ratio = 1.0
        nearest = min(_SIZE_RATIOS, key=lambda fraction: abs(np.log(fraction / ratio)))
        scales.append(nearest if abs(np.log(nearest / ratio)) < 0.08 else ratio)
    x, y = scales
    return _matrix(given[0, 0] * x, given[1, 1] * y, (given[0, 2] + 0.5) * x - 0.5, (given[1, 2] + 0.5) * y - 0.5)


_SIGNED = (np.diag(signs)[list(order)] for order in itertools.permutations(range(3)) for signs in itertools.product((1, -1), repeat=3))

_FIRST_AXES, *_MORE_AXES = sorted(
    (axes for axes in _SIGNED if np.linalg.det(axes) > 0 and (axes != np.eye(3)).any()),
    key=lambda axes: [*_CONVENTIONS, _directions(axes)].index(_directions(axes)),
)
"""The axes of every right-handed camera but ours, those of known conventions first."""

POSES: tuple[Mistake, ...] = (
    _of_poses("cam2world looks like world2cam", "inverting it", np.linalg.inv),
    _other_axes(_FIRST_AXES),
    Mistake(
        "the poses of view 1 and view 2 look exchanged",
        "exchanging them",
        lambda pair: (pair[0]._replace(cam2world=pair[1].cam2world), pair[1]._replace(cam2world=pair[0].cam2world)),
    ),
    _inverted_other_axes(_FIRST_AXES),
    _of_poses(
        "cam2world looks like world2cam in its rotation only",
        "transposing the rotation",
        lambda pose: _rigid(pose[:3, :3].T, pose[:3, 3]),
    ),
    _of_poses(
        "cam2world looks like world2cam in its translation only",
        "making t the camera's position, -R·t,",
        lambda pose: _rigid(pose[:3, :3], -pose[:3, :3] @ pose[:3, 3]),
    ),
    _left_handed("Unity", _UNITY),
    _left_handed("Unreal", _UNREAL),
    *map(_other_axes, _MORE_AXES),
    *map(_inverted_other_axes, _MORE_AXES),
)
"""The most usual first."""

INTRINSICS: tuple[Mistake, ...] = (
    _of_intrinsics(
        "cx and cy of the intrinsics look exchanged",
        "exchanging them",
        lambda given, _: _matrix(given[0, 0], given[1, 1], given[1, 2], given[0, 2]),
    ),
    _of_intrinsics(
        "x and y of the intrinsics look exchanged (fx with fy, cx with cy)",
        "exchanging them",
        lambda given, _: _matrix(given[1, 1], given[0, 0], given[1, 2], given[0, 2]),
    ),
    _of_intrinsics("the intrinsics look like those of another image size", "scaling them to the photo's", _scaled_to_photo),
    _of_intrinsics(
        "the intrinsics look normalised to an image of size 1",
        "multiplying them by the photo's width and height",
        lambda given, view: np.diag([view.shape[1], view.shape[0], 1.0]) @ given if _is_normalised(given) else given,
    ),
)
