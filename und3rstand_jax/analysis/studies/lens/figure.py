"""The figure of the study of the lens: errors over the layers, by the model's own head and by the probes."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from und3rstand_jax.analysis.studies.study import Mean, Record


class _Line(NamedTuple):
    label: str
    colour: str
    style: str
    marker: str


_LINES = {
    "normed": _Line("own head, with norm", "#0072b2", "-", "o"),
    "bare": _Line("own head, without norm", "#e69f00", "-", "s"),
    "scaled": _Line("own head, without norm, scale fitted", "#d55e00", "-", "^"),
    "probe": _Line("probe", "#009e73", "-", "D"),
    "normed_other": _Line("own head, with norm, on another scene's tokens", "#71717a", "--", ""),
}
_DASHED = "#71717a"


def lens_figure(records: Sequence[Record], layers: Sequence[str], turn: float, below: str) -> Figure:
    """Every view's error, and the later views' rotation error; bars are standard errors.

    Args:
        records: of the study.
        layers: in network order.
        turn: the error in degrees of predicting no rotation.
        below: the label below the figure, which says what the layers are.
    """
    views = max(record["view"] for record in records if isinstance(record["view"], int))
    figure = Figure(figsize=(min(max(0.3 * len(layers) + 2.5, 8.0), 16.0), 4.0 + 3.0 * views), layout="constrained")
    axes = figure.subplots(views + 1, 1, sharex=True)
    for view, place in enumerate(axes[:-1], start=1):
        own = [record for record in records if record["view"] == view]
        for name, line in _LINES.items():
            _draw(place, own, name, line)
        place.set(title=f"Points of view {view}", ylabel="normalised point error", yscale="log")
        _bounded(place, own)
    own = [record for record in records if record["view"] == 2]
    for name in ("normed", "probe"):
        _draw(axes[-1], own, f"{name}_rotation", _LINES[name])
    axes[-1].axhline(turn, color=_DASHED, linestyle=":", label="no rotation at all")
    axes[-1].legend(frameon=False, fontsize=8, loc="upper right")
    axes[-1].set(title="Rotation of view 2" if views == 2 else "Rotation of the later views", ylabel="error in degrees", yscale="log")
    for place in axes:
        _dress(place, layers)
    axes[-1].set_xlabel(below)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False, fontsize=9)
    return figure


def _draw(axes: Axes, own: Sequence[Record], name: str, line: _Line) -> None:
    means = [record.get(name) for record in own]
    if not any(isinstance(mean, Mean) for mean in means):
        return
    values, errors = (np.array([getattr(mean, part, np.nan) for mean in means], float) for part in ("mean", "error"))
    shown = np.where(np.isfinite(values), values, np.nan)
    axes.errorbar(
        range(len(own)),
        shown,
        np.nan_to_num(errors),
        color=line.colour,
        linestyle=line.style,
        marker=line.marker,
        markersize=4,
        linewidth=1.3,
        elinewidth=0.8,
        label=line.label,
    )


def _bounded(axes: Axes, own: Sequence[Record]) -> None:
    """Ends the axis at ten times the largest of the other errors at most: those without the norm can be arbitrarily large."""
    others = [mean.mean for record in own for name in ("normed", "normed_other", "probe") if isinstance(mean := record.get(name), Mean)]
    known = [value for value in others if np.isfinite(value) and value > 0]
    if known:
        low, high = axes.get_ylim()
        if high > 10 * max(known):
            axes.set_ylim(low, 10 * max(known))
            axes.text(1.0, 1.02, "larger errors are not shown", transform=axes.transAxes, ha="right", va="bottom", fontsize=8)


def _dress(axes: Axes, layers: Sequence[str]) -> None:
    blocks: dict[str, list[int]] = {}
    for index, layer in enumerate(layers):
        blocks.setdefault(layer.split(".")[1], []).append(index)
    for number, of_block in enumerate(blocks.values()):
        if number % 2:
            axes.axvspan(of_block[0] - 0.5, of_block[-1] + 0.5, color="#f4f4f5", zorder=0)
    axes.set_xticks([np.mean(of_block) for of_block in blocks.values()], ["E" if name == "embed" else name for name in blocks])
    axes.tick_params(axis="x", length=0)
    axes.set_xlim(-0.5, len(layers) - 0.5)
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high > 10 * low else tuple(range(1, 10))))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="y", color="#e4e4e7", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
