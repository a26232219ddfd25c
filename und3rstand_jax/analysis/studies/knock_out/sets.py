"""What the study of knock-outs takes away: heads ranked by what they look at, random heads as controls, sublayers and blocks.

    statistics of heads (`heads`) ─▶ ranking ─▶ the first k, the last k, k random others of the same blocks
    blocks ──▶ each sublayer, each block, the attention between the views

Whole layers are left out as in arXiv 2509.07120; the heads are those of arXiv 2512.11508 and 2510.24907.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float

from und3rstand_jax.analysis.ablations import Ablation, By, Place, controls, heads_of_same_blocks
from und3rstand_jax.analysis.steps import block_words, kinds_of, steps_of, words_of
from und3rstand_jax.model.config import ModelConfig
from und3rstand_jax.model.sites import HEADS, SCORES, UPDATE, parse_site

MATCH, SINK, RANDOM, BOTTOM = "match", "sink", "random", "bottom"
SUBLAYER, BLOCK, BETWEEN = "sublayer", "block", "between_views"

BLOCKED: Literal["blocked"] = "blocked"
"""In place of a way: how attention to the other view is taken away where its update cannot be separated from the rest."""

Way: TypeAlias = By | Literal["blocked"]

WAYS: tuple[By, ...] = ("zero", "mean", "resample")

DRAWS: Mapping[By, int] = {"mean": 5, "zero": 1, "resample": 1}
"""How many random controls a set has in each way; the other ways use the first of those by mean. More would take most of the time."""

_BOTH: tuple[Literal[1, 2], ...] = (1, 2)
_TRIES = 8

Ranking: TypeAlias = tuple[Place, ...]


def meaning_of(config: ModelConfig) -> dict[str, str]:
    """What every kind of set is."""
    kinds = kinds_of(config)
    across, own = words_of(kinds.across), words_of(kinds.own)
    both = f"{across.removesuffix('attention')} and {own}" if across.endswith("-attention") else f"{across} and {own}"
    between = f"what {across} adds to the stream, through which alone the views hear of one another"
    if blocks_scores(config):
        between = (
            f"what {across} reads of the other view's tokens, special ones too: the keys are blocked, and its weights go to the view's own"
        )
    return {
        MATCH: f"the k {across} heads of both views that look hardest at the true place: by the mean of mass - mass_other",
        SINK: f"the k heads, of {both} of both views, whose strongest key takes most of their attention",
        RANDOM: "control: k heads drawn by chance from the blocks, attentions and views of such a set, without its own",
        BOTTOM: f"control: the k {across} heads that look least at the true place",
        SUBLAYER: "what one sublayer adds to the stream, in both views at once",
        BLOCK: f"what a whole {block_words(config)} adds to the stream, in both views at once",
        BETWEEN: between,
    }


def blocks_scores(config: ModelConfig) -> bool:
    """Whether the views are kept apart by blocking keys: true if the attention between them reads a view's own tokens too."""
    return any(config.reads(block.across) == "all" for block in config.blocks)


class Rankings(NamedTuple):
    """Heads, strongest first."""

    match: Ranking
    sink: Ranking


@dataclasses.dataclass(frozen=True)
class Taken:
    """Some places that are taken away together.

    Attributes:
        kind: one of the names in `meaning_of`.
        name: to read, and unique to this set.
        places: what is taken away.
        k: how many heads; None for sublayers.
        of: for a control, the kind of set that it is a control of.
        draw: for a random control, its number from 1.
        pool: for a random control, what it was drawn from: "same blocks", or "all blocks" where those have too few other heads.
    """

    kind: str
    name: str
    places: tuple[Place, ...]
    k: int | None = None
    of: str | None = None
    draw: int | None = None
    pool: str | None = None

    @property
    def view(self) -> str:
        """In whose pass: "1", "2" or "both"."""
        views = {place.view for place in self.places}
        return str(*views) if len(views) == 1 else "both"

    @property
    def is_blocked(self) -> bool:
        """Whether keys are blocked, rather than values taken away."""
        return any(parse_site(place.site).part == SCORES for place in self.places)

    @property
    def ablation(self) -> Ablation:
        """The set as `edits_of` takes it."""
        return Ablation(self.name, "set", self.places)


def rankings(by_pair: Mapping[str, Float[np.ndarray, "S 2 blocks heads"]], pairs: range, config: ModelConfig) -> Rankings:
    """From the means of `measure_heads` over some pairs; heads without a value come last, and ties go by block, view and head.

    Args:
        by_pair: from `measure_heads`, for every pair.
        pairs: the ones to use.
        config: of the backbone.
    """
    kinds, some = kinds_of(config), slice(pairs.start, pairs.stop)
    excess = by_pair[f"{kinds.across}/mass"] - by_pair[f"{kinds.across}/mass_other"]
    match = _scores(steps_of(kinds.across, config), excess[some])
    sink: dict[Place, float] = {}
    for kind in kinds.attentions:
        sink |= _scores(steps_of(kind, config), by_pair[f"{kind}/sink"][some])
    return Rankings(_ranked(match), _ranked(sink))


