"""The figure of the study `patching`."""

from collections.abc import Sequence
from typing import cast

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from und3rstand_jax.analysis.steps import block_words, kinds_of, words_of
from und3rstand_jax.analysis.studies.study import Mean, Record, mean_in
from und3rstand_jax.model.config import ModelConfig

_COLOURS = {"points2": "C0", "rotation": "C3", "direction": "C1", "points1": "C2"}
_LABELS = {
    "points2": "view 2's points",
    "rotation": "view 2's rotation",
    "direction": "direction to camera 2",
    "points1": "view 1's points",
}


def patching_figure(records: Sequence[Record], config: ModelConfig) -> Figure:
    """Shares towards B by layer for both views' streams, by update, and by head."""
    figure = Figure(figsize=(11, 7.5), layout="constrained")
    axes, steps = figure.subplots(2, 2), kinds_of(config).steps
    for place, view in zip(axes[0], (2, 1), strict=True):
        own = [record for record in records if record["kind"] == "layer" and record["view"] == view]
        for name, colour in _COLOURS.items():
            twins = [record for record in own if record["source"] == "twin"]
            _curve(place, twins, name, steps, label=_LABELS[name], color=colour, marker="o")
        if view == 2:
            for source, style, label in (("unrelated", ":", "points, from an unrelated pair"), ("itself", "--", "points, A's own values")):
                controls = [record for record in own if record["source"] == source]
                _curve(place, controls, "points2", steps, label=label, color="0.4", linestyle=style, marker=".")
        place.set_title(f"Stream of view {view} from B", fontsize=10)
        place.axhline(0.5, color="0.8", linewidth=0.8, zorder=0)
        _layer_axis(place, config)
        # An unrelated stream can take the output arbitrarily far away.
        place.set_ylim(max(place.get_ylim()[0], -1.0), max(1.08, place.get_ylim()[1]))
        place.legend(fontsize=7, loc="best")
    _updates(axes[1, 0], [record for record in records if (record["kind"], record["source"]) == ("update", "twin")], config)
    heads = [record for record in records if record["kind"] == "head"]
    shares = np.array([share_in(record, "points2").mean for record in heads]).reshape(len(config.blocks), config.block_heads)
    _heads(figure, axes[1, 1], shares, config)
    for place in (*axes[0], axes[1, 0]):
        place.set_ylabel("share towards B's output\n(0: A's, 1: B's)", fontsize=9)
    return figure


def share_in(record: Record, name: str = "points2") -> Mean:
    """A record's share towards B."""
    return mean_in(record, f"share_{name}")


def _place(record: Record, steps: Sequence[str]) -> float:
    """On the axis of layers: the embedding at 0, the S steps of block b from b + 1/S to b + 1."""
    if record["block"] is None:
        return 0.0
    return cast(int, record["block"]) + (1 + steps.index(cast(str, record["step"]))) / len(steps)


def _curve(axes: Axes, records: Sequence[Record], name: str, steps: Sequence[str], marker: str, **options: str) -> None:
    means = [share_in(record, name) for record in records]
    axes.errorbar(
        [_place(record, steps) for record in records],
        [mean.mean for mean in means],
        [mean.error for mean in means],
        marker=marker,
        markersize=3,
        linewidth=1.2,
        elinewidth=0.8,
        **options,  # type: ignore[arg-type]
    )


def _layer_axis(axes: Axes, config: ModelConfig) -> None:
    blocks, kinds = range(len(config.blocks) + 1), kinds_of(config)
    axes.set_xticks(blocks, ["embed", *(f"block {block}" for block in blocks[:-1])], fontsize=7, rotation=45 if len(blocks) > 9 else 0)
    count = {3: "three", 4: "four"}.get(len(kinds.steps), str(len(kinds.steps)))
    axes.set_xlabel(f"the stream is B's after ({count} steps a block: {', '.join(map(words_of, kinds.steps))})", fontsize=8)
    axes.axhline(0.0, color="0.6", linewidth=0.6, zorder=0)
    axes.axhline(1.0, color="0.6", linewidth=0.6, zorder=0)


def _updates(axes: Axes, records: Sequence[Record], config: ModelConfig) -> None:
    steps = kinds_of(config).steps
    width = 0.8 / len(steps)
    for number, step in enumerate(steps):
        own = [record for record in records if record["step"] == step]
        means = [share_in(record, "points2") for record in own]
        places = np.arange(len(config.blocks)) + (number - (len(steps) - 1) / 2) * width
        label = words_of(step)
        axes.bar(
            places, [mean.mean for mean in means], width, yerr=[mean.error for mean in means], label=label, error_kw={"elinewidth": 0.8}
        )
    axes.axhline(0.0, color="0.6", linewidth=0.6)
    axes.set_title("One update of view 2 from B: view 2's points", fontsize=10)
    axes.set_xticks(range(len(config.blocks)))
    axes.set_xlabel(block_words(config), fontsize=8)
    axes.legend(fontsize=7)


def _heads(figure: Figure, axes: Axes, shares: Float[np.ndarray, "blocks heads"], config: ModelConfig) -> None:
    finite = np.abs(shares[np.isfinite(shares)])
    limit = max(float(finite.max()) if finite.size else 0.0, 1e-3)
    shown = axes.imshow(shares.T, vmin=-limit, vmax=limit, cmap="RdBu", aspect="auto")
    axes.set_title(f"One {words_of(kinds_of(config).across)} head of view 2 from B: view 2's points", fontsize=10)
    axes.set(xticks=range(shares.shape[0]), yticks=range(shares.shape[1]))
    axes.set_xlabel(block_words(config), fontsize=8)
    axes.set_ylabel("head", fontsize=9)
    figure.colorbar(shown, ax=axes, label="share towards B's output", aspect=15)
