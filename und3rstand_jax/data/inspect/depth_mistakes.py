"""The usual mistakes in depth: distance along the ray, and a unit other than that of the poses, a usual one or the one that fits."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from und3rstand_jax.data.inspect.agreement import ThinPair, baseline_over_depth, both_ways, ray_grid
from und3rstand_jax.data.inspect.mistakes import Mistake, of_views

_UNITS = {
    0.001: " (millimetres, where cam2world is in metres?)",
    1000.0: " (metres, where cam2world is in millimetres?)",
    0.01: " (centimetres, where cam2world is in metres?)",
    100.0: " (metres, where cam2world is in centimetres?)",
    0.1: "",
    10.0: "",
    0.2: " (5000 steps per metre, as TUM RGB-D stores it?)",
    5.0: "",
    1000 / 256: " (256 steps per metre, as KITTI stores it?)",
    0.256: "",
    0.3048: " (feet, where cam2world is in metres?)",
    1 / 0.3048: " (metres, where cam2world is in feet?)",
}

_BASELINES_OVER_DEPTH = (0.005, 20.0)

_COARSE, _FINE = 0.05, 0.005  # steps of the search for a unit, in log(factor)

RAY = of_views(
    "depth looks like the distance along each pixel's ray",
    "making it z along the optical axis",
    lambda view: view._replace(depth=view.depth / np.linalg.norm(ray_grid(view), axis=-1)),
)


def usual_units(pairs: Sequence[ThinPair]) -> list[Mistake]:
    """The usual wrong units of the depth that are plausible for the baselines."""
    low, high = _plausible_factors(pairs)
    return [_unit(factor) for factor in _UNITS if low <= factor <= high]


def fitted_unit(pairs: Sequence[ThinPair]) -> list[Mistake]:
    """The depth's unit that fits the poses best, replaced by a usual one within 1 % of it; empty if that is the given unit."""

    def best_of(factors: Float[np.ndarray, " n"], of: Sequence[ThinPair]) -> float:
        return float(max(factors, key=lambda factor: both_ways(map(_unit(factor).correct, of)).score))

    low, high = _plausible_factors(pairs)
    if not low:
        return []
    coarse = best_of(np.geomspace(low, high, round(np.log(high / low) / _COARSE)), few_of(pairs))
    best = best_of(coarse * np.exp(np.arange(-_COARSE, _COARSE, _FINE)), pairs)
    usual = next((usual for usual in (1.0, *_UNITS) if abs(np.log(best / usual)) < 2 * _FINE), best)
    return [] if usual == 1.0 else [_unit(usual)]


def far_away(pair: ThinPair) -> ThinPair:
    """The pair with its scene so far away that translations make no difference."""
    return _unit(1e9).correct(pair)


def few_of(pairs: Sequence[ThinPair]) -> Sequence[ThinPair]:
    """About eight of the pairs, evenly spaced, for wide searches."""
    return pairs[:: -(-len(pairs) // 8)]


def _plausible_factors(pairs: Sequence[ThinPair]) -> tuple[float, float]:
    """Bounds on factors of the depth that keep the median ratio of baseline to depth in a usual range; 0 if no camera moves."""
    ratio = float(np.median([baseline_over_depth(pair) for pair in pairs]))
    least, most = _BASELINES_OVER_DEPTH
    return ratio / most, ratio / least


def _unit(factor: float) -> Mistake:
    if factor in _UNITS:
        amount = f"{1 / factor:.4g} times too large" if factor < 1 else f"{factor:.4g} times too small"
        symptom = f"depth looks {amount}{_UNITS[factor]}"
    else:
        symptom = "depth and cam2world are not in the same unit (poses from photos alone have a unit of their own)"
    return of_views(symptom, f"multiplying the depth by {factor:.4g}", lambda view: view._replace(depth=view.depth * factor))
