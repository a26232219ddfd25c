"""What the model does with inputs other than two overlapping views, and which part of view 1 a token of view 2 needs.

    pairs ─▶ views swapped, doubled, unrelated ─▶ errors, shapes, matches, pose          pairs by their true overlap ─▶ the same
         └─▶ the patches of a token's true match covered, or others ─▶ how that token's points change

Such inputs are those of Easi3R, of arXiv 2512.11508 and of arXiv 2511.22686: a model that places views by matching loses a token's place
if its match is covered but not if another patch is, and still knows the shape of a view next to an unrelated one.
"""

import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from und3rstand_jax.analysis import pair_measures
from und3rstand_jax.analysis.pair_measures import DIRECTION, MATCHES, ROTATION, VIEW1, VIEW2, HeadFinish, HeadMeasure, PairTruth
from und3rstand_jax.analysis.studies.inputs.conditions import Condition, conditions_of
from und3rstand_jax.analysis.studies.inputs.covered import QUERIES, Points, measured_covers
from und3rstand_jax.analysis.studies.inputs.figure import inputs_figure
from und3rstand_jax.analysis.studies.study import (
    Cost,
    Record,
    Setting,
    Study,
    Table,
    mean_in,
    mean_of,
    other_pair,
    over_pairs,
    pairs_at_once,
    plus_minus,
)
from und3rstand_jax.analysis.true_place_attention import both_true_places
from und3rstand_jax.geometry.alignment import Alignment, shape_errors
from und3rstand_jax.model.head_choice import POINTMAP, reads_several_layers
from und3rstand_jax.model.output import BackboneOutput
from und3rstand_jax.support.errors import CheckpointError, OptionError

BINS = 4
"""Groups of equally many pairs, by overlap."""

CONDITIONS = {
    "straight": "the pairs as they are",
    "swapped": "view 2 given first: errors are against the same points in its camera's frame, view1 is of what was view 2",
    "doubled": "view 1 given twice: view 2's true points are view 1's, its true pose the identity",
    "unrelated": "view 2 of another scene: it has no place, and only shapes are measured",
    "match covered": f"mid-grey over the patch of view 1 that shows what a token of view 2 shows, and its 8 neighbours; {QUERIES} tokens",
    "other covered": "control: the same tokens of view 2, with as many patches covered around another place that both views see; the "
    "two do not overlap",
    "overlap": f"the pairs as they are, in {BINS} groups by overlap; what else differs between near and far pairs differs here too",
}

_METRICS = (VIEW1, VIEW2, MATCHES, ROTATION, DIRECTION)

_OF_TOKENS = {
    "token_error": "normalised point error of the token's pixels; always laid over by scale",
    "token_moved": "how far the token's points are from where they are with nothing covered, over the mean distance to camera 1",
    "elsewhere_moved": "the same of view 2's other pixels",
}

MEANING = {
    "condition": "; ".join(f"{name}: {text}" for name, text in CONDITIONS.items()),
    "group": "of the overlap, 1 for the least; none elsewhere",
    "pairs": "how many",
    **{name: pair_measures.MEANING[name] for name in _METRICS},
    "shape1": "error of view 1 laid over its true points by a similarity of its own, over their mean distance to the view's own camera",
    "shape2": "the same of view 2: its shape, wherever it is placed",
    "confidence1": "mean confidence of view 1's points, 1 at least",
    "confidence2": "mean confidence of view 2's points, 1 at least",
    "overlap": "share of view 2's tokens that view 1 sees",
    **_OF_TOKENS,
    "token_change": "token_error less that with nothing covered, pair by pair",
}


def cost(setting: Setting) -> Cost:
    """One pass for every condition, and two for every covered token."""
    return Cost(setting.count * (4 + 2 * QUERIES), _at_once(setting) * _bytes_a_pair(setting), 8 * setting.count * 50)


def _bytes_a_pair(setting: Setting) -> int:
    """Approximate bytes of a pair's points, and of what the head keeps of it."""
    pixels = sum(view.shape[1] * view.shape[2] for view in setting.pairs.views)
    return 4 * pixels * (512 if reads_several_layers(setting.backbone.config) else 100)


def _at_once(setting: Setting) -> int:
    return pairs_at_once(setting, _bytes_a_pair(setting), 2**30)


def inputs(setting: Setting) -> Study:
    """The study of inputs.

    Raises:
        CheckpointError: the backbone has no head to measure by.
        OptionError: there is only one pair, and so no unrelated view.
    """
    by_pair = measure_inputs(setting)
    groups = overlap_groups(by_pair["overlap"])
    records = [*_condition_records(by_pair), *_covered_records(by_pair), *_overlap_records(by_pair, groups)]
    return Study(
        "inputs",
        "What the model does with swapped, doubled and unrelated views, without a token's match, and with less and less overlap",
        MEANING,
        records,
        _tables(records),
        {"": inputs_figure(records)},
        _findings(records, by_pair),
        {
            "alignment": setting.alignment,
            "tokens": f"at most {QUERIES} a pair, drawn by the seed among those of view 2 whose middle view 1 sees",
            "controls": "for the same tokens, patches covered around another place that both views see; another pair's view 2",
        },
        by_pair,
    )


