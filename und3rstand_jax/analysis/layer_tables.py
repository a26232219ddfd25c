"""Tables of what was measured of a model's layers, as docs/pocket.md shows them.

Figures of what was measured of a model's layers.
"""

from collections.abc import Iterable, Sequence

from matplotlib.figure import Figure

from und3rstand_jax.analysis.layer_findings import Attention, Findings
from und3rstand_jax.analysis.layer_means import LayerMeans
from und3rstand_jax.analysis.layer_plot import Panel, Series, panels_figure
from und3rstand_jax.model.layer_ids import HEAD


def tables(found: Findings) -> str:
    """As Markdown."""
    columns = ("view 1", "view 2", "right matches", "of known place", "rotation °")
    lines = ["By layer:", "", *_table(("layer", *columns), map(_layer_row, found.layers))]
    lines += ["", f"Median angle between the cameras, the error of no rotation at all: {found.turn:.1f}°"]
    lines += ["", "Fall of the error over all steps of a kind:", ""]
    first_blocks = list(found.falls)
    head = [f"view {view}, from block {block} on" for block in first_blocks for view in (1, 2)]
    lines += _table(
        ("step", *head),
        [(kind, *(fall.told() for block in first_blocks for fall in found.falls[block][kind])) for kind in found.falls[first_blocks[0]]],
    )
    lines += ["", "The last layer by the distance of the cameras, a third of the scenes each:", ""]
    apart = [(f"{group.nearest:.2f} to {group.farthest:.2f}", *_layer_row(group.means)[1:]) for group in found.by_distance]
    lines += _table(("cameras apart, m", *columns), apart)
    blocks, heads = found.attention.on_place.shape[1:]
    for view in range(2):
        on_place, on_another = found.attention.on_place[view], found.attention.on_another[view]
        lines += ["", f"View {view + 1}'s decoder: attention on the true place / on another scene's", ""]
        rows = [
            (f"{block}", *(f"{one:.2f} / {other:.2f}" for one, other in zip(on_place[block], on_another[block], strict=True)))
            for block in range(blocks)
        ]
        lines += _table(("block", *(f"head {head}" for head in range(heads))), rows)
    even = " and ".join(f"{share:.3f}" for share in found.attention.even)
    lines += ["", f"Evenly spread: {even}; largest standard error of a difference: {found.attention.error.max():.3f}"]
    return "\n".join(lines) + "\n"


def _layer_row(layer: LayerMeans) -> Sequence[str]:
    shares = layer.accuracy.told_as_share(), f"{layer.known.mean:.0%}"
    return layer.layer_id, layer.view1.told(), layer.view2.told(), *shares, f"{layer.rotation:.1f}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


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
