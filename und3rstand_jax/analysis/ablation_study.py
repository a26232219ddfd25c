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
    """What is to be taken away, and how.

    Attributes:
        sites: patterns of heads, updates and layers, each place of which is a row; "" for none.
        by: ways to take them away.
        sets: patterns; all places of one go together.
        top: if not 0, one more set: so many of the sites' cross-attention heads, those that look hardest at the true place.
        random_sets: controls of each set.
        like: patterns to draw those from; "" for the heads of the set's own blocks.
        measure: by the model's head, or by the probes behind an edit.
        noise: factor of the noise's standard deviation.
        attribute: whether to hold the first-order estimates of the places against what the sweep finds by zero.
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
    """Of one metric over pairs: its mean without the edit and with it, and the mean of the differences with its standard error.

    Pairs in which the metric is not known, with or without the edit, are left out; `pairs` counts the others.
    """

    unedited: float
    edited: float
    effect: float
    error: float
    pairs: int


class Row(NamedTuple):
    """One ablation in one way; `values` has every metric of every pair."""

    ablation: Ablation
    by: By
    values: dict[str, Float[np.ndarray, " S"]]


class Estimate(NamedTuple):
    """First-order estimates of knocking out every place, means over pairs, and their Spearman correlation with the sweep's effects."""

    metric: str
    by_place: dict[str, float]
    spearman: float


@dataclasses.dataclass(frozen=True)
class AblationStudy:
    """Everything that was measured.

    Attributes:
        question: what was asked.
        unedited: every metric of every pair.
        rows: by way, in the order of the places, then sets, each with its controls behind it.
        on_true_place: share of attention of each cross-attention head on the true place, where heads were ranked by it.
        estimates: of every view's error, where attribution was asked for.
    """

    question: Question
    unedited: dict[str, Float[np.ndarray, " S"]]
    rows: tuple[Row, ...]
    on_true_place: dict[str, float]
    estimates: tuple[Estimate, ...]

    @property
    def views(self) -> int:
        """How many a set has."""
        return max(int(found[1]) for metric in self.unedited if (found := re.fullmatch(r"(?:.*/)?view(\d+)", metric)))

    def effect(self, row: Row, metric: str) -> Effect:
        """Of one row on one metric."""
        return effect_of(self.unedited[metric], row.values[metric])


def effect_of(unedited: Float[np.ndarray, " S"], edited: Float[np.ndarray, " S"]) -> Effect:
    """The difference that an edit makes, pair by pair."""
    # An infinite error is one, and stays in: leaving out the worst pairs would make every edit look better.
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
    """Takes away what is asked for, and measures what is left.

    Args:
        backbone: the model.
        probes: on its layers; needed to measure by probes.
        pairs: held-out pairs, or sets of more views.
        question: what to take away.
        batch_size: most pairs in one pass.
        pieces: where finished parts are kept, so that an interrupted study goes on.
        progress: whether a terminal shows progress bars.

    Raises:
        LayerError, EditError: a pattern matches nothing, or what cannot be taken away.
        CheckpointError: the backbone has no head, or there are no probes, to measure by.
        OptionError: nothing is to be taken away, or a control has too few heads to draw from.
    """
    by_probes = question.measure == "probes"
    if by_probes and probes is None:
        raise CheckpointError("this checkpoint has no probes to measure by; give one with probes, or measure by the head")
    if not by_probes and not backbone.config.heads:
        raise CheckpointError("this backbone has no head to measure by; measure by its probes")
    if "resample" in question.by and len(pairs.truths) < 2:
        raise OptionError("resampling takes values from another pair, and there is only one")
    if question.attribute and ("zero" not in question.by or by_probes):
        raise OptionError("attribution is held against the sweep by zero, measured by the head")
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
    # Layers before an edit are as they were.
    rows = tuple(
        Row(ablation, by, unedited | values)
        for (by, ablation), values in zip(((by, ablation) for by in question.by for ablation in ablations), measured[1:], strict=True)
    )
    estimates = _estimates(backbone, pairs, places, unedited, rows, batch_size, progress) if question.attribute else ()
    return AblationStudy(question, unedited, rows, on_true_place, estimates)


class MadeEdits(Sequence[Edits]):
    """Edits that are made when they are asked for: those of resampling hold the values of all pairs, each in a copy of its own."""

    def __init__(self, makers: Sequence[Callable[[], Edits]]) -> None:
        self._makers = makers

    def __len__(self) -> int:
        return len(self._makers)

    def __getitem__(self, index: Any) -> Any:
        return self._makers[index]()


def _sets(
    question: Question, places: Sequence[Place], on_true_place: Mapping[str, float], config: ModelConfig, views: int
) -> list[Ablation]:
    """The sets that go together, each with its controls behind it."""
    asked = [Ablation(pattern, "set", places_of(pattern, config, views)) for pattern in dict.fromkeys(question.sets)]
    if question.top:
        heads = [place for place in places if str(place) in on_true_place]
        if len(heads) < question.top:
            raise OptionError(
                f"--top {question.top}: the sites have {len(heads)} heads of cross-attention; give more sites or a smaller number"
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
    """The sites of all sets that are compared with one another: mentioned by each, they make one program of all."""
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
