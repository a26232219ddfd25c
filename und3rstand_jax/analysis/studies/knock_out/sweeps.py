"""How the study of knock-outs is measured: up to three sweeps; within each, every set mentions the same sites.

zero, mean, sublayers ─▶ one sweep over the pairs ─────────────────────────┐
resampling ─▶ values of another pair, a few pairs at once ─▶ a sweep ──────┼─▶ error of all pairs, matches and pose of some
keys of the other view blocked, where a model reads both ─▶ a sweep ───────┘
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from und3rstand_jax.analysis.ablation_study import MadeEdits
from und3rstand_jax.analysis.ablations import Ablation, By, SiteView, Values, edits_of, replacements
from und3rstand_jax.analysis.attention_keys import keys_of
from und3rstand_jax.analysis.pair_measures import MEANING, HeadFinish, HeadMeasure, PairTruth
from und3rstand_jax.analysis.studies.knock_out.sets import BLOCKED, Taken, Way, ways_of
from und3rstand_jax.analysis.studies.study import Setting, other_pair, over_pairs
from und3rstand_jax.analysis.sweep import Finish, sweep
from und3rstand_jax.geometry.alignment import Alignment, shape_errors
from und3rstand_jax.model.config import ModelConfig
from und3rstand_jax.model.edits import Edits
from und3rstand_jax.model.output import BackboneOutput
from und3rstand_jax.model.sites import HEADS, SCORES, UPDATE, parse_site

NOTHING = Ablation("nothing", "set", ())

METRICS = {
    **MEANING,
    "shape1": "error of view 1 laid over its true points by a similarity of its own, in the same unit: view 2's place does not matter",
    "shape2": "the same of view 2: its shape, wherever it is placed",
}
"""What every number that is kept means."""

SHAPES = ("shape1", "shape2")

LEAST_POSED = 12

_AT_ONCE = 2**29  # bytes of other pairs' values

_VIEWS: tuple[Literal[1, 2], ...] = (1, 2)


class Row(NamedTuple):
    """One set taken away in one way: every metric of every measured pair, and its difference from the unedited run of the same program."""

    taken: Taken
    by: Way
    values: Mapping[str, Float[np.ndarray, " S"]]
    effects: Mapping[str, Float[np.ndarray, " S"]]


@dataclasses.dataclass(frozen=True)
class MeasureWithShapes:
    """What `HeadMeasure` measures, and the shape error of each view on its own."""

    alignment: Alignment

    def __call__(self, output: BackboneOutput, truth: PairTruth, shared: Any) -> dict[str, Array]:
        """Arrays for `SomePoses`."""
        shapes = shape_errors(output.pointmaps, truth.truth, jnp.asarray(truth.unit))
        return {**HeadMeasure(self.alignment)(output, truth, shared), **dict(zip(SHAPES, shapes, strict=True))}


@dataclasses.dataclass(frozen=True)
class SomePoses:
    """`HeadFinish`'s numbers for some pairs; for the others, only the errors, since matches and pose take longer than the model.

    Attributes:
        finish: for all pairs.
        posed: numbers of the pairs whose matches and pose are found; both are NaN for the others.
    """

    finish: Finish
    posed: range

    def __call__(self, measured: Mapping[str, np.ndarray], pairs: Sequence[int]) -> dict[str, np.ndarray]:
        """The numbers of each example; `pairs` says which pair it is of."""
        chosen = [index for index, number in enumerate(pairs) if number in self.posed]
        finished = self.finish({name: values[chosen] for name, values in measured.items()}, [pairs[index] for index in chosen])
        found = {}
        for name, values in finished.items():
            found[name] = np.asarray(measured[name], np.float64) if name in measured else np.full(len(pairs), np.nan)
            found[name][chosen] = values
        return found | {name: np.asarray(measured[name], np.float64) for name in SHAPES}


def posed(measured: int) -> int:
    """For how many of the measured pairs matches and pose are found: a third of them, but at least 12 if there are as many."""
    return min(measured, max(LEAST_POSED, measured // 3))


def measure(setting: Setting, numbers: range, taken: Sequence[Taken]) -> tuple[dict[str, Float[np.ndarray, " S"]], list[Row]]:
    """Every metric of the unedited run, and of every set in every way it is taken away, on some of the pairs.

    Args:
        setting: with all pairs: the values that replace a pair's come from other pairs, measured or not.
        numbers: of the pairs that are measured.
        taken: the sets.
    """
    blocked = [one for one in taken if one.is_blocked]
    asked = [(one, by) for one in taken if not one.is_blocked for by in ways_of(one, setting.count > 1)]
    plain = [(one, by) for one, by in asked if by != "resample"]
    resampled = [(one, by) for one, by in asked if by == "resample"]
    unedited, *rest = _sweep_plain(setting, numbers, plain)
    found: dict[tuple[str, Way], Row] = {
        (one.name, by): _row(one, by, values, unedited) for (one, by), values in zip(plain, rest, strict=True)
    }
    if resampled:
        own, *rest = _sweep_resampled(setting, numbers, [one for one, _ in resampled])
        found |= {(one.name, by): _row(one, by, values, own) for (one, by), values in zip(resampled, rest, strict=True)}
    rows = [found[one.name, by] for one, by in asked]
    if blocked:
        own, *rest = _sweep_blocked(setting, numbers, blocked)
        rows += [_row(one, BLOCKED, values, own) for one, values in zip(blocked, rest, strict=True)]
    return unedited, rows


def _row(taken: Taken, by: Way, values: Mapping[str, np.ndarray], unedited: Mapping[str, np.ndarray]) -> Row:
    with np.errstate(invalid="ignore"):  # the difference of two infinite errors is NaN
        return Row(taken, by, values, {name: values[name] - unedited[name] for name in METRICS})


def _sweep_plain(setting: Setting, numbers: range, asked: Sequence[tuple[Taken, By]]) -> list[dict[str, np.ndarray]]:
    """The unedited run, then the sets by zero and by mean: one program, since zero is a replacement too."""
    config, pairs = setting.backbone.config, setting.pairs
    heads, updates = _head_sites(config), _update_sites(config)
    zero = {place: np.zeros(_shape_of_one(place, setting), np.float32) for place in (*heads, *updates)}
    together = resampled_at_once(setting)
    mean = zero | dict(replacements(setting.backbone, pairs.views, heads, "mean", together, 1.0, setting.seed, setting.progress))
    values: Mapping[str, Values] = {"zero": zero, "mean": mean}
    sites = (*heads, *updates)
    made = [functools.partial(edits_of, NOTHING, sites, "mean", zero, config)]
    made += [functools.partial(edits_of, one.ablation, sites, "mean", values[by], config) for one, by in asked]
    return _swept(setting, numbers, made)


def _sweep_blocked(setting: Setting, numbers: range, asked: Sequence[Taken]) -> list[dict[str, np.ndarray]]:
    """The unedited run, then the sets in which a view's queries do not see the other view's tokens."""
    config, grids = setting.backbone.config, setting.grids
    sites: tuple[SiteView, ...] = tuple((f"{block.across}.{SCORES}", view) for block in config.blocks for view in _VIEWS)
    values: dict[SiteView, np.ndarray] = {}
    for site, view in sites:
        keys = keys_of(config, parse_site(site).layer_id, grids, view - 1)
        shift = np.full((1, 1, 1, len(keys.is_special)), -np.inf, np.float32)
        own = keys.patches[view - 1]
        shift[..., own.start - keys.special : own.stop] = 0.0
        values[site, view] = shift
    return _swept(
        setting,
        numbers,
        [functools.partial(edits_of, one, sites, "zero", values, config) for one in (NOTHING, *(one.ablation for one in asked))],
    )


def _swept(setting: Setting, numbers: range, made: Sequence[Callable[[], Edits]]) -> list[dict[str, np.ndarray]]:
    measured = setting.pairs.some(numbers)
    return sweep(
        setting.backbone,
        measured.views,
        MadeEdits(made),
        MeasureWithShapes(setting.alignment),
        measured.truth,
        finish=SomePoses(HeadFinish(measured.truths), range(posed(len(numbers)))),
        batch_size=setting.batch_size,
        pieces=setting.pieces,
        progress=setting.progress,
    )


def _sweep_resampled(setting: Setting, numbers: range, asked: Sequence[Taken]) -> list[dict[str, np.ndarray]]:
    """The unedited run, then the sets by resampling; only a few pairs' values are in memory at once."""
    backbone, config = setting.backbone, setting.backbone.config
    sites = _head_sites(config)
    names = tuple(dict.fromkeys(site for site, _ in sites))
    measured = dataclasses.replace(setting, pairs=setting.pairs.some(numbers), progress=setting.progress)

    def compute(some: range) -> dict[str, np.ndarray]:
        chunk = measured.pairs.some(some)
        others = setting.pairs.some([other_pair(numbers[number], setting.count) for number in some])
        output = backbone(*others.views, capture=names, head=False)
        values = {(site, view): np.asarray(output[site][view - 1], np.float32) for site, view in sites}
        of_posed = range(max(0, min(len(some), posed(len(numbers)) - some.start)))
        found = sweep(
            backbone,
            chunk.views,
            MadeEdits(
                [
                    functools.partial(edits_of, ablation, sites, "resample", values, config)
                    for ablation in (NOTHING, *(one.ablation for one in asked))
                ]
            ),
            MeasureWithShapes(setting.alignment),
            chunk.truth,
            finish=SomePoses(HeadFinish(chunk.truths), of_posed),
            batch_size=resampled_at_once(setting),
        )
        return {name: np.stack([result[name] for result in found], axis=1) for name in METRICS}

    together = over_pairs(measured, "resampling", compute, resampled_at_once(setting), str([one.places for one in asked]))
    return [{name: values[:, index] for name, values in together.items()} for index in range(1 + len(asked))]


