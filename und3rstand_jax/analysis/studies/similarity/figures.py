"""The figures of the study of similarity: CKA between all layers, and curves over the layers."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from und3rstand_jax.analysis.studies.study import Mean, Record

_MAPS = {
    "layers1": "view 1",
    "layers2": "view 2",
    "random1": "view 1, random weights",
    "random2": "view 2, random weights",
}
_COLOURS = {1: "#0072b2", 2: "#d55e00"}
_BOTH, _CONTROL = "#009e73", "#71717a"


class _Line(NamedTuple):
    label: str
    of: Sequence[Mean]
    colour: str
    style: str
    marker: str


def layers_figure(maps: Mapping[str, Float[np.ndarray, "L L"]], layers: Sequence[str], embed: str) -> Figure:
    """CKA between every two layers, of both views, with trained and with random weights."""
    figure = Figure(figsize=(10.5, 9.6), layout="constrained")
    axes = figure.subplots(2, 2, sharex=True, sharey=True)
    for place, (name, title) in zip(axes.ravel(), _MAPS.items(), strict=True):
        shown = place.imshow(maps[name], vmin=0.0, vmax=1.0, cmap="magma", interpolation="nearest")
        place.set_title(title, fontsize=10)
        at, labels = _ticks(layers)
        place.set_xticks(at, labels, fontsize=7, rotation=90)
        place.set_yticks(at, labels, fontsize=7)
        border = layers.index(embed) - 0.5
        for draw in (place.axhline, place.axvline):
            draw(border, color="white", linewidth=0.8)
    figure.colorbar(shown, ax=list(axes.ravel()), label="linear CKA between two layers' tokens", aspect=40)
    return figure


def curves_figure(of_layer: Sequence[Record], of_views: Sequence[Record], layers: Sequence[str], embed: str) -> Figure:
    """Over the layers: CKA between the views, effective rank, mean cosine, and CKA to random weights and to another scene."""
    figure = Figure(figsize=(min(max(0.24 * len(layers) + 5.0, 10.0), 18.0), 12.0), layout="constrained")
    axes = figure.subplots(4, 1, sharex=True)

    def of(view: int, name: str) -> list[Mean]:
        return _means([record for record in of_layer if record["view"] == view], name)

    def both_views(name: str, text: str = "", style: str = "-", marker: str = "o") -> list[_Line]:
        return [_Line(f"view {view}{text}", of(view, name), _COLOURS[view], style, marker) for view in (1, 2)]

    between = [
        _Line("tokens that show the same place", _means(of_views, "cka"), _BOTH, "-", "o"),
        _Line("at another scene's matches", _means(of_views, "cka_next"), _CONTROL, "--", ""),
        _Line("shuffled", _means(of_views, "cka_shuffled"), _CONTROL, ":", ""),
        _Line("same place, random weights", _means(of_views, "cka_random"), _BOTH, "--", ""),
    ]
    rank = [*both_views("rank"), *both_views("rank_random", ", random weights", "--", "")]
    cosine = [*both_views("cosine"), *both_views("cosine_random", ", random weights", "--", "")]
    to_others = [
        *both_views("cka_next", ", with the next pair\nat the same places"),
        *both_views("cka_to_random", ", with random weights", "--", ""),
        _Line("view 1, tokens shuffled", of(1, "cka_shuffled"), _CONTROL, ":", ""),
    ]
    panels: Sequence[tuple[str, str, Sequence[_Line], Callable[[Axes], object]]] = (
        ("Between the views", "linear CKA", between, lambda place: place.set_ylim(bottom=min(-0.02, place.get_ylim()[0]))),
        ("Dimensions that a view's tokens use in a pair", "effective rank", rank, lambda place: place.set_ylim(bottom=0)),
        ("Between two tokens of a view", "mean cosine", cosine, lambda place: place.axhline(0, color="#e4e4e7", linewidth=0.8)),
        (
            "A layer with the same layer of others",
            "linear CKA",
            to_others,
            lambda place: place.set_ylim(bottom=min(-0.02, place.get_ylim()[0])),
        ),
    )
    for place, (title, unit, lines, finish) in zip(axes, panels, strict=True):
        for line in lines:
            values, errors = (np.array([getattr(mean, part) for mean in line.of]) for part in ("mean", "error"))
            place.errorbar(
                range(len(layers)),
                values,
                np.nan_to_num(errors),
                color=line.colour,
                linestyle=line.style,
                marker=line.marker,
                markersize=3.5,
                linewidth=1.2,
                elinewidth=0.8,
                label=line.label,
            )
        place.set_title(title, loc="left", fontsize=10)
        place.set_ylabel(unit)
        finish(place)
        place.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
        place.grid(axis="y", color="#e4e4e7", linewidth=0.6)
        place.axvline(layers.index(embed) - 0.5, color=_CONTROL, linewidth=0.8)
        place.spines[["top", "right"]].set_visible(False)
    at, labels = _ticks(layers)
    axes[-1].set_xticks(at, labels, fontsize=8, rotation=90)
    axes[-1].set_xlim(-0.5, len(layers) - 0.5)
    axes[-1].set_xlabel("layer; between two names, the steps of the block that the second ends")
    return figure


def _means(records: Sequence[Record], name: str) -> list[Mean]:
    return [mean if isinstance(mean := record[name], Mean) else Mean(np.nan, np.nan) for record in records]


def _ticks(layers: Sequence[str]) -> tuple[list[int], list[str]]:
    """The layers with a label: the ends of blocks, embedding and norms; every other block if there are many."""
    ends = [index for index, layer in enumerate(layers) if layer.count(".") == 1 or layer.endswith(".mlp")]
    every = 2 if len(ends) > 30 else 1
    kept = [index for index in ends if layers[index].count(".") == 1 or int(layers[index].split(".")[1]) % every == 0]
    return kept, [layers[index].removesuffix(".mlp").replace(".", " ") for index in kept]
