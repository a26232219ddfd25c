"""Figures of the study of knock-outs: curves over the number of heads, and sublayers and blocks."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from und3rstand_jax.analysis.pair_measures import MATCHES, ROTATION, VIEW1, VIEW2
from und3rstand_jax.analysis.steps import block_words, kinds_of, words_of
from und3rstand_jax.analysis.studies.knock_out import sets
from und3rstand_jax.analysis.studies.knock_out.curves import ByPair, curve_of, effect_on, named, ways
from und3rstand_jax.analysis.studies.knock_out.sweeps import Row
from und3rstand_jax.analysis.studies.study import Mean, mean_of
from und3rstand_jax.model.config import ModelConfig

_METRICS = {
    VIEW2: "normalised point error\nof view 2",
    MATCHES: "share of right matches",
    ROTATION: "error of the rotation\nof view 2 (degrees)",
}

_WAYS = {"zero": "set to zero", "mean": "replaced by their mean", "resample": "replaced by another pair's"}

_STYLES: tuple[tuple[str, str | None, str, str, str], ...] = (
    (sets.MATCH, None, "look hardest at the true place", "#b2182b", "-"),
    (sets.RANDOM, sets.MATCH, "random of the same blocks", "#ef8a62", "--"),
    (sets.BOTTOM, None, "look least at the true place", "#7f7f7f", "-."),
    (sets.SINK, None, "strongest sinks", "#2166ac", "-"),
    (sets.RANDOM, sets.SINK, "random of the sinks' blocks", "#67a9cf", "--"),
)


def curves_figure(unedited: ByPair, rows: Sequence[Row], constant: ByPair) -> Figure:
    """Error, matches and rotation over the number of heads; columns are ways to take them away."""
    columns = ways(rows)
    figure = Figure(figsize=(1.2 + 3.2 * len(columns), 7.6), layout="constrained")
    grid = figure.subplots(len(_METRICS), len(columns), squeeze=False, sharex=True, sharey="row")
    for axes_row, (metric, label) in zip(grid, _METRICS.items(), strict=True):
        for axes, by in zip(axes_row, columns, strict=True):
            for kind, of, name, colour, line in _STYLES:
                curve = curve_of(rows, kind, by, metric, of)
                if not curve.ks:
                    continue
                means, errors = np.array(curve.values).T
                axes.errorbar(
                    curve.ks,
                    means,
                    errors,
                    zorder=3 - (kind == sets.RANDOM),
                    color=colour,
                    ls=line,
                    marker="o",
                    ms=3,
                    lw=1.5,
                    capsize=2,
                    label=name,
                )
                if kind == sets.RANDOM:
                    axes.fill_between(curve.ks, curve.lowest, curve.highest, color=colour, alpha=0.2, lw=0)
            axes.axhline(mean_of(unedited[metric]).mean, color="black", lw=1, label="nothing taken away")
            if metric == VIEW2 and np.isfinite(mean_of(constant[VIEW2]).mean):
                axes.axhline(mean_of(constant[VIEW2]).mean, color="black", lw=1, ls=":", label="a constant pointmap")
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.grid(alpha=0.25, lw=0.5)
            axes.spines[["top", "right"]].set_visible(False)
        axes_row[0].set_ylabel(label, fontsize=9)
    for axes, by in zip(grid[0], columns, strict=True):
        axes.set_title(_WAYS[by], fontsize=10)
    for axes in grid[-1]:
        axes.set_xlabel("heads taken away together", fontsize=9)
    handles: dict[str, Any] = {}
    for axes in grid[0]:
        handles |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    figure.suptitle("Bars: standard error over pairs. Bands: from the least to the greatest mean of the random draws", fontsize=9)
    return figure


def layers_figure(unedited: ByPair, rows: Sequence[Row], constant: ByPair, config: ModelConfig) -> Figure:
    """What it costs both views to leave out each sublayer and block, and cross-attention before a block or from one on."""
    blocks, kinds = config.blocks, kinds_of(config)
    depth, columns = len(blocks), len(kinds.steps) + 1
    figure = Figure(figsize=(12.5, 2.8 + 0.34 * depth), layout="constrained")
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=[1.45, 1])[0]
    one, two = left.subplots(1, 2, sharey=True)
    values = np.array(
        [
            [[effect_on(named(rows, name), metric).mean for name in (*block.steps, block.name)] for block in blocks]
            for metric in (VIEW1, VIEW2)
        ]
    )
    finite = np.abs(values[np.isfinite(values)])
    greatest = float(finite.max(initial=0.0)) or 1.0
    for axes, of_view, view in zip((one, two), values, (1, 2), strict=True):
        image = axes.imshow(of_view, vmin=-greatest, vmax=greatest, cmap="RdBu_r", aspect="auto")
        axes.set_xticks(range(columns), [*map(_two_lines, kinds.steps), "whole\nblock"], fontsize=8)
        axes.set_yticks(range(depth))
        axes.set_title(f"change of view {view}'s error", fontsize=10)
        for (row, column), value in np.ndenumerate(of_view):
            ink = "white" if abs(value) > 0.6 * greatest else "black"
            if depth <= 24:
                axes.text(column, row, f"{value:+.3f}", ha="center", va="center", fontsize=7, color=ink)
    one.set_ylabel(f"{block_words(config)}, left out in both views", fontsize=9)
    left.colorbar(image, ax=[one, two], location="bottom", shrink=0.6, aspect=40, label="change of the normalised point error")
    _between(right, unedited, rows, constant, config)
    return figure


def _two_lines(kind: str) -> str:
    """A kind of step in words, broken into narrow lines."""
    words = words_of(kind)
    return words.replace("-", "-\n") if "-" in words else words.replace(" ", "\n")


def _between(figure: Any, unedited: ByPair, rows: Sequence[Row], constant: ByPair, config: ModelConfig) -> None:
    depth = len(config.blocks)
    everything = next(row for row in rows if row.taken.kind == sets.BETWEEN)
    blocks, axes = range(depth + 1), figure.subplots()

    def value(name: str | None, metric: str) -> Mean:
        return mean_of(unedited[metric] if name is None else named(rows, name).values[metric])

    for metric, label, colour in ((VIEW2, "view 2", "#b2182b"), (VIEW1, "view 1", "#2166ac")):
        before = [
            value(None, metric),
            *(value(sets.up_to(block, config), metric) for block in blocks[1:-1]),
            mean_of(everything.values[metric]),
        ]
        behind = [
            mean_of(everything.values[metric]),
            *(value(sets.from_on(block, config), metric) for block in blocks[1:-1]),
            value(None, metric),
        ]
        for points, line, which in ((before, "-", "none before block b"), (behind, "--", "none from block b on")):
            axes.errorbar(
                blocks, *np.array(points).T, color=colour, ls=line, marker="o", ms=3, lw=1.5, capsize=2, label=f"{label}, {which}"
            )
    if np.isfinite(mean_of(constant[VIEW2]).mean):
        axes.axhline(mean_of(constant[VIEW2]).mean, color="black", lw=1, ls=":", label="view 2, a constant pointmap")
    axes.set(xlabel="block b", ylabel="normalised point error", xticks=blocks)
    axes.set_title(f"without {sets.between_words(config)} of both views", fontsize=10)
    axes.grid(alpha=0.25, lw=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)
