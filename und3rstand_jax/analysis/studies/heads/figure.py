"""The figure of the study of heads: a square for every head, coloured by what was measured."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from und3rstand_jax.analysis.steps import block_words, kinds_of, words_of
from und3rstand_jax.analysis.studies.study import Record, mean_in
from und3rstand_jax.model.config import ModelConfig


def heads_figure(records: Sequence[Record], config: ModelConfig) -> Figure:
    """Squares for heads: columns are attentions of a view, rows what was measured."""
    kinds = kinds_of(config)
    attentions = [(kind, view) for kind in kinds.attentions for view in (1, 2)]
    titles = {
        "near": "strongest key within a\ntoken of the true place",
        "excess": "attention on the true place\nless another scene's",
        "own": "attention within a token\nof the query's own place",
        "sink": "attention on\nits strongest key",
        "entropy": "entropy\n(1: even)",
    }

    def value(record: Record, name: str) -> float:
        if name == "excess":
            return mean_in(record, "mass").mean - mean_in(record, "mass_other").mean
        return mean_in(record, name).mean

    blocks, count = len(config.blocks), config.block_heads
    size = (len(attentions) * (0.3 * count + 0.6) + 3.0, len(titles) * (0.19 * blocks + 0.3) + 0.8)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(titles), len(attentions), squeeze=False, sharex=True, sharey=True)
    for row, (name, title) in zip(axes, titles.items(), strict=True):
        values = np.array([value(record, name) for record in records]).reshape(len(attentions), blocks, count)
        for place, of_attention in zip(row, values, strict=True):
            if np.isnan(of_attention).all():
                place.set_axis_off()
                continue
            shown = place.imshow(of_attention, vmin=0.0, vmax=np.nanmax(values), cmap="viridis", aspect="auto")
            place.set(xticks=range(count), yticks=range(blocks))
        row[0].set_ylabel(title, fontsize=8, rotation=0, ha="right", va="center")
        figure.colorbar(shown, ax=list(row), aspect=8)
    for column, (attention, view) in enumerate(attentions):
        first = 0 if attention == kinds.across else list(titles).index("own")  # nothing is drawn above it
        axes[first][column].set_title(f"{words_of(attention)}\nview {view}", fontsize=9)
    figure.supxlabel(f"head; rows are {block_words(config)}s", fontsize=9)
    return figure
