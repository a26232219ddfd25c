"""What a model loses without each of its heads and sublayers: a sweep over held-out pairs, against the unedited run and random controls.

places, sets, controls ─▶ edits, for each way to take them away ─▶ sweep ─▶ effects: mean over pairs ± standard error
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Array, Float

from und3rstand_jax.analysis.ablations import (
    Ablation,
    By,
    Place,
    SiteView,
    controls,
    edits_of,
    heads_of_same_blocks,
    places_of,
    replacements,
)
from und3rstand_jax.analysis.attribution import attribution
from und3rstand_jax.analysis.pair_measures import HeadFinish, HeadMeasure, Pairs, PairTruth, ProbesMeasure, view_names
from und3rstand_jax.analysis.sweep import sweep
from und3rstand_jax.analysis.true_place_heads import true_place_shares
from und3rstand_jax.geometry.metrics import normalised_errors
from und3rstand_jax.model.backbone import Backbone
from und3rstand_jax.model.config import ModelConfig
from und3rstand_jax.model.edits import Edits
from und3rstand_jax.model.output import BackboneOutput
from und3rstand_jax.probes.probes import Probes
from und3rstand_jax.support.errors import CheckpointError, OptionError
from und3rstand_jax.support.pieces import Pieces


@dataclasses.dataclass(frozen=True)
class Question:
    """What to take away, and how.

    Attributes:
        sites: patterns of heads, updates and layers; each place that they match is one row. "" for none.
        by: ways to take them away.
        sets: patterns; all places that one matches are taken away together.
        top: if not 0, one more set: this many of the sites' cross-attention heads, those that look hardest at the true place.
        random_sets: how many random control sets each set has.
        like: patterns that the controls are drawn from; "" for the heads of the set's own blocks.
        measure: whether to measure with the model's head, or with the probes on the layers after an edit.
        noise: factor on the noise's standard deviation.
        attribute: whether to compare first-order estimates for the places with the sweep's effects of setting them to zero.
        seed: of noise and random sets.
    """

    sites: str = "decoder.*.cross_attn.heads"
    by: tuple[By, ...] = ("zero",)
    sets: tuple[str, ...] = ()
    top: int = 0
    random_sets: int = 0
    like: str = ""
    measure: Literal["head", "probes"] = "head"
    noise: float = 1.0
    attribute: bool = False
    seed: int = 0


class Effect(NamedTuple):
    """One metric over pairs: its mean without the edit and with it, and the mean of the differences with its standard error.

    Pairs in which the metric is NaN, with or without the edit, are left out; `pairs` counts the others.
    """

    unedited: float
    edited: float
    effect: float
    error: float
    pairs: int


class Row(NamedTuple):
    """One ablation in one way; `values` has every metric for every pair."""

    ablation: Ablation
    by: By
    values: dict[str, Float[np.ndarray, " S"]]


class Estimate(NamedTuple):
    """First-order estimates of knocking out each place, as means over pairs, and their Spearman correlation with the sweep's effects."""

    metric: str
    by_place: dict[str, float]
    spearman: float


@dataclasses.dataclass(frozen=True)
class AblationStudy:
    """Everything that was measured.

    Attributes:
        question: what was asked.
        unedited: every metric for every pair, without an edit.
        rows: way by way; within a way the places in order, then the sets, each followed by its controls.
        on_true_place: each cross-attention head's share of attention on the true place; empty unless heads were ranked by it.
        estimates: one for each view's error, if attribution was asked for.
    """

    question: Question
    unedited: dict[str, Float[np.ndarray, " S"]]
    rows: tuple[Row, ...]
    on_true_place: dict[str, float]
    estimates: tuple[Estimate, ...]

    @property
    def views(self) -> int:
        """The number of views in a set."""
        return max(int(found[1]) for metric in self.unedited if (found := re.fullmatch(r"(?:.*/)?view(\d+)", metric)))

    def effect(self, row: Row, metric: str) -> Effect:
        """The effect of one row on one metric."""
        return effect_of(self.unedited[metric], row.values[metric])