def _ranked(scores: Mapping[Place, float]) -> Ranking:
    return tuple(sorted(scores, key=lambda place: -scores[place]))


def _scores(steps: Sequence[str], values: Float[np.ndarray, "S 2 blocks heads"]) -> dict[Place, float]:
    known = ~np.isnan(values)
    means = np.where(known, values, 0.0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    means = np.where(known.any(axis=0), means, -np.inf)
    _, blocks, heads = means.shape
    return {
        Place(f"{steps[block]}.{HEADS}", view, head): float(means[view - 1, block, head])
        for block in range(blocks)
        for view in _BOTH
        for head in range(heads)
    }


def counts_of(config: ModelConfig) -> tuple[int, ...]:
    """1, 2, 4, … up to a quarter of both views' heads between the views, so that at least as many others are left for a control."""
    most = max(1, len(config.blocks) * config.block_heads // 2)
    return tuple(2**power for power in range(most.bit_length()) if 2**power <= most)


def head_sets(ranking: Rankings, config: ModelConfig, seed: int) -> list[Taken]:
    """The first k of both rankings with random controls, and the last k by match."""
    found = []
    for kind, ranked in ((MATCH, ranking.match), (SINK, ranking.sink)):
        for number, k in enumerate(counts_of(config)):
            own = Taken(kind, f"{kind} {k}", ranked[:k], k)
            found += [own, *_controls(own, ranked, config, seed + 100 * number + (kind == SINK))]
    return found + [Taken(BOTTOM, f"{BOTTOM} {k}", ranking.match[-k:], k, MATCH) for k in counts_of(config)]


def _controls(of: Taken, everywhere: Sequence[Place], config: ModelConfig, seed: int) -> list[Taken]:
    """As many different controls as `DRAWS` asks for, or fewer if there are not enough."""
    k = len(of.places)
    pool, drawn_from = heads_of_same_blocks(of.places, config), "same blocks"
    if len(set(pool) - set(of.places)) < k:
        pool, drawn_from = tuple(everywhere), "all blocks"
    most = max(DRAWS.values())
    different = dict.fromkeys(control.places for control in controls(of.ablation, pool, _TRIES * most, seed))
    return [
        Taken(RANDOM, f"{RANDOM} {of.name} draw {draw}", places, k, of.kind, draw, drawn_from)
        for draw, places in enumerate(list(different)[:most], start=1)
    ]


def layer_sets(config: ModelConfig) -> list[Taken]:
    """Every sublayer, every block, and attention between the views: all of it, one view's, up to each block and from each block on."""
    blocks, part = config.blocks, SCORES if blocks_scores(config) else UPDATE
    across, words = [block.across for block in blocks], between_words(config)
    found = [Taken(SUBLAYER, step, _places([step])) for block in blocks for step in block.steps]
    found += [Taken(BLOCK, block.name, _places(block.steps)) for block in blocks]
    found += [
        Taken(BETWEEN, f"all {words}", _places(across, part)),
        *(Taken(BETWEEN, f"{words} of view {view}", _places(across, part, (view,))) for view in _BOTH),
    ]
    for number in range(1, len(blocks)):
        found.append(Taken(BETWEEN, up_to(number, config), _places(across[:number], part)))
        found.append(Taken(BETWEEN, from_on(number, config), _places(across[number:], part)))
    return found


def between_words(config: ModelConfig) -> str:
    """What is taken away between the views, in words."""
    words = words_of(kinds_of(config).across)
    return f"{words} to the other view" if blocks_scores(config) else words


def up_to(block: int, config: ModelConfig) -> str:
    """The name of the set of all attention between the views before a block."""
    return f"{between_words(config)} before block {block}"


def from_on(block: int, config: ModelConfig) -> str:
    """The name of the set of all attention between the views from a block on."""
    return f"{between_words(config)} from block {block} on"


def _places(steps: Sequence[str], part: str = UPDATE, views: tuple[Literal[1, 2], ...] = _BOTH) -> tuple[Place, ...]:
    return tuple(Place(f"{step}.{part}", view, None) for step in steps for view in views)


def ways_of(taken: Taken, resampling: bool) -> tuple[By, ...]:
    """The ways in which a set is taken away: sublayers by zero, the last k by mean, controls as `DRAWS` says, the first k in all ways."""
    if taken.k is None:
        return ("zero",)
    if taken.kind == BOTTOM:
        return ("mean",)
    return tuple(by for by in WAYS if (taken.draw or 0) <= DRAWS[by] and (by != "resample" or resampling))
