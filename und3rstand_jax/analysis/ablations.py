"""The edits of an ablation study: every head and sublayer in turn, sets of heads together, and random sets as their controls.

What is taken away is set to zero, replaced by its mean over data and tokens, replaced by its value in another pair (resampling, as in
Chan et al. 2022, "Causal scrubbing"), or has noise added. Zero alone is misleading where values have a large mean.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Bool, Float

from und3rstand_jax.model.backbone import Backbone
from und3rstand_jax.model.config import ModelConfig
from und3rstand_jax.model.edits import Edit, Edits
from und3rstand_jax.model.sites import HEADS, SCORES, WEIGHTS, parse_site, select_sites
from und3rstand_jax.model.start import token_grids
from und3rstand_jax.support.errors import EditError, OptionError
from und3rstand_jax.support.machine import free_memory
from und3rstand_jax.support.progress import progress_bar
from und3rstand_jax.support.text import listed, size_text

By: TypeAlias = Literal["zero", "mean", "resample", "noise"]

MEANINGS: dict[By, str] = {
    "zero": "set to zero",
    "mean": "replaced by its mean over all pairs and tokens, each channel's own",
    "resample": "replaced by what it is in another pair, half of them further on",
    "noise": "overlaid with normal noise, of each channel's standard deviation over pairs and tokens times a factor",
}


SiteView: TypeAlias = tuple[str, int]
"""A site, and the view whose pass it is in."""


class Place(NamedTuple):
    """One thing to take away: a head, or a sublayer or layer as a whole (`head` is None); in one view's pass."""

    site: str
    view: int
    head: int | None

    def __str__(self) -> str:
        return f"{self.site}{'' if self.head is None else f':{self.head}'}@{self.view}"


@dataclasses.dataclass(frozen=True)
class Ablation:
    """What one row of the study takes away.

    Attributes:
        name: its place's id, or the name of a set.
        kind: "place", "set", or "control": a random set of as many heads as the set `of`.
        places: the places that are taken away together.
        of: for a control, the name of its set.
    """

    name: str
    kind: Literal["place", "set", "control"]
    places: tuple[Place, ...]
    of: str | None = None


def places_of(patterns: str, config: ModelConfig, count: int = 2) -> tuple[Place, ...]:
    """The places that comma-separated patterns match, one for each head, in all `count` views unless a pattern ends in @1, @2, …

    Raises:
        LayerError: a pattern matches nothing.
        EditError: there is no such view, or a pattern matches scores or weights, which are blocked rather than taken away.
    """
    found = []
    for pattern in (part.strip() for part in patterns.split(",") if part.strip()):
        edit = Edit(pattern)
        views = edit.views(count)
        for site in select_sites(pattern.partition("@")[0], config):
            if site.part in (SCORES, WEIGHTS):
                raise EditError(f"{pattern!r}: expected layers, .update or .heads, which can be replaced; to block scores, use an edit")
            heads: Iterable[int | None] = (None,)
            if site.part == HEADS:
                heads = range(config.head_count(site.layer_id)) if site.heads is None else site.heads
            found += [Place(site.id, view, head) for head in heads for view in views]
    return tuple(dict.fromkeys(found))


def controls(of: Ablation, pool: Sequence[Place], draws: int, seed: int) -> list[Ablation]:
    """Random sets of as many heads as a set has, drawn from the pool without the set's own heads.

    Raises:
        OptionError: the pool is too small, or the pool or the set contains places other than heads.
    """
    if any(place.head is None for place in (*of.places, *pool)):
        raise OptionError(
            f"controls are random heads; {of.name} and what they are drawn from must be heads, such as decoder.3.cross_attn.heads"
        )
    others = [place for place in pool if place not in of.places]
    if len(others) < len(of.places):
        raise OptionError(
            f"a control of {of.name} needs {len(of.places)} other heads, and there are {len(others)} to draw from; "
            "give a larger --like, or a smaller set"
        )
    random = np.random.default_rng(seed)
    drawn = []
    for number in range(draws):
        chosen = sorted(random.choice(len(others), len(of.places), replace=False).tolist())
        drawn.append(Ablation(f"{of.name}: control {number + 1}", "control", tuple(others[i] for i in chosen), of.name))
    return drawn


def heads_of_same_blocks(places: Sequence[Place], config: ModelConfig) -> tuple[Place, ...]:
    """All heads of the attention steps that some heads belong to, view by view."""
    attentions = dict.fromkeys((place.site, place.view) for place in places if place.head is not None)
    return tuple(Place(site, view, head) for site, view in attentions for head in range(config.head_count(parse_site(site).layer_id)))


Values: TypeAlias = Mapping[SiteView, np.ndarray]
"""For each site in a view, what is added to the scaled values: (S or 1, N or 1, H, D) for heads, (S or 1, N or 1, C) otherwise; for scores
−∞ at blocked keys and 0 at the others, (1, 1, 1, M)."""


