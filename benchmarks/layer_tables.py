"""Tables of what was measured of a model's layers, as docs/pocket.md shows them."""

from collections.abc import Iterable, Sequence

from benchmarks.layer_findings import Findings
from benchmarks.layer_means import LayerMeans


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
