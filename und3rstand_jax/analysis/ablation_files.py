"""An ablation study as JSON, CSV, a table to read and figures."""

import csv
import dataclasses
import io
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from und3rstand_jax.analysis.ablation_study import AblationStudy, Effect, Estimate, Row
from und3rstand_jax.analysis.ablations import MEANINGS, By
from und3rstand_jax.analysis.pair_measures import DIRECTION, MATCHES, ROTATION, VIEW1, meaning_of, view_names
from und3rstand_jax.data.records import things_of
from und3rstand_jax.model.layer_ids import network_order
from und3rstand_jax.model.sites import parse_site
from und3rstand_jax.support.text import JsonObject, text_table

FORMAT, RECORD, TABLE = "und3rstand_jax ablations", "effects.json", "effects.csv"

_STRONGEST = 12
_RANKED = 6


def _columns(views: int) -> dict[str, str]:
    """Every metric's heading."""
    errors = {name: f"view {number}'s error" for number, name in enumerate(view_names(views), start=1)}
    return {**errors, MATCHES: "right matches", ROTATION: "rotation °", DIRECTION: "direction °"}


def as_json(study: AblationStudy) -> JsonObject:
    """Everything, unrounded: for each ablation its effect on every metric, and every pair's values."""
    meaning = meaning_of(study.views)
    return {
        "question": dataclasses.asdict(study.question),
        "meaning": {
            "effect": "mean over pairs of the metric with the edit less that without; error: its standard error",
            "by": {by: MEANINGS[by] for by in study.question.by},
            **(
                {name: meaning[name] for name in _columns(study.views)}
                if study.question.measure == "head"
                else {"LAYER/view1": f"{meaning[VIEW1]}, as that layer's probe reads it"}
            ),
        },
        "unedited": {metric: values.tolist() for metric, values in study.unedited.items()},
        "ablations": [
            {
                "name": row.ablation.name,
                "by": row.by,
                "kind": row.ablation.kind,
                "of": row.ablation.of,
                "places": [str(place) for place in row.ablation.places],
                "effects": {metric: study.effect(row, metric)._asdict() for metric in study.unedited},
                "pairs": {metric: values.tolist() for metric, values in row.values.items()},
            }
            for row in study.rows
        ],
        "attention_on_the_true_place": study.on_true_place,
        "attribution": [estimate._asdict() for estimate in study.estimates],
    }


def as_csv(study: AblationStudy) -> str:
    """A line for each ablation, way and metric."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["by", "kind", "name", "of", "metric", *Effect._fields])
    for row in study.rows:
        for metric in study.unedited:
            writer.writerow([row.by, row.ablation.kind, row.ablation.name, row.ablation.of or "", metric, *study.effect(row, metric)])
    return text.getvalue()


def format_table(study: AblationStudy, constant: Sequence[float] | None = None) -> str:
    """The unedited run, the strongest places, the sets with their controls; for each way to take them away.

    Args:
        study: what was measured, with the model's head or with probes; for probes, the table has the last probe's errors only.
        constant: the best constant pointmap's error in every view, for comparison.
    """
    names = {metric: heading for metric, heading in _columns(study.views).items() if metric in study.unedited}
    if not names:
        last = max((metric.split("/")[0] for metric in study.unedited), key=network_order)
        names = {f"{last}/{view}": f"{_columns(study.views)[view]} by {last}" for view in view_names(study.views)}
    metrics = list(names)
    lines, pairs = [], len(next(iter(study.unedited.values())))
    for by in study.question.by:
        rows = [["(nothing)", *(f"{np.nanmean(study.unedited[metric]):.3f}" for metric in metrics)]]
        if constant is not None:
            rows.append(
                ["the best constant instead of the model", *(f"{error:.3f}" for error in constant), *[""] * (len(metrics) - len(constant))]
            )
        for row in _told(study, by, metrics):
            effects = [study.effect(row, metric) for metric in metrics]
            cells = [
                f"{effect.edited:.3f} ({effect.effect:+.3f} ± {effect.error:.3f})" + (f" of {effect.pairs}" if effect.pairs < pairs else "")
                for effect in effects
            ]
            name = row.ablation.name if row.ablation.of is None else f"  {row.ablation.name.removeprefix(row.ablation.of)[2:]}"
            rows.append([name, *cells])
        lines.append(f"What is taken away is {MEANINGS[by]}.\n\n{text_table(['without', *names.values()], rows, numbers_from=1)}")
    shown = sum(row.ablation.kind == "place" for row in study.rows) // len(study.question.by)
    things = things_of(study.views)
    notes = (
        f"{pairs} {things}; in brackets the difference to the unedited run ± its standard error over pairs, and of how many if not of all"
    )
    lines.append(notes + (f"; the {_STRONGEST} strongest of {shown} places" if shown > _STRONGEST else ""))
    by_zero = [row for row in study.rows if row.by == "zero" and row.ablation.kind == "place"]
    for estimate in study.estimates:
        lines.append(attribution_text(estimate, {row.ablation.name: study.effect(row, estimate.metric).effect for row in by_zero}))
    return "\n\n".join(lines)


def attribution_text(estimate: Estimate, effects: Mapping[str, float]) -> str:
    """How well the first-order estimates predict the sweep's effects, and how they rank the places with the strongest effects."""
    by_effect, by_estimate = (sorted(values, key=values.__getitem__, reverse=True) for values in (effects, estimate.by_place))
    strongest = ", ".join(f"{place} ({by_estimate.index(place) + 1})" for place in by_effect[:_RANKED])
    return (
        f"attribution of view {estimate.metric.removeprefix('view')}'s error: Spearman correlation with the sweep by zero "
        f"{estimate.spearman:.2f} over {len(estimate.by_place)} places; the sweep's strongest, in brackets their ranks by attribution: "
        f"{strongest}"
    )


