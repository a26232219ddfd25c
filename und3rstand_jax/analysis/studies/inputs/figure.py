"""The figure of the study `inputs`."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from und3rstand_jax.analysis.pair_measures import DIRECTION, ROTATION, VIEW1, VIEW2
from und3rstand_jax.analysis.studies.study import Record, mean_in


def inputs_figure(records: Sequence[Record]) -> Figure:
    """Errors and poses by input, a token's points with and without its match, and errors by overlap."""
    figure = Figure(figsize=(11, 7), layout="constrained")
    axes = figure.subplots(2, 3)
    conditions = [record for record in records if VIEW1 in record and record["group"] is None]
    covered = [record for record in records if "token_change" in record]
    groups = [record for record in records if record["group"] is not None]
    labels = [str(record["condition"]) for record in conditions]
    _bars(
        axes[0, 0],
        conditions,
        labels,
        {VIEW1: "view 1, placed", VIEW2: "view 2, placed", "shape1": "view 1's shape", "shape2": "view 2's shape"},
    )
    axes[0, 0].set(title="Point errors by input", ylabel="mean distance / mean distance to camera")
    related = [record for record in conditions if not np.isnan(mean_in(record, ROTATION).mean)]
    _bars(axes[0, 1], related, [str(record["condition"]) for record in related], {ROTATION: "rotation", DIRECTION: "direction"})
    axes[0, 1].set(title="Pose of view 2 by input", ylabel="error (degrees)")
    _bars(axes[0, 2], conditions, labels, {"confidence1": "view 1", "confidence2": "view 2"})
    axes[0, 2].set(title="Confidence by input", ylabel="mean confidence")
    _bars(
        axes[1, 0],
        [conditions[0], *covered],
        ["nothing\ncovered", "match\ncovered", "other\ncovered"],
        {"token_error": "the token's error"},
    )
    _bars_beside(axes[1, 0], covered)
    axes[1, 0].set(title="A token of view 2", ylabel="mean distance / mean distance to camera 1")
    for place, names, label in (
        (
            axes[1, 1],
            {VIEW1: "view 1, placed", VIEW2: "view 2, placed", "shape2": "view 2's shape"},
            "mean distance / mean distance to camera",
        ),
        (axes[1, 2], {ROTATION: "rotation", DIRECTION: "direction"}, "error (degrees)"),
    ):
        for name, text in names.items():
            means = [mean_in(record, name) for record in groups]
            overlap = [mean_in(record, "overlap") for record in groups]
            place.errorbar(
                [mean.mean for mean in overlap],
                [mean.mean for mean in means],
                [mean.error for mean in means],
                marker="o",
                markersize=4,
                label=text,
            )
        place.set(title="Pairs by overlap", xlabel="share of view 2's tokens that view 1 sees", ylabel=label)
        place.legend(fontsize=7)
    for place in axes.ravel():
        place.set_ylim(0, 1.25 * place.get_ylim()[1])  # room for the legend
    return figure


def _bars(axes: Axes, records: Sequence[Record], labels: Sequence[str], names: dict[str, str]) -> None:
    width = 0.8 / len(names)
    for number, (name, label) in enumerate(names.items()):
        means = [mean_in(record, name) for record in records]
        places = np.arange(len(records)) + (number - (len(names) - 1) / 2) * width
        axes.bar(
            places, [mean.mean for mean in means], width, yerr=[mean.error for mean in means], label=label, error_kw={"elinewidth": 0.8}
        )
    axes.set_xticks(range(len(records)), labels, fontsize=8)
    axes.legend(fontsize=7)


def _bars_beside(axes: Axes, covered: Sequence[Record]) -> None:
    """How far points have moved, next to the errors."""
    for number, (name, label) in enumerate({"token_moved": "token moved", "elsewhere_moved": "rest of view 2 moved"}.items()):
        means = [mean_in(record, name) for record in covered]
        places = 3.5 + np.arange(len(covered)) + (number - 0.5) * 0.4
        axes.bar(places, [mean.mean for mean in means], 0.4, yerr=[mean.error for mean in means], label=label, error_kw={"elinewidth": 0.8})
    axes.axvline(2.75, color="0.7", linewidth=0.8)
    axes.set_xticks(
        [0, 1, 2, 3.5, 4.5], ["nothing\ncovered", "match\ncovered", "other\ncovered"] + ["match\ncovered", "other\ncovered"], fontsize=8
    )
    axes.legend(fontsize=7)
