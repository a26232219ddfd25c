"""Where the averaged tokens of a pair say how its cameras stand to each other: probes for the fundamental matrix, layer by layer.

    pairs ─▶ backbone, and its control with random weights ─▶ averaged tokens ─▶ each layer's probe: F ─▶ root Sampson error

After arXiv 2512.11508, which reads F from VGGT. Four controls say what a probe's error means: the same probe, trained in the same way, on a
backbone with random weights; a probe that was never trained; one constant F for all pairs, trained in the same way; and the pair's
true F, whose error is rounding.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, ScalarFormatter

from und3rstand_jax.analysis.inputs import GroundTruth
from und3rstand_jax.analysis.studies.study import (
    Cell,
    Cost,
    Mean,
    Record,
    Setting,
    Study,
    Table,
    mean_of,
    over_pairs,
    pairs_at_once,
    plus_minus,
)
from und3rstand_jax.geometry.cameras import sampled_pixels
from und3rstand_jax.geometry.epipolar import (
    fundamental_matrix,
    half_side,
    normalised,
    normalised_places,
    root_sampson,
    smallest_singular_value,
)
from und3rstand_jax.geometry.matching import true_places
from und3rstand_jax.model.backbone import Backbone
from und3rstand_jax.model.dust3r.module import DUSt3R
from und3rstand_jax.model.output import BackboneOutput
from und3rstand_jax.probes.epipolar import CONSTANT, EpipolarConfig, EpipolarGroup, EpipolarProbes, averages, read_all
from und3rstand_jax.support.errors import CheckpointError, DataError

TRAINED, CONTROL, UNTRAINED, EXACT = "trained", "control", "untrained", "exact"

PROBES = {
    TRAINED: "trained on this backbone",
    CONTROL: "trained in the same way on a backbone with random weights",
    UNTRAINED: "on this backbone, with its parameters as first drawn",
    CONSTANT: "one constant F for all pairs, trained in the same way: it reads no tokens",
    EXACT: "no probe: the F of the pair's true cameras",
}
"""What stands behind the numbers of a record."""

MEANING = {
    "layer": "whose averaged tokens the probe reads; none where it reads nothing",
    "probe": "; ".join(f"{name}: {text}" for name, text in PROBES.items()),
    "error": "root Sampson error in pixels, mean over a pair's correspondences",
    "median": "root Sampson error in pixels, median over a pair's correspondences",
    "singular": "smallest singular value of F for places normalised to the images, scaled to Frobenius norm 1; 0 for a true F",
    "below_constant": "how much lower the error is than that of the one constant F, in pixels, pair by pair",
    "below_control": "how much lower the error is than that of the control's probe on the same layer, in pixels, pair by pair",
}

NUMBERS = ("error", "median", "singular")

_COLUMNS = (
    *((TRAINED, "error"), (TRAINED, "median"), (CONTROL, "error"), (TRAINED, "below_control"), (UNTRAINED, "error")),
    *((TRAINED, "singular"), (CONTROL, "singular")),
)

_LINES = {
    TRAINED: ("tab:blue", "o", "probe, trained"),
    CONTROL: ("tab:red", "s", "control: trained on a random backbone"),
    UNTRAINED: ("tab:gray", "^", "probe, untrained"),
}
"""Colour, marker and label of each kind of probe."""


def cost(setting: Setting) -> Cost:
    """One pass a pair of the backbone and one of its control. The tokens of all layers of a batch are held at once."""
    layers = 3 * setting.backbone.config.dec_depth + 2
    held = _at_once(setting) * _bytes_a_pair(setting)
    return Cost(2 * setting.count, held, 8 * setting.count * 3 * 3 * (layers + 1))


def _bytes_a_pair(setting: Setting) -> int:
    config = setting.backbone.config
    return 4 * (3 * config.dec_depth + 2) * config.dec_embed_dim * sum(rows * columns for rows, columns in setting.grids)


def _at_once(setting: Setting) -> int:
    return pairs_at_once(setting, _bytes_a_pair(setting), 2**30)


def epipolar(setting: Setting) -> Study:
    """The study of F; of its probes and their control in `setting.epipolar`.

    Raises:
        CheckpointError: there are none, they are not those of these backbones, or the two backbones or sets of probes differ in shape.
    """
    if setting.epipolar is None:
        raise CheckpointError("the study epipolar needs epipolar probes and their control; none were trained")
    trained, control, control_backbone = setting.epipolar
    _check(setting, trained, control, control_backbone)
    by_pair = measure_epipolar(setting, trained, control, control_backbone)
    if not by_pair["correspondences"].any():
        raise DataError(
            "in no held-out pair does view 2 see any of view 1's sampled pixels, so no F can be measured; give pairs that overlap"
        )
    layers = trained.layer_ids
    records = [_record(by_pair, probe, index, layer) for index, layer in enumerate(layers) for probe in (TRAINED, CONTROL, UNTRAINED)]
    records += [_record(by_pair, probe, 0, "") for probe in (CONSTANT, EXACT)]
    return Study(
        "epipolar",
        "The fundamental matrix, read from averaged tokens",
        MEANING,
        records,
        _tables(records, layers),
        {"": _figure(records, layers)},
        _findings(records, layers),
        {
            "correspondences": "pixels of view 1 on a grid of at most 64×64 that view 2 sees, to 2 % in depth, and their true places there",
            "coordinates": "probes predict F for places normalised to the images: centre 0, longer side from −1 to 1",
            "image_sizes": [list(view.shape[1:3]) for view in setting.pairs.views],
            "hidden": trained.config.hidden,
            "errors": "standard errors over the held-out pairs, for one training and one draw of the random weights",
            "mean_correspondences": float(by_pair["correspondences"].mean()),
        },
        by_pair,
    )


def measure_epipolar(
    setting: Setting, trained: EpipolarProbes, control: EpipolarProbes, control_backbone: Backbone
) -> dict[str, Float[np.ndarray, "S ..."]]:
    """Everything of every probe, pair by pair: PROBE/NAME (S, layers), such as trained/error; constant and exact have one column."""
    untrained = trained.untrained(setting.seed)

    def compute(some: range) -> dict[str, np.ndarray]:
        views = [view[some.start : some.stop] for view in setting.pairs.views]
        truths = setting.pairs.truths[some.start : some.stop]
        size = (views[0].shape[1], views[0].shape[2])
        places1, places2, seen = (np.stack(arrays) for arrays in zip(*map(correspondences_of, truths), strict=True))
        own = _matrices(setting.backbone.module, trained.config, setting.backbone.params, (trained.params, untrained.params), *views)
        # In the arithmetic of the model: the control's probes were trained in that too.
        other = _matrices(setting.backbone.module, control.config, control_backbone.params, (control.params,), *views)
        layers = trained.layer_ids
        matrices = {
            TRAINED: jnp.stack([own[0][layer] for layer in layers]),
            CONTROL: jnp.stack([other[0][layer] for layer in layers]),
            UNTRAINED: jnp.stack([own[1][layer] for layer in layers]),
            CONSTANT: own[0][CONSTANT][None],
            EXACT: jnp.asarray(np.stack([exact_matrix(truth) for truth in truths])[None], jnp.float32),
        }
        ends = np.cumsum([len(of_probe) for of_probe in matrices.values()])[:-1]
        numbers = _errors(jnp.concatenate([*matrices.values()]), places1, places2, seen, half_side(size))
        found = {"correspondences": seen.sum(axis=-1).astype(np.float64)}
        for name, values in numbers.items():
            parts = np.split(np.asarray(values, np.float64).T, ends, axis=1)
            found |= {f"{probe}/{name}": part for probe, part in zip(matrices, parts, strict=True)}
        return found

    return over_pairs(setting, "fundamental matrices", compute, _at_once(setting))


def correspondences_of(
    truth: GroundTruth,
) -> tuple[Float[np.ndarray, "N 2"], Float[np.ndarray, "N 2"], Bool[np.ndarray, " N"]]:
    """Grid pixels of view 1, their true places in view 2, both normalised to the images, and which of them view 2 sees."""
    pixels = sampled_pixels(*truth.views[0].valid.shape)
    columns, rows = pixels.astype(int).T
    places = true_places(truth.views, truth.pose, truth.intrinsics[1])[rows, columns]
    seen = np.isfinite(places).all(axis=-1)
    one = normalised_places(pixels, _size(truth, 0))
    two = normalised_places(np.where(seen[:, None], places, 0.0), _size(truth, 1))
    return np.asarray(one), np.asarray(two), seen


def exact_matrix(truth: GroundTruth) -> Float[np.ndarray, "3 3"]:
    """F of the pair's cameras for places normalised to the images; NaN where they stand in one place."""
    return normalised(fundamental_matrix(*truth.intrinsics, truth.pose), _size(truth, 0), _size(truth, 1))