def _told(study: AblationStudy, by: By, metrics: Sequence[str]) -> Iterator[Row]:
    """The rows of the table: the strongest places first, then sets, each with its controls."""
    rows = [row for row in study.rows if row.by == by]
    places = [row for row in rows if row.ablation.kind == "place"]
    places.sort(key=lambda row: -max(abs(study.effect(row, metric).effect) for metric in metrics[: study.views]))
    yield from places[:_STRONGEST]
    yield from (row for row in rows if row.ablation.kind != "place")


def effects_figure(study: AblationStudy, by: By) -> Figure | None:
    """Blocks × heads, or blocks × sublayers: how each changes both views' errors, in view 1's pass and in view 2's; None without places.

    For more views, how each changes view 1's error and the others' mean, in every view's pass. With probes, places and sets × layers.
    """
    tables = _tables(study, by)
    if not tables or study.question.measure != "head":
        return _probes_figure(study, by)
    kinds = list(tables)
    # Only the views in whose passes something was taken away.
    views = [view for view in range(study.views) if any(np.isfinite(values[view]).any() for values, _, _ in tables.values())]
    size = (1.5 + 3.2 * 2 * len(views), 1.6 + sum(0.34 * len(tables[kind][2]) + 1.1 for kind in kinds))
    figure = Figure(figsize=size, dpi=110, layout="constrained")
    heights = [len(tables[kind][2]) + 2 for kind in kinds]
    errors = ("error of view 1", "error of view 2" if study.views == 2 else f"mean error of views 2–{study.views}")
    all_axes = figure.subplots(len(kinds), 2 * len(views), squeeze=False, gridspec_kw={"height_ratios": heights})
    for kind, axes_row in zip(kinds, all_axes, strict=True):
        values, columns, blocks = tables[kind]
        greatest = _greatest(values)
        for axes, (view, error) in zip(axes_row, itertools.product(views, (0, 1)), strict=True):
            image = axes.imshow(values[view, error], vmin=-greatest, vmax=greatest, cmap="RdBu_r", aspect="auto")
            axes.set_title(f"{kind} of view {view + 1}\n→ {errors[error]}", fontsize=9)
            axes.set_xticks(range(len(columns)), columns, fontsize=8)
            axes.set_yticks(range(len(blocks)), blocks, fontsize=8)
            _write_numbers(axes, values[view, error], greatest)
        axes_row[0].set_ylabel("block")
        if "heads" in kind:
            axes_row[0].set_xlabel("head")
        figure.colorbar(image, ax=list(axes_row), label="change of the error")
    pairs = len(study.unedited[VIEW1])
    *means, last = (f"{np.nanmean(study.unedited[metric]):.3f}" for metric in view_names(study.views))
    unedited = f"{', '.join(means)} and {last}"
    things = things_of(study.views)
    figure.suptitle(
        f"Change of the normalised point error without each place, {MEANINGS[by]}\n(unedited: {unedited}; mean of {pairs} {things})",
        fontsize=10,
    )
    return figure


