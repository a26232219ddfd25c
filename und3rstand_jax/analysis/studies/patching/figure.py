"""The figure of the study `patching`."""

from collections.abc import Sequence
from typing import cast

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from und3rstand_jax.analysis.studies.study import Mean, Record, mean_in
from und3rstand_jax.model.config import ModelConfig
from und3rstand_jax.model.layer_ids import DECODER_STEPS

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
    axes = figure.subplots(2, 2)
    for place, view in zip(axes[0], (2, 1), strict=True):
        own = [record for record in records if record["kind"] == "layer" and record["view"] == view]
        for name, colour in _COLOURS.items():
            _curve(place, [record for record in own if record["source"] == "twin"], name, label=_LABELS[name], color=colour, marker="o")
        if view == 2:
            for source, style, label in (("unrelated", ":", "points, from an unrelated pair"), ("itself", "--", "points, A's own values")):
                controls = [record for record in own if record["source"] == source]
                _curve(place, controls, "points2", label=label, color="0.4", linestyle=style, marker=".")
        place.set_title(f"Stream of view {view} from B", fontsize=10)
        place.axhline(0.5, color="0.8", linewidth=0.8, zorder=0)
        _layer_axis(place, config)
        # An unrelated stream can take the output arbitrarily far away.
        place.set_ylim(max(place.get_ylim()[0], -1.0), max(1.08, place.get_ylim()[1]))
        place.legend(fontsize=7, loc="best")
    _updates(axes[1, 0], [record for record in records if (record["kind"], record["source"]) == ("update", "twin")], config)
    heads = [record for record in records if record["kind"] == "head"]
    shares = np.array([share_in(record, "points2").mean for record in heads]).reshape(config.dec_depth, config.dec_num_heads)
    _heads(figure, axes[1, 1], shares)
    for place in (*axes[0], axes[1, 0]):
        place.set_ylabel("share towards B's output\n(0: A's, 1: B's)", fontsize=9)
    return figure


def share_in(record: Record, name: str = "points2") -> Mean:
    """How much of B a record's run has."""
    return mean_in(record, f"share_{name}")


def _place(record: Record) -> float:
    """On the axis of layers: decoder.embed at 0, the steps of block b from b + 1/3 to b + 1."""
    if record["block"] is None:
        return 0.0
    return cast(int, record["block"]) + (1 + DECODER_STEPS.index(cast(str, record["step"]))) / len(DECODER_STEPS)


def _curve(axes: Axes, records: Sequence[Record], name: str, marker: str, **options: str) -> None:
    means = [share_in(record, name) for record in records]
    axes.errorbar(
        [_place(record) for record in records],
        [mean.mean for mean in means],
        [mean.error for mean in means],
        marker=marker,
        markersize=3,
        linewidth=1.2,
        elinewidth=0.8,
        **options,  # type: ignore[arg-type]
    )


def _layer_axis(axes: Axes, config: ModelConfig) -> None:
    blocks = range(config.dec_depth + 1)
    axes.set_xticks(blocks, ["embed", *(f"block {block}" for block in blocks[:-1])], fontsize=7, rotation=45 if config.dec_depth > 8 else 0)
    axes.set_xlabel("the stream is B's after (three steps a block: self-attention, cross-attention, MLP)", fontsize=8)
    axes.axhline(0.0, color="0.6", linewidth=0.6, zorder=0)
    axes.axhline(1.0, color="0.6", linewidth=0.6, zorder=0)


def _updates(axes: Axes, records: Sequence[Record], config: ModelConfig) -> None:
    width = 0.8 / len(DECODER_STEPS)
    for number, step in enumerate(DECODER_STEPS):
        own = [record for record in records if record["step"] == step]
        means = [share_in(record, "points2") for record in own]
        places = np.arange(config.dec_depth) + (number - 1) * width
        label = step.replace("_attn", "-attention").replace("mlp", "MLP")
        axes.bar(
            places, [mean.mean for mean in means], width, yerr=[mean.error for mean in means], label=label, error_kw={"elinewidth": 0.8}
        )
    axes.axhline(0.0, color="0.6", linewidth=0.6)
    axes.set_title("One update of view 2 from B: view 2's points", fontsize=10)
    axes.set_xticks(range(config.dec_depth))
    axes.set_xlabel("decoder block", fontsize=8)
    axes.legend(fontsize=7)


def _heads(figure: Figure, axes: Axes, shares: Float[np.ndarray, "blocks heads"]) -> None:
    finite = np.abs(shares[np.isfinite(shares)])
    limit = max(float(finite.max()) if finite.size else 0.0, 1e-3)
    shown = axes.imshow(shares.T, vmin=-limit, vmax=limit, cmap="RdBu", aspect="auto")
    axes.set_title("One cross-attention head of view 2 from B: view 2's points", fontsize=10)
    axes.set(xticks=range(shares.shape[0]), yticks=range(shares.shape[1]))
    axes.set_xlabel("decoder block", fontsize=8)
    axes.set_ylabel("head", fontsize=9)
    figure.colorbar(shown, ax=axes, label="share towards B's output", aspect=15)
