"""How much of the cross-attention of view 1's tokens lies where view 2 truly sees what they show."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from und3rstand_jax.report.content import Report
from und3rstand_jax.report.inputs import Inputs
from und3rstand_jax.report.matching import true_places

_NEAR = 1  # tokens, in rows and columns


class TruePlace(NamedTuple):
    """Which tokens of view 2 lie within a token of where view 2 sees the middle of each token of view 1; and whether it sees it."""

    near: Bool[np.ndarray, "N1 N2"]
    seen: Bool[np.ndarray, " N1"]

    @property
    def even(self) -> float:
        """What attention spread evenly would give it."""
        return float(self.near[self.seen].mean())


def true_place(inputs: Inputs, grids: tuple[tuple[int, int], tuple[int, int]]) -> TruePlace:
    """Of a rendered pair; `grids` are the (rows, columns) of each view's tokens."""
    assert inputs.truth is not None and inputs.true_pose is not None and inputs.intrinsics is not None
    places = true_places(inputs.truth, inputs.true_pose, inputs.intrinsics[1])
    patch = places.shape[0] // grids[0][0]
    middles = places[patch // 2 :: patch, patch // 2 :: patch].reshape(-1, 2)
    seen = np.isfinite(middles).all(axis=-1)
    # Pixel centres are at integers: the first token reaches from -0.5 to patch - 0.5.
    token = np.floor((np.where(seen[:, None], middles, 0) + 0.5) / patch)
    rows, columns = np.divmod(np.arange(grids[1][0] * grids[1][1]), grids[1][1])
    near = (np.abs(token[:, :1] - columns) <= _NEAR) & (np.abs(token[:, 1:] - rows) <= _NEAR)
    return TruePlace(near, seen)


def attention_on(report: Report, place: TruePlace) -> Float[np.ndarray, "blocks heads"]:
    """Share of its attention that each head gives the place, mean over the tokens of view 1 that view 2 sees; NaN where it sees none."""
    if not place.seen.any():
        return np.full((len(report.attention), report.attention[0].from_view1.shape[0]), np.nan)
    shares = [(block.from_view1 * place.near).sum(axis=-1)[:, place.seen] for block in report.attention]
    return np.stack(shares).mean(axis=-1)
