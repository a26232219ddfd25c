"""Matches of a few layers, drawn between the two views."""

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from und3rstand_jax.report.content import Layer, Report, layer_name
from und3rstand_jax.report.matching import drawn_matches

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
