"""What a mistake is: how the data look, what would help, and the correction itself, so that one can try whether it helps.

Mistakes in depth: its unit, and what it is the distance of.

Mistakes in the intrinsics.

Mistakes in cam2world.

Axes of a camera are rows, in terms of x right, y down, z forward: a point p of our camera is axes @ p of that one.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, Int

from und3rstand_jax.data.inspect.agreement import ThinPair, ThinView, baseline_over_depth, ray_grid


@dataclasses.dataclass(frozen=True)
class Mistake:
    """`symptom` is a clause ("cam2world looks like world2cam"), `remedy` the subject of one ("inverting it")."""

    symptom: str
    remedy: str
    correct: Callable[[ThinPair], ThinPair]


def each(correct: Callable[[ThinView], ThinView]) -> Callable[[ThinPair], ThinPair]:
    """A correction of views as one of pairs."""
    return lambda pair: (correct(pair[0]), correct(pair[1]))


def _along_ray(view: ThinView) -> ThinView:
    return view._replace(depth=view.depth / np.linalg.norm(ray_grid(view), axis=-1))


RAY = Mistake("depth looks like the distance along each pixel's ray", "making it z along the optical axis", each(_along_ray))


_UNITS = {
    0.001: " (millimetres, where cam2world is in metres?)",
    1000.0: " (metres, where cam2world is in millimetres?)",
    0.01: " (centimetres, where cam2world is in metres?)",
    100.0: " (metres, where cam2world is in centimetres?)",
    0.1: "",
    10.0: "",
    0.2: " (5000 steps a metre, as TUM RGB-D stores it?)",
    5.0: "",
    1000 / 256: " (256 steps a metre, as KITTI stores it?)",
    0.256: "",
    0.3048: " (feet, where cam2world is in metres?)",
    1 / 0.3048: " (metres, where cam2world is in feet?)",
}


_BASELINES_OVER_DEPTH = (0.005, 20.0)


_COARSE, _FINE = 0.05, 0.005


def units(pairs: Sequence[ThinPair]) -> list[Mistake]:
    """The usual wrong units of the depth; none that would leave cameras hardly apart, or absurdly far, compared with it."""
    low, high = _factor_bounds(pairs)
    return [_unit(factor) for factor in _UNITS if low <= factor <= high]


def fitted_unit(pairs: Sequence[ThinPair], score_of: Callable[[Sequence[ThinPair]], float]) -> list[Mistake]:
    """The unit of the depth that suits the poses best, a usual one if that is within 1 %; none if the given one does."""

    def best_of(factors: np.ndarray, of: Sequence[ThinPair]) -> float:
        return float(max(factors, key=lambda factor: score_of([_unit(factor).correct(pair) for pair in of])))

    low, high = _factor_bounds(pairs)
    if not low:
        return []
    coarse = best_of(np.geomspace(low, high, round(np.log(high / low) / _COARSE)), few_of(pairs))
    best = best_of(coarse * np.exp(np.arange(-_COARSE, _COARSE, _FINE)), pairs)
    usual = next((usual for usual in (1.0, *_UNITS) if abs(np.log(best / usual)) < 2 * _FINE), best)
    return [] if usual == 1.0 else [_unit(usual)]


def few_of(pairs: Sequence[ThinPair]) -> Sequence[ThinPair]:
    """Eight of the pairs, or a few more, for searches over much."""
    return pairs[:: -(-len(pairs) // 8)]


def _factor_bounds(pairs: Sequence[ThinPair]) -> tuple[float, float]:
    """Factors of the depth between which the median baseline is in a usual proportion to it; 0 if the cameras stand in one place."""
    ratio = float(np.median([baseline_over_depth(pair) for pair in pairs]))
    least, most = _BASELINES_OVER_DEPTH
    return ratio / most, ratio / least


def far_away(pair: ThinPair) -> ThinPair:
    """The pair with everything in it so far away that the translations do not count."""
    return _unit(1e9).correct(pair)


def _unit(factor: float) -> Mistake:
    if factor in _UNITS:
        amount = f"{1 / factor:.4g} times too large" if factor < 1 else f"{factor:.4g} times too small"
        symptom = f"depth looks {amount}{_UNITS[factor]}"
    else:
        symptom = "depth and cam2world are not in one unit (poses from photos alone have a unit of their own)"
    return Mistake(symptom, f"multiplying the depth by {factor:.4g}", each(lambda view: view._replace(depth=view.depth * factor)))


_FRACTIONS = tuple(
    p / q for p, q in itertools.product((1, 2, 3, 4, 5, 6, 8), repeat=2) if 1 in (p, q) or (p, q) in ((2, 3), (3, 2), (3, 4), (4, 3))
)


def _intrinsics(symptom: str, remedy: str, correct: Callable[[np.ndarray, ThinView], np.ndarray]) -> Mistake:
    return Mistake(symptom, remedy, each(lambda view: view._replace(intrinsics=correct(view.intrinsics, view))))


def _camera(fx: float, fy: float, cx: float, cy: float) -> Float[np.ndarray, "3 3"]:
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])


def _centre_swapped(given: np.ndarray, view: ThinView) -> np.ndarray:
    return _camera(given[0, 0], given[1, 1], given[1, 2], given[0, 2])


def _all_swapped(given: np.ndarray, view: ThinView) -> np.ndarray:
    return _camera(given[1, 1], given[0, 0], given[1, 2], given[0, 2])


def _normalised(given: np.ndarray, view: ThinView) -> np.ndarray:
    return np.diag([view.shape[1], view.shape[0], 1.0]) @ given if _is_normalised(given) else given


def _other_size(given: np.ndarray, view: ThinView) -> np.ndarray:
    if _is_normalised(given):
        return given
    height, width = view.shape
    x, y = _likely_ratio(width / (2 * given[0, 2] + 1)), _likely_ratio(height / (2 * given[1, 2] + 1))
    return _camera(given[0, 0] * x, given[1, 1] * y, (given[0, 2] + 0.5) * x - 0.5, (given[1, 2] + 0.5) * y - 0.5)


def _is_normalised(given: np.ndarray) -> bool:
    return bool(0 < given[0, 2] < 1 and 0 < given[1, 2] < 1)


def _likely_ratio(ratio: float) -> float:
    """A ratio of two image sizes, estimated from a principal point that need not be quite central: a simple fraction if one is near."""
    if not ratio > 0:
        return 1.0
    nearest = min(_FRACTIONS, key=lambda fraction: abs(np.log(fraction / ratio)))
    return nearest if abs(np.log(nearest / ratio)) < 0.08 else ratio


INTRINSICS: tuple[Mistake, ...] = (
    _intrinsics("cx and cy of the intrinsics look exchanged", "exchanging them", _centre_swapped),
    _intrinsics("x and y of the intrinsics look exchanged (fx with fy, cx with cy)", "exchanging them", _all_swapped),
    _intrinsics("the intrinsics look like those of another image size", "scaling them to the photo's", _other_size),
    _intrinsics("the intrinsics look normalised to an image of size 1", "multiplying them by the photo's width and height", _normalised),
)


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
