"""Where one patch of view 1 looks in view 2, block by block."""

import math

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from und3rstand_jax.report.content import Attention, Report

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
