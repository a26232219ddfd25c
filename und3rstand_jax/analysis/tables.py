"""The figure that shows at which layer geometry appears: errors of points and poses.

The results as files and as a table for the terminal.
"""

import csv
import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from und3rstand_jax.analysis.layer_plot import Panel, Series, panels_figure
from und3rstand_jax.analysis.probe_errors import Evaluation, LayerResult, PoseResult
from und3rstand_jax.model.layer_ids import HEAD
from und3rstand_jax.support.files import strict_json


def _pose(of: Callable[[PoseResult], float]) -> Callable[[LayerResult], float]:
    return lambda result: math.nan if result.pose is None else of(result.pose)


_POINTS: Panel[LayerResult] = Panel(
    "Error of each layer's points",
    "distance in the ground truth's unit,\nscale and depth shift taken out",
    (Series("view 1", lambda result: result.view1.invariant, True), Series("view 2", lambda result: result.view2.invariant, False)),
)


_POSE: Panel[LayerResult] = Panel(
    "Error of the second camera's pose that each layer's points imply",
    "angle in degrees, median over pairs",
    (
        Series("rotation", _pose(lambda pose: pose.rotation_degrees), True),
        Series("direction of translation", _pose(lambda pose: pose.translation_degrees), False),
    ),
    greatest=180,
)


def plot_layers(path: Path, evaluation: Evaluation) -> None:
    """Writes `layers_figure` as PNG."""
    layers_figure(evaluation).savefig(path)


def layers_figure(evaluation: Evaluation) -> Figure:
    """Errors of both views' points and, where poses were found, of view 2's pose: a panel each, a marker a layer."""
    panels = [_POINTS, _POSE] if any(result.pose for result in evaluation.layers) else [_POINTS]
    return panels_figure(panels, evaluation.layers, evaluation.head)


METRICS, TABLE, PLOT = "metrics.json", "layers.csv", "layers.png"


_UNITS = {
    "invariant": "mean distance after shift along z and scale are taken out, in the ground truth's unit; mean over pairs",
    "relative_mean": "mean over valid pixels of |s p - g| / |g|, g seen from view 1's camera, s the pair's joint scale; mean over pairs",
    "relative_median": "median over valid pixels of the same; mean over pairs",
    "rotation_degrees": "view 2's rotation relative to view 1, by PnP on its pointmap; median over pairs, one that fails counts as 180",
    "translation_degrees": "direction of view 2's translation; median over the pairs whose cameras are apart",
    "accuracy_15": "share of pairs with rotation and translation direction both below 15 degrees",
    "failed": "pairs whose pose was not found",
}


@dataclasses.dataclass(frozen=True)
class _Column:
    """One figure of a layer: its name in the CSV file, its two lines of heading, and how it is told; `best` chooses among layers."""

    name: str
    heading: tuple[str, str]
    of: Callable[[LayerResult], float | None]
    format: str
    best: Callable[..., float] | None = min


def _view_columns(view: int) -> list[_Column]:
    def column(field: str, heading: str, format: str) -> _Column:
        return _Column(f"view{view}_{field}", (f"view {view}", heading), lambda result: getattr(_view(result, view), field), format)

    return [column("invariant", "metric", "#.4g"), column("relative_mean", "mean rel", ".4f"), column("relative_median", "med rel", ".4f")]


def _view(result: LayerResult, view: int) -> Any:
    return result.view1 if view == 1 else result.view2


def _pose_column(field: str, heading: tuple[str, str], format: str, best: Callable[..., float] | None = min) -> _Column:
    return _Column(f"pose_{field}", heading, lambda result: getattr(result.pose, field, None), format, best)


_COLUMNS = (
    *_view_columns(1),
    *_view_columns(2),
    _pose_column("rotation_degrees", ("pose", "rot °"), ".1f"),
    _pose_column("translation_degrees", ("pose", "transl °"), ".1f"),
    _pose_column("accuracy_15", ("pose", "< 15°"), ".0%", max),
    _pose_column("failed", ("pose", "failed"), "d", None),
)


def write_results(folder: Path, evaluation: Evaluation, facts: Mapping[str, Any]) -> None:
    """Writes `metrics.json` (everything, and `facts` of where it comes from), `layers.csv` (a row a layer) and `layers.png`.

    The folder is made if it is missing; files of these names are replaced. In JSON, NaN is null and an infinity a string.
    """
    folder.mkdir(parents=True, exist_ok=True)
    content = {"facts": facts, **dataclasses.asdict(evaluation), "meaning": _UNITS}
    (folder / METRICS).write_text(json.dumps(strict_json(content), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    with (folder / TABLE).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["layer", *(column.name for column in _COLUMNS)])
        for result in _rows(evaluation):
            writer.writerow([result.layer_id, *(_csv_cell(column.of(result)) for column in _COLUMNS)])
    plot_layers(folder / PLOT, evaluation)


def format_table(evaluation: Evaluation) -> str:
    """The results as aligned text, a layer a line, the best layer by each figure marked with *; the model's own head comes last."""
    columns = [column for column in _COLUMNS if any(column.of(result) is not None for result in _rows(evaluation))]
    best = [_best(column, evaluation.layers) for column in columns]
    lines = [["", *(column.heading[0] for column in columns)], ["layer", *(column.heading[1] for column in columns)]]
    for result in _rows(evaluation):
        name = "the model's own head" if result.layer_id == HEAD else result.layer_id
        marked = zip(columns, best, strict=True)
        lines.append([name, *(_cell(column, result) + ("*" if result is chosen else " ") for column, chosen in marked)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    table = ["  ".join(_aligned(cells, widths)).rstrip() for cells in lines]
    return "\n".join([*table, _footer(evaluation)])


def _rows(evaluation: Evaluation) -> tuple[LayerResult, ...]:
    return evaluation.layers + ((evaluation.head,) if evaluation.head else ())


def _csv_cell(value: float | None) -> str:
    """Empty where there is no figure, as readers of CSV take it."""
    return "" if value is None or math.isnan(value) else repr(value)


def _cell(column: _Column, result: LayerResult) -> str:
    value = column.of(result)
    return "–" if value is None or math.isnan(value) else format(value, column.format)


def _best(column: _Column, layers: Sequence[LayerResult]) -> LayerResult | None:
    """The first layer that does best; None where none has a figure or the figure is no merit."""
    known = [(value, result) for result in layers if (value := column.of(result)) is not None and math.isfinite(value)]
    if column.best is None or not known:
        return None
    best = column.best(value for value, _ in known)
    return next(result for value, result in known if value == best)


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [cells[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True))]


def _footer(evaluation: Evaluation) -> str:
    text = f"{evaluation.pairs} pairs; * the best layer; metric in the ground truth's unit; rel: relative point error, mean and median"
    missing = [f"view {view} has no valid pixel in {count}" for view, count in enumerate(evaluation.without_valid, start=1) if count]
    missing += [f"the cameras of {evaluation.without_baseline} are not apart"] if evaluation.without_baseline else []
    return "; ".join([text, *missing])
