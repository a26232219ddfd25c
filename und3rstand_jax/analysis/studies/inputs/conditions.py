"""Pairs made from other pairs, for the study `inputs`: swapped, doubled, unrelated; each with its truth."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from und3rstand_jax.analysis.inputs import GroundTruth
from und3rstand_jax.analysis.pair_measures import Pairs, PairTruth
from und3rstand_jax.geometry.cameras import ViewTruth
from und3rstand_jax.geometry.loss import Target, normalised_truth
from und3rstand_jax.geometry.metrics import mean_distance


class Condition(NamedTuple):
    """Pairs as they are given to the model.

    `related` says whether both views are of one scene: only then does view 2 have a place in view 1's frame. `own_units` (S, 2) is the mean
    distance of each view's true points to that view's own camera; NaN without a true point.
    """

    pairs: Pairs
    related: bool
    own_units: Float[np.ndarray, "S 2"]


def conditions_of(pairs: Pairs, others: Pairs) -> dict[str, Condition]:
    """The inputs of the study by name; `others` are as many pairs, whose view 2 is of another scene."""
    own = np.array([_own_units(truth) for truth in pairs.truths])
    units_of_others = np.array([_own_units(truth) for truth in others.truths])
    swapped = [_swapped(truth) for truth in pairs.truths]
    stay = np.eye(4), np.eye(4)
    doubled = [GroundTruth((truth.views[0],) * 2, stay, (truth.intrinsics[0],) * 2) for truth in pairs.truths]
    unrelated = [
        GroundTruth((one.views[0], two.views[1]), stay, (one.intrinsics[0], two.intrinsics[1]))
        for one, two in zip(pairs.truths, others.truths, strict=True)
    ]
    one, two = pairs.views
    return {
        "straight": Condition(pairs, True, own),
        "swapped": Condition(_pairs(two, one, swapped), True, own[:, ::-1]),
        "doubled": Condition(_pairs(one, one, doubled), True, own[:, [0, 0]]),
        "unrelated": Condition(_pairs(one, others.views[1], unrelated), False, np.stack([own[:, 0], units_of_others[:, 1]], axis=-1)),
    }


def _swapped(truth: GroundTruth) -> GroundTruth:
    """The same pair with view 2 first; all points are then in its camera's frame."""

    def moved(view: ViewTruth) -> ViewTruth:
        points = (view.points.astype(np.float64) - truth.pose[:3, 3]) @ truth.pose[:3, :3]
        return ViewTruth(np.where(view.valid[..., None], points, 0).astype(np.float32), view.valid)

    one, two = map(moved, truth.views)
    return GroundTruth((two, one), (np.eye(4), np.linalg.inv(truth.pose)), truth.intrinsics[::-1])


def _pairs(view1: Float[np.ndarray, "S H W 3"], view2: Float[np.ndarray, "S H W 3"], truths: list[GroundTruth]) -> Pairs:
    camera = jnp.broadcast_to(jnp.eye(4, dtype=jnp.float32), (len(truths), 4, 4))  # points are in view 1's frame already

    def target(view: int) -> Target:
        points, valid = (np.stack([getattr(truth.views[view], name) for truth in truths]) for name in ("points", "valid"))
        return Target(jnp.asarray(points), camera, jnp.asarray(valid))

    targets = target(0), target(1)
    return Pairs((view1, view2), jax.tree.map(np.asarray, PairTruth(normalised_truth(targets), mean_distance(targets))), tuple(truths))


def _own_units(truth: GroundTruth) -> tuple[float, float]:
    """Mean distance of each view's true points to its own camera."""

    def unit(view: ViewTruth, camera: Float[np.ndarray, "3"]) -> float:
        return float(np.linalg.norm(view.points[view.valid] - camera, axis=-1).mean()) if view.valid.any() else np.nan

    return unit(truth.views[0], np.zeros(3)), unit(truth.views[1], truth.pose[:3, 3])