def resampled_at_once(setting: Setting) -> int:
    """How many pairs, and how many passes in a batch, resampling takes at once."""
    return max(1, min(setting.batch_size, _AT_ONCE // bytes_of_values(setting)))


def bytes_of_values(setting: Setting) -> int:
    """Bytes of the outputs of all heads of the blocks, in both views of one pair."""
    config = setting.backbone.config
    tokens = sum(config.token_count(config.embed, grid) for grid in setting.grids)
    return 4 * tokens * config.block_width * 2 * len(config.blocks)


def _head_sites(config: ModelConfig) -> tuple[SiteView, ...]:
    return tuple((f"{step}.{HEADS}", view) for block in config.blocks for step in (block.own, block.across) for view in _VIEWS)


def _update_sites(config: ModelConfig) -> tuple[SiteView, ...]:
    return tuple((f"{step}.{UPDATE}", view) for block in config.blocks for step in block.steps for view in _VIEWS)


def _shape_of_one(place: SiteView, setting: Setting) -> tuple[int, ...]:
    """The shape of a site's values, as `replacements` gives them by mean: one token's or, where some are special, every token's."""
    config, (site, view) = setting.backbone.config, place
    layer, width, heads = parse_site(site).layer_id, config.block_width, config.block_heads
    if not site.endswith(f".{HEADS}"):
        return 1, 1, width  # updates are set to zero alone
    tokens = config.token_count(layer, setting.grids[view - 1]) if config.special_tokens(layer) else 1
    return 1, tokens, heads, width // heads
