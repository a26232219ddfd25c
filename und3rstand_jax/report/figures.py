"""Errors, match accuracy and pose by layer: the figures of one pair, in the look of `und3rstand_jax.analysis.layer_plot`.

Matches of a few layers, drawn between the two views.

Where one patch of view 1 looks in view 2, block by block.

Depth and confidence of every layer beside the views.
"""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from und3rstand_jax.analysis.layer_plot import Panel, Series, panels_figure
from und3rstand_jax.analysis.pair import GROUND_TRUTH, OWN_POINTMAPS, Attention, Layer, Report, layer_name
from und3rstand_jax.geometry.cameras import ViewGeometry
from und3rstand_jax.geometry.matching import drawn_matches
from und3rstand_jax.model.layer_ids import HEAD
from und3rstand_jax.report.contact_sheet import ContactSheet


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


_MOST_LAYERS = 4


_GAP = 0.06  # between the views, of their width


_RIGHT, _WRONG, _UNKNOWN = "#0072b2", "#d55e00", "#a1a1aa"  # Okabe and Ito's, which the colour-blind can tell apart


_ROW_WIDTH = 7.2  # inches


def correspondences_figure(report: Report) -> Figure:
    """A row for each of at most four layers from first to last: both views and up to sixty matches between them.

    With ground truth right matches are blue, wrong ones orange, and grey those whose true place view 2 does not see; without, a match has
    the colour of its place in view 1.
    """
    layers = _chosen(report.layers)
    canvas, left2 = _side_by_side(report.images)
    height = _ROW_WIDTH * canvas.shape[0] / canvas.shape[1] + 0.36
    figure = Figure(figsize=(_ROW_WIDTH + 0.2, height * len(layers) + 0.5), dpi=150, layout="constrained")
    for axes, layer in zip(figure.subplots(len(layers), 1, squeeze=False)[:, 0], layers, strict=True):
        axes.imshow(canvas)
        axes.axis("off")
        axes.set_title(_title(layer), loc="left", fontsize=10)
        _draw_matches(axes, layer, left2, report)
    if report.truth is not None:
        within = f"within {report.match_threshold:.3g} pixels of the true place"
        named = ((within, _RIGHT), ("farther off", _WRONG), ("not seen in view 2", _UNKNOWN))
        handles = [Line2D([], [], color=colour, label=label) for label, colour in named]
        figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def _chosen(layers: tuple[Layer, ...]) -> list[Layer]:
    """Layers spread evenly over the network, first and last among them."""
    return [layers[i] for i in dict.fromkeys(np.linspace(0, len(layers) - 1, _MOST_LAYERS).round().astype(int).tolist())]


def _title(layer: Layer) -> str:
    accuracy = "" if layer.accuracy is None else f", {layer.accuracy:.0%} of those that can be checked are right"
    return f"{layer_name(layer.layer_id)}: {len(layer.correspondences.pixels1)} matches{accuracy}"


def _side_by_side(images: tuple[UInt8[np.ndarray, "H W 3"], ...]) -> tuple[UInt8[np.ndarray, "H W 3"], int]:
    """Both views on white, and the column at which view 2 begins."""
    (height1, width1), (height2, width2) = (image.shape[:2] for image in images)
    left2 = width1 + max(round(_GAP * width1), 1)
    canvas = np.full((max(height1, height2), left2 + width2, 3), 255, np.uint8)
    canvas[:height1, :width1] = images[0]
    canvas[:height2, left2:] = images[1]
    return canvas, left2


def _draw_matches(axes: Axes, layer: Layer, left2: int, report: Report) -> None:
    matches = layer.correspondences
    if not len(matches.pixels1):
        return
    drawn = drawn_matches(matches)
    starts, ends = matches.pixels1[drawn].astype(float), matches.pixels2[drawn] + np.array([left2, 0.0])
    if matches.offsets is None:
        colours = _colours_of_places(starts, report.images[0].shape[:2])
    else:
        offsets = matches.offsets[drawn]
        known = np.where(offsets <= report.match_threshold, _RIGHT, _WRONG)
        colours = np.where(np.isnan(offsets), _UNKNOWN, known).tolist()
    axes.add_collection(LineCollection(list(np.stack([starts, ends], axis=1)), colors=colours, linewidths=0.7, alpha=0.85))
    for x, y in (starts.T, ends.T):
        axes.scatter(x, y, s=5, c=colours, linewidths=0)


