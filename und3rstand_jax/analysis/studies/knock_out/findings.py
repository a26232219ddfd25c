"""What the study of knock-outs says: tables of the sets with their controls, and findings."""

from collections.abc import Sequence

import numpy as np

from und3rstand_jax.analysis.ablations import By
from und3rstand_jax.analysis.pair_measures import DIRECTION, MATCHES, ROTATION, VIEW1, VIEW2
from und3rstand_jax.analysis.steps import kind_of, kinds_of, words_of
from und3rstand_jax.analysis.studies.knock_out import sets
from und3rstand_jax.analysis.studies.knock_out.curves import ByPair, Curve, curve_of, effect_on, excess_of, named, told_k, ways
from und3rstand_jax.analysis.studies.knock_out.sweeps import Row
from und3rstand_jax.analysis.studies.study import Mean, Table, mean_of, plus_minus, share_text
from und3rstand_jax.model.config import ModelConfig

CLEAR = 2.0
"""An effect counts as clear if it is more than this many standard errors from 0."""

_COLUMNS = {
    VIEW1: "view 1's error",
    VIEW2: "view 2's error",
    MATCHES: "right matches",
    ROTATION: "rotation (°)",
    DIRECTION: "direction (°)",
}

_SHAPES = {"shape1": "view 1's shape", "shape2": "view 2's shape"}

_NAMES = {
    sets.MATCH: "the k that look hardest at the true place",
    sets.SINK: "the k with the strongest sinks",
    sets.BOTTOM: "the k that look least at the true place",
}


def tables_of(unedited: ByPair, rows: Sequence[Row], constant: ByPair, config: ModelConfig) -> list[Table]:
    """Heads replaced by their mean, over k; all ways at one k; and the costliest sublayers and blocks, and cross-attention."""
    nothing = ("nothing", *(_text(metric, mean_of(unedited[metric])) for metric in _COLUMNS))
    of_constant = ("the model: a constant pointmap", *(plus_minus(mean_of(constant[view])) for view in (VIEW1, VIEW2)), "", "", "")
    heads = [nothing, of_constant]
    for kind in (sets.MATCH, sets.SINK):
        for k in curve_of(rows, kind, "mean", VIEW2).ks:
            heads += [_line(rows, kind, "mean", k), _line(rows, sets.RANDOM, "mean", k, kind)]
    heads += [_line(rows, sets.BOTTOM, "mean", k) for k in curve_of(rows, sets.BOTTOM, "mean", VIEW2).ks]
    tables = [Table("Heads, replaced by their mean", ("without", *_COLUMNS.values()), tuple(heads))]
    k = told_k(rows)
    told = []
    for by in ways(rows):
        for kind in (sets.MATCH, sets.SINK):
            for line in (_line(rows, kind, by, k), _line(rows, sets.RANDOM, by, k, kind)):
                told.append((by, *line))
    tables.append(Table(f"{k} heads in every way", ("by", "without", *_COLUMNS.values()), tuple(told)))
    columns = _COLUMNS | _SHAPES
    layers = [
        ("nothing", *(_text(metric, mean_of(unedited[metric])) for metric in columns)),
        (*of_constant, *("" for _ in _SHAPES)),
    ]
    for kind, most in ((sets.SUBLAYER, 6), (sets.BLOCK, 4), (sets.BETWEEN, 3)):
        chosen = [row for row in rows if row.taken.kind == kind]
        if kind != sets.BETWEEN:
            chosen.sort(key=lambda row: -effect_on(row).mean)
        layers += [(row.taken.name, *(_text(metric, mean_of(row.values[metric])) for metric in columns)) for row in chosen[:most]]
    return [
        *tables,
        Table(
            f"Sublayers and blocks that cost view 2 most, and {sets.between_words(config)}", ("without", *columns.values()), tuple(layers)
        ),
    ]


def _line(rows: Sequence[Row], kind: str, by: By, k: int, of: str | None = None) -> tuple[str, ...]:
    curves = {metric: curve_of(rows, kind, by, metric, of) for metric in _COLUMNS}
    place = curves[VIEW2].at(k)
    count = curves[VIEW2].draws[place]
    name = f"{k} random in place of these, {draws_text(count)}" if kind == sets.RANDOM else _NAMES[kind].replace("k", str(k), 1)
    return name, *(_text(metric, curve.values[place]) for metric, curve in curves.items())