def _size(truth: GroundTruth, view: int) -> tuple[int, int]:
    height, width = truth.views[view].valid.shape
    return height, width


@functools.partial(jax.jit, static_argnums=(0, 1))
def _matrices(
    module: DUSt3R, config: EpipolarConfig, params: Any, probes: tuple, view1: Array, view2: Array
) -> list[dict[str, Float[Array, "B 3 3"]]]:
    """Each set of probes' F of every row, from one pass."""
    output = cast(BackboneOutput, module.apply({"params": params}, view1, view2, capture=config.layer_ids, head=False))
    tokens = averages(output, config)
    return [read_all(config, of_probes, tokens) for of_probes in probes]


@functools.partial(jax.jit, static_argnums=4)
def _errors(
    matrices: Float[Array, "L B 3 3"], places1: Float[Array, "B N 2"], places2: Float[Array, "B N 2"], seen: Bool[Array, "B N"], unit: float
) -> dict[str, Float[Array, "L B"]]:
    """Mean and median root Sampson error in pixels, NaN without a correspondence, and the smallest singular value."""

    def of_row(row: Float[Array, "B 3 3"]) -> dict[str, Float[Array, " B"]]:
        distances = jnp.where(seen, root_sampson(row, places1, places2) * unit, jnp.nan)
        return {
            "error": jnp.nanmean(distances, axis=-1),
            "median": jnp.nanmedian(distances, axis=-1),
            "singular": smallest_singular_value(row),
        }

    return jax.lax.map(of_row, matrices)


