"""The figures of a report, as PNG and SVG.

Over the layers: errors, accuracy of matches, pose. On the views: matches of a few layers drawn between them, and where one patch of
view 1 attends in view 2.
"""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from und3rstand_jax.analysis.layer_plot import Panel, Series, panels_figure
from und3rstand_jax.analysis.pair import GROUND_TRUTH, OWN_POINTMAPS, Attention, Layer, PairAnalysis
from und3rstand_jax.model.layer_ids import HEAD, layer_name
from und3rstand_jax.report.contact_sheet import ContactSheet
from und3rstand_jax.report.match_figure import Row, matches_figure
from und3rstand_jax.support.progress import with_progress

_MOST_LAYERS = 4
"""Of matches."""

# Attention: cells in a row, and a cell's and the figure's least width in inches.
_COLUMNS, _CELL, _LEAST_WIDTH = 5, 2.1, 5.4
_MARK = "#d55e00"


def write_figures(folder: Path, analysis: PairAnalysis, progress: bool = False) -> None:
    """Makes the folder and writes every figure that the analysis has something to show in, and a contact sheet of all layers.

    Args:
        folder: must not exist.
        analysis: what to draw.
        progress: whether a terminal shows a progress bar.

    Raises:
        OSError: a file cannot be written.
    """
    figures: dict[str, Callable[[PairAnalysis], Figure]] = {"correspondences": correspondences_figure}
    if analysis.attention:
        figures["attention"] = attention_figure
    layers = layers_with_errors(analysis)
    if any(layer.layer_id != HEAD for layer in layers):
        figures["errors_by_layer"] = errors_figure
        if any(layer.pose.rotation_degrees is not None for layer in layers):
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


def layers_with_errors(analysis: PairAnalysis) -> tuple[Layer, ...]:
    """The layers of these figures. Without ground truth the last one is left out: it is the reference, and its errors are 0."""
    return analysis.layers if analysis.truth is not None else analysis.layers[:-1]


def errors_figure(analysis: PairAnalysis) -> Figure:
    """Point errors of both views, by layer."""
    unit = f"mean distance to {_short_reference(analysis)},\nboth scaled to mean distance 1"
    series = Series[Layer]("view 1", lambda layer: layer.errors[0]), Series[Layer]("view 2", lambda layer: layer.errors[1], False)
    return _figure(analysis, Panel("Point error by layer", unit, series))


def accuracy_figure(analysis: PairAnalysis) -> Figure:
    """Share of correct matches, by layer. Requires ground truth."""
    series = Series(f"within {analysis.match_threshold:.3g} pixels of the true place", _nan_if_none(lambda layer: layer.accuracy))
    return _figure(
        analysis, Panel("Accuracy of matches between the views", "share of the matches\nthat can be checked", (series,), is_share=True)
    )


def pose_figure(analysis: PairAnalysis) -> Figure:
    """Rotation and translation error of view 2's pose, by layer."""
    series = (
        Series("rotation", _nan_if_none(lambda layer: layer.pose.rotation_degrees)),
        Series("direction of translation", _nan_if_none(lambda layer: layer.pose.translation_degrees), False),
    )
    unit = f"angle in degrees\nto {_short_reference(analysis)}"
    return _figure(analysis, Panel("Pose error of the second camera by layer", unit, series, greatest=180))


def _figure(analysis: PairAnalysis, panel: Panel[Layer]) -> Figure:
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


def _short_reference(analysis: PairAnalysis) -> str:
    """What errors are measured against, in few words for an axis."""
    short = {GROUND_TRUTH: "ground truth", OWN_POINTMAPS: "the model's final points"}
    return short.get(analysis.reference, "the last probed layer's points")