def effect_of(unedited: Float[np.ndarray, " S"], edited: Float[np.ndarray, " S"]) -> Effect:
    """The difference that an edit makes, pair by pair."""
    # An infinite error counts as an error: leaving out the worst pairs would make every edit look better.
    known = ~(np.isnan(unedited) | np.isnan(edited))
    before, after = unedited[known].astype(np.float64), edited[known].astype(np.float64)
    if not before.size:
        return Effect(math.nan, math.nan, math.nan, math.nan, 0)
    with np.errstate(invalid="ignore"):
        difference = after - before
        error = difference.std(ddof=1) / math.sqrt(difference.size) if difference.size > 1 else math.nan
    return Effect(float(before.mean()), float(after.mean()), float(difference.mean()), float(error), int(difference.size))


def ablation_study(
    backbone: Backbone,
    probes: Probes | None,
    pairs: Pairs,
    question: Question,
    batch_size: int = 64,
    pieces: Pieces | None = None,
    progress: bool = False,
) -> AblationStudy:
    """Takes away what the question asks for, and measures what is left.

    Args:
        backbone: the model.
        probes: on its layers; required for measuring with probes.
        pairs: held-out pairs, or sets of more views.
        question: what to take away.
        batch_size: most pairs in one pass.
        pieces: where finished parts are kept, so that an interrupted study can resume.
        progress: whether a terminal shows progress bars.

    Raises:
        LayerError, EditError: a pattern matches nothing, or something that cannot be taken away.
        CheckpointError: there is no head, or there are no probes, to measure with.
        OptionError: there is nothing to take away, only one pair to resample from, too few heads for `top` or a control, or an
            attribution without the sweep by zero and the head.
    """
    by_probes = question.measure == "probes"
    if by_probes and probes is None:
        raise CheckpointError("this checkpoint has no probes to measure with; give one that has probes, or measure with the head")
    if not by_probes and not backbone.config.heads:
        raise CheckpointError("this backbone has no head to measure with; measure with its probes")
    if "resample" in question.by and len(pairs.truths) < 2:
        raise OptionError("resampling takes values from another pair; expected two pairs or more, found one")
    if question.attribute and ("zero" not in question.by or by_probes):
        raise OptionError('attribution is compared with the sweep by zero, measured with the head; give by "zero" and measure "head"')
    places = places_of(question.sites, backbone.config, len(pairs.views))
    on_true_place = true_place_shares(backbone, pairs, progress) if question.top else {}
    sets = _sets(question, places, on_true_place, backbone.config, len(pairs.views))
    ablations = [*(Ablation(str(place), "place", (place,)) for place in places), *sets]
    if not ablations:
        raise OptionError("there is nothing to take away; give sites or sets")
    made: list[Callable[[], Edits]] = [Edits]
    for by in question.by:
        values = _values(backbone, pairs, ablations, by, batch_size, question, progress)
        for ablation in ablations:
            own = [(place.site, place.view) for place in ablation.places]
            mentioned = own if ablation.kind == "place" else [*own, *_mentioned(ablation, sets)]
            sites = tuple(dict.fromkeys(sorted(mentioned)))
            made.append(functools.partial(edits_of, ablation, sites, by, values, backbone.config))
    measured = sweep(
        backbone,
        pairs.views,
        MadeEdits(made),
        ProbesMeasure(probes.config) if by_probes and probes else HeadMeasure(),
        pairs.truth,
        probes.params if by_probes and probes else (),
        finish=None if by_probes else HeadFinish(pairs.truths),
        capture=probes.layer_ids if by_probes and probes else (),
        head=not by_probes,
        batch_size=batch_size,
        pieces=pieces,
        progress=progress,
    )
    unedited = measured[0]
    # Layers before an edit keep their unedited values.
    rows = tuple(
        Row(ablation, by, unedited | values)
        for (by, ablation), values in zip(((by, ablation) for by in question.by for ablation in ablations), measured[1:], strict=True)
    )
    estimates = _estimates(backbone, pairs, places, unedited, rows, batch_size, progress) if question.attribute else ()
    return AblationStudy(question, unedited, rows, on_true_place, estimates)


