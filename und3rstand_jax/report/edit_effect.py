"""What edits change of one layer: how far its points moved, and their errors in either run where the truth is known."""

import dataclasses
from collections.abc import Sequence

from und3rstand_jax.geometry.cameras import ViewGeometry, ViewTruth
from und3rstand_jax.geometry.metrics import mean_displacements, point_errors
from und3rstand_jax.model.layer_ids import layer_name
from und3rstand_jax.support.text import JsonObject, text_table

DISPLACEMENT, ERRORS = "unscaled_mean_displacement_over_unedited_mean_distance", "normalised_point_errors"

MEANING = {
    DISPLACEMENT: (
        "of view 1 and view 2: mean distance between a pixel's point in the edited and in the unedited run, over the unedited pair's mean "
        "distance of points to view 1's camera; the edited points are not rescaled"
    ),
    ERRORS: (
        "of view 1 and view 2, with and without the edits: mean distance between the layer's points and the true ones, each pair of "
        "pointmaps first divided by its mean distance to the origin over both views' valid pixels (DUSt3R's regression loss); no unit. "
        "Since that mean is of both views, an edit of one view can change the error of the other without moving its points"
    ),
}
"""Of each number in a record, what it is."""

Views = tuple[ViewGeometry, ...]
OfViews = tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class LayerEffect:
    """What edits change of one layer.

    Attributes:
        layer_id: as in `und3rstand_jax.model.layer_ids`, or its HEAD.
        displacements: of each view, see `und3rstand_jax.geometry.metrics.mean_displacements`.
        errors: normalised point errors of each view in the edited run; None without ground truth.
        unedited_errors: the same in the unedited run.
    """

    layer_id: str
    displacements: OfViews
    errors: OfViews | None = None
    unedited_errors: OfViews | None = None

    @classmethod
    def of(cls, layer_id: str, unedited: Views, edited: Views, truth: tuple[ViewTruth, ...] | None) -> "LayerEffect":
        """Compares a layer's geometry in both runs, and with the truth where that is known."""
        moved = mean_displacements(edited, unedited)
        return cls(layer_id, moved) if truth is None else cls(layer_id, moved, point_errors(edited, truth), point_errors(unedited, truth))

    @property
    def as_json(self) -> JsonObject:
        """The numbers, by the names that `MEANING` explains."""
        errors = {} if self.errors is None else {ERRORS: {"edited": self.errors, "unedited": self.unedited_errors}}
        return {DISPLACEMENT: self.displacements, **errors}


def format_effects(effects: Sequence[LayerEffect]) -> str:
    """A line for each layer: how far both views' points moved, and their errors in both runs, where they are known."""
    head = ["layer", "moved\nview 1", "moved\nview 2"]
    has_errors = any(effect.errors is not None for effect in effects)
    if has_errors:
        head += ["error 1\nunedited", "error 1\nedited", "error 2\nunedited", "error 2\nedited"]
    rows = []
    for effect in effects:
        numbers = [*effect.displacements]
        if effect.errors is not None and effect.unedited_errors is not None:
            numbers += [number for of_view in zip(effect.unedited_errors, effect.errors, strict=True) for number in of_view]
        rows.append([layer_name(effect.layer_id), *(f"{number:.4f}" for number in numbers)])
    footer = "moved: mean distance to the unedited run's points, over their mean distance to view 1's camera"
    if has_errors:
        footer += "; errors against ground truth, normalised"
    return f"{text_table(head, rows, numbers_from=1)}\n{footer}"
