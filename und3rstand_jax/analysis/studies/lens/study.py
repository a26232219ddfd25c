"""Intermediate tokens through the model's own head, beside the probes: which layers are already written in the head's language.

    pairs ─▶ streams after every decoder step ─┬─▶ [decoder.norm] ─▶ own head ─▶ errors, view 2's rotation
                                               └─▶ probe, where there is one ─▶ the same

The logit lens of language models; on multi-view transformers as in soskek/understand_vggt. What a layer knows but writes in another way
than the last layer, a probe finds and the lens does not.
"""

from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np

from und3rstand_jax.analysis.own_head import LENS, lens_layers
from und3rstand_jax.analysis.studies.lens.figure import lens_figure
from und3rstand_jax.analysis.studies.lens.measures import (
    FACTORS,
    READINGS,
    bytes_a_pair,
    fit_scales,
    fitted_pairs,
    measure,
    pairs_at_once,
)
from und3rstand_jax.analysis.studies.study import Cost, Mean, Record, Setting, Study, Table, mean_of, plus_minus
from und3rstand_jax.geometry.alignment import ALIGNMENT_MEANING
from und3rstand_jax.geometry.pose import pose_errors
from und3rstand_jax.support.errors import CheckpointError, OptionError

MEANING = {
    "layer": "whose tokens are read: the decoder's input, or its stream after a step",
    "view": "whose points are measured, 1 or 2",
    **{name: f"normalised point error of what is read by {text}" for name, text in READINGS.items()},
    **{f"{name}_other": f"control: the same from the next pair's tokens, by {text}" for name, text in READINGS.items()},
    "excess": "error by the own head behind the norm less that by the probe, pair by pair",
    "scale": "what tokens are multiplied with in `scaled`: one factor a layer, for both views",
    "normed_rotation": "error of view 2's rotation in degrees, from the own head's points behind the norm; 180 where none was found",
    "probe_rotation": "the same from the points read by the probe",
}

_SHARE_OF_A_PASS = {"linear": 0.01, "dpt": 0.25}  # a head's part of a published model's products


def cost(setting: Setting) -> Cost:
    """Three passes at most for the tokens, and for each layer the head thrice a pair, and once a factor for the pairs of the fit."""
    config, layers = setting.backbone.config, len(lens_layers(setting.backbone.config))
    fitted = len(fitted_pairs(setting))
    heads = layers * (3 * setting.count + len(FACTORS) * fitted)
    passes = setting.count + 2 * fitted + round(heads * _SHARE_OF_A_PASS.get(config.head_type or "", 0.0))
    return Cost(passes, pairs_at_once(setting) * bytes_a_pair(setting), 8 * setting.count * layers * (4 * len(READINGS) + 2))


def lens(setting: Setting) -> Study:
    """The study of the lens.

    Raises:
        CheckpointError: the backbone has no head.
        OptionError: there is one pair: a scale is fitted on some pairs and tried on others, and the control takes another pair.
    """
    config, layers = setting.backbone.config, lens_layers(setting.backbone.config)
    if config.head_type is None:
        raise CheckpointError(
            "the lens reads tokens with the model's own head: expected a backbone with a head, found one without (a trunk such as "
            "CroCo's); give a checkpoint of a whole DUSt3R, or read its layers with probes"
        )
    if setting.count < 2:
        raise OptionError(f"the lens needs at least 2 pairs, some to fit a scale on and others to try it; found {setting.count}")
    alignment = setting.alignment or "scale"
    scales = fit_scales(setting, alignment)
    by_pair = measure(setting, scales.factors, alignment)
    for name in (name for name in by_pair if name.startswith("scaled/")):
        by_pair[name][scales.pairs] = np.nan
    turn = np.array([pose_errors(np.eye(4), truth.pose)[0] for truth in setting.pairs.truths])
    records = [
        layer_record(by_pair, index, layer, view, float(scales.factors[index])) for view in (1, 2) for index, layer in enumerate(layers)
    ]
    facts = {
        "lens": LENS,
        "alignment": f"{alignment}: {ALIGNMENT_MEANING[alignment]}",
        "control": "the same reading of the next pair's tokens, measured against this pair's true points",
        "scale": {
            "of": "both views' tokens, in place of decoder.norm's; a DPT head's other inputs are not scaled",
            "least": "the sum of both views' mean errors",
            "fitted_on": scales.pairs.tolist(),
            "tried": "the ratio of the root mean squares of decoder.norm's tokens and the layer's, times each of the factors",
            "factors": FACTORS.tolist(),
            "best_at_the_edge": [layer for layer, at_edge in zip(layers, scales.at_edge, strict=True) if at_edge],
        },
        "turn": mean_of(turn)._asdict() | {"meaning": "angle between the two cameras in degrees: the error of no rotation at all"},
    }
    return Study(
        "lens",
        "Intermediate tokens through the model's own head, beside the probes",
        MEANING,
        records,
        _tables(records),
        {"": lens_figure(records, layers, mean_of(turn).mean)},
        _findings(records, by_pair, layers, mean_of(turn)),
        facts,
        by_pair | {"turn": turn},
    )