def _check(setting: Setting, trained: EpipolarProbes, control: EpipolarProbes, control_backbone: Backbone) -> None:
    config = setting.backbone.config
    if control_backbone.config != config:
        raise CheckpointError(
            f"the control's backbone has another architecture than the one studied: expected {config}, found {control_backbone.config}; "
            "draw it with random_backbone(backbone.config, seed)"
        )
    if trained.config != control.config:
        raise CheckpointError(
            f"the control's epipolar probes differ in shape from the trained ones: expected {trained.config}, found {control.config}; "
            "train both with the same options"
        )
    wrong = [layer for layer in trained.layer_ids if layer not in config.layer_ids]
    widths = {group.width for group in trained.config.groups if not all(config.layer_width(x) == group.width for x in _probed(group))}
    if wrong or widths:
        raise CheckpointError(
            f"the epipolar probes are not those of this backbone: expected layers among {config.layer_ids[0]} … {config.layer_ids[-1]} "
            f"with their widths, found {', '.join(wrong) or f'tokens of {sorted(widths)} channels'}; train them on it"
        )


def _probed(group: EpipolarGroup) -> tuple[str, ...]:
    return tuple(layer for layer in group.layer_ids if layer != CONSTANT)


def _record(by_pair: Mapping[str, np.ndarray], probe: str, index: int, layer: str) -> Record:
    values = {name: by_pair[f"{probe}/{name}"][:, index] for name in NUMBERS}
    found: dict[str, Cell] = {"layer": layer, "probe": probe, **{name: mean_of(of_pairs) for name, of_pairs in values.items()}}
    if probe not in (CONSTANT, EXACT):
        found["below_constant"] = mean_of(by_pair[f"{CONSTANT}/error"][:, 0] - values["error"])
    if probe == TRAINED:
        found["below_control"] = mean_of(by_pair[f"{CONTROL}/error"][:, index] - values["error"])
    return found


def _of(records: Sequence[Record], probe: str, name: str) -> list[Mean]:
    """A number of a kind of probe, layer by layer."""
    return [cast(Mean, record[name]) for record in records if record["probe"] == probe]


def _tables(records: Sequence[Record], layers: Sequence[str]) -> list[Table]:
    columns = [_of(records, probe, name) for probe, name in _COLUMNS]
    rows = tuple((layer, *(plus_minus(mean) for mean in row)) for layer, *row in zip(layers, *columns, strict=True))
    by_layer = Table(
        "Root Sampson error in pixels, and the smallest singular value of F, by layer",
        ("layer", *(f"{probe}: {name}" for probe, name in _COLUMNS)),
        rows,
    )
    others = [record for record in records if record["probe"] in (CONSTANT, EXACT)]
    without = Table(
        "Without tokens",
        ("F", *NUMBERS),
        tuple((PROBES[cast(str, record["probe"])], *(plus_minus(cast(Mean, record[name])) for name in NUMBERS)) for record in others),
    )
    return [by_layer, without]


