"""A report as a folder of files.

report.html               to look at: a page of its own, without a server
report.json, arrays.npz   every figure, and what it was computed from
figures/                  errors_by_layer, accuracy_by_layer (with ground truth), pose_by_layer (where poses were found),
                          correspondences, attention: PNG and SVG; depth_and_confidence: PNG
"""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

from matplotlib.figure import Figure
from tqdm import tqdm

from und3rstand_jax.layers import HEAD
from und3rstand_jax.report.attention_figure import attention_figure
from und3rstand_jax.report.content import Report
from und3rstand_jax.report.depth_sheet import write_depth_sheet
from und3rstand_jax.report.layer_figures import accuracy_figure, drawn_layers, errors_figure, pose_figure
from und3rstand_jax.report.match_figure import correspondences_figure
from und3rstand_jax.report.numbers import ARRAYS, NUMBERS, write_arrays, write_numbers
from und3rstand_jax.report.page import write_page
from und3rstand_jax.report.stopwatch import Stopwatch

PAGE, FIGURES = "report.html", "figures"


def write_report(folder: Path, report: Report, stopwatch: Stopwatch) -> None:
    """Writes all files of a report into an existing folder; `report.json`, written last, tells what the others took.

    Raises:
        OSError: a file cannot be written.
    """
    with stopwatch.time("arrays"):
        write_arrays(folder / ARRAYS, report)
    with stopwatch.time("figures"):
        _write_figures(folder / FIGURES, report)
    with stopwatch.time("page"):
        write_page(folder / PAGE, _with_seconds(report, stopwatch))
    write_numbers(folder / NUMBERS, _with_seconds(report, stopwatch))


def _with_seconds(report: Report, stopwatch: Stopwatch) -> Report:
    return dataclasses.replace(report, facts={**report.facts, "seconds": dict(stopwatch.seconds)})


def _write_figures(folder: Path, report: Report) -> None:
    folder.mkdir()
    for name, figure in tqdm(_figures(report).items(), desc="figures", unit="figure", delay=2, file=sys.stderr, leave=False):
        drawn = figure(report)
        for kind in ("png", "svg"):
            drawn.savefig(folder / f"{name}.{kind}")
    write_depth_sheet(folder / "depth_and_confidence.png", report)


def _figures(report: Report) -> dict[str, Callable[[Report], Figure]]:
    """Those that this report has something to show in."""
    figures: dict[str, Callable[[Report], Figure]] = {"correspondences": correspondences_figure}
    if report.attention:
        figures["attention"] = attention_figure
    if any(layer.layer_id != HEAD for layer in drawn_layers(report)):
        figures["errors_by_layer"] = errors_figure
        if any(layer.pose.rotation_degrees is not None for layer in drawn_layers(report)):
            figures["pose_by_layer"] = pose_figure
        if report.truth is not None:
            figures["accuracy_by_layer"] = accuracy_figure
    return figures
