"""Mistakes in depth: its unit, and what it is the distance of."""

from collections.abc import Callable, Sequence

import numpy as np

from train.data.mistakes.mistake import Mistake, each
from train.data.overlap import ThinPair, ThinView, baseline_over_depth, ray_grid


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
