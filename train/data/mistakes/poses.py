"""Mistakes in cam2world.

Axes of a camera are rows, in terms of x right, y down, z forward: a point p of our camera is axes @ p of that one.
"""

import itertools
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int

from train.data.mistakes.mistake import Mistake, each
from train.data.overlap import ThinPair

_DIRECTIONS = (("right", "left"), ("down", "up"), ("forward", "backward"))
_USERS = {
    ("right", "up", "backward"): " (as in OpenGL, Blender)",
    ("forward", "left", "up"): " (as in ROS)",
    ("forward", "right", "down"): " (as in aviation)",
    ("left", "up", "forward"): " (as in PyTorch3D)",
}
_UNITY, _UNREAL = np.array([[1, 0, 0], [0, -1, 0], [0, 0, 1]]), np.array([[0, 0, 1], [1, 0, 0], [0, -1, 0]])
_MIRROR = np.diag([1.0, -1, 1, 1])


def _pose(symptom: str, remedy: str, correct: Callable[[np.ndarray], np.ndarray]) -> Mistake:
    return Mistake(symptom, remedy, each(lambda view: view._replace(cam2world=correct(view.cam2world))))


def _right_handed_axes() -> list[Int[np.ndarray, "3 3"]]:
    """All cameras whose axes are ours in another order or direction, those that somebody uses first."""
    signed = (np.diag(signs)[list(order)] for order in itertools.permutations(range(3)) for signs in itertools.product((1, -1), repeat=3))
    rotations = [axes for axes in signed if np.linalg.det(axes) > 0 and (axes != np.eye(3)).any()]
    users = list(_USERS)
    return sorted(rotations, key=lambda axes: users.index(_words(axes)) if _words(axes) in users else len(users))


def _words(axes: np.ndarray) -> tuple[str, str, str]:
    x, y, z = (_DIRECTIONS[int(row.nonzero()[0][0])][int(row.sum() < 0)] for row in axes)
    return x, y, z


def _turned(axes: np.ndarray) -> Float[np.ndarray, "4 4"]:
    turn = np.eye(4)
    turn[:3, :3] = axes
    return turn


def _axes_words(axes: np.ndarray) -> str:
    x, y, z = _words(axes)
    return f"x {x}, y {y}, z {z}{_USERS.get((x, y, z), '')}"


def _other_axes(axes: np.ndarray) -> Mistake:
    symptom = f"cam2world looks like that of a camera with axes {_axes_words(axes)}"
    return _pose(symptom, "turning the camera's axes to x right, y down, z forward", lambda pose: pose @ _turned(axes))


def _inverted_other_axes(axes: np.ndarray) -> Mistake:
    symptom = f"cam2world looks like world2cam of a camera with axes {_axes_words(axes)}"
    remedy = "inverting it and turning the camera's axes to x right, y down, z forward"
    return _pose(symptom, remedy, lambda pose: np.linalg.inv(pose) @ _turned(axes))


def _left_handed(name: str, axes: np.ndarray) -> Mistake:
    symptom = f"cam2world looks left-handed ({name}: {_axes_words(axes)})"
    return _pose(symptom, "mirroring the world and turning the camera's axes", lambda pose: _MIRROR @ pose @ _turned(axes))


def _rotation_transposed(pose: np.ndarray) -> np.ndarray:
    return np.block([[pose[:3, :3].T, pose[:3, 3:]], [pose[3:]]])


def _translation_inverted(pose: np.ndarray) -> np.ndarray:
    return np.block([[pose[:3, :3], -pose[:3, :3] @ pose[:3, 3:]], [pose[3:]]])


def _exchanged(pair: ThinPair) -> ThinPair:
    view1, view2 = pair
    return view1._replace(cam2world=view2.cam2world), view2._replace(cam2world=view1.cam2world)


_FIRST_AXES, *_MORE_AXES = _right_handed_axes()

POSES: tuple[Mistake, ...] = (
    _pose("cam2world looks like world2cam", "inverting it", np.linalg.inv),
    _other_axes(_FIRST_AXES),
    Mistake("the poses of view 1 and view 2 look exchanged", "exchanging them", _exchanged),
    _inverted_other_axes(_FIRST_AXES),
    _pose("cam2world looks like world2cam in its rotation alone", "transposing the rotation", _rotation_transposed),
    _pose("cam2world looks like world2cam in its translation alone", "making t the camera's position, -R·t,", _translation_inverted),
    _left_handed("Unity", _UNITY),
    _left_handed("Unreal", _UNREAL),
    *map(_other_axes, _MORE_AXES),
    *map(_inverted_other_axes, _MORE_AXES),
)