def correspondences_figure(analysis: PairAnalysis) -> Figure:
    """Up to sixty matches between the views for at most four layers, spread evenly from first to last; see `matches_figure`."""
    layers = analysis.layers
    layers = tuple(layers[i] for i in dict.fromkeys(np.linspace(0, len(layers) - 1, _MOST_LAYERS).round().astype(int).tolist()))
    rows = [Row(layer_name(layer.layer_id), layer.correspondences, layer.accuracy) for layer in layers]
    return matches_figure(analysis.images, rows, analysis.match_threshold)


def attention_figure(analysis: PairAnalysis) -> Figure:
    """View 1 with one patch marked, then view 2 under each block's cross-attention from that patch, averaged over heads.

    A cross marks where the patch is in view 2, by the last layer's matches. Each map is scaled to its own maximum.
    """
    token, place = salient_patch(analysis)
    cells = len(analysis.attention) + 1
    rows = math.ceil(cells / _COLUMNS)
    columns = min(cells, _COLUMNS)
    ratio = max(image.shape[0] / image.shape[1] for image in analysis.images)
    figure = Figure(figsize=(max(columns * _CELL, _LEAST_WIDTH), rows * (_CELL * ratio + 0.3) + 0.7), dpi=150, layout="constrained")
    cross = "" if place is None else "\nCross: the patch's place in view 2, by the last layer's matches"
    figure.suptitle(f"Cross-attention from one patch of view 1, mean over heads{cross}", x=0.01, ha="left", fontsize=11)
    first, *others = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in (first, *others):
        axes.axis("off")

    image = analysis.images[0]
    grid_rows, grid_columns = analysis.grids[0]
    height, width = image.shape[0] / grid_rows, image.shape[1] / grid_columns
    corner = token % grid_columns * width - 0.5, token // grid_columns * height - 0.5
    first.imshow(image)
    for colour, thickness in (("white", 3), (_MARK, 1.5)):
        first.add_patch(Rectangle(corner, width, height, fill=False, edgecolor=colour, linewidth=thickness))
    first.set_title("view 1", fontsize=9)
    for axes, block in zip(others, analysis.attention, strict=False):
        _draw_block(axes, analysis, block, token, place)
    return figure


def salient_patch(analysis: PairAnalysis) -> tuple[int, tuple[float, float] | None]:
    """A token of view 1 worth following: of those with at least half as many matches as any in the last layer, the one with most contrast.

    Returns:
        The token, and the median place, (x, y), of its matches in view 2; None where it has none.
    """
    rows, columns = analysis.grids[0]
    height, width = analysis.images[0].shape[:2]
    matches = analysis.layers[-1].correspondences
    x, y = matches.pixels1.T
    tokens = (y * rows // height) * columns + x * columns // width
    counts = np.bincount(tokens, minlength=rows * columns)
    patches = analysis.images[0].mean(axis=-1).reshape(rows, height // rows, columns, width // columns)
    contrast = patches.std(axis=(1, 3)).ravel()
    token = int(np.argmax(np.where(counts >= counts.max() / 2, contrast, -1)))
    of_token = matches.pixels2[tokens == token]
    if not len(of_token):
        return token, None
    return token, (float(np.median(of_token[:, 0])), float(np.median(of_token[:, 1])))


def _draw_block(axes: Axes, analysis: PairAnalysis, block: Attention, token: int, place: tuple[float, float] | None) -> None:
    image = analysis.images[1]
    grid: Float[np.ndarray, "rows columns"] = block.from_view1[:, token].mean(axis=0).reshape(analysis.grids[1])
    height, width = image.shape[:2]
    axes.imshow(image.mean(axis=-1), cmap="gray", vmin=0, vmax=255)
    # The view shows through where the weights are small.
    strength = grid / grid.max()
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    axes.imshow(strength, cmap="plasma", alpha=0.85 * strength**0.5, vmin=0, vmax=1, extent=extent, interpolation="nearest")
    if place is not None:
        axes.plot(*place, "+", color="white", markersize=11, markeredgewidth=3)
        axes.plot(*place, "+", color=_MARK, markersize=10, markeredgewidth=1.5)
    axes.set_title(f"view 2, block {block.block}", fontsize=9)
