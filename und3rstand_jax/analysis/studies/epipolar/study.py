"""At which layers a pair's averaged tokens encode its cameras' relative pose: probes for the fundamental matrix, layer by layer.

    pairs ─▶ backbone, and its control with random weights ─▶ averaged tokens ─▶ each layer's probe: F ─▶ root Sampson error

After arXiv 2512.11508, which reads F from VGGT. Four controls say what a probe's error means: the same probe, trained in the same way, on a
backbone with random weights; a probe that was never trained; one constant F for all pairs, trained in the same way; and the pair's
true F, whose error is rounding.
"""

from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np

from und3rstand_jax.analysis.studies.epipolar.figure import epipolar_figure, of_probe
from und3rstand_jax.analysis.studies.epipolar.measures import (
    CONTROL,
    EXACT,
    TRAINED,
    UNTRAINED,
    bytes_a_pair,
    epipolar_at_once,
    layers_from_embed,
    measure_epipolar,
)
from und3rstand_jax.analysis.studies.study import Cell, Cost, Mean, Record, Setting, Study, Table, mean_of, plus_minus
from und3rstand_jax.model.backbone import Backbone
from und3rstand_jax.probes.epipolar import CONSTANT, EpipolarGroup, EpipolarProbes
from und3rstand_jax.support.errors import CheckpointError, DataError

PROBES = {
    TRAINED: "trained on this backbone",
    CONTROL: "trained in the same way on a backbone with random weights",
    UNTRAINED: "on this backbone, with its parameters as first drawn",
    CONSTANT: "one constant F for all pairs, trained in the same way: it reads no tokens",
    EXACT: "no probe: the F of the pair's true cameras",
}
"""Where the numbers of a record come from."""

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


def cost(setting: Setting) -> Cost:
    """One pass of the backbone and one of its control per pair. A batch's tokens of all layers are in memory at once."""
    layers = layers_from_embed(setting.backbone.config)
    held = epipolar_at_once(setting) * bytes_a_pair(setting)
    return Cost(2 * setting.count, held, 8 * setting.count * 3 * 3 * (layers + 1))


def epipolar(setting: Setting) -> Study:
    """The study of F, with the probes and their control in `setting.epipolar`.

    Raises:
        CheckpointError: there are no probes, they are not for these backbones, or the two backbones or the two sets of probes differ.
        DataError: no pair has a pixel of view 1 that view 2 sees.
    """
    if setting.epipolar is None:
        raise CheckpointError("the study epipolar needs epipolar probes and their control, and none were trained; give them in the setting")
    trained, control, control_backbone = setting.epipolar
    _check(setting, trained, control, control_backbone)
    by_pair = measure_epipolar(setting, trained, control, control_backbone)
    if not by_pair["correspondences"].any():
        raise DataError(
            "view 2 sees none of view 1's sampled pixels in any held-out pair, so no F can be measured; give pairs that overlap"
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
        {"": epipolar_figure(records, layers)},
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


def _check(setting: Setting, trained: EpipolarProbes, control: EpipolarProbes, control_backbone: Backbone) -> None:
    config = setting.backbone.config
    if control_backbone.config != config:
        raise CheckpointError(
            f"the control's backbone has a different architecture: expected {config}, found {control_backbone.config}; "
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
            f"the epipolar probes are not for this backbone: expected layers among {config.layer_ids[0]} … {config.layer_ids[-1]} "
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


def _tables(records: Sequence[Record], layers: Sequence[str]) -> list[Table]:
    columns = [of_probe(records, probe, name) for probe, name in _COLUMNS]
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
    errors, gains, over = (of_probe(records, TRAINED, name) for name in ("error", "below_constant", "below_control"))
    control, singular = of_probe(records, CONTROL, "error"), of_probe(records, TRAINED, "singular")
    constant, exact = of_probe(records, CONSTANT, "error")[0], of_probe(records, EXACT, "error")[0]
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
    of_control = of_probe(records, CONTROL, "below_constant")
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
    fresh, drawn = (of_probe(records, probe, "singular")[best] for probe in (CONTROL, UNTRAINED))
    (steady,) = of_probe(records, CONSTANT, "singular")
    found.append(
        f"The smallest singular value of F at {layers[best]} is {plus_minus(singular[best])}, of the control's {plus_minus(fresh)}, of the "
        f"untrained probe's {plus_minus(drawn)}, of the constant F {steady.mean:.3f}; of a true F it is 0."
    )
    return found


def _clearly_lower(gains: Sequence[Mean], layers: Sequence[str]) -> str:
    """At how many layers, and the first of them."""
    clear = [layer for layer, mean in zip(layers, gains, strict=True) if mean.mean > 2 * mean.error]
    return f"{len(clear)} of {len(layers)} layers (the first: {clear[0]})" if clear else f"none of {len(layers)} layers"