def _tables(study: AblationStudy, by: By) -> dict[str, tuple[np.ndarray, list[str], list[str]]]:
    """Kind of place -> effects (edited view, view 1's error or the others' mean, block, column), the columns' names, the blocks' names."""
    if VIEW1 not in study.unedited:
        return {}
    found: dict[str, dict[tuple[int, str, int], tuple[float, float]]] = {}
    for row in study.rows:
        if row.by == by and row.ablation.kind == "place":
            (place,) = row.ablation.places
            site = parse_site(place.site)
            stack, *where = site.layer_id.split(".")
            block = int(where[0]) if len(where) > 1 else -1
            step = where[-1]
            kind = f"{stack} {step} heads" if place.head is not None else f"{stack} {site.part or 'layer'}"
            column = step if place.head is None else str(place.head)
            first, *others = (study.effect(row, view).effect for view in view_names(study.views))
            known = [effect for effect in others if not math.isnan(effect)]
            effects = first, sum(known) / len(known) if known else math.nan
            found.setdefault(kind, {})[block, column, place.view] = effects
    tables = {}
    for kind, cells in found.items():
        blocks = sorted({block for block, _, _ in cells})
        columns = list(dict.fromkeys(column for _, column, _ in cells))
        values = np.full((study.views, 2, len(blocks), len(columns)), np.nan)
        for (block, column, view), effects in cells.items():
            values[view - 1, :, blocks.index(block), columns.index(column)] = effects
        tables[kind] = values, columns, ["" if block < 0 else str(block) for block in blocks]
    return tables


def _greatest(values: np.ndarray) -> float:
    """The end of the colour scale: the largest finite change."""
    finite = np.abs(values[np.isfinite(values)])
    return float(finite.max(initial=0.0)) or 1.0


def _write_numbers(axes: Axes, values: np.ndarray, greatest: float) -> None:
    if values.size > 160:
        return
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value) and abs(value) > 0.02 * greatest:
            ink = "white" if abs(value) > 0.6 * greatest else "black"
            axes.text(column, row, re.sub(r"^([+-])0[.]", r"\1.", f"{value:+.3f}"), ha="center", va="center", fontsize=7, color=ink)


def _probes_figure(study: AblationStudy, by: By) -> Figure | None:
    """Places and sets × layers: from which layer on each loss is felt."""
    rows = [row for row in study.rows if row.by == by and row.ablation.kind != "control"]
    layers = sorted({metric.split("/")[0] for metric in study.unedited if "/" in metric}, key=network_order)
    if not rows or not layers:
        return None
    figure = Figure(figsize=(4 + 0.275 * study.views * len(layers), 2 + 0.22 * len(rows)), dpi=110, layout="constrained")
    names = view_names(study.views)
    panels = figure.subplots(1, len(names), sharey=True)
    values = np.array([[[study.effect(row, f"{layer}/{view}").effect for layer in layers] for row in rows] for view in names])
    greatest = _greatest(values)
    for view, (axes, of_view) in enumerate(zip(panels, values, strict=True), start=1):
        image = axes.imshow(of_view, vmin=-greatest, vmax=greatest, cmap="RdBu_r", aspect="auto")
        axes.set_title(f"error of view {view}, by each layer's probe", fontsize=9)
        axes.set_xticks(range(len(layers)), layers, rotation=90, fontsize=7)
    panels[0].set_yticks(range(len(rows)), [row.ablation.name for row in rows], fontsize=7)
    figure.colorbar(image, ax=list(panels), label="change of the error")
    figure.suptitle(f"Change of the normalised point error without each place, {MEANINGS[by]}", fontsize=10)
    return figure


def record_head(options: JsonObject, constant: Sequence[float] | None) -> dict[str, Any]:
    """What the record has besides the study: the options, and the errors of the best constant."""
    return {
        "options": dict(options),
        "best_constant": None if constant is None else dict(zip(view_names(len(constant)), constant, strict=True)),
    }
