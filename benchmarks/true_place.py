"""How much of the cross-attention of a view's tokens lies where the other view truly sees what they show."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from und3rstand_jax.output import pair
from und3rstand_jax.report.content import Report
from und3rstand_jax.report.inputs import Inputs
from und3rstand_jax.report.matching import true_places

_NEAR = 1  # tokens, in rows and columns

Grid = tuple[int, int]
"""(rows, columns) of a view's tokens."""


class TruePlace(NamedTuple):
    """Which tokens of the other view lie within a token of where it sees the middle of each token of this view; and whether it does."""

    near: Bool[np.ndarray, "N M"]
    seen: Bool[np.ndarray, " N"]

    @property
    def even(self) -> float:
        """What attention spread evenly would give it; NaN where nothing is seen."""
        return float(self.near[self.seen].mean()) if self.seen.any() else np.nan


Places = tuple[TruePlace, TruePlace]
"""Of view 1's tokens in view 2, and of view 2's in view 1."""


def both_true_places(inputs: Inputs, grids: tuple[Grid, Grid]) -> Places:
    """Of a rendered pair."""
    assert inputs.truth is not None and inputs.true_pose is not None and inputs.intrinsics is not None
    one, two = inputs.truth
    # All points are in view 1's frame, in which its own camera stands at the origin.
    in_view2 = true_places((one, two), inputs.true_pose, inputs.intrinsics[1])
    in_view1 = true_places((two, one), np.eye(4), inputs.intrinsics[0])
    return _near_tokens(in_view2, grids[0], grids[1]), _near_tokens(in_view1, grids[1], grids[0])


def _near_tokens(places: Float[np.ndarray, "H W 2"], here: Grid, there: Grid) -> TruePlace:
    patch = places.shape[0] // here[0]
    middles = places[patch // 2 :: patch, patch // 2 :: patch].reshape(-1, 2)
    seen = np.isfinite(middles).all(axis=-1)
    # Pixel centres are at integers: the first token reaches from -0.5 to patch - 0.5.
    token = np.floor((np.where(seen[:, None], middles, 0) + 0.5) / patch)
    rows, columns = np.divmod(np.arange(there[0] * there[1]), there[1])
    near = (np.abs(token[:, :1] - columns) <= _NEAR) & (np.abs(token[:, 1:] - rows) <= _NEAR)
    return TruePlace(near, seen)


def attention_on(report: Report, places: Places) -> Float[np.ndarray, "2 blocks heads"]:
    """Share of its attention that each head of each view's decoder gives the place: the mean over the tokens that the other view sees.

    NaN where it sees none.
    """
    weights = pair([getattr(block, name) for block in report.attention] for name in ("from_view1", "from_view2"))
    return np.stack([_on(np.stack(of_view), place) for of_view, place in zip(weights, places, strict=True)])


def _on(weights: Float[np.ndarray, "blocks heads N M"], place: TruePlace) -> Float[np.ndarray, "blocks heads"]:
    if not place.seen.any():
        return np.full(weights.shape[:2], np.nan)
    return np.asarray((weights * place.near).sum(axis=-1)[..., place.seen].mean(axis=-1))
