"""A layer study as JSON, as the Markdown tables of docs/pocket.md, and as figures."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from und3rstand_jax.analysis.layer_plot import Panel, Series, panels_figure
from und3rstand_jax.analysis.layer_study import AttentionShares, DistanceGroup, LayerMeans, LayerStudy, Mean
from und3rstand_jax.model.layer_ids import HEAD
from und3rstand_jax.support.text import JsonObject, markdown_table

_SHARES = ("on_true_place", "on_another_scenes", "standard_error_of_difference", "spread_evenly")
"""Names of the fields of `AttentionShares` in JSON."""


def as_json(study: LayerStudy) -> dict[str, object]:
    """The whole study: a mean is [mean, standard error], attention goes by view's decoder, block and head."""
    return {
        "layers": [dataclasses.asdict(layer) for layer in study.layers],
        "last_layer_by_distance": [dataclasses.asdict(group) for group in study.by_distance],
        "falls_from_block": study.falls,
        "median_turn_of_the_cameras": study.turn,
        "attention": {name: shares.tolist() for name, shares in zip(_SHARES, study.attention, strict=True)},
    }


def from_json(content: JsonObject) -> LayerStudy:
    """The inverse of `as_json`; null, which stands for NaN in a file, is NaN again."""

    def mean(value: Sequence[float | None]) -> Mean:
        return Mean(*np.asarray(value, float).tolist())

    def means(layer: JsonObject) -> LayerMeans:
        over = {name: mean(layer[name]) for name in ("view1", "view2", "accuracy", "known")}
        return LayerMeans(layer["layer_id"], **over, rotation=layer["rotation"])

    return LayerStudy(
        layers=[means(layer) for layer in content["layers"]],
        attention=AttentionShares(*(np.asarray(content["attention"][name], float) for name in _SHARES)),
        by_distance=[
            DistanceGroup(group["nearest"], group["farthest"], means(group["means"])) for group in content["last_layer_by_distance"]
        ],
        falls={
            int(block): {kind: (mean(one), mean(two)) for kind, (one, two) in by_kind.items()}
            for block, by_kind in content["falls_from_block"].items()
        },
        turn=content["median_turn_of_the_cameras"],
    )


def tables(study: LayerStudy) -> str:
    """All tables, in Markdown."""
    columns = ("view 1", "view 2", "right matches", "of known place", "rotation °")

    def plus_minus(mean: Mean) -> str:
        return f"{mean.mean:.3f} ± {mean.error:.3f}"

    def cells(layer: LayerMeans) -> tuple[str, ...]:
        accuracy = f"{100 * layer.accuracy.mean:.0f} ± {100 * layer.accuracy.error:.0f} %"
        return plus_minus(layer.view1), plus_minus(layer.view2), accuracy, f"{layer.known.mean:.0%}", f"{layer.rotation:.1f}"

    layers = markdown_table(("layer", *columns), [(layer.layer_id, *cells(layer)) for layer in study.layers])
    fall_columns = [f"view {view}, from block {block} on" for block in study.falls for view in (1, 2)]
    kinds = next(iter(study.falls.values()))
    fall_rows = [(kind, *(plus_minus(fall) for by_kind in study.falls.values() for fall in by_kind[kind])) for kind in kinds]
    distance_rows = [(f"{group.nearest:.2f} to {group.farthest:.2f}", *cells(group.means)) for group in study.by_distance]
    sections = [
        f"By layer:\n\n{layers}",
        f"Median angle between the cameras, the error of no rotation at all: {study.turn:.1f}°",
        f"Fall of the error over all steps of a kind:\n\n{markdown_table(('step', *fall_columns), fall_rows)}",
        "The last layer by the distance of the cameras, a third of the scenes each:\n\n"
        + markdown_table(("cameras apart, m", *columns), distance_rows),
    ]
    head_columns = [f"head {head}" for head in range(study.attention.on_place.shape[2])]
    for view, (on_place, on_another) in enumerate(zip(study.attention.on_place, study.attention.on_another, strict=True), start=1):
        rows = [
            (str(block), *(f"{one:.2f} / {other:.2f}" for one, other in zip(*heads, strict=True)))
            for block, heads in enumerate(zip(on_place, on_another, strict=True))
        ]
        sections.append(
            f"View {view}'s decoder: attention on the true place / on another scene's\n\n{markdown_table(('block', *head_columns), rows)}"
        )
    even = " and ".join(f"{share:.3f}" for share in study.attention.even)
    sections.append(f"Evenly spread: {even}; largest standard error of a difference: {study.attention.error.max():.3f}")
    return "\n\n".join(sections) + "\n"


def layers_figure(layers: Sequence[LayerMeans]) -> Figure:
    """Errors, matches and rotation over the layers."""
    errors = (
        Series[LayerMeans]("view 1", lambda layer: layer.view1.mean),
        Series[LayerMeans]("view 2", lambda layer: layer.view2.mean, False),
    )
    right = (Series[LayerMeans]("within 3 % of the width", lambda layer: layer.accuracy.mean),)
    panels = [
        Panel("Normalised point error", "distance, both sides\nscaled to mean distance 1", errors),
        Panel("Right matches, of those whose true place view 2 sees", "share", right, is_share=True),
        Panel("Rotation error of view 2's pose", "degrees, median", (Series("rotation", lambda layer: layer.rotation),), greatest=180.0),
    ]
    head = next((layer for layer in layers if layer.layer_id == HEAD), None)
    return panels_figure(panels, [layer for layer in layers if layer.layer_id != HEAD], head)


def attention_figure(attention: AttentionShares) -> Figure:
    """A square for each head of each view's decoder: its attention on the true place, and on that of another scene."""
    _, blocks, heads = attention.on_place.shape
    figure = Figure(figsize=(2.2 * heads + 2.2, 0.42 * blocks + 1.4), layout="constrained")
    panels = figure.subplots(1, 4, sharey=True)
    greatest = max(attention.on_place.max(), attention.on_another.max(), 2 * attention.even.max())
    kinds = ((attention.on_place, "the true place"), (attention.on_another, "another scene's"))
    drawn = [(view, *kind) for view in range(2) for kind in kinds]
    for axes, (view, shares, place) in zip(panels, drawn, strict=True):
        image = axes.imshow(shares[view], vmin=0, vmax=greatest, cmap="viridis")
        axes.set(xlabel="head", xticks=range(heads), yticks=range(blocks))
        axes.set_title(f"view {view + 1}'s decoder:\n{place}", fontsize=9)
    panels[0].set_ylabel("decoder block")
    even = " and ".join(f"{share:.3f}" for share in attention.even)
    figure.suptitle(
        f"Share of cross-attention on the true place in the other view, and on another scene's (evenly spread: {even})", fontsize=9
    )
    figure.colorbar(image, ax=panels)
    return figure
