"""How maps are coloured: the values at the ends of a colour bar, the colours between them, and the text that explains them."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

Shown = Literal["values", "differences"]
"""What a map shows: a run's own values, or another run's values minus these."""

_PERCENTILES = (2.0, 98.0)
_NO_VALUE = (200, 200, 200)


@dataclasses.dataclass(frozen=True)
class Scale:
    """The values that a colour bar spans; `logarithmic` spaces colours by the logarithm."""

    low: float
    high: float
    logarithmic: bool = False

    @classmethod
    def of(cls, values: Float[np.ndarray, " N"], logarithmic: bool) -> "Scale":
        """Spans the middle 96 % of the finite values (positive ones, if logarithmic); never empty."""
        usable = values[np.isfinite(values) & ((values > 0) | (not logarithmic))]
        if not usable.size:
            return cls(1.0, 2.0, logarithmic)
        low, high = (float(bound) for bound in np.percentile(usable.astype(np.float64), _PERCENTILES))
        # A constant map has an empty range; a small relative range around its value keeps the numbers beside the bar true.
        margin = abs(low) * 1e-3 or 1e-6
        return cls(low, high, logarithmic) if high - low > margin else cls(low - margin, high + margin, logarithmic)

    @classmethod
    def about_zero(cls, values: Float[np.ndarray, " N"]) -> "Scale":
        """Has 0 in the middle, and covers 98 % of the finite values that are not 0; never empty."""
        sizes = np.abs(values[np.isfinite(values) & (values != 0)].astype(np.float64))
        bound = float(np.percentile(sizes, _PERCENTILES[1])) if sizes.size else 1e-6
        return cls(-bound, bound)

    def fractions(self, values: Float[np.ndarray, "*S"]) -> Float[np.ndarray, "*S"]:
        """Positions of values along the bar, clipped to 0 and 1; NaN for a value that is not finite or has no logarithm."""
        values = np.asarray(values, np.float64)
        bounds = np.array([self.low, self.high])
        values = np.where(np.isfinite(values), values, np.nan)
        if self.logarithmic:
            values, bounds = np.log(np.where(values > 0, values, np.nan)), np.log(bounds)
        return np.clip((values - bounds[0]) / (bounds[1] - bounds[0]), 0, 1)

    def ticks(self) -> tuple[str, str, str]:
        """Numbers for the left end, the middle and the right end of the bar."""
        middle = (self.low * self.high) ** 0.5 if self.logarithmic else (self.low + self.high) / 2
        return f"{self.low:.3g}", f"{middle:.3g}", f"{self.high:.3g}"


def colored(fractions: Float[np.ndarray, "H W"], colormap: str) -> UInt8[np.ndarray, "H W 3"]:
    """The colours at positions along a bar, in the matplotlib colour map named `colormap`; grey for NaN."""
    import matplotlib

    # A lookup table of 256 colours: matplotlib's own call is several times slower.
    table = matplotlib.colormaps[colormap](np.arange(256), bytes=True)[:, :3]
    colors = table[np.rint(np.nan_to_num(fractions) * 255).astype(np.uint8)]
    return np.where(np.isnan(fractions)[..., None], np.array(_NO_VALUE, np.uint8), colors)


class Look(NamedTuple):
    """How one kind of map is drawn; `heading` may contain {view}."""

    heading: str
    colormap: str
    scale: Callable[[Float[np.ndarray, " N"]], Scale]


LOOKS: dict[Shown, dict[str, Look]] = {
    "values": {
        "depth": Look("depth z, view {view}", "turbo", functools.partial(Scale.of, logarithmic=False)),
        "confidence": Look("confidence, view {view}", "viridis", functools.partial(Scale.of, logarithmic=True)),
    },
    "differences": {
        "depth": Look("Δ depth z", "RdBu_r", Scale.about_zero),
        "confidence": Look("Δ ln confidence", "RdBu_r", Scale.about_zero),
    },
}
"""What a map shows -> its quantity -> how it is drawn."""

EXPLANATIONS: dict[Shown, str] = {
    "values": """\
Depth is z in view 1's camera frame, for every view, in the model's own unit. Confidence is coloured on a logarithmic scale.
Each view has one depth scale and one confidence scale for all rows (2nd to 98th percentile; values beyond take the end colours).
Grey: no finite value.""",
    "differences": """\
Each layer has three rows: the unedited run, the edited run, and Δ, the edited minus the unedited: red is more, blue less, white the same.
Δ depth is in units of the layer's mean distance of points to view 1's camera, all views', unedited. Δ ln confidence: natural logarithm.
Each view has one scale of each Δ for all rows, with 0 in its middle (to the 98th percentile of the sizes of all Δ that are not 0).""",
}
"""The explanation on a sheet of each kind of row."""