def _colours_of_places(pixels: Float[np.ndarray, "K 2"], size: tuple[int, ...]) -> list[tuple[float, ...]]:
    """Hues around the image's centre."""
    import matplotlib

    x, y = (pixels / np.array([size[1], size[0]]) - 0.5).T
    hues = np.arctan2(y, x) / (2 * np.pi) % 1
    return [tuple(colour) for colour in matplotlib.colormaps["hsv"](hues)]


_COLUMNS = 5


_CELL, _LEAST_WIDTH = 2.1, 5.4  # inches


_MARK = "#d55e00"


def attention_figure(report: Report) -> Figure:
    """View 1 with the chosen patch, then view 2 under each block's cross-attention of that patch, mean over heads.

    A cross marks where the patch is in view 2, by the last layer's matches. Each block's colours span its own weights.
    """
    token, place = chosen_patch(report)
    cells = len(report.attention) + 1
    rows = math.ceil(cells / _COLUMNS)
    columns = min(cells, _COLUMNS)
    ratio = max(image.shape[0] / image.shape[1] for image in report.images)
    figure = Figure(figsize=(max(columns * _CELL, _LEAST_WIDTH), rows * (_CELL * ratio + 0.3) + 0.7), dpi=150, layout="constrained")
    cross = "" if place is None else "\nThe cross: where the last layer's matches see it"
    figure.suptitle(f"Cross-attention of one patch of view 1, mean over heads{cross}", x=0.01, ha="left", fontsize=11)
    all_axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in all_axes:
        axes.axis("off")
    _draw_patch(all_axes[0], report, token)
    for axes, block in zip(all_axes[1:], report.attention, strict=False):
        _draw_block(axes, report, block, token, place)
    return figure


def chosen_patch(report: Report) -> tuple[int, tuple[float, float] | None]:
    """A token of view 1 whose matches lead somewhere, and where: their median place, (x, y), in view 2, None where there is no match.

    Of the tokens with at least half as many matches in the last layer as any has, the one with most contrast.
    """
    rows, columns = report.grids[0]
    height, width = report.images[0].shape[:2]
    matches = report.layers[-1].correspondences
    x, y = matches.pixels1.T
    tokens = (y * rows // height) * columns + x * columns // width
    counts = np.bincount(tokens, minlength=rows * columns)
    patches = report.images[0].mean(axis=-1).reshape(rows, height // rows, columns, width // columns)
    contrast = patches.std(axis=(1, 3)).ravel()
    token = int(np.argmax(np.where(counts >= counts.max() / 2, contrast, -1)))
    of_token = matches.pixels2[tokens == token]
    if not len(of_token):
        return token, None
    return token, (float(np.median(of_token[:, 0])), float(np.median(of_token[:, 1])))


def _draw_patch(axes: Axes, report: Report, token: int) -> None:
    rows, columns = report.grids[0]
    image = report.images[0]
    height, width = image.shape[0] / rows, image.shape[1] / columns
    corner = token % columns * width - 0.5, token // columns * height - 0.5
    axes.imshow(image)
    axes.add_patch(Rectangle(corner, width, height, fill=False, edgecolor="white", linewidth=3))
    axes.add_patch(Rectangle(corner, width, height, fill=False, edgecolor=_MARK, linewidth=1.5))
    axes.set_title("view 1", fontsize=9)


def _draw_block(axes: Axes, report: Report, block: Attention, token: int, place: tuple[float, float] | None) -> None:
    image = report.images[1]
    grid: Float[np.ndarray, "rows columns"] = block.from_view1[:, token].mean(axis=0).reshape(report.grids[1])
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


def write_depth_sheet(path: Path, report: Report) -> None:
    """Writes the contact sheet of all layers as PNG."""
    sheet = ContactSheet(*report.images, rows=len(report.layers), title=f"What each layer knows of {report.title}")
    for layer in report.layers:
        sheet.add_row(layer_name(layer.layer_id), *(_prediction(view) for view in layer.views))
    sheet.write(path)


def _prediction(view: ViewGeometry) -> dict[str, object]:
    return {"pts3d": view.points} | ({} if view.confidence is None else {"conf": view.confidence})