def measure_inputs(setting: Setting) -> dict[str, Float[np.ndarray, " S"]]:
    """CONDITION/NAME of every pair, and its overlap."""
    if not setting.backbone.config.heads:
        raise CheckpointError("inputs measures the model's own pointmaps, and this backbone has no head; give a checkpoint with one")
    if setting.count < 2:
        raise OptionError(f"the unrelated view 2 comes from another pair; expected two pairs or more, found {setting.count}")

    def run(view1: np.ndarray, view2: np.ndarray) -> Points:
        return tuple(np.asarray(pred["pts3d"]) for pred in setting.backbone(view1, view2, capture=(), head=POINTMAP).pointmaps)

    def compute(some: range) -> dict[str, np.ndarray]:
        pairs = setting.pairs.some(some)
        others = setting.pairs.some([other_pair(number, setting.count) for number in some])
        found: dict[str, np.ndarray] = {}
        for name, condition in conditions_of(pairs, others).items():
            output = setting.backbone(*condition.pairs.views, capture=(), head=POINTMAP)
            found |= {f"{name}/{key}": values for key, values in _measured(output, condition, setting.alignment).items()}
            if name == "straight":
                straight = tuple(np.asarray(pred["pts3d"]) for pred in output.pointmaps)
        seeds = [setting.seed + number for number in some]
        found |= measured_covers(pairs, setting.grids, seeds, run, straight)
        return found | {"overlap": np.array([float(both_true_places(truth, setting.grids)[1].seen.mean()) for truth in pairs.truths])}

    return over_pairs(setting, "inputs", compute, _at_once(setting))