def _text(metric: str, mean: Mean) -> str:
    if metric == MATCHES:
        return share_text(mean)
    return plus_minus(mean, 1 if metric in (ROTATION, DIRECTION) else 3)


def draws_text(count: int) -> str:
    """1 draw, 5 draws."""
    return f"{count} draw{'s' if count > 1 else ''}"


def findings_of(unedited: ByPair, rows: Sequence[Row], constant: ByPair, config: ModelConfig) -> list[str]:
    """What the numbers say, in sentences that quote them."""
    found = [_of_heads(unedited, rows, sets.MATCH), _of_matches(unedited, rows), _of_heads(unedited, rows, sets.SINK)]
    found.append(_of_ways(rows))
    worse = _worse_than_constant(rows, constant)
    return [*found, *worse, *_of_layers(rows, config), *_of_between(unedited, rows, constant, config)]


def _goes(before: Mean, after: Mean, effect: Mean) -> str:
    """Rises or falls from A to B; or, where that is not clear, goes from A to B."""
    numbers = f"from {plus_minus(before)} to {plus_minus(after)}"
    if not abs(effect.mean) > CLEAR * effect.error:
        return f"goes {numbers}, a change of {plus_minus(effect)}, which is within {CLEAR:.0f} standard errors of none"
    return f"{'rises' if effect.mean > 0 else 'falls'} {numbers} ({_change(effect)})"


def _random_text(curve: Curve, place: int) -> str:
    spread = f", from {curve.lowest[place]:.3f} to {curve.highest[place]:.3f}" if curve.draws[place] > 1 else ""
    return f"{plus_minus(curve.values[place])} (mean of {draws_text(curve.draws[place])}{spread})"


def _of_heads(unedited: ByPair, rows: Sequence[Row], kind: str) -> str:
    k = told_k(rows)
    own, others = curve_of(rows, kind, "mean", VIEW2), curve_of(rows, sets.RANDOM, "mean", VIEW2, kind)
    place = own.at(k)
    of = {sets.MATCH: f"the {k} heads that look hardest at the true place", sets.SINK: f"the {k} heads with the strongest sinks"}[kind]
    return (
        f"Without {of}, replaced by their mean, view 2's error {_goes(mean_of(unedited[VIEW2]), own.values[place], own.effects[place])}; "
        f"without {k} random heads of {_pool(rows, kind, k)} it is {_random_text(others, others.at(k))}, a difference of "
        f"{_change(excess_of(rows, kind, 'mean', VIEW2, k))}."
    )


def _pool(rows: Sequence[Row], of: str, k: int) -> str:
    pools = {row.taken.pool for row in rows if row.taken.kind == sets.RANDOM and (row.taken.of, row.taken.k) == (of, k)}
    return "the same blocks" if pools == {"same blocks"} else "all blocks"


def _of_matches(unedited: ByPair, rows: Sequence[Row]) -> str:
    k = told_k(rows)
    parts = []
    for metric, name, unit in ((MATCHES, "the share of right matches", ""), (ROTATION, "the error of the rotation", " degrees")):
        own, others = curve_of(rows, sets.MATCH, "mean", metric), curve_of(rows, sets.RANDOM, "mean", metric, sets.MATCH)
        before, after, random = mean_of(unedited[metric]), own.values[own.at(k)], others.values[others.at(k)]
        parts.append(
            f"{name} goes from {_text(metric, before)} to {_text(metric, after)}{unit}, without random ones to {_text(metric, random)}"
        )
    return f"Without the same {k} heads that look hardest at the true place, {'; '.join(parts)}."


def _of_ways(rows: Sequence[Row]) -> str:
    k = told_k(rows)
    parts = []
    for by in ways(rows):
        own, others = curve_of(rows, sets.MATCH, by, VIEW2), curve_of(rows, sets.RANDOM, by, VIEW2, sets.MATCH)
        sinks = curve_of(rows, sets.SINK, by, VIEW2)
        effects = [curve.effects[curve.at(k)] for curve in (own, others, sinks)]
        parts.append(f"by {by} " + ", ".join(f"{effect.mean:+.3f} ± {effect.error:.3f}" for effect in effects))
    return (
        f"Change of view 2's error without the {k} heads that look hardest at the true place, without as many random ones, and without {k} "
        f"sinks: {'; '.join(parts)}."
    )