class MadeEdits(Sequence[Edits]):
    """Edits that are built on demand, since each edit by resampling has its own copy of all pairs' values."""

    def __init__(self, makers: Sequence[Callable[[], Edits]]) -> None:
        self._makers = makers

    def __len__(self) -> int:
        return len(self._makers)

    def __getitem__(self, index: Any) -> Any:
        return self._makers[index]()


def _sets(
    question: Question, places: Sequence[Place], on_true_place: Mapping[str, float], config: ModelConfig, views: int
) -> list[Ablation]:
    """The sets that are taken away together, each followed by its controls."""
    asked = [Ablation(pattern, "set", places_of(pattern, config, views)) for pattern in dict.fromkeys(question.sets)]
    if question.top:
        heads = [place for place in places if str(place) in on_true_place]
        if len(heads) < question.top:
            raise OptionError(
                f"--top {question.top}: the sites have only {len(heads)} cross-attention heads; give more sites or a smaller number"
            )
        hardest = sorted(heads, key=lambda place: -on_true_place[str(place)])[: question.top]
        asked.append(Ablation(f"the {question.top} heads that look hardest at the true place", "set", tuple(hardest)))
    found = []
    for number, of in enumerate(asked):
        found.append(of)
        if question.random_sets:
            pool = places_of(question.like, config, views) if question.like else heads_of_same_blocks(of.places, config)
            found += controls(of, pool, question.random_sets, question.seed + number)
    return found


def _mentioned(ablation: Ablation, sets: Sequence[Ablation]) -> list[SiteView]:
    """The sites of all sets that are compared with one another: since each set mentions them all, one program runs them all."""
    family = ablation.of or ablation.name
    return [(place.site, place.view) for other in sets if family in (other.name, other.of) for place in other.places]


def _values(
    backbone: Backbone, pairs: Pairs, ablations: Sequence[Ablation], by: By, batch_size: int, question: Question, progress: bool
) -> Mapping[SiteView, np.ndarray]:
    sites = tuple(dict.fromkeys((place.site, place.view) for ablation in ablations for place in ablation.places))
    return replacements(backbone, pairs.views, sites, by, batch_size, question.noise, question.seed, progress)


def _scalar(view: int, output: BackboneOutput, truth: PairTruth, _: Any) -> Float[Array, " B"]:
    return normalised_errors(output.pointmaps, truth.truth)[view]


def _estimates(
    backbone: Backbone,
    pairs: Pairs,
    places: Sequence[Place],
    unedited: Mapping[str, np.ndarray],
    rows: Sequence[Row],
    batch_size: int,
    progress: bool,
) -> tuple[Estimate, ...]:
    from scipy.stats import spearmanr

    found = []
    for view, metric in enumerate(view_names(len(pairs.views))):
        scalar = functools.partial(_scalar, view)
        by_pair = attribution(backbone, pairs.views, places, scalar, pairs.truth, batch_size=max(1, batch_size // 8), progress=progress)
        estimated = {name: float(values[~np.isnan(unedited[metric])].mean()) for name, values in by_pair.items()}
        swept = {row.ablation.name: effect_of(unedited[metric], row.values[metric]).effect for row in rows if row.by == "zero"}
        both = [(estimate, swept[name]) for name, estimate in estimated.items()]
        correlation = float(spearmanr(*zip(*both, strict=True)).statistic) if len(both) > 2 else math.nan
        found.append(Estimate(metric, estimated, correlation))
    return tuple(found)