def _findings(records: Sequence[Record], layers: Sequence[str]) -> list[str]:
    errors, gains, over = (_of(records, TRAINED, name) for name in ("error", "below_constant", "below_control"))
    control, singular = _of(records, CONTROL, "error"), _of(records, TRAINED, "singular")
    constant, exact = _of(records, CONSTANT, "error")[0], _of(records, EXACT, "error")[0]
    best = int(np.nanargmin([mean.mean for mean in errors]))
    low = int(np.nanargmin([mean.mean for mean in control]))
    found = [
        f"The lowest root Sampson error is read at {layers[best]}: {plus_minus(errors[best], 2)} pixels. One constant F for all pairs has "
        f"{plus_minus(constant, 2)}, the true F {exact.mean:.4f}; pair by pair the probe's error is {plus_minus(gains[best], 2)} lower "
        "than that of the constant F.",
        f"Control: on a backbone with random weights the same probe has {plus_minus(control[best], 2)} pixels at {layers[best]} and "
        f"{plus_minus(control[low], 2)} at its best layer, {layers[low]}; at {layers[best]} the error on the trained backbone is "
        f"{plus_minus(over[best], 2)} pixels lower.",
    ]
    of_control = _of(records, CONTROL, "below_constant")
    both = [min(of_layer, key=lambda mean: mean.mean - 2 * mean.error) for of_layer in zip(gains, over, strict=True)]
    found.append(
        f"The error is more than two standard errors below the control's at {_clearly_lower(over, layers)}, below that of "
        f"the constant F at {_clearly_lower(gains, layers)}, below both at {_clearly_lower(both, layers)}; the control's is "
        f"below that of the constant F at {_clearly_lower(of_control, layers)}."
        + (
            f" At {layers[best]} the control is worse than the constant F, which is then the stricter comparison."
            if of_control[best].mean < 0
            else ""
        )
    )
    steps = np.diff([mean.mean for mean in errors])
    if steps.size and np.nanmin(steps) < 0:
        largest = int(np.nanargmin(steps))
        found.append(
            f"From one layer to the next the error falls most from {layers[largest]} to {layers[largest + 1]}: "
            f"{plus_minus(errors[largest], 2)} to {plus_minus(errors[largest + 1], 2)} pixels; it is {plus_minus(errors[0], 2)} at the "
            f"first layer and {plus_minus(errors[-1], 2)} at the last."
        )
    fresh, drawn = (_of(records, probe, "singular")[best] for probe in (CONTROL, UNTRAINED))
    found.append(
        f"The smallest singular value of F at {layers[best]} is {plus_minus(singular[best])}, of the control's {plus_minus(fresh)}, of the "
        f"untrained probe's {plus_minus(drawn)}, of the constant F {_of(records, CONSTANT, 'singular')[0].mean:.3f}; of a true F it is 0."
    )
    return found


def _clearly_lower(gains: Sequence[Mean], layers: Sequence[str]) -> str:
    """At how many layers, and the first of them."""
    clear = [layer for layer, mean in zip(layers, gains, strict=True) if mean.mean > 2 * mean.error]
    return f"{len(clear)} of {len(layers)} layers (the first: {clear[0]})" if clear else f"none of {len(layers)} layers"


def _figure(records: Sequence[Record], layers: Sequence[str]) -> Figure:
    """Error and smallest singular value over the layers."""
    figure = Figure(figsize=(max(6.0, 0.28 * len(layers) + 3.0), 7.0), layout="constrained")
    panels = figure.subplots(2, 1, sharex=True)
    places = np.arange(len(layers))
    labels = {"error": "root Sampson error (pixels)", "singular": "smallest singular value of F\n(norm 1; true F: 0)"}
    for axes, (name, label) in zip(panels, labels.items(), strict=True):
        for probe, (colour, marker, text) in _LINES.items():
            means, errors = np.array(_of(records, probe, name)).T
            axes.errorbar(
                places, means, np.nan_to_num(errors), color=colour, marker=marker, markersize=4, capsize=2, linewidth=1.2, label=text
            )
        (constant,) = _of(records, CONSTANT, name)
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
