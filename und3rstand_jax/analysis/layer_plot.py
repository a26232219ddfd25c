"""Figures of metrics over the layers of a network: panels above one another, a marker for each layer."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Literal, Protocol, TypeVar, runtime_checkable

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, PercentFormatter

from und3rstand_jax.model.layer_ids import network_order

_INK, _FAINT, _GRID, _BAND, _HEAD, _ACROSS = "#18181b", "#71717a", "#e4e4e7", "#f4f4f5", "#b0243a", "#8a4fbf"
_LAYER_WIDTH, _PANEL_HEIGHT = 0.21, 3.6  # inches
_LEAST_WIDTH, _MOST_WIDTH = 8.0, 16.0
_NAMED_ABOVE = 4  # series
_TICKS = ((10, range(1, 10)), (1000, (1, 2, 5)), (math.inf, (1,)))  # ticks of a decade, below this ratio of largest to smallest value


@dataclass(frozen=True)
class _Kind:
    """How the layers after one kind of step are drawn, in Okabe and Ito's colours, which the colour-blind can tell apart."""

    label: str
    marker: str
    colour: str


_KINDS = {
    "self_attn": _Kind("after self-attention", "o", "#0072b2"),
    "cross_attn": _Kind("after cross-attention", "s", "#d55e00"),
    "mlp": _Kind("after MLP", "^", "#009e73"),
    "frame.self_attn": _Kind("after frame attention", "o", "#0072b2"),
    "frame.mlp": _Kind("after frame MLP", "v", "#56b4e9"),
    "global.self_attn": _Kind("after global attention", "s", "#d55e00"),
    "global.mlp": _Kind("after global MLP", "^", "#009e73"),
    "embed": _Kind("the decoder's input", "D", "#cc79a7"),
    "norm": _Kind("after the last norm", "P", "#3f3f46"),
}


@runtime_checkable
class OfLayer(Protocol):
    """Anything that was measured on one layer."""

    @property
    def layer_id(self) -> str:
        """As in `und3rstand_jax.model.layer_ids`."""
        ...


Result = TypeVar("Result", bound=OfLayer)


@dataclass(frozen=True)
class Series(Generic[Result]):
    """One line of a panel: filled markers on a solid line, or open ones on a dashed line. Values of `of` may be NaN.

    `colour` is for the line and its markers; without it, markers have the colours of the kinds of layers. `across` holds
    values that belong to no layer, by their label; they are horizontal lines.
    """

    label: str
    of: Callable[[Result], float]
    is_filled: bool = True
    colour: str | None = None
    across: Mapping[str, float] = field(default_factory=dict)

    @property
    def style(self) -> Literal["-", "--"]:
        """Matplotlib's line style."""
        return "-" if self.is_filled else "--"


@dataclass(frozen=True)
class Panel(Generic[Result]):
    """One set of axes over the layers.

    Attributes:
        title: above the axes.
        unit: the label of the vertical axis.
        series: the lines.
        greatest: what no value can exceed, such as 180 degrees.
        is_share: whether values are shares, drawn linearly from 0 to 100 %; all else is drawn logarithmically.
    """

    title: str
    unit: str
    series: tuple[Series[Result], ...]
    greatest: float = math.inf
    is_share: bool = False


def panels_figure(panels: Sequence[Panel[Result]], results: Sequence[Result], head: Result | None) -> Figure:
    """Panels above one another over the same layers, in the order of `results`; the head, if there is one, is a horizontal line."""
    layers = [result.layer_id for result in results]
    width = min(max(_LAYER_WIDTH * len(layers) + 2.5, _LEAST_WIDTH), _MOST_WIDTH)
    figure = Figure(figsize=(width, _PANEL_HEIGHT * len(panels) + 1.0), dpi=110, layout="constrained")
    all_axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axes, panel in zip(all_axes, panels, strict=True):
        _draw_panel(axes, panel, results, head)
        _draw_blocks(axes, layers)
    _name_stacks(all_axes[-1], layers)
    drawn = [kind for step, kind in _KINDS.items() if step in map(_step, layers)]
    # Where all series have their own colours, only shapes tell the kinds apart.
    plain = all(series.colour for panel in panels for series in panel.series)
    inks = [_INK if plain else kind.colour for kind in drawn]
    markers = zip(inks, drawn, strict=True)
    handles = [Line2D([], [], color=ink, marker=kind.marker, linestyle="none", label=kind.label) for ink, kind in markers]
    handles += [Line2D([], [], color=_INK if plain else _HEAD, label="the model's own head")] if head else []
    labels = dict.fromkeys(label for panel in panels for series in panel.series for label in series.across)
    handles += [Line2D([], [], color=_ACROSS, label=label) for label in labels]
    figure.legend(handles=handles, loc="outside upper center", ncols=min(len(handles), int(width / 2)), frameon=False, columnspacing=1.4)
    return figure


