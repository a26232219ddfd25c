"""Intermediate tokens through the model's own head, next to the probes: which layers the head can already read.

    pairs ─▶ streams after every decoder step ─┬─▶ [decoder.norm] ─▶ own head ─▶ errors, the later views' rotation
                                               └─▶ probe, where there is one ─▶ the same

This is the logit lens of language models, applied to multi-view transformers as in soskek/understand_vggt. If a layer knows something
but encodes it differently from the last layer, a probe finds it and the lens does not.
"""

from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np

from und3rstand_jax.analysis.descriptor_places import RIGHT_MEANING, descriptor_head
from und3rstand_jax.analysis.own_head import LENS, LENS_OF_SEVERAL, lens_layers
from und3rstand_jax.analysis.steps import block_words
from und3rstand_jax.analysis.studies.lens.figure import lens_figure
from und3rstand_jax.analysis.studies.lens.measures import (
    FACTORS,
    RIGHT,
    Scales,
    bytes_a_pair,
    fit_scales,
    fitted_pairs,
    lens_at_once,
    measure,
    readings_of,
)
from und3rstand_jax.analysis.studies.study import (
    Cost,
    Mean,
    Record,
    Setting,
    Study,
    Table,
    holds_from,
    mean_in,
    mean_of,
    plus_minus,
    share_text,
    text_in,
    turn_of,
)
from und3rstand_jax.geometry.alignment import ALIGNMENT_MEANING
from und3rstand_jax.model.config import ModelConfig
from und3rstand_jax.model.head_choice import reads_several_layers
from und3rstand_jax.support.errors import CheckpointError, OptionError

OF_SETS = {
    "view": "whose points are measured, from 1 on",
    "scale": "the factor that tokens are multiplied by in `scaled`: one per layer, for all views",
    "normed_rotation": "in the rows of view 2: error of a later view's rotation in degrees, the mean over these views, from the points of "
    "the model's own head with the norm; 180 where no pose was found",
}
"""What some names in a record mean instead, for sets of more than two views."""

_ORDER = ("normed", "bare", "scaled", "probe")  # of readings in a record
_SHARE_OF_A_PASS = {False: 0.01, True: 0.25}  # of a published model's matrix products: a linear head's part, and a DPT head's


def meaning_of(config: ModelConfig, views: int = 2) -> dict[str, str]:
    """What every name in a record means, for sets of this many views."""
    readings, has_norm = readings_of(config), config.last_norm is not None
    streams = (
        "the decoder's input, or its stream after a step" if has_norm else f"the streams of a {block_words(config)}, named by the last"
    )
    found = {
        "layer": f"whose tokens are read: {streams}",
        "view": "whose points are measured, 1 or 2",
        **{name: f"normalised point error of what is read by {text}" for name, text in readings.items()},
        **{f"{name}_other": f"control: the same from another pair's tokens, by {text}" for name, text in readings.items()},
        "excess": "error of the model's own head (with the norm) minus that of the probe, pair by pair",
        "scale": "the factor that tokens are multiplied by in `scaled`: one per layer, for both views",
        "normed_rotation": "error of view 2's rotation in degrees, from the points of the model's own head with the norm; 180 where no "
        "pose was found",
        "normed_descriptors": f"where the model makes descriptors, and with the norm: {RIGHT_MEANING}",
        "probe_rotation": "the same from the points read by the probe",
    }
    found |= OF_SETS if views > 2 else {}
    return found if has_norm else {name: text for name, text in found.items() if name != "scale"}


def cost(setting: Setting) -> Cost:
    """At most three passes for the tokens; for each layer, the head three times per pair, and once per factor on the pairs of the fit."""
    config, layers = setting.backbone.config, len(lens_layers(setting.backbone.config))
    has_norm = config.last_norm is not None
    fitted = len(fitted_pairs(setting)) if has_norm else 0
    heads = layers * ((3 if has_norm else 1) * setting.count + len(FACTORS) * fitted)
    heads += layers * setting.count * (descriptor_head(config) is not None)
    passes = setting.count + 2 * fitted + round(heads * (_SHARE_OF_A_PASS[reads_several_layers(config)] if config.heads else 0.0))
    kept = 2 * setting.views * len(readings_of(config)) + 2
    return Cost(passes, lens_at_once(setting) * bytes_a_pair(setting), 8 * setting.count * layers * kept)