def edits_of(ablation: Ablation, sites: Sequence[SiteView], by: By, values: Values, config: ModelConfig) -> Edits:
    """The edits that take an ablation's places away.

    Args:
        ablation: what to take away.
        sites: the sites and views to mention; more than the ablation's own, so that all sets of a study run one program.
        by: the way to take them away.
        values: from `replacements`; empty for zero.
        config: of the backbone.
    """
    edits = []
    for site, view in sites:
        gone = _gone(ablation, site, view, config)
        if parse_site(site).part == SCORES:
            edits.append(Edit(site, view, shift=np.where(gone[..., None], values[site, view], np.float32(0))))
            continue
        scale = np.where(gone, np.float32(by == "noise"), np.float32(1))
        shift: Any = 0.0 if by == "zero" else np.where(gone, values[site, view], np.float32(0))
        edits.append(Edit(site, view, scale=scale, shift=shift))
    return Edits(tuple(edits))


def _gone(ablation: Ablation, site: str, view: int, config: ModelConfig) -> Bool[np.ndarray, "..."]:
    """Which heads go, (1, 1, H, 1); or whether the whole site goes, (1, 1, 1)."""
    if parse_site(site).part != HEADS:
        return np.full((1, 1, 1), Place(site, view, None) in ablation.places)
    count = config.head_count(parse_site(site).layer_id)
    return np.array([Place(site, view, head) in ablation.places for head in range(count)])[None, None, :, None]


def replacements(
    backbone: Backbone,
    views: tuple[np.ndarray, ...],
    sites: Sequence[SiteView],
    by: By,
    batch_size: int,
    noise: float,
    seed: int,
    progress: bool,
) -> Values:
    """What replaces the sites' values, from unedited passes over all pairs.

    For resampling and noise, the values of all pairs are in memory at once: 4·S·N·C bytes per site and view.

    Raises:
        EditError: the values would not fit into memory.
    """
    if by == "zero":
        return {}
    config, count = backbone.config, len(views[0])
    if by != "mean":
        grids = token_grids(tuple((view.shape[1], view.shape[2]) for view in views), config)
        layers = [parse_site(site).layer_id for site, _ in sites]
        tokens = [max(config.token_count(layer, grid) for grid in grids) for layer in layers]
        needed = sum(4 * count * own * config.layer_width(layer) for layer, own in zip(layers, tokens, strict=True))
        free = free_memory()
        if free is not None and needed > free / 2:
            raise EditError(
                f"by {by}: the values of {len(sites)} sites in {count} pairs take {size_text(needed)}, and only {size_text(free)} is free; "
                "give fewer pairs or sites, or take the mean"
            )
    names = tuple(dict.fromkeys(site for site, _ in sites))
    parts: dict[SiteView, list[np.ndarray]] = {place: [] for place in sites}
    with progress_bar(f"values for {by}", count, "pair", progress) as advance:
        for low in range(0, count, batch_size):
            batch = [view[low : low + batch_size] for view in views]
            output = backbone(*batch, capture=names, head=False)
            for (site, view), kept in parts.items():
                values = np.asarray(output[site][view - 1], np.float32)
                # For a mean, each part's sum over pairs and tokens is enough.
                kept.append(_sums(values, _special(site, config)) if by == "mean" else values)
            advance(len(batch[0]))
    return {
        place: _replacement(kept, by, count, views[place[1] - 1], _special(place[0], config), config, noise, seed + i)
        for i, (place, kept) in enumerate(parts.items())
    }


def _special(site: str, config: ModelConfig) -> int:
    """How many special tokens come before the patches at a site."""
    return len(config.special_tokens(parse_site(site).layer_id))


def _sums(values: Float[np.ndarray, "B N ..."], special: int) -> Float[np.ndarray, "1 _ ..."]:
    """Sums over pairs: of each special token separately, and of all patches together."""
    patches = values[:, special:].sum(axis=(0, 1), keepdims=True, dtype=np.float64)
    return np.concatenate([values[:, :special].sum(axis=0, keepdims=True, dtype=np.float64), patches], axis=1) if special else patches


def _replacement(
    parts: list[np.ndarray], by: By, count: int, view: np.ndarray, special: int, config: ModelConfig, noise: float, seed: int
) -> Float[np.ndarray, "..."]:
    if by == "mean":
        tokens = view.shape[1] * view.shape[2] // config.patch_size**2
        sums = np.sum(parts, axis=0)
        mean = (sums[:, special:] / (count * tokens)).astype(np.float32)
        if not special:
            return mean
        return np.concatenate([(sums[:, :special] / count).astype(np.float32), np.repeat(mean, tokens, axis=1)], axis=1)
    values = np.concatenate(parts)
    if by == "resample":
        # Neighbours in a data set on disk may show the same scene.
        return np.roll(values, -(count // 2), axis=0)
    spread = values.std(axis=(0, 1), keepdims=True)
    return (noise * spread * np.random.default_rng(seed).standard_normal(values.shape, dtype=np.float32)).astype(np.float32)


def check_by(names: Sequence[str], pairs: int) -> tuple[By, ...]:
    """The ways that an option names, in the order of `MEANINGS`.

    Raises:
        OptionError: a way is unknown or none is given, or there is no other pair to take values from.
    """
    if not names or any(name not in MEANINGS for name in names):
        raise OptionError(f"--by {listed(names)!r}: expected one or more of {', '.join(MEANINGS)}, separated by commas")
    if "resample" in names and pairs < 2:
        raise OptionError("--by resample takes values from another pair; give --pairs 2 or more")
    return tuple(by for by in MEANINGS if by in names)
