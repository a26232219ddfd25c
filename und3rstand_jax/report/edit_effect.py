"""What edits change in one layer: how far its points moved, and their errors in both runs if the truth is known."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from und3rstand_jax.geometry.cameras import ViewGeometry, ViewTruth
from und3rstand_jax.geometry.metrics import mean_displacements, point_errors
from und3rstand_jax.model.layer_ids import layer_name
from und3rstand_jax.support.text import JsonObject, text_table

DISPLACEMENT, ERRORS = "unscaled_mean_displacement_over_unedited_mean_distance", "normalised_point_errors"

MEANING = {
    DISPLACEMENT: (
        "of each view, from view 1 on: mean distance between a pixel's point in the edited and in the unedited run, over the mean "
        "distance of all the unedited run's points to view 1's camera; the edited points are not rescaled"
    ),
    ERRORS: (
        "of each view, with and without the edits: mean distance between the layer's points and the true ones, the pointmaps of all views "
        "first divided by their mean distance to the origin over all views' valid pixels (DUSt3R's regression loss); no unit. "
        "Since that mean is of all views, an edit of one view can change the error of another without moving its points"
    ),
}
"""The meaning of each number in a record."""

Views = tuple[ViewGeometry, ...]
OfViews = tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class LayerEffect:
    """What edits change in one layer.

    Attributes:
        layer_id: as in `und3rstand_jax.model.layer_ids`, or its HEAD.
        displacements: how far each view's points moved, see `und3rstand_jax.geometry.metrics.mean_displacements`.
        errors: normalised point errors of each view in the edited run; None without ground truth.
        unedited_errors: the same in the unedited run.
    """

    layer_id: str
    displacements: OfViews
    errors: OfViews | None = None
    unedited_errors: OfViews | None = None

    @classmethod
    def of(cls, layer_id: str, unedited: Views, edited: Views, truth: tuple[ViewTruth, ...] | None) -> "LayerEffect":
        """Compares a layer's geometry in both runs, and with the truth if that is known."""
        moved = mean_displacements(edited, unedited)
        return cls(layer_id, moved) if truth is None else cls(layer_id, moved, point_errors(edited, truth), point_errors(unedited, truth))

    @property
    def as_json(self) -> JsonObject:
        """The numbers, under the names that `MEANING` explains."""
        errors = {} if self.errors is None else {ERRORS: {"edited": self.errors, "unedited": self.unedited_errors}}
        return {DISPLACEMENT: self.displacements, **errors}


def format_effects(effects: Sequence[LayerEffect]) -> str:
    """A line for each layer: how far the views' points moved, and their errors in both runs, if known.

    With more than two views, there are columns for view 1 and for the mean over the later ones.
    """
    count = len(effects[0].displacements)
    later = "2" if count == 2 else f"2–{count}"
    head = ["layer", "moved\nview 1", *([f"moved\nview{'s' if count > 2 else ''} {later}"] if count > 1 else [])]
    has_errors = any(effect.errors is not None for effect in effects)
    if has_errors:
        head += [f"error {of}\n{run}" for of in ("1", later)[:count] for run in ("unedited", "edited")]
    rows = []
    for effect in effects:
        numbers = [*_first_and_later(effect.displacements)]
        if effect.errors is not None and effect.unedited_errors is not None:
            both = zip(_first_and_later(effect.unedited_errors), _first_and_later(effect.errors), strict=True)
            numbers += [number for of_view in both for number in of_view]
        rows.append([layer_name(effect.layer_id), *(f"{number:.4f}" for number in numbers)])
    footer = "moved: mean distance to the unedited run's points, over their mean distance to view 1's camera"
    if has_errors:
        footer += "; errors against ground truth, normalised"
    if count > 2:
        footer += f"; {later}: the mean over these views"
    return f"{text_table(head, rows, numbers_from=1)}\n{footer}"


def _first_and_later(numbers: OfViews) -> tuple[float, ...]:
    """View 1's number, and the mean of the others', if there are any; for a pair, that is view 2's."""
    return numbers[0], *([float(np.mean(numbers[1:]))] if len(numbers) > 1 else [])
