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
from und3rstand_jax.data.records import things_of
from und3rstand_jax.model.layer_ids import layer_name
from und3rstand_jax.support.files import fresh_file, replace_text
from und3rstand_jax.support.results import VERSION
from und3rstand_jax.support.text import JsonObject, text_table, to_json

METRICS, TABLE, PLOT = "metrics.json", "layers.csv", "layers.png"
FORMAT = "und3rstand_jax evaluation"

_MEANING = {
    "invariant": "mean distance after shift along z and scale are taken out, in the ground truth's unit; mean over pairs, or sets",
    "relative_mean": "mean over valid pixels of |s p - g| / |g|, g seen from view 1's camera, s the joint scale; mean over pairs, or sets",
    "relative_median": "median over valid pixels of the same; mean over pairs, or sets",
    "rotation_degrees": "turn of each view after the first against view 1, by PnP on its pointmap; median, one that fails counts as 180",
    "translation_degrees": "direction of their translations; median over those with a baseline",
    "accuracy_15": "share of poses with rotation and translation direction both below 15 degrees",
    "failed": "poses that were not found",
}


@dataclasses.dataclass(frozen=True)
class _Column:
    """One metric of a view, of the mean over the views after the first, or of the pose.

    `best` chooses among layers, None where no value is better than another.
    """

    part: int | Literal["others", "pose"]
    metric: str
    heading: str
    format: str
    best: Callable[..., float] | None = min

    def value(self, result: LayerResult) -> float | None:
        """The metric; None where it is NaN or was not measured."""
        if self.part == "pose":
            value = None if result.pose is None else getattr(result.pose, self.metric)
        elif self.part == "others":
            known = [value for view in result.views[1:] if not math.isnan(value := getattr(view, self.metric))]
            value = sum(known) / len(known) if known else None
        else:
            value = getattr(result.views[self.part - 1], self.metric)
        return None if value is None or math.isnan(value) else value


def _of_view(part: int | Literal["others"], heading: str) -> tuple[_Column, ...]:
    return (
        _Column(part, "invariant", f"{heading}\nmetric", "#.4g"),
        _Column(part, "relative_mean", f"{heading}\nmean rel", ".4f"),
        _Column(part, "relative_median", f"{heading}\nmed rel", ".4f"),
    )


_POSE = (
    _Column("pose", "rotation_degrees", "pose\nrot °", ".1f"),
    _Column("pose", "translation_degrees", "pose\ntransl °", ".1f"),
    _Column("pose", "accuracy_15", "pose\n< 15°", ".0%", max),
    _Column("pose", "failed", "pose\nfailed", "d", None),
)


def write_results(folder: Path, evaluation: Evaluation, record: JsonObject) -> None:
    """Writes `metrics.json` (everything, with the run's record as its `facts`), `layers.csv` (a row for each layer) and `layers.png`.

    The folder must exist; files of these names are replaced. In JSON, NaN is null and an infinity a string; in CSV, NaN is an empty cell.
    """
    with fresh_file(folder / TABLE) as file:
        writer = csv.writer(file)
        columns = [*(column for view in range(1, evaluation.views + 1) for column in _of_view(view, "")), *_POSE]
        named = (f"view{column.part}" if isinstance(column.part, int) else column.part for column in columns)
        writer.writerow(["layer", *(f"{part}_{column.metric}" for part, column in zip(named, columns, strict=True))])
        for result in _rows(evaluation):
            values = [column.value(result) for column in columns]
            writer.writerow([result.layer_id, *("" if value is None else repr(value) for value in values)])
    with fresh_file(folder / PLOT, "wb") as picture:
        layers_figure(evaluation).savefig(picture, format="png")
    head = {"format": FORMAT, "version": VERSION, "files": [METRICS, TABLE, PLOT]}
    replace_text(folder / METRICS, to_json({**head, "facts": record, **_as_json(evaluation), "meaning": _MEANING}))


