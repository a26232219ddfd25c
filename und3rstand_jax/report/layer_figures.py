"""Errors, match accuracy and pose by layer: the figures of one pair, in the look of `und3rstand_jax.layer_plot`."""

import math
from collections.abc import Callable

from matplotlib.figure import Figure

from und3rstand_jax.layer_plot import Panel, Series, panels_figure
from und3rstand_jax.layers import HEAD
from und3rstand_jax.report.content import GROUND_TRUTH, OWN_POINTMAPS, Layer, Report


def errors_figure(report: Report) -> Figure:
    """Point errors of both views, by layer."""
    unit = f"mean distance to {_short(report.reference)},\nboth scaled to mean distance 1"
    series = Series[Layer]("view 1", lambda layer: layer.errors[0]), Series[Layer]("view 2", lambda layer: layer.errors[1], False)
    return _figure(report, Panel("Error of each layer's points", unit, series))


def accuracy_figure(report: Report) -> Figure:
    """Share of right matches, by layer; for a report with ground truth."""
    series = Series(f"within {report.match_threshold:.3g} pixels of the true place", _or_nan(lambda layer: layer.accuracy))
    return _figure(
        report, Panel("Accuracy of matches between the views", "share of the matches\nthat can be checked", (series,), is_share=True)
    )


def pose_figure(report: Report) -> Figure:
    """Angles of view 2's pose to the reference's, by layer."""
    series = (
        Series("rotation", _or_nan(lambda layer: layer.pose.rotation_degrees)),
        Series("direction of translation", _or_nan(lambda layer: layer.pose.translation_degrees), False),
    )
    unit = f"angle in degrees\nto {_short(report.reference)}"
    return _figure(report, Panel("Error of the second camera's pose that each layer's points imply", unit, series, greatest=180))


def drawn_layers(report: Report) -> tuple[Layer, ...]:
    """The layers of these figures: without the last where the others are measured against it, and it is at 0 by definition."""
    return report.layers if report.truth is not None else report.layers[:-1]


def _figure(report: Report, panel: Panel[Layer]) -> Figure:
    layers = [layer for layer in drawn_layers(report) if layer.layer_id != HEAD]
    head = next((layer for layer in drawn_layers(report) if layer.layer_id == HEAD), None)
    figure = panels_figure([panel], layers, head)
    figure.set_dpi(150)
    return figure


def _or_nan(of: Callable[[Layer], float | None]) -> Callable[[Layer], float]:
    def value(layer: Layer) -> float:
        found = of(layer)
        return math.nan if found is None else found

    return value


def _short(reference: str) -> str:
    """The reference in few words, for an axis."""
    return {GROUND_TRUTH: "the truth", OWN_POINTMAPS: "the model's final points"}.get(reference, "the last probed layer's points")
