"""Figures of what was measured of a model's layers."""

from matplotlib.figure import Figure

from benchmarks.layer_findings import Attention
from benchmarks.layer_means import LayerMeans
from und3rstand_jax.layer_plot import Panel, Series, panels_figure
from und3rstand_jax.layers import HEAD


def layers_figure(layers: list[LayerMeans]) -> Figure:
    """Errors, matches and rotation over the layers."""
    errors = (
        Series[LayerMeans]("view 1", lambda layer: layer.view1.mean),
        Series[LayerMeans]("view 2", lambda layer: layer.view2.mean, False),
    )
    right = (Series[LayerMeans]("within 3 % of the width", lambda layer: layer.accuracy.mean),)
    panels = [
        Panel("Normalised point error", "distance, both sides\nscaled to mean distance 1", errors),
        Panel("Right matches, of those whose true place view 2 sees", "share", right, is_share=True),
        Panel("Rotation error of view 2's pose", "degrees, median", (Series("rotation", lambda layer: layer.rotation),), greatest=180),
    ]
    head = next((layer for layer in layers if layer.layer_id == HEAD), None)
    return panels_figure(panels, [layer for layer in layers if layer.layer_id != HEAD], head)


def attention_figure(attention: Attention) -> Figure:
    """A square for each head of each view's decoder: its attention on the true place, and on that of another scene."""
    _, blocks, heads = attention.on_place.shape
    figure = Figure(figsize=(2.2 * heads + 2.2, 0.42 * blocks + 1.4), layout="constrained")
    panels = figure.subplots(1, 4, sharey=True)
    greatest = max(attention.on_place.max(), attention.on_another.max(), 2 * attention.even.max())
    drawn = [(view, kind) for view in range(2) for kind in range(2)]
    for axes, (view, kind) in zip(panels, drawn, strict=True):
        image = axes.imshow(attention[kind][view], vmin=0, vmax=greatest, cmap="viridis")
        axes.set(xlabel="head", xticks=range(heads), yticks=range(blocks))
        where = ("the true place", "another scene's")[kind]
        axes.set_title(f"view {view + 1}'s decoder:\n{where}", fontsize=9)
    panels[0].set_ylabel("decoder block")
    even = " and ".join(f"{share:.3f}" for share in attention.even)
    figure.suptitle(
        f"Share of cross-attention on the true place in the other view, and on another scene's (evenly spread: {even})", fontsize=9
    )
    figure.colorbar(image, ax=panels)
    return figure