def lens(setting: Setting) -> Study:
    """The study of the lens.

    Raises:
        CheckpointError: the backbone has no head.
        OptionError: there is only one pair: a scale is fitted on some pairs and tried on others, and the control takes another pair.
    """
    config, layers = setting.backbone.config, lens_layers(setting.backbone.config)
    if not config.heads:
        raise CheckpointError(
            "the lens reads tokens with the model's own head: expected a backbone with a head, found one without (a trunk such as "
            "CroCo's); give a checkpoint of a whole model, or read its layers with probes"
        )
    if setting.count < 2:
        raise OptionError(f"the lens needs at least 2 pairs, some to fit a scale on and others to try it on; found {setting.count}")
    alignment = setting.alignment
    scales = None if config.last_norm is None else fit_scales(setting, alignment)
    by_pair = measure(setting, None if scales is None else scales.factors, alignment)
    if scales is not None:
        for name in (name for name in by_pair if name.startswith("scaled/")):
            by_pair[name][scales.pairs] = np.nan
    views = range(1, setting.views + 1)
    every = "both views" if setting.views == 2 else "all views"
    cameras = "the two cameras" if setting.views == 2 else "view 1's camera and a later one, the mean over these,"
    turn = np.array([turn_of(truth) for truth in setting.pairs.truths])
    records = [
        layer_record(by_pair, index, layer, view, None if scales is None else float(scales.factors[index]))
        for view in views
        for index, layer in enumerate(layers)
    ]
    facts = {
        "lens": LENS if len(config.readings[0]) == 1 else LENS_OF_SEVERAL,
        "alignment": f"{alignment}: {ALIGNMENT_MEANING[alignment]}",
        "control": "the same reading of another pair's tokens, measured against this pair's true points",
        **({} if scales is None else {"scale": _fact_of_scales(scales, layers, every)}),
        "turn": mean_of(turn)._asdict() | {"meaning": f"angle between {cameras} in degrees: the error of no rotation at all"},
    }
    return Study(
        "lens",
        "Intermediate tokens through the model's own head, beside the probes",
        meaning_of(config, setting.views),
        records,
        _tables(records, setting.views),
        {"": lens_figure(records, layers, mean_of(turn).mean, _order_words(config))},
        _findings(records, by_pair, layers, mean_of(turn), setting.views),
        facts,
        by_pair | {"turn": turn},
    )


def _fact_of_scales(scales: Scales, layers: Sequence[str], every: str) -> dict[str, object]:
    return {
        "of": f"{every}' tokens, in place of decoder.norm's; a DPT head's other inputs are not scaled",
        "least": f"the sum of {every}' mean errors",
        "fitted_on": scales.pairs.tolist(),
        "tried": "the ratio of the root mean squares of decoder.norm's tokens and the layer's, times each of the factors",
        "factors": FACTORS.tolist(),
        "best_at_the_edge": [layer for layer, at_edge in zip(layers, scales.at_edge, strict=True) if at_edge],
    }


def _order_words(config: ModelConfig) -> str:
    """The layers that are read, in words for the label below the figure."""
    if len(config.readings[0]) > 1:
        return f"{block_words(config)}, whose streams are read together"
    return "decoder block; within a block after self-attention, cross-attention and MLP; E is the decoder's input"


def layer_record(by_pair: Mapping[str, np.ndarray], index: int, layer: str, view: int, scale: float | None) -> Record:
    """One layer's means over pairs, of one view."""
    found: dict[str, str | int | float | Mean] = {"layer": layer, "view": view, **({} if scale is None else {"scale": scale})}
    for name in (name for name in _ORDER if f"{name}/view{view}" in by_pair):
        own, other = (by_pair[f"{name}/{kind}{view}"][:, index] for kind in ("view", "other"))
        if name != "probe" or not np.isnan(own).all():
            found |= {name: mean_of(own), f"{name}_other": mean_of(other)}
    if "probe" in found:
        found["excess"] = mean_of(by_pair[f"normed/view{view}"][:, index] - by_pair[f"probe/view{view}"][:, index])
    if view == 2:
        found["normed_rotation"] = mean_of(by_pair["normed/rotation"][:, index])
        if RIGHT in by_pair:
            found["normed_descriptors"] = mean_of(by_pair[RIGHT][:, index])
        if "probe" in found:
            found["probe_rotation"] = mean_of(by_pair["probe/rotation"][:, index])
    return found


def _tables(records: Sequence[Record], views: int) -> list[Table]:
    tables = []
    names = {"normed": "lens", "normed_other": "another scene", "bare": "without norm", "scaled": "scaled", "scale": "scale"}
    names |= {
        "normed_descriptors": "lens, right matches by descriptors",
        "probe": "probe",
        "excess": "lens less probe",
        "normed_rotation": "lens, rotation",
        "probe_rotation": "probe, rotation",
    }
    turned = ", and of the rotation in degrees" if views == 2 else ", and of the later views' rotation in degrees"
    for view in range(1, views + 1):
        own = [record for record in records if record["view"] == view]
        columns = [name for name in names if name in own[0] or name in own[-1]]
        rows = tuple((str(record["layer"]), *(_cell(record.get(name)) for name in columns)) for record in own)
        title = f"View {view}: error by the model's own head and by the probe" + (turned if view == 2 else "")
        tables.append(Table(title, ("layer", *(names[name] for name in columns)), rows))
    return tables


