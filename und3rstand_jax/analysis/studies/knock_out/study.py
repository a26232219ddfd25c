"""What both views' geometry loses without heads that look at the true place, sinks, sublayers or blocks, with controls.

    first half of the pairs ─▶ statistics of heads ─▶ rankings ─▶ sets (`sets`)
    other half ─▶ sweeps (`sweeps`) ─▶ effects relative to the unedited run ─▶ records, tables, figures, findings

Correspondence heads and sinks are those of "Understanding Multi-View Transformers" (arXiv 2510.24907) and of arXiv 2512.11508.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jaxtyping import Array, Float

from und3rstand_jax.analysis.ablations import MEANINGS
from und3rstand_jax.analysis.pair_measures import VIEW1, VIEW2
from und3rstand_jax.analysis.steps import whose_words
from und3rstand_jax.analysis.studies.heads.measures import measure_heads
from und3rstand_jax.analysis.studies.heads.study import cost as cost_of_heads
from und3rstand_jax.analysis.studies.knock_out import sets
from und3rstand_jax.analysis.studies.knock_out.figures import curves_figure, layers_figure
from und3rstand_jax.analysis.studies.knock_out.findings import findings_of, tables_of
from und3rstand_jax.analysis.studies.knock_out.sweeps import METRICS, Row, bytes_of_values, measure, posed, resampled_at_once
from und3rstand_jax.analysis.studies.study import Cost, Mean, Record, Setting, Study, mean_of, over_pairs
from und3rstand_jax.geometry.alignment import Alignment, aligned_errors
from und3rstand_jax.geometry.loss import Truth
from und3rstand_jax.model.config import ModelConfig
from und3rstand_jax.model.heads import Pointmap
from und3rstand_jax.support.errors import CheckpointError

UNEDITED, CONSTANT = "unedited", "constant"

LEAST_TO_SPLIT = 16


def meaning_of(config: ModelConfig) -> dict[str, str]:
    """What every name in a record means."""
    kinds = {
        UNEDITED: "the model as it is",
        CONSTANT: "no model: of every pixel the mean of the other pairs' true points there",
        **sets.meaning_of(config),
    }
    return {
        "kind": "; ".join(f"{kind}: {text}" for kind, text in kinds.items()),
        "name": "what is taken away",
        "by": "; ".join(f"{by}: {text}" for by, text in _ways(config).items()),
        "k": "number of heads that are taken away together",
        "of": "of a control: the kind of set that it is a control of",
        "draw": "of a random control, counted from 1",
        "pool": "what a random control was drawn from: the same blocks, or all blocks where those have too few other heads",
        "view": "in whose pass: 1, 2 or both",
        "places": "the heads, updates or scores (their blocked keys) that are taken away",
        **METRICS,
        **{f"{name}_effect": f"{name} less that of the unedited run, the mean of the differences pair by pair" for name in METRICS},
    }


def _ways(config: ModelConfig) -> dict[str, str]:
    found: dict[str, str] = {by: MEANINGS[by] for by in sets.WAYS}
    if config.special_tokens(config.blocks[0].across):
        found["mean"] += "; of each special token its own"
    return found | (
        {sets.BLOCKED: "its keys blocked, so that the softmax shares its weight among the others"} if sets.blocks_scores(config) else {}
    )


def cost(setting: Setting) -> Cost:
    """One pass of the blocks for every set in every way, on the measured pairs. Attention or resampling takes the most memory."""
    config = setting.backbone.config
    kinds = 2 * len(sets.counts_of(config))  # rankings times k
    in_all_ways = len(sets.WAYS) + sum(sets.DRAWS[by] for by in sets.WAYS)
    edits = kinds * in_all_ways + kinds // 2 + len(sets.layer_sets(config)) + 2
    measured = len(halves(setting.count)[1])
    at_once = resampled_at_once(setting)
    return Cost(
        edits * measured + 3 * setting.count,
        max(cost_of_heads(setting).memory, 3 * at_once * bytes_of_values(setting)),
        8 * len(METRICS) * edits * measured,
    )


def halves(count: int) -> tuple[range, range]:
    """The pairs that heads are ranked on, and those that their loss is measured on; with fewer than 16 pairs, all serve for both."""
    if count < LEAST_TO_SPLIT:
        return range(count), range(count)
    return range(count // 2), range(count // 2, count)


def knock_out(setting: Setting) -> Study:
    """The study of knock-outs.

    Raises:
        CheckpointError: the backbone has no head, without which there are no points to measure.
    """
    config = setting.backbone.config
    if not config.heads:
        raise CheckpointError(
            "knock-out measures the model's own pointmaps; expected a backbone with a head, found one without; give another"
        )
    ranked_on, measured_on = halves(setting.count)
    of_heads = measure_heads(setting)
    ranking = sets.rankings(of_heads, ranked_on, config)
    taken = [*sets.head_sets(ranking, config, setting.seed), *sets.layer_sets(config)]
    unedited, rows = measure(setting, measured_on, taken)
    constant = leave_one_out_errors(setting, measured_on)
    records: list[Record] = [
        {"kind": UNEDITED, "name": "nothing", **{name: mean_of(values) for name, values in unedited.items()}},
        {"kind": CONSTANT, "name": "the model", **{name: mean_of(values) for name, values in constant.items()}},
        *map(record_of, rows),
    ]
    return Study(
        "knock-out",
        f"What {whose_words(config)} heads, sublayers and the attention between the views are for: what is lost without them",
        meaning_of(config),
        records,
        tables_of(unedited, rows, constant, config),
        {"": curves_figure(unedited, rows, constant), "layers": layers_figure(unedited, rows, constant, config)},
        findings_of(unedited, rows, constant, config),
        _facts(setting, of_heads, ranked_on, measured_on, rows),
        _by_pair(setting, measured_on, unedited, constant, rows),
    )


def record_of(row: Row) -> Record:
    """What was taken away, every metric without it, and the differences to the unedited run."""
    taken = row.taken
    described = {"kind": taken.kind, "name": taken.name, "by": row.by, "k": taken.k, "of": taken.of, "draw": taken.draw, "pool": taken.pool}
    means: dict[str, Mean] = {name: mean_of(values) for name, values in row.values.items()}
    effects: dict[str, Mean] = {f"{name}_effect": mean_of(values) for name, values in row.effects.items()}
    return {**described, "view": taken.view, "places": " ".join(map(str, taken.places)), **means, **effects}


def leave_one_out_errors(setting: Setting, numbers: range) -> dict[str, Float[np.ndarray, " S"]]:
    """Both views' errors of a constant pointmap: at every pixel, the mean of the other pairs' normalised true points; NaN without others.

    A pixel that no other pair knows takes the mean of the view's other pixels. Without alignment, points are in metres, as predicted.
    """
    alignment = setting.alignment
    truth, unit = setting.pairs.truth
    factor = np.asarray(unit, np.float64) if alignment == "none" else np.ones(setting.count)
    valid = [np.asarray(mask) for mask in truth.valid]
    counts = [mask.sum(axis=0) for mask in valid]
    totals = [np.stack([np.einsum("shw,s->hw", np.asarray(axis), factor) for axis in view], axis=-1) for view in truth.points]

    def of_others(view: int, number: int) -> Float[np.ndarray, "H W 3"]:
        own = np.stack([np.asarray(axis[number], np.float64) for axis in truth.points[view]], axis=-1) * factor[number]
        others = (counts[view] - valid[view][number])[..., None]
        points = np.where(others > 0, (totals[view] - own) / np.maximum(others, 1), np.nan)
        known = others[..., 0] > 0
        return np.where(known[..., None], points, points[known].mean(axis=0) if known.any() else np.nan).astype(np.float32)

    def compute(some: range) -> Mapping[str, np.ndarray]:
        chosen = [numbers[number] for number in some]
        points = tuple(np.stack([of_others(view, number) for number in chosen]) for view in (0, 1))
        errors = _errors(alignment, points, *setting.pairs.some(chosen).truth)
        known = np.array([np.isfinite(one).all() and np.isfinite(two).all() for one, two in zip(*points, strict=True)])
        return {name: np.where(known, error, np.nan) for name, error in zip((VIEW1, VIEW2), errors, strict=True)}

    return over_pairs(dataclasses.replace(setting, pairs=setting.pairs.some(numbers)), "constant", compute)


@functools.partial(jax.jit, static_argnums=0)
def _errors(
    alignment: Alignment, points: tuple[Float[Array, "B _H _W 3"], ...], truth: Truth, unit: Float[Array, " B"]
) -> tuple[Float[Array, " B"], ...]:
    return aligned_errors(tuple(Pointmap(pts3d=view) for view in points), truth, unit, alignment)


def _facts(
    setting: Setting, of_heads: Mapping[str, np.ndarray], ranked_on: range, measured_on: range, rows: Sequence[Row]
) -> dict[str, object]:
    split = ranked_on != measured_on
    drawn = [row.taken for row in rows if row.taken.kind == sets.RANDOM]
    facts: dict[str, object] = {
        "halves": {
            "ranked on": f"{ranked_on.start} to {ranked_on.stop - 1}",
            "measured on": f"{measured_on.start} to {measured_on.stop - 1}",
            "matches and pose of": f"the first {posed(len(measured_on))} of those",
            "why": "heads are chosen on other pairs than those on which their loss is measured"
            if split
            else f"with fewer than {LEAST_TO_SPLIT} pairs, heads are chosen on the pairs on which their loss is measured",
        },
        "sets": sets.meaning_of(setting.backbone.config),
        "ways": (ways := _ways(setting.backbone.config)) | {"mean": f"{ways['mean']}; of all {setting.count} pairs"},
        "draws": "random controls are different sets, in each way as many as " + ", ".join(f"{by} {n}" for by, n in sets.DRAWS.items()),
        "drawn from all blocks": sorted({f"{taken.of} {taken.k}" for taken in drawn if taken.pool == "all blocks"}),
    }
    if split:
        facts["rankings of both halves"] = {
            "meaning": "Spearman correlation of the heads' ranks by the pairs they are ranked on with those by the others",
            **_rank_correlations(of_heads, ranked_on, measured_on, setting.backbone.config),
        }
    return facts


def _rank_correlations(of_heads: Mapping[str, np.ndarray], one: range, other: range, config: ModelConfig) -> dict[str, float]:
    from scipy.stats import spearmanr

    found = {}
    both = (sets.rankings(of_heads, pairs, config) for pairs in (one, other))
    for name, first, second in zip((sets.MATCH, sets.SINK), *both, strict=True):
        rank = {place: number for number, place in enumerate(second)}
        found[name] = float(spearmanr(range(len(first)), [rank[place] for place in first]).statistic)
    return found


def _by_pair(
    setting: Setting,
    measured_on: range,
    unedited: Mapping[str, np.ndarray],
    constant: Mapping[str, np.ndarray],
    rows: Sequence[Row],
) -> dict[str, Float[np.ndarray, "S records"]]:
    """Every metric, with a column for each record, in order; NaN where a pair was not measured."""
    found = {}
    for name in METRICS:
        values = np.full((setting.count, 2 + len(rows)), np.nan)
        known = [unedited[name], constant.get(name, np.full(len(measured_on), np.nan)), *(row.values[name] for row in rows)]
        values[measured_on.start : measured_on.stop] = np.stack(known, axis=1)
        found[name] = values
    return found
