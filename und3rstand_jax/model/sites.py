"""Sites: every place in the network whose values can be captured or edited, by its id.

    a layer id                 (B, N, C)     the residual stream after a step (`und3rstand_jax.model.layer_ids`)
    LAYER.update               (B, N, C)     what the step adds to the stream, bias included
    LAYER.heads                (B, N, H, D)  an attention: each head's mix of values, before the output projection
    LAYER.scores               (B, H, N, M)  an attention: q·k/√D after the rotation, before the softmax, float32
    LAYER.weights              (B, H, N, M)  the softmax of the scores, float32; can be captured, not edited
    LAYER.mass                 (B, H, N, R, 2)  the weights, summed over the special tokens and over the patches of each of the R views read

LAYER is a step of a block, such as `encoder.I.STEP`. N counts a view's own tokens, M the tokens that they attend to. `:K` or `:J-K` after
`.heads`, `.scores`, `.weights` and `.mass` keeps one head or heads J to K, inclusive and counted from 0:
`decoder.3.cross_attn.heads:0-3`. `#K` or `#J-K` at the end keeps only those queries: `global.3.self_attn.weights:0#5-8`; `.heads` has none.
Mass exists where a view's tokens attend to all views or to special tokens; its last axis has the special tokens first.

The values inside a step are not layers: no probe reads them, and no layer pattern (`all`, `decoder.*`, `*`) matches them. A pattern selects
them only if it ends in one of the five parts, with or without heads: `decoder.*.cross_attn.weights:0`.
"""

import fnmatch
import functools
import re
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from und3rstand_jax.model.config import Grid, ModelConfig
from und3rstand_jax.model.layer_ids import select_layers, split_patterns, unknown_id
from und3rstand_jax.support.errors import LayerError

SCORES, WEIGHTS, MASS, HEADS, UPDATE = "scores", "weights", "mass", "heads", "update"

PARTS = (SCORES, WEIGHTS, MASS, HEADS, UPDATE)
"""The parts inside a step, in the order in which they are computed."""

_NAMES = {SCORES: "attention score", WEIGHTS: "attention map", MASS: "attention mass", HEADS: "head output", UPDATE: "update"}
_MOST_BYTES = 2**30
_INSIDE = re.compile(rf"(?P<step>.*)\.(?P<part>{'|'.join(PARTS)})(?P<heads>:[^#]*)?(?P<queries>#.*)?", re.DOTALL)
_GROUP = re.compile(r"[:#](?P<first>[0-9]{1,9})(?:-(?P<last>[0-9]{1,9}))?")


class Site(NamedTuple):
    """One site: a layer id, or a layer id and a part inside it. `heads` and `queries` are None for all, or if the site has none."""

    layer_id: str
    part: str | None = None
    heads: range | None = None
    queries: range | None = None

    @property
    def id(self) -> str:
        """The id as written, without heads and queries."""
        return self.layer_id if self.part is None else f"{self.layer_id}.{self.part}"

    @property
    def has_heads(self) -> bool:
        """Whether its values have an axis of heads."""
        return self.part in (SCORES, WEIGHTS, MASS, HEADS)

    @property
    def has_queries(self) -> bool:
        """Whether its values have an axis of queries."""
        return self.part in (SCORES, WEIGHTS, MASS)

    @property
    def head_slice(self) -> slice:
        """Which heads it keeps, as an index."""
        return slice(self.heads.start, self.heads.stop) if self.heads else slice(None)

    @property
    def query_slice(self) -> slice:
        """Which queries it keeps, as an index."""
        return slice(self.queries.start, self.queries.stop) if self.queries else slice(None)

    def __str__(self) -> str:
        return f"{self.id}{_written(':', self.heads)}{_written('#', self.queries)}"


def parse_site(text: str) -> Site:
    """Parses a site's id; the layer may be a pattern, and need not exist.

    Raises:
        LayerError: heads are not written `:K` or `:J-K`, queries are not written `#K` or `#J-K`, or the part has none.
    """
    match = _INSIDE.fullmatch(text)
    if match is None:
        return Site(text)
    site = Site(match["step"], match["part"])
    if match["heads"] and not site.has_heads:
        raise LayerError(f"{text!r}: an update is the sum over all heads and has no heads of its own; write {site.id}, or use .heads")
    if match["queries"] and not site.has_queries:
        raise LayerError(f"{text!r}: only .scores, .weights and .mass have queries; write {site.id}")
    heads, queries = (_range(text, what, match[what]) for what in ("heads", "queries"))
    return site._replace(heads=heads, queries=queries)


def _range(text: str, what: str, written: str | None) -> range | None:
    if not written:
        return None
    bounds = _GROUP.fullmatch(written)
    first, last = (int(bounds["first"]), int(bounds["last"] or bounds["first"])) if bounds else (1, 0)
    if last < first:
        mark = written[0]
        how = f"{what} are written {mark}H, or {mark}H-K with H ≤ K, counted from 0 (such as {mark}0-3)"
        raise LayerError(f"{text!r}: {how}; found {written!r}")
    return range(first, last + 1)


def _written(mark: str, places: range | None) -> str:
    if places is None:
        return ""
    first, last = places.start, places.stop - 1
    return f"{mark}{first}" if first == last else f"{mark}{first}-{last}"


