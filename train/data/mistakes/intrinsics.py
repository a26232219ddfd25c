"""Mistakes in the intrinsics."""

import itertools
from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from train.data.mistakes.mistake import Mistake, each
from train.data.overlap import ThinView

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