def _draw_panel(axes: Axes, panel: Panel[Result], results: Sequence[Result], head: Result | None) -> None:
    layers = [result.layer_id for result in results]
    drawn = [series.of(result) for series in panel.series for result in results]
    missing = sum(not math.isfinite(value) for value in drawn)
    legend = []
    for series in panel.series:
        _draw_series(axes, layers, [series.of(result) for result in results], series)
        ink = series.colour or _FAINT
        face = ink if series.is_filled else "white"
        legend.append(Line2D([], [], color=ink, linestyle=series.style, marker="o", markerfacecolor=face, label=series.label))
    for series in panel.series:
        value = series.of(head) if head else math.nan
        if math.isfinite(value):
            drawn.append(value)
            axes.axhline(value, color=series.colour or _HEAD, linestyle=series.style)
        for own in filter(math.isfinite, series.across.values()):
            drawn.append(own)
            axes.axhline(own, color=_ACROSS, linestyle=series.style)
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if panel.is_share:
        axes.set_ylim(-0.02, 1.02)
        axes.yaxis.set_major_formatter(PercentFormatter(1))
    else:
        values = [value for value in drawn if math.isfinite(value)]
        if values and min(values) > 0:
            axes.set_yscale("log")
            ticks = next(ticks for ratio, ticks in _TICKS if max(values) < ratio * min(values))
            axes.yaxis.set_major_locator(LogLocator(subs=tuple(ticks)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
        # Matplotlib's own margin, but not a whole decade beyond the greatest value possible.
        axes.set_ylim(top=min(axes.get_ylim()[1], 1.1 * panel.greatest))
    if missing:
        note = f"{missing} value{' is' if missing == 1 else 's are'} not finite and not drawn"
        axes.text(1.0, 1.02, note, transform=axes.transAxes, ha="right", va="bottom", fontsize=10, color=_INK)
    axes.set_title(panel.title, loc="left", fontsize=13, color=_INK, pad=24)
    axes.set_ylabel(panel.unit, color=_INK)
    # More series than fit above the axes are named beside them.
    is_long = len(legend) > _NAMED_ABOVE
    corner = {"bbox_to_anchor": (1.0, 1.0) if is_long else (0.0, 0.99), "borderpad": 0.2, "borderaxespad": 0.0, "columnspacing": 1.4}
    columns = 1 if is_long else len(legend)
    axes.legend(handles=legend, loc="upper left" if is_long else "lower left", ncols=columns, fontsize=10, frameon=False, **corner)


def _draw_series(axes: Axes, layers: Sequence[str], values: Sequence[float], series: Series[Result]) -> None:
    shown = [value if math.isfinite(value) else math.nan for value in values]
    axes.plot(range(len(layers)), shown, color=series.colour or _FAINT, linestyle=series.style, linewidth=1.1)
    for step in dict.fromkeys(map(_step, layers)):
        kind, at = _KINDS[step], [index for index, layer in enumerate(layers) if _step(layer) == step]
        ink = series.colour or kind.colour
        face = ink if series.is_filled else "white"
        axes.plot(at, [shown[index] for index in at], kind.marker, color=ink, markerfacecolor=face, markersize=6.5)


def _draw_blocks(axes: Axes, layers: Sequence[str]) -> None:
    """A band and a number for each block."""
    # Blocks of two stacks that take turns have one number and one band.
    spans = _spans(layers, lambda layer: str(network_order(layer)[:2]) if _is_in_block(layer) else layer)
    for number, (_, start, stop) in enumerate(spans):
        if number % 2 == 0:
            axes.axvspan(start - 0.5, stop - 0.5, color=_BAND, zorder=0)
    blocks = [(layers[start].split(".")[1], (start + stop - 1) / 2) for _, start, stop in spans if _is_in_block(layers[start])]
    axes.set_xlim(-0.5, len(layers) - 0.5)
    axes.set_xticks([middle for _, middle in blocks], [number for number, _ in blocks])
    axes.tick_params(axis="x", length=0)


def _name_stacks(axes: Axes, layers: Sequence[str]) -> None:
    """Below the blocks' numbers, the stack they belong to."""
    spans = _spans(layers, lambda layer: str(network_order(layer)[0]))
    stacks = [" and ".join(_stacks(layers[start:stop])) for _, start, stop in spans]
    below = axes.secondary_xaxis(location=0)
    below.set_xticks([(start + stop - 1) / 2 for _, start, stop in spans], [f"\n{stack} block" for stack in stacks])
    below.tick_params(length=0)


def _stacks(layers: Sequence[str]) -> list[str]:
    """The stacks of blocks that some layers of one part of the network belong to; the part itself if none is in a block."""
    return list(dict.fromkeys(layer.partition(".")[0] for layer in layers if _is_in_block(layer))) or [layers[0].partition(".")[0]]


def _is_in_block(layer: str) -> bool:
    return layer.count(".") == 2


def _spans(layers: Sequence[str], key: Callable[[str], str]) -> list[tuple[str, int, int]]:
    """(key, start, stop) of each run of layers with the same key."""
    spans, start = [], 0
    for name, members in itertools.groupby(layers, key):
        stop = start + len(list(members))
        spans.append((name, start, stop))
        start = stop
    return spans


def _step(layer: str) -> str:
    """The layer's key in `_KINDS`."""
    stack, step = layer.partition(".")[0], layer.rpartition(".")[2]
    return f"{stack}.{step}" if f"{stack}.{step}" in _KINDS else step