def _worse_than_constant(rows: Sequence[Row], constant: ByPair) -> list[str]:
    limit = mean_of(constant[VIEW2])
    if np.isnan(limit.mean):
        return []
    own = sorted((row for row in rows if row.taken.kind == sets.MATCH and row.by == "mean"), key=lambda row: row.taken.k or 0)
    beyond = [mean_of(row.values[VIEW2] - constant[VIEW2]) for row in own]
    place = next((place for place, difference in enumerate(beyond) if difference.mean > 0), len(own) - 1)
    value, difference, k = plus_minus(mean_of(own[place].values[VIEW2])), beyond[place], own[place].taken.k
    clear = "" if abs(difference.mean) > CLEAR * difference.error else f", which is within {CLEAR:.0f} standard errors of none"
    return [
        f"Without {k} of the heads that look hardest at the true place view 2's error is {value}, and a constant pointmap's "
        f"{plus_minus(limit)}: a difference of {_change(difference)}{clear}."
    ]


def _of_layers(rows: Sequence[Row], config: ModelConfig) -> list[str]:
    found = []
    sublayers = [row for row in rows if row.taken.kind == sets.SUBLAYER]
    ordered = sorted(sublayers, key=lambda row: -effect_on(row).mean)
    costliest, least = ordered[0], ordered[-1]
    of_steps = {
        kind: [row.effects[VIEW2] for row in sublayers if kind_of(row.taken.name, config) == kind] for kind in kinds_of(config).steps
    }
    steps = ", ".join(f"{_subject(step)} {_change(mean_of(np.mean(effects, axis=0)))}" for step, effects in of_steps.items())
    found.append(
        f"Of single sublayers, left out in both views, {costliest.taken.name} costs view 2 most: {_change(effect_on(costliest))}; "
        f"{least.taken.name} least: {_change(effect_on(least))}. The mean over blocks: {steps}."
    )
    blocks = sorted((row for row in rows if row.taken.kind == sets.BLOCK), key=lambda row: -effect_on(row).mean)
    found.append(
        f"Of whole blocks, {blocks[0].taken.name} costs view 2 most: {_change(effect_on(blocks[0]))}; {blocks[-1].taken.name} least: "
        f"{_change(effect_on(blocks[-1]))}."
    )
    return found


def _subject(kind: str) -> str:
    """A kind of step in words, as in a sentence."""
    words = words_of(kind)
    return f"the {words}" if words.endswith("MLP") else words


def _change(effect: Mean) -> str:
    return f"{effect.mean:+.3f} ± {effect.error:.3f}"


def _of_between(unedited: ByPair, rows: Sequence[Row], constant: ByPair, config: ModelConfig) -> list[str]:
    both, *one = [row for row in rows if row.taken.kind == sets.BETWEEN][:3]
    before = [plus_minus(mean_of(unedited[view])) for view in (VIEW1, VIEW2)]
    after = [[plus_minus(mean_of(row.values[view])) for view in (VIEW1, VIEW2)] for row in (both, *one)]
    against = plus_minus(mean_of(constant[VIEW2]))

    between = sets.between_words(config)

    def shape(values: ByPair) -> str:
        return plus_minus(mean_of(values["shape1"]))

    found = [
        f"Without any attention between the views, view 1's error is {after[0][0]} (with it {before[0]}) and view 2's {after[0][1]} (with "
        f"it {before[1]}; a constant pointmap's {against}). Without view 1's alone they are {after[1][0]} and {after[1][1]}, without "
        f"view 2's alone {after[2][0]} and {after[2][1]}.",
        f"Both views share one unit, so that a misplaced view 2 raises view 1's error too; view 1's shape error, by itself, is "
        f"{shape(unedited)} with all, {shape(both.values)} without any, {shape(one[0].values)} without view 1's {between} and "
        f"{shape(one[1].values)} without view 2's.",
    ]
    depth = sum(row.taken.kind == sets.BLOCK for row in rows)
    # Going to later and later blocks, the first whose loss is not clear.
    for block in range(1, depth):
        effect = effect_on(named(rows, sets.from_on(block, config)))
        if not effect.mean > CLEAR * effect.error:
            found.append(
                f"Without {sets.from_on(block, config)} view 2's error changes by {_change(effect)}: no loss that is clear of "
                f"{CLEAR:.0f} standard errors."
            )
            break
    return found
