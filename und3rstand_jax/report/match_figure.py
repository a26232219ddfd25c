"""Matches drawn as lines between view 1 and other views, coloured by whether they are correct."""

from collections.abc import Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from jaxtyping import UInt8
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from und3rstand_jax.geometry.matching import Correspondences, drawn_matches

# The gap between the views as a share of view 1's width, and a row's width in inches.
_GAP, _ROW_WIDTH = 0.06, 7.2
_CORRECT, _WRONG, _UNKNOWN = "#0072b2", "#d55e00", "#a1a1aa"  # from the colour-blind safe palette of Okabe and Ito

Images = tuple[UInt8[np.ndarray, "_H _W 3"], ...]


class Row(NamedTuple):
    """Matches, their name, the correct share of those that can be checked, and the number of the view they lead to."""

    name: str
    matches: Correspondences
    accuracy: float | None
    view: int = 2


def matches_figure(images: Images, rows: Sequence[Row], threshold: float) -> Figure:
    """View 1 and a later view in each row, and up to sixty of the row's matches between them.

    If the true places are known, matches within `threshold` pixels are blue and wrong ones orange; those whose true place the later view
    does not see are grey. Otherwise a match has the colour of its place in view 1.

    Args:
        images: the images of all views.
        rows: the rows, from the top.
        threshold: in pixels of the later view.
    """
    canvases = [_side_by_side(images[0], images[row.view - 1]) for row in rows]
    heights = [_ROW_WIDTH * canvas.shape[0] / canvas.shape[1] + 0.36 for canvas, _ in canvases]
    figure = Figure(figsize=(_ROW_WIDTH + 0.2, sum(heights) + 0.5), dpi=150, layout="constrained")
    all_axes = figure.subplots(len(rows), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, row, (canvas, left) in zip(all_axes, rows, canvases, strict=True):
        accuracy = "" if row.accuracy is None else f", {row.accuracy:.0%} of those that can be checked are correct"
        axes.imshow(canvas)
        axes.axis("off")
        axes.set_title(f"{row.name}: {len(row.matches.pixels1)} matches{accuracy}", loc="left", fontsize=10)
        _draw(axes, row.matches, left, images[0].shape[:2], threshold)
    if any(row.matches.offsets is not None for row in rows):
        within = f"within {threshold:.3g} pixels of the true place"
        unseen = "not visible in view 2" if len(images) == 2 else "not visible in the other view"
        named = ((within, _CORRECT), ("farther off", _WRONG), (unseen, _UNKNOWN))
        handles = [Line2D([], [], color=colour, label=label) for label, colour in named]
        figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def _side_by_side(image1: UInt8[np.ndarray, "_H _W 3"], image2: UInt8[np.ndarray, "_H _W 3"]) -> tuple[UInt8[np.ndarray, "_H _W 3"], int]:
    """Both images side by side on white, and the column in which the second begins."""
    (height1, width1), (height2, width2) = image1.shape[:2], image2.shape[:2]
    left = width1 + max(round(_GAP * width1), 1)
    canvas = np.full((max(height1, height2), left + width2, 3), 255, np.uint8)
    canvas[:height1, :width1] = image1
    canvas[:height2, left:] = image2
    return canvas, left


def _draw(axes: Axes, matches: Correspondences, left2: int, size1: tuple[int, int], threshold: float) -> None:
    """Lines from view 1 to the other, whose first column is `left2`."""
    if not len(matches.pixels1):
        return
    drawn = drawn_matches(matches)
    starts, ends = matches.pixels1[drawn].astype(float), matches.pixels2[drawn] + np.array([left2, 0.0])
    if matches.offsets is None:
        # Hues around the centre of view 1.
        x, y = (starts / np.array(size1[::-1]) - 0.5).T
        colours = [tuple(colour) for colour in matplotlib.colormaps["hsv"](np.arctan2(y, x) / (2 * np.pi) % 1)]
    else:
        offsets = matches.offsets[drawn]
        known = np.where(offsets <= threshold, _CORRECT, _WRONG)
        colours = np.where(np.isnan(offsets), _UNKNOWN, known).tolist()
    axes.add_collection(LineCollection(list(np.stack([starts, ends], axis=1)), colors=colours, linewidths=0.7, alpha=0.85))
    for x, y in (starts.T, ends.T):
        axes.scatter(x, y, s=5, c=colours, linewidths=0)