def select_sites(pattern: str, config: ModelConfig) -> list[Site]:
    """The sites that one pattern matches, in network order, each with the heads that the pattern names.

    Raises:
        LayerError: it matches nothing, or names heads that do not exist.
    """
    wanted = parse_site(pattern)
    if wanted.part is None:
        of_heads = [Site(inside) for inside in config.inside_heads if _is_of_head(pattern, inside)]
        return of_heads or [Site(layer_id) for layer_id in select_layers([pattern], config.layer_ids)]
    available = [layer_id for layer_id in config.layer_ids if _is_inside(wanted.part, layer_id, config)]
    matches = fnmatch.filter(available, wanted.layer_id)
    if not matches:
        raise LayerError(unknown_id(pattern, [f"{layer_id}.{wanted.part}" for layer_id in available], _NAMES[wanted.part]))
    for layer_id in matches:
        count = config.head_count(layer_id)
        if wanted.heads and wanted.heads.stop > count:
            raise LayerError(f"{pattern!r} asks for heads that {layer_id}.{wanted.part} does not have: there are {count}, 0 to {count - 1}")
    return [wanted._replace(layer_id=layer_id) for layer_id in matches]


def select_captures(patterns: str | Iterable[str], config: ModelConfig) -> tuple[str, ...]:
    """The sites that any pattern matches, in the order in which they are computed: sites inside a step come before its layer.

    The ids have no leading zeros in heads, and `:3` for `:3-3`. Every id returned is a pattern that selects itself.

    Args:
        patterns: shell-style patterns, as one comma-separated string or as several: of layers as in
            `und3rstand_jax.model.layer_ids.select_layers`, of sites inside them as above.
        config: the backbone's config, which determines the blocks and heads available.

    Raises:
        LayerError: a pattern matches nothing, or names heads that do not exist.
    """
    return _selected(tuple(split_patterns(patterns)), config)


# Every call of a backbone needs this, often for all layers listed one by one.
@functools.lru_cache(maxsize=256)
def _selected(patterns: tuple[str, ...], config: ModelConfig) -> tuple[str, ...]:
    requested = {str(site) for pattern in patterns for site in select_sites(pattern, config)}
    return tuple(name for name in (*with_insides(config.layer_ids, requested), *config.inside_heads) if name in requested)


def check_captures(captured: Iterable[str], config: ModelConfig, grids: Sequence[Grid], batch: int) -> None:
    """Refuses queries that a view does not have, and scores and weights over all views that would be too large as one array.

    Raises:
        LayerError: the message says which queries exist, or what to capture instead.
    """
    for site in map(parse_site, captured):
        if site.queries:
            fewest = min(config.token_count(site.layer_id, grid) for grid in grids)
            if site.queries.stop > fewest:
                raise LayerError(f"{site} asks for queries that not every view has: there are {fewest}, 0 to {fewest - 1}")
        if site.part not in (SCORES, WEIGHTS) or config.reads(site.layer_id) != "all":
            continue
        size = _captured_bytes(site, config, grids, batch)
        if size > _MOST_BYTES:
            raise LayerError(
                f"{site} of {len(grids)} views would take {size / 1e9:.1f} GB; choose a head ({site.id}:0), queries ({site.id}#0-9), or "
                f"{site.layer_id}.{MASS}: sums over each view"
            )


def weights_in_parts(layer_id: str, config: ModelConfig, grids: Sequence[Grid], batch: int) -> tuple[str, ...]:
    """Ids of an attention's weights, of as many heads each as `check_captures` allows in one array, lowest head first."""
    count = config.head_count(layer_id)
    of_one = _captured_bytes(Site(layer_id, WEIGHTS, range(1)), config, grids, batch)
    most = max(1, _MOST_BYTES // of_one)
    return tuple(str(Site(layer_id, WEIGHTS, range(first, min(first + most, count)))) for first in range(0, count, most))


def _captured_bytes(site: Site, config: ModelConfig, grids: Sequence[Grid], batch: int) -> int:
    """Bytes of the scores or weights at a site, of all views."""
    heads = len(site.heads or range(config.head_count(site.layer_id)))
    asked = sum(len(site.queries or range(config.token_count(site.layer_id, grid))) for grid in grids)
    return 4 * batch * heads * asked * config.attention_keys(site.layer_id, grids, 0)


def with_insides(steps: Sequence[str], requested: Collection[str]) -> tuple[str, ...]:
    """The steps (of a block, or as layer ids), each preceded by the requested sites inside it, lowest head first."""
    inside: dict[str, list[Site]] = {}
    for site in map(parse_site, requested):
        if site.part is not None:
            inside.setdefault(site.layer_id, []).append(site)
    return tuple(name for step in steps for name in (*map(str, sorted(inside.get(step, ()), key=_order)), step))


def captured_at(site: str, captured: Iterable[str]) -> list[Site]:
    """The captured sites with this id, lowest head first. `site` is an id without heads."""
    return sorted((of for of in map(parse_site, captured) if of.id == site), key=_order)


def _is_inside(part: str, layer_id: str, config: ModelConfig) -> bool:
    is_step = layer_id.count(".") == 2
    if part == MASS and not config.special_tokens(layer_id) and config.reads(layer_id) != "all":
        return False
    return is_step and (part == UPDATE or layer_id.endswith("_attn"))


def _is_of_head(pattern: str, inside: str) -> bool:
    """Whether a pattern selects this site inside a head. It must name the head: `*` selects layers."""
    return pattern.split(".")[0] == inside.split(".")[0] and fnmatch.fnmatchcase(inside, pattern)


def _order(site: Site) -> tuple[int, ...]:
    heads, queries = site.heads or range(0), site.queries or range(0)
    return PARTS.index(site.part or UPDATE), heads.start, heads.stop, queries.start, queries.stop