def _as_json(evaluation: Evaluation) -> JsonObject:
    def result(of: LayerResult) -> JsonObject:
        views = {f"view{number}": dataclasses.asdict(view) for number, view in enumerate(of.views, start=1)}
        return {"layer_id": of.layer_id, **views, "pose": None if of.pose is None else dataclasses.asdict(of.pose)}

    head = None if evaluation.head is None else result(evaluation.head)
    return {**dataclasses.asdict(evaluation), "layers": [result(layer) for layer in evaluation.layers], "head": head}


def format_table(evaluation: Evaluation) -> str:
    """`evaluation_table` as aligned text."""
    head, rows, note = evaluation_table(evaluation)
    return "\n".join([text_table(head, rows, numbers_from=1), note])


def evaluation_table(evaluation: Evaluation) -> tuple[list[str], list[list[str]], str]:
    """The columns' titles, a row for each layer with the best one in each column marked with *, and a note that explains them.

    The model's own head comes last, unmarked.
    """
    others = _of_view(2, "view 2") if evaluation.views == 2 else _of_view("others", f"views 2–{evaluation.views}")
    poses = _POSE if any(result.pose is not None for result in _rows(evaluation)) else ()
    columns = [*_of_view(1, "view 1"), *others, *poses]
    best: dict[_Column, LayerResult] = {}
    for column in columns:
        known = [(value, result) for result in evaluation.layers if (value := column.value(result)) is not None and math.isfinite(value)]
        if known and column.best is not None:
            chosen = column.best(value for value, _ in known)
            best[column] = next(result for value, result in known if value == chosen)

    def cell(column: _Column, result: LayerResult) -> str:
        value = column.value(result)
        # In front, so that the digits of a column stay aligned.
        return "–" if value is None else ("*" if result is best.get(column) else "") + format(value, column.format)

    rows = [[layer_name(result.layer_id), *(cell(column, result) for column in columns)] for result in _rows(evaluation)]
    things = things_of(evaluation.views)
    notes = [
        f"{evaluation.pairs} {things}; * the best layer; metric in the ground truth's unit; rel: relative point error, mean and median"
    ]
    notes += [f"view {view} has no valid pixel in {count}" for view, count in enumerate(evaluation.without_valid, start=1) if count]
    if evaluation.without_baseline:
        of = "pair" if evaluation.views == 2 else "camera"
        many = f"{of} has" if evaluation.without_baseline == 1 else f"{of}s have"
        notes.append(f"{evaluation.without_baseline} {many} no baseline")
    return ["layer", *(column.heading for column in columns)], rows, "; ".join(notes)


def _rows(evaluation: Evaluation) -> tuple[LayerResult, ...]:
    return evaluation.layers + ((evaluation.head,) if evaluation.head else ())


def layers_figure(evaluation: Evaluation) -> Figure:
    """The layer at which geometry appears: errors of the views' points and, where poses were estimated, of the later views' poses."""

    def pose_series(label: str, metric: str, is_filled: bool) -> Series[LayerResult]:
        return Series(label, lambda result: getattr(result.pose, metric, math.nan), is_filled)

    def point_series(view: int) -> Series[LayerResult]:
        return Series(f"view {view + 1}", lambda result: result.views[view].invariant, not view)

    points: Panel[LayerResult] = Panel(
        "Error of each layer's points",
        "distance in the ground truth's unit,\nscale and depth shift taken out",
        tuple(map(point_series, range(evaluation.views))),
    )
    whose = "the second camera's pose" if evaluation.views == 2 else "the later cameras' poses"
    pose: Panel[LayerResult] = Panel(
        f"Error of {whose} that each layer's points imply",
        "angle in degrees, median over cameras",
        (pose_series("rotation", "rotation_degrees", True), pose_series("direction of translation", "translation_degrees", False)),
        greatest=180.0,
    )
    panels = [points, pose] if any(result.pose for result in evaluation.layers) else [points]
    return panels_figure(panels, evaluation.layers, evaluation.head)