def overlap_groups(overlap: Float[np.ndarray, " S"]) -> list[np.ndarray]:
    """The pairs' numbers in at most `BINS` groups of about equal size, from the least overlap to the most; at least two pairs in each."""
    return np.array_split(np.argsort(overlap, kind="stable"), max(1, min(BINS, len(overlap) // 2)))


def _measured(output: BackboneOutput, condition: Condition, alignment: Alignment) -> dict[str, np.ndarray]:
    on_device = _on_device(output, condition.pairs.truth, alignment)
    measured = {name: np.asarray(values) for name, values in on_device.items()}
    units = condition.own_units / np.asarray(condition.pairs.truth.unit)[:, None]
    shapes = {f"shape{view}": measured[f"shape{view}"] / units[:, view - 1] for view in (1, 2)}
    confidence = {name: measured[name] for name in ("confidence1", "mean_confidence2")}
    finish = HeadFinish(condition.pairs.truths)
    if condition.related:
        metrics = finish(measured, range(len(condition.own_units)))
    else:
        metrics = {name: np.full(len(condition.own_units), np.nan) for name in _METRICS}
    return metrics | shapes | {"confidence1": confidence["confidence1"], "confidence2": confidence["mean_confidence2"]}


@functools.partial(jax.jit, static_argnums=2)
def _on_device(output: BackboneOutput, truth: PairTruth, alignment: Alignment) -> dict[str, Array]:
    """What `HeadFinish` needs, each view's shape error, and mean confidences."""
    preds = output.pointmaps
    found = dict(HeadMeasure(alignment)(output, truth, ()))
    found["shape1"], found["shape2"] = shape_errors(preds, truth.truth, jnp.asarray(truth.unit))
    found["confidence1"], found["mean_confidence2"] = (jnp.mean(pred["conf"], axis=(1, 2)) for pred in preds)
    return found


def _condition_records(by_pair: Mapping[str, np.ndarray]) -> list[Record]:
    names = (*_METRICS, "shape1", "shape2", "confidence1", "confidence2")
    return [
        {
            "condition": condition,
            "group": None,
            "pairs": len(by_pair["overlap"]),
            **{name: mean_of(by_pair[f"{condition}/{name}"]) for name in names},
            **({"token_error": mean_of(by_pair["straight/token_error"])} if condition == "straight" else {}),
        }
        for condition in ("straight", "swapped", "doubled", "unrelated")
    ]


def _covered_records(by_pair: Mapping[str, np.ndarray]) -> list[Record]:
    return [
        {
            "condition": condition,
            "group": None,
            "pairs": int(np.isfinite(by_pair[f"{cover}/token_error"]).sum()),
            **{name: mean_of(by_pair[f"{cover}/{name}"]) for name in _OF_TOKENS},
            "token_change": mean_of(by_pair[f"{cover}/token_error"] - by_pair["straight/token_error"]),
        }
        for condition, cover in (("match covered", "match"), ("other covered", "control"))
    ]


def _overlap_records(by_pair: Mapping[str, np.ndarray], groups: Sequence[np.ndarray]) -> list[Record]:
    return [
        {
            "condition": "overlap",
            "group": number,
            "pairs": len(group),
            "overlap": mean_of(by_pair["overlap"][group]),
            **{name: mean_of(by_pair[f"straight/{name}"][group]) for name in (*_METRICS, "shape1", "shape2", "confidence1", "confidence2")},
        }
        for number, group in enumerate(groups, start=1)
    ]


def _tables(records: Sequence[Record]) -> list[Table]:
    names = (VIEW1, VIEW2, "shape1", "shape2", MATCHES, ROTATION, DIRECTION, "confidence2")
    heads = ("view 1", "view 2", "shape 1", "shape 2", "matches", "rotation (°)", "direction (°)", "confidence 2")

    def cells(record: Record) -> tuple[str, ...]:
        return tuple(
            "–" if np.isnan(mean_in(record, name).mean) else plus_minus(mean_in(record, name), 1 if name in (ROTATION, DIRECTION) else 3)
            for name in names
        )

    conditions = tuple((str(record["condition"]), *cells(record)) for record in records if VIEW1 in record and record["group"] is None)
    groups = tuple((plus_minus(mean_in(record, "overlap"), 2), *cells(record)) for record in records if record["group"] is not None)
    straight = records[0]
    covered: list[tuple[str, ...]] = [("nothing", plus_minus(mean_in(straight, "token_error")), "–", "–", "–")]
    covered += [
        (str(record["condition"]), *(plus_minus(mean_in(record, name)) for name in ("token_error", "token_change", *list(_OF_TOKENS)[1:])))
        for record in records
        if "token_change" in record
    ]
    return [
        Table("By input", ("input", *heads), conditions),
        Table("Points of a token of view 2", ("covered", "error", "change", "moved", "view 2 elsewhere moved"), tuple(covered)),
        Table("By overlap", ("view 1 sees", *heads), groups),
    ]


def _findings(records: Sequence[Record], by_pair: Mapping[str, np.ndarray]) -> list[str]:
    straight, swapped, doubled, unrelated = records[:4]
    match, other = (record for record in records if "token_change" in record)
    groups = [record for record in records if record["group"] is not None]

    def text(record: Record, name: str, digits: int = 3) -> str:
        return plus_minus(mean_in(record, name), digits)

    change = plus_minus(mean_of(by_pair["unrelated/shape1"] - by_pair["straight/shape1"]))
    excess = plus_minus(mean_of(by_pair["match/token_error"] - by_pair["control/token_error"]))
    moved = plus_minus(mean_of(by_pair["match/token_moved"] - by_pair["control/token_moved"]))
    return [
        f"Swapped, the view given second has an error of {text(swapped, VIEW2)} and its rotation one of {text(swapped, ROTATION, 1)}°; "
        f"straight {text(straight, VIEW2)} and {text(straight, ROTATION, 1)}°.",
        f"With view 1 given twice, view 2's error is {text(doubled, VIEW2)} and the second camera is turned by "
        f"{text(doubled, ROTATION, 1)}° from the first; {text(doubled, MATCHES, 2)} of the matches are right.",
        f"Beside an unrelated view 2, view 1's shape error changes by {change} from {text(straight, 'shape1')}, and an unrelated view 2 "
        f"has a shape error of {text(unrelated, 'shape2')}, a related one {text(straight, 'shape2')}; the confidence of view 2 goes from "
        f"{text(straight, 'confidence2', 2)} to {text(unrelated, 'confidence2', 2)}.",
        f"With its match covered, a token's error changes by {text(match, 'token_change')} from {text(straight, 'token_error')}; with as "
        f"many other patches covered by {text(other, 'token_change')}: a difference of {excess}.",
        f"Its points move by {text(match, 'token_moved')} (the rest of view 2 by {text(match, 'elsewhere_moved')}); with other patches "
        f"covered by {text(other, 'token_moved')} (the rest by {text(other, 'elsewhere_moved')}): a difference of {moved}.",
        f"Where view 1 sees {text(groups[0], 'overlap', 2)} of view 2's tokens, view 2's error is {text(groups[0], VIEW2)} and its "
        f"rotation's {text(groups[0], ROTATION, 1)}°; where it sees {text(groups[-1], 'overlap', 2)}, {text(groups[-1], VIEW2)} and "
        f"{text(groups[-1], ROTATION, 1)}°.",
    ]