def layer_record(by_pair: Mapping[str, np.ndarray], index: int, layer: str, view: int, scale: float) -> Record:
    """One layer's means over pairs, of one view."""
    found: dict[str, str | int | float | Mean] = {"layer": layer, "view": view, "scale": scale}
    for name in READINGS:
        own, other = (by_pair[f"{name}/{kind}{view}"][:, index] for kind in ("view", "other"))
        if name != "probe" or not np.isnan(own).all():
            found |= {name: mean_of(own), f"{name}_other": mean_of(other)}
    if "probe" in found:
        found["excess"] = mean_of(by_pair[f"normed/view{view}"][:, index] - by_pair[f"probe/view{view}"][:, index])
    if view == 2:
        found["normed_rotation"] = mean_of(by_pair["normed/rotation"][:, index])
        if "probe" in found:
            found["probe_rotation"] = mean_of(by_pair["probe/rotation"][:, index])
    return found


def _tables(records: Sequence[Record]) -> list[Table]:
    tables = []
    names = {"normed": "lens", "normed_other": "another scene", "bare": "without norm", "scaled": "scaled", "scale": "scale"}
    names |= {"probe": "probe", "excess": "lens less probe", "normed_rotation": "lens, rotation", "probe_rotation": "probe, rotation"}
    for view in (1, 2):
        own = [record for record in records if record["view"] == view]
        columns = [name for name in names if name in own[0] or name in own[-1]]
        rows = tuple((str(record["layer"]), *(_cell(record.get(name)) for name in columns)) for record in own)
        title = f"View {view}: error by the model's own head and by the probe" + (", and of the rotation in degrees" if view == 2 else "")
        tables.append(Table(title, ("layer", *(names[name] for name in columns)), rows))
    return tables


def _cell(value: object) -> str:
    if isinstance(value, Mean):
        return plus_minus(value, 3 if abs(value.mean) < 10 else 1)
    return "" if value is None else f"{value:.3g}"


def _findings(records: Sequence[Record], by_pair: Mapping[str, np.ndarray], layers: Sequence[str], turn: Mean) -> list[str]:
    found = []
    for view in (1, 2):
        own = [record for record in records if record["view"] == view]
        found.append(f"View {view}: {_readable(own, by_pair, view)}")
        if any("excess" in record for record in own):
            most = max((record for record in own if "excess" in record), key=lambda record: _mean(record, "excess").mean)
            least = min((record for record in own if "excess" in record), key=lambda record: _mean(record, "excess").mean)
            found.append(
                f"View {view}: the lens is farthest behind the probe at {most['layer']}, where the own head errs by "
                f"{_text(most, 'normed')} and the probe by {_text(most, 'probe')} (difference {_text(most, 'excess')}). At "
                f"{least['layer']} it is {'nearest to' if _mean(least, 'excess').mean > 0 else 'farthest ahead of'} it "
                f"({_text(least, 'normed')} and {_text(least, 'probe')}, difference {_text(least, 'excess')})."
            )
        found.append(f"View {view}: {_without_norm(own)}")
    rotated = [record for record in records if "normed_rotation" in record]
    first, last = rotated[0], rotated[-1]
    probe = f" (by the probe of {last['layer']} {_text(last, 'probe_rotation', 1)}°)" if "probe_rotation" in last else ""
    found.append(
        f"View 2's rotation, read by the own head, is off by {_text(first, 'normed_rotation', 1)}° at {first['layer']} and by "
        f"{_text(last, 'normed_rotation', 1)}° at {last['layer']}{probe}; no rotation at all is off by {plus_minus(turn, 1)}°."
    )
    return found


def _readable(own: Sequence[Record], by_pair: Mapping[str, np.ndarray], view: int) -> str:
    """From which layer on the lens reads this scene rather than any."""
    gains = [mean_of(values) for values in (by_pair[f"normed/other{view}"] - by_pair[f"normed/view{view}"]).T]
    beaten = [gain.mean > 2 * gain.error for gain in gains]
    if not beaten[-1]:
        return "not even at the last layer does the own head read a scene's tokens better than another scene's, by two standard errors."
    at = len(beaten) - beaten[::-1].index(False) if False in beaten else 0
    record, last = own[at], own[-1]
    near = next(record for record in own if _mean(record, "normed").mean <= 2 * _mean(last, "normed").mean)
    soon = f"from {near['layer']} on ({_text(near, 'normed')})" if near is not last else "at no earlier one"
    return (
        f"from {record['layer']} on the own head reads a scene's tokens better than another scene's by two standard errors "
        f"({_text(record, 'normed')} and {_text(record, 'normed_other')} there). Its error is at most twice that of the last layer "
        f"({_text(last, 'normed')}) {soon}."
    )


def _without_norm(own: Sequence[Record]) -> str:
    last = own[-1]
    finite = [record for record in own if np.isfinite(_mean(record, "bare").mean)]
    worst = max(finite, key=lambda record: _mean(record, "bare").mean) if finite else last
    scales = [cast(float, record["scale"]) for record in own]
    return (
        f"without the norm the last layer is read with an error of {_text(last, 'bare')} as it is and of {_text(last, 'scaled')} with its "
        f"scale fitted, with the norm of {_text(last, 'normed')}; at worst ({worst['layer']}) it is {_text(worst, 'bare')} as it is and "
        f"{_text(worst, 'scaled')} scaled, over the pairs that scales were not fitted on. "
        f"These lie between {min(scales):.3g} and {max(scales):.3g}."
    )


def _mean(record: Record, name: str) -> Mean:
    return cast(Mean, record[name])


def _text(record: Record, name: str, digits: int = 3) -> str:
    return plus_minus(_mean(record, name), digits)
