"""The figure of the study of the fundamental matrix: its error and smallest singular value over the layers."""

from collections.abc import Sequence
from typing import cast

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, ScalarFormatter

from und3rstand_jax.analysis.studies.epipolar.measures import CONTROL, TRAINED, UNTRAINED
from und3rstand_jax.analysis.studies.study import Mean, Record
from und3rstand_jax.probes.epipolar import CONSTANT

_LINES = {
    TRAINED: ("tab:blue", "o", "probe, trained"),
    CONTROL: ("tab:red", "s", "control: trained on a random backbone"),
    UNTRAINED: ("tab:gray", "^", "probe, untrained"),
}
"""Colour, marker and label of each kind of probe."""


def of_probe(records: Sequence[Record], probe: str, name: str) -> list[Mean]:
    """A number of a kind of probe, layer by layer."""
    return [cast(Mean, record[name]) for record in records if record["probe"] == probe]


def epipolar_figure(records: Sequence[Record], layers: Sequence[str]) -> Figure:
    """Error and smallest singular value over the layers."""
    figure = Figure(figsize=(max(6.0, 0.28 * len(layers) + 3.0), 7.0), layout="constrained")
    panels = figure.subplots(2, 1, sharex=True)
    places = np.arange(len(layers))
    labels = {"error": "root Sampson error (pixels)", "singular": "smallest singular value of F\n(norm 1; true F: 0)"}
    for axes, (name, label) in zip(panels, labels.items(), strict=True):
        for probe, (colour, marker, text) in _LINES.items():
            means, errors = np.array(of_probe(records, probe, name)).T
            axes.errorbar(
                places, means, np.nan_to_num(errors), color=colour, marker=marker, markersize=4, capsize=2, linewidth=1.2, label=text
            )
        (constant,) = of_probe(records, CONSTANT, name)
        axes.axhline(constant.mean, color="tab:orange", linestyle="--", linewidth=1.2, label="one constant F for all pairs")
        axes.axhspan(constant.mean - constant.error, constant.mean + constant.error, color="tab:orange", alpha=0.15, linewidth=0)
        axes.set_ylabel(label)
        axes.grid(alpha=0.3, linewidth=0.5)
    panels[0].set_yscale("log")  # an untrained probe is off by many times what a trained one is
    panels[0].yaxis.set_major_formatter(ScalarFormatter())
    panels[0].yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))
    panels[1].set_ylim(bottom=0)
    panels[0].legend(fontsize=8, ncols=2)
    panels[1].set_xticks(places, layers, rotation=90, fontsize=7)
    panels[1].set_xlabel("layer whose averaged tokens are read; bars are standard errors over pairs")
    return figure
