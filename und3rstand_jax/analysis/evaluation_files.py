"""An evaluation as files (metrics.json, layers.csv, layers.png) and as the table that commands print."""

import csv
import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from matplotlib.figure import Figure

from und3rstand_jax.analysis.evaluate import Evaluation, LayerResult
from und3rstand_jax.analysis.layer_plot import Panel, Series, panels_figure
from und3rstand_jax.model.layer_ids import layer_name
from und3rstand_jax.support.files import fresh_file, replace_text
from und3rstand_jax.support.results import VERSION
from und3rstand_jax.support.text import JsonObject, text_table, to_json

METRICS, TABLE, PLOT = "metrics.json", "layers.csv", "layers.png"
FORMAT = "und3rstand_jax evaluation"

_MEANING = {
    "invariant": "mean distance after shift along z and scale are taken out, in the ground truth's unit; mean over pairs",
    "relative_mean": "mean over valid pixels of |s p - g| / |g|, g seen from view 1's camera, s the pair's joint scale; mean over pairs",
    "relative_median": "median over valid pixels of the same; mean over pairs",
    "rotation_degrees": "view 2's rotation relative to view 1, by PnP on its pointmap; median over pairs, one that fails counts as 180",
    "translation_degrees": "direction of view 2's translation; median over the pairs with a baseline",
    "accuracy_15": "share of pairs with rotation and translation direction both below 15 degrees",
    "failed": "pairs whose pose was not found",
}


@dataclasses.dataclass(frozen=True)
class _Column:
    """One metric of a view or of the pose; `best` chooses among layers, None where no value is better than another."""

    part: Literal["view1", "view2", "pose"]
    metric: str
    heading: str
    format: str
    best: Callable[..., float] | None = min

    def value(self, result: LayerResult) -> float | None:
        """The metric; None where it is NaN or was not measured."""
        part = getattr(result, self.part)
        value = None if part is None else getattr(part, self.metric)
        return None if value is None or math.isnan(value) else value


_COLUMNS = (
    _Column("view1", "invariant", "view 1\nmetric", "#.4g"),
    _Column("view1", "relative_mean", "view 1\nmean rel", ".4f"),
    _Column("view1", "relative_median", "view 1\nmed rel", ".4f"),
    _Column("view2", "invariant", "view 2\nmetric", "#.4g"),
    _Column("view2", "relative_mean", "view 2\nmean rel", ".4f"),
    _Column("view2", "relative_median", "view 2\nmed rel", ".4f"),
    _Column("pose", "rotation_degrees", "pose\nrot °", ".1f"),
    _Column("pose", "translation_degrees", "pose\ntransl °", ".1f"),
    _Column("pose", "accuracy_15", "pose\n< 15°", ".0%", max),
    _Column("pose", "failed", "pose\nfailed", "d", None),
)


def write_results(folder: Path, evaluation: Evaluation, record: JsonObject) -> None:
    """Writes `metrics.json` (everything, with the run's record as its `facts`), `layers.csv` (a row for each layer) and `layers.png`.

    The folder exists; files of these names are replaced. In JSON, NaN is null and an infinity a string; in CSV, NaN is an empty cell.
    """
    with fresh_file(folder / TABLE) as file:
        writer = csv.writer(file)
        writer.writerow(["layer", *(f"{column.part}_{column.metric}" for column in _COLUMNS)])
        for result in _rows(evaluation):
            values = [column.value(result) for column in _COLUMNS]
            writer.writerow([result.layer_id, *("" if value is None else repr(value) for value in values)])
    with fresh_file(folder / PLOT, "wb") as picture:
        layers_figure(evaluation).savefig(picture, format="png")
    head = {"format": FORMAT, "version": VERSION, "files": [METRICS, TABLE, PLOT]}
    replace_text(folder / METRICS, to_json({**head, "facts": record, **dataclasses.asdict(evaluation), "meaning": _MEANING}))


def format_table(evaluation: Evaluation) -> str:
    """Aligned text, a line for each layer, the best layer in each column marked with *; the model's own head comes last, unmarked."""
    columns = [column for column in _COLUMNS if column.part != "pose" or any(result.pose is not None for result in _rows(evaluation))]
    best: dict[_Column, LayerResult] = {}
    for column in columns:
        known = [(value, result) for result in evaluation.layers if (value := column.value(result)) is not None and math.isfinite(value)]
        if known and column.best is not None:
            chosen = column.best(value for value, _ in known)
            best[column] = next(result for value, result in known if value == chosen)

    def cell(column: _Column, result: LayerResult) -> str:
        value = column.value(result)
        # In front, so that the digits of a column stay below one another.
        return "–" if value is None else ("*" if result is best.get(column) else "") + format(value, column.format)

    rows = [[layer_name(result.layer_id), *(cell(column, result) for column in columns)] for result in _rows(evaluation)]
    notes = [f"{evaluation.pairs} pairs; * the best layer; metric in the ground truth's unit; rel: relative point error, mean and median"]
    notes += [f"view {view} has no valid pixel in {count}" for view, count in enumerate(evaluation.without_valid, start=1) if count]
    if evaluation.without_baseline:
        notes.append(f"{evaluation.without_baseline} {'pair has' if evaluation.without_baseline == 1 else 'pairs have'} no baseline")
    return "\n".join([text_table(["layer", *(column.heading for column in columns)], rows, numbers_from=1), "; ".join(notes)])


def _rows(evaluation: Evaluation) -> tuple[LayerResult, ...]:
    return evaluation.layers + ((evaluation.head,) if evaluation.head else ())


def layers_figure(evaluation: Evaluation) -> Figure:
    """The layer at which geometry appears: errors of both views' points and, where poses were estimated, of view 2's pose."""

    def pose_series(label: str, metric: str, is_filled: bool) -> Series[LayerResult]:
        return Series(label, lambda result: getattr(result.pose, metric, math.nan), is_filled)

    points: Panel[LayerResult] = Panel(
        "Error of each layer's points",
        "distance in the ground truth's unit,\nscale and depth shift taken out",
        (Series("view 1", lambda result: result.view1.invariant, True), Series("view 2", lambda result: result.view2.invariant, False)),
    )
    pose: Panel[LayerResult] = Panel(
        "Error of the second camera's pose that each layer's points imply",
        "angle in degrees, median over pairs",
        (pose_series("rotation", "rotation_degrees", True), pose_series("direction of translation", "translation_degrees", False)),
        greatest=180.0,
    )
    panels = [points, pose] if any(result.pose for result in evaluation.layers) else [points]
    return panels_figure(panels, evaluation.layers, evaluation.head)