def _cell(value: object) -> str:
    if isinstance(value, Mean):
        return plus_minus(value, 3 if abs(value.mean) < 10 else 1)
    return "" if value is None else f"{value:.3g}"


def _findings(records: Sequence[Record], by_pair: Mapping[str, np.ndarray], layers: Sequence[str], turn: Mean, views: int) -> list[str]:
    found = []
    for view in range(1, views + 1):
        own = [record for record in records if record["view"] == view]
        found.append(f"View {view}: {_readable(own, by_pair, view)}")
        if any("excess" in record for record in own):
            most = max((record for record in own if "excess" in record), key=lambda record: mean_in(record, "excess").mean)
            least = min((record for record in own if "excess" in record), key=lambda record: mean_in(record, "excess").mean)
            place = "comes closest to" if mean_in(least, "excess").mean > 0 else "is farthest ahead of"
            found.append(
                f"View {view}: the lens is farthest behind the probe at {most['layer']}, where the error of the model's own head is "
                f"{text_in(most, 'normed')} and the probe's {text_in(most, 'probe')} (difference {text_in(most, 'excess')}). At "
                f"{least['layer']} the lens {place} the probe "
                f"({text_in(least, 'normed')} and {text_in(least, 'probe')}, difference {text_in(least, 'excess')})."
            )
        if "bare" in own[-1]:
            found.append(f"View {view}: {_without_norm(own)}")
    described = [record for record in records if "normed_descriptors" in record]
    if described and mean_in(described[-1], "normed_descriptors").mean > 0:
        last = described[-1]
        half = next(of for of in described if mean_in(of, "normed_descriptors").mean >= mean_in(last, "normed_descriptors").mean / 2)
        found.append(
            f"Descriptors made of {last['layer']} match {share_text(mean_in(last, 'normed_descriptors'))} of what can be checked rightly; "
            f"the first layer with half as many is {half['layer']} ({share_text(mean_in(half, 'normed_descriptors'))})."
        )
    rotated = [record for record in records if "normed_rotation" in record]
    first, last = rotated[0], rotated[-1]
    probe = f" (by the probe of {last['layer']} {text_in(last, 'probe_rotation', 1)}°)" if "probe_rotation" in last else ""
    whose = "View 2's rotation" if views == 2 else "The later views' rotation"
    found.append(
        f"{whose}, read with the model's own head, is off by {text_in(first, 'normed_rotation', 1)}° at {first['layer']} and by "
        f"{text_in(last, 'normed_rotation', 1)}° at {last['layer']}{probe}; no rotation at all is off by {plus_minus(turn, 1)}°."
    )
    return found


def _readable(own: Sequence[Record], by_pair: Mapping[str, np.ndarray], view: int) -> str:
    """From which layer on the lens reads this scene better than another."""
    gains = [mean_of(values) for values in (by_pair[f"normed/other{view}"] - by_pair[f"normed/view{view}"]).T]
    since, last = holds_from([gain.mean > 2 * gain.error for gain in gains]), own[-1]
    if since is None:
        return "the model's own head reads no layer's tokens better than another scene's by two standard errors, not even the last one's."
    close = holds_from([mean_in(record, "normed").mean <= 2 * mean_in(last, "normed").mean for record in own])
    record, near = own[since], last if close is None else own[close]
    soon = f"from {near['layer']} on ({text_in(near, 'normed')})" if near is not last else "at no earlier layer"
    return (
        f"from {record['layer']} on, the model's own head reads a scene's tokens better than another scene's by two standard errors "
        f"({text_in(record, 'normed')} and {text_in(record, 'normed_other')} there). Its error is at most twice that of the last layer "
        f"({text_in(last, 'normed')}) {soon}."
    )


def _without_norm(own: Sequence[Record]) -> str:
    last = own[-1]
    finite = [record for record in own if np.isfinite(mean_in(record, "bare").mean)]
    worst = max(finite, key=lambda record: mean_in(record, "bare").mean) if finite else last
    scales = [cast(float, record["scale"]) for record in own]
    return (
        f"without the norm, the last layer's error is {text_in(last, 'bare')} as it is and {text_in(last, 'scaled')} with a fitted scale; "
        f"with the norm it is {text_in(last, 'normed')}. The unscaled error is largest at {worst['layer']}: {text_in(worst, 'bare')}, and "
        f"{text_in(worst, 'scaled')} with a fitted scale. Scaled errors are over the pairs that the scales were not fitted on; the fitted "
        f"scales lie between {min(scales):.3g} and {max(scales):.3g}."
    )
