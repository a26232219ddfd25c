"""What `python -m train two-views` found, as figures, text and JSON. No JAX here."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from und3rstand_jax.support.files import strict_json

MODEL, CONSTANT = "model", "constant"


OTHER_VIEW2, GREY_VIEW1, GREY_VIEW2 = "other_view2", "grey_view1", "grey_view2"


_ROWS = {
    MODEL: "the model",
    CONSTANT: "(a) the best constant pointmap",
    OTHER_VIEW2: "(b) the model, view 2's image of another pair",
    GREY_VIEW1: "(c) the model, view 1's image grey",
    GREY_VIEW2: "(d) the model, view 2's image grey",
}


_MEANING = {
    "errors": "mean distance to the true point, in units of the pair's mean distance to view 1's camera (DUSt3R's regression term)",
    "ratios": "the model's error over the other's, view by view; below 1 the model is better",
    MODEL: "both images as they are",
    CONSTANT: "every pixel's geometric median over training pairs, whatever the images; not normalised again",
    OTHER_VIEW2: "view 2's image is that of the next pair of the batch",
    GREY_VIEW1: "view 1's image is mid-grey",
    GREY_VIEW2: "view 2's image is mid-grey",
}


@dataclasses.dataclass(frozen=True)
class ViewPair:
    """One figure of each view."""

    view1: float
    view2: float


@dataclasses.dataclass(frozen=True)
class TwoViewResult:
    """Errors of the model, of the constant, and of the model with wrong images, under the names above.

    `valid_pixels` are those each view's errors are means over; `pairs` and `constant_pairs` how many pairs those and the constant are
    of; `unreadable` counts pairs that another took the place of.
    """

    errors: dict[str, ViewPair]
    valid_pixels: ViewPair
    pairs: int
    constant_pairs: int
    unreadable: int

    @property
    def ratios(self) -> dict[str, ViewPair]:
        """The model's error over each of the others, view by view; NaN where the other is 0."""
        model = self.errors[MODEL]
        others = {name: error for name, error in self.errors.items() if name != MODEL}
        return {name: ViewPair(_ratio(model.view1, error.view1), _ratio(model.view2, error.view2)) for name, error in others.items()}


def format_result(result: TwoViewResult) -> str:
    """The result as aligned text: each condition's errors, and the model's error over them."""
    lines = [["normalised point error", "view 1", "view 2", "model / this: view 1", "view 2"]]
    for name, label in _ROWS.items():
        cells = [f"{value:.4f}" for value in dataclasses.astuple(result.errors[name])]
        ratios = [f"{value:.3f}" for value in dataclasses.astuple(result.ratios[name])] if name != MODEL else ["", ""]
        lines.append([label, *cells, *ratios])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    table = [
        "  ".join([cells[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(cells[1:], widths[1:], strict=True))]).rstrip()
        for cells in lines
    ]
    return "\n".join([*table, f"{result.pairs} held-out pairs; the constant is of {result.constant_pairs} training pairs"])


def as_json(result: TwoViewResult, options: Mapping[str, Any]) -> str:
    """Everything that was measured and what was asked for, as strict JSON: NaN is null."""
    content = {"options": options, **dataclasses.asdict(result), "ratios": {k: dataclasses.asdict(v) for k, v in result.ratios.items()}}
    return json.dumps(strict_json(content | {"meaning": _MEANING}), indent=1, allow_nan=False) + "\n"


def _ratio(one: float, other: float) -> float:
    return one / other if other else float("nan")
