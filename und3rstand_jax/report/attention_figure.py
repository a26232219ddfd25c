"""Where one patch of view 1 attends in the other views, block by block, as a figure."""

import math

import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from und3rstand_jax.analysis.attention_maps import tokens_per_cell
from und3rstand_jax.analysis.steps import words_of
from und3rstand_jax.analysis.view_set import Attention, SetAnalysis

# Cells in a row of a pair's figure, the minimum widths of a cell and of the figure in inches, and the resolution of larger figures.
_COLUMNS, _CELL, _LEAST_WIDTH, _DPI_OF_MANY = 5, 2.1, 5.4, 100
_MARK = "#d55e00"

Place = tuple[float, float] | None


def attention_figure(analysis: SetAnalysis) -> Figure:
    """View 1 with one patch marked, then every view that it reads, under each block's attention from that patch, averaged over heads.

    A cross marks the patch's place in the other view, by the last layer's matches. Colours are weight per token, and each map is scaled
    to its block's maximum over all views. If more than one view is read, each block has a row and each view a column; titles give the
    view's share of the attention.
    """
    token, views = salient_token(analysis), analysis.attention[0].keys[0]
    places = [None if view == 1 else place_of_token(analysis, token, view) for view in views]
    is_pair, blocks = len(places) == 1, len(analysis.attention)
    columns = min(blocks + 1, _COLUMNS) if is_pair else len(places) + 1
    rows = math.ceil((blocks + 1) / columns) if is_pair else blocks
    ratio = max(image.shape[0] / image.shape[1] for image in analysis.images)
    size = max(columns * _CELL, _LEAST_WIDTH), rows * (_CELL * ratio + 0.3) + 0.7
    figure = Figure(figsize=size, dpi=150 if is_pair else _DPI_OF_MANY, layout="constrained")
    where = "view 2" if is_pair else "each other view" if 1 in views else "each view"
    cross = f"\nCross: the patch's place in {where}, by the last layer's matches" if any(places) else ""
    words = words_of(analysis.attention_kind).capitalize()
    figure.suptitle(f"{words} from one patch of view 1, mean over heads{cross}", x=0.01, ha="left", fontsize=11)
    cells = figure.subplots(rows, columns, squeeze=False)
    for axes in cells.ravel():
        axes.axis("off")
    _draw_patch(cells[0, 0], analysis, token)
    # For a pair, the blocks fill the rows one after another.
    of_blocks = cells.ravel()[1 : blocks + 1, None] if is_pair else cells[:, 1:]
    for row, block in zip(of_blocks, analysis.attention, strict=True):
        for axes, view, place in zip(row, views, places, strict=True):
            _draw_map(axes, analysis, block, token, view, place)
    return figure


def salient_token(analysis: SetAnalysis) -> int:
    """A token of view 1 worth following: of those with at least half the maximum number of last-layer matches, the one with most contrast.

    Matches with all later views count.
    """
    rows, columns = analysis.grids[0]
    height, width = analysis.images[0].shape[:2]
    tokens = np.concatenate([_tokens(analysis, found.pixels1) for found in analysis.layers[-1].correspondences])
    counts = np.bincount(tokens, minlength=rows * columns)
    patches = analysis.images[0].mean(axis=-1).reshape(rows, height // rows, columns, width // columns)
    contrast = patches.std(axis=(1, 3)).ravel()
    return int(np.argmax(np.where(counts >= counts.max() / 2, contrast, -1)))


def place_of_token(analysis: SetAnalysis, token: int, view: int) -> Place:
    """The median place, (x, y), of a token's last-layer matches in a later view; None if it has none."""
    matches = analysis.layers[-1].correspondences[view - 2]
    of_token = matches.pixels2[_tokens(analysis, matches.pixels1) == token]
    if not len(of_token):
        return None
    return float(np.median(of_token[:, 0])), float(np.median(of_token[:, 1]))


def _tokens(analysis: SetAnalysis, pixels: Int[np.ndarray, "K 2"]) -> Int[np.ndarray, " K"]:
    """The tokens of view 1 that contain these pixels."""
    rows, columns = analysis.grids[0]
    height, width = analysis.images[0].shape[:2]
    x, y = pixels.T
    return (y * rows // height) * columns + x * columns // width


def _draw_patch(axes: Axes, analysis: SetAnalysis, token: int) -> None:
    """View 1 with a frame around the token's patch."""
    image = analysis.images[0]
    rows, columns = analysis.grids[0]
    height, width = image.shape[0] / rows, image.shape[1] / columns
    corner = token % columns * width - 0.5, token // columns * height - 0.5
    axes.imshow(image)
    for colour, thickness in (("white", 3), (_MARK, 1.5)):
        axes.add_patch(Rectangle(corner, width, height, fill=False, edgecolor=colour, linewidth=thickness))
    axes.set_title("view 1", fontsize=9)


def _weights(analysis: SetAnalysis, block: Attention, token: int, view: int) -> Float[np.ndarray, "rows columns"]:
    """The weights of a token of view 1, or of the cell that it was pooled into, over a view's cells, averaged over heads."""
    row, column = divmod(token, analysis.grids[0][1])
    cell = row // analysis.pool * analysis.cells[0][1] + column // analysis.pool
    return block.between(1, view, analysis.cells)[:, cell].mean(axis=0).reshape(analysis.cells[view - 1])


def _draw_map(axes: Axes, analysis: SetAnalysis, block: Attention, token: int, view: int, place: Place) -> None:
    """A view in grey, overlaid with the attention weights of a token of view 1 over its tokens."""
    image = analysis.images[view - 1]
    weights = _weights(analysis, block, token, view)
    # A cell's weight is a sum over its tokens; those at the far edges may have fewer, and would look dark if coloured by it.
    per_token = {
        other: _weights(analysis, block, token, other) / tokens_per_cell(analysis.grids[other - 1], analysis.pool)
        for other in block.keys[0]
    }
    height, width = image.shape[:2]
    axes.imshow(image.mean(axis=-1), cmap="gray", vmin=0, vmax=255)
    # The view shows through where the weights are small.
    cells, grid = analysis.cells[view - 1], analysis.grids[view - 1]
    strength = per_token[view] / max(of_view.max() for of_view in per_token.values())
    # The last cells may reach beyond the image.
    bottom, right = (side * pooled * analysis.pool / count for side, pooled, count in zip((height, width), cells, grid, strict=True))
    extent = (-0.5, right - 0.5, bottom - 0.5, -0.5)
    axes.imshow(strength, cmap="plasma", alpha=0.85 * strength**0.5, vmin=0, vmax=1, extent=extent, interpolation="nearest")
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    if place is not None:
        axes.plot(*place, "+", color="white", markersize=11, markeredgewidth=3)
        axes.plot(*place, "+", color=_MARK, markersize=10, markeredgewidth=1.5)
    share = "" if len(block.keys[0]) == 1 else f": {weights.sum():.0%}"
    axes.set_title(f"view {view}, block {block.block}{share}", fontsize=9)
