"""The figures of a report, as PNG and SVG.

By layer: errors, accuracy of matches, pose. Between the views: the matches of a few layers.
"""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from und3rstand_jax.analysis.layer_plot import Panel, Series, panels_figure
from und3rstand_jax.analysis.view_set import GROUND_TRUTH, OWN_POINTMAPS, Layer, SetAnalysis, median_angles
from und3rstand_jax.model.layer_ids import HEAD, layer_name
from und3rstand_jax.report.attention_figure import attention_figure
from und3rstand_jax.report.contact_sheet import ContactSheet
from und3rstand_jax.report.match_figure import Row, matches_figure
from und3rstand_jax.report.view_colours import view_colour
from und3rstand_jax.support.progress import with_progress

_MOST_LAYERS, _MOST_ROWS = 4, 8
"""Maximum number of layers and of rows in the figure of matches."""


def write_figures(folder: Path, analysis: SetAnalysis, progress: bool = False) -> None:
    """Creates the folder and writes every figure for which the analysis has data, and a contact sheet of all layers.

    Args:
        folder: must not exist.
        analysis: what to draw.
        progress: whether a terminal shows a progress bar.

    Raises:
        OSError: a file cannot be written.
    """
    figures: dict[str, Callable[[SetAnalysis], Figure]] = {"correspondences": correspondences_figure}
    if analysis.attention:
        figures["attention"] = attention_figure
    layers = layers_with_errors(analysis)
    if any(layer.layer_id != HEAD for layer in layers):
        figures["errors_by_layer"] = errors_figure
        if any(layer.rotation_degrees is not None for layer in layers):
            figures["pose_by_layer"] = pose_figure
        if analysis.truth is not None:
            figures["accuracy_by_layer"] = accuracy_figure
    folder.mkdir()
    for name, draw in with_progress(figures.items(), "figures", len(figures), "figure", progress):
        figure = draw(analysis)
        for kind in ("png", "svg"):
            figure.savefig(folder / f"{name}.{kind}")
    sheet = ContactSheet(analysis.images, rows=len(analysis.layers), title=f"What each layer knows about {analysis.title}")
    for layer in analysis.layers:
        sheet.add_row(layer_name(layer.layer_id), layer.views)
    sheet.write(folder / "depth_and_confidence.png")


def layers_with_errors(analysis: SetAnalysis) -> tuple[Layer, ...]:
    """The layers to plot errors of. Without ground truth, the last one is left out: it is the reference, and its errors are 0."""
    return analysis.layers if analysis.truth is not None else analysis.layers[:-1]


def errors_figure(analysis: SetAnalysis) -> Figure:
    """Point errors of every view, by layer; more than two views have their own colours."""
    unit = f"mean distance to {_short_reference(analysis)},\nboth scaled to mean distance 1"
    count = len(analysis.images)

    def of_view(view: int) -> Series[Layer]:
        # Two views differ by filled and open markers, which leaves colours for the kinds of layers.
        colour = None if count == 2 else view_colour(view).light
        return Series(f"view {view}", lambda layer: layer.errors[view - 1], count > 2 or view == 1, colour)

    return _figure(analysis, Panel("Point error by layer", unit, tuple(map(of_view, range(1, count + 1)))))


def accuracy_figure(analysis: SetAnalysis) -> Figure:
    """Share of correct matches, by layer. Requires ground truth."""
    series = Series(f"within {analysis.match_threshold:.3g} pixels of the true place", _nan_if_none(lambda layer: layer.accuracy))
    return _figure(
        analysis, Panel("Accuracy of matches between the views", "share of the matches\nthat can be checked", (series,), is_share=True)
    )


def pose_figure(analysis: SetAnalysis) -> Figure:
    """Rotation and translation error of view 2's pose, or their medians over the later views, by layer; those by the model's camera head
    are lines across.
    """
    own = median_angles(analysis.own_poses or ())
    rotation, translation = ({} if angle is None else {"by the model's camera head": angle} for angle in own)
    series = (
        Series("rotation", _nan_if_none(lambda layer: layer.rotation_degrees), across=rotation),
        Series("direction of translation", _nan_if_none(lambda layer: layer.translation_degrees), False, across=translation),
    )
    title = "Pose error of the second camera by layer"
    if len(analysis.images) > 2:
        title = f"Pose error by layer, median over views 2 to {len(analysis.images)}"
    unit = f"angle in degrees\nto {_short_reference(analysis)}"
    return _figure(analysis, Panel(title, unit, series, greatest=180))


def _figure(analysis: SetAnalysis, panel: Panel[Layer]) -> Figure:
    """The panel over the probed layers; the head is a line across."""
    found = layers_with_errors(analysis)
    head = next((layer for layer in found if layer.layer_id == HEAD), None)
    figure = panels_figure([panel], [layer for layer in found if layer.layer_id != HEAD], head)
    figure.set_dpi(150)
    return figure


def _nan_if_none(of: Callable[[Layer], float | None]) -> Callable[[Layer], float]:
    def value(layer: Layer) -> float:
        found = of(layer)
        return math.nan if found is None else found

    return value


def _short_reference(analysis: SetAnalysis) -> str:
    """What errors are measured against, in a few words for an axis."""
    short = {GROUND_TRUTH: "ground truth", OWN_POINTMAPS: "the model's final points"}
    return short.get(analysis.reference, "the last probed layer's points")


def correspondences_figure(analysis: SetAnalysis) -> Figure:
    """Up to sixty matches of view 1 with each later view, for at most four layers; see `matches_figure`.

    Layers are spread evenly from first to last. With more views there are fewer layers, to keep to eight rows; with more than four later
    views, only the last layer is shown.
    """
    layers, later = analysis.layers, analysis.later_views
    most = max(1, min(_MOST_LAYERS, _MOST_ROWS // len(later)))
    places = np.linspace(0, len(layers) - 1, most).round().astype(int).tolist() if most > 1 else [len(layers) - 1]
    rows = []
    for layer in (layers[place] for place in dict.fromkeys(places)):
        for view, matches, accuracy in zip(later, layer.correspondences, layer.accuracies, strict=True):
            name = layer_name(layer.layer_id) if len(later) == 1 else f"{layer_name(layer.layer_id)}, views 1 and {view}"
            rows.append(Row(name, matches, accuracy, view))
    return matches_figure(analysis.images, rows, analysis.match_threshold)
