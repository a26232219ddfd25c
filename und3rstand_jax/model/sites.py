"""Sites: every place of the network whose values can be captured and edited, by its id.

    a layer id                 (B, N, C)     the residual stream after a step (`und3rstand_jax.model.layer_ids`)
    LAYER.update               (B, N, C)     what the step adds to the stream, bias included
    LAYER.heads                (B, N, H, D)  an attention: each head's mix of values, before the output projection
    LAYER.scores               (B, H, N, M)  an attention: q·k/√D after the rotation, before the softmax, float32
    LAYER.weights              (B, H, N, M)  the softmax of the scores, float32; to be captured, not edited

LAYER is `encoder.I.STEP` or `decoder.I.STEP`; N are a view's own tokens, M those that they attend to. `:K` or `:J-K` behind
`.heads`, `.scores` and `.weights` keeps one head or heads J to K, both included and counted from 0: `decoder.3.cross_attn.heads:0-3`.

What is inside a step is no layer: no probe reads it, and no layer pattern (`all`, `decoder.*`, `*`) matches it. A pattern means the
inside if it ends in one of the four parts, with or without heads: `decoder.*.cross_attn.weights:0`.
"""

import fnmatch
import re
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from und3rstand_jax.model.config import ModelConfig
from und3rstand_jax.model.layer_ids import select_layers, split_patterns, unknown_id
from und3rstand_jax.support.errors import LayerError

SCORES, WEIGHTS, HEADS, UPDATE = "scores", "weights", "heads", "update"

PARTS = (SCORES, WEIGHTS, HEADS, UPDATE)
"""What is inside a step, in the order in which it is computed."""

_NAMES = {SCORES: "attention score", WEIGHTS: "attention map", HEADS: "head output", UPDATE: "update"}
_INSIDE = re.compile(rf"(?P<step>.*)\.(?P<part>{'|'.join(PARTS)})(?P<heads>:.*)?", re.DOTALL)
_GROUP = re.compile(r":(?P<first>[0-9]{1,9})(?:-(?P<last>[0-9]{1,9}))?")


class Site(NamedTuple):
    """One site: a layer id, or a layer id and a part of what is inside it; `heads` is None for all heads, or for what has none."""

    layer_id: str
    part: str | None = None
    heads: range | None = None

    @property
    def id(self) -> str:
        """As it is written, without heads."""
        return self.layer_id if self.part is None else f"{self.layer_id}.{self.part}"

    @property
    def has_heads(self) -> bool:
        """Whether its values have an axis of heads."""
        return self.part in (SCORES, WEIGHTS, HEADS)

    def __str__(self) -> str:
        if self.heads is None:
            return self.id
        first, last = self.heads.start, self.heads.stop - 1
        return f"{self.id}:{first}" if first == last else f"{self.id}:{first}-{last}"


def parse_site(text: str) -> Site:
    """A site's parts; the layer may be a pattern, and need not exist.

    Raises:
        LayerError: heads are not written `:K` or `:J-K`, or stand behind an update, which has none.
    """
    match = _INSIDE.fullmatch(text)
    if match is None:
        return Site(text)
    site = Site(match["step"], match["part"])
    if not match["heads"]:
        return site
    bounds = _GROUP.fullmatch(match["heads"])
    first, last = (int(bounds["first"]), int(bounds["last"] or bounds["first"])) if bounds else (1, 0)
    if not site.has_heads:
        raise LayerError(f"{text!r}: an update is the sum over all heads and has none of its own; write {site.id}, or the heads of .heads")
    if last < first:
        written = "heads are written :H, or :H-K with H ≤ K, counted from 0 (such as :0-3)"
        raise LayerError(f"{text!r}: {written}; found {match['heads']!r}")
    return site._replace(heads=range(first, last + 1))


def select_sites(pattern: str, config: ModelConfig) -> list[Site]:
    """The sites that one pattern matches, in network order, each with the heads that the pattern names.

    Raises:
        LayerError: it matches nothing, or names heads that do not exist.
    """
    wanted = parse_site(pattern)
    if wanted.part is None:
        return [Site(layer_id) for layer_id in select_layers([pattern], config.layer_ids)]
    available = [layer_id for layer_id in config.layer_ids if _is_inside(wanted.part, layer_id)]
    matches = fnmatch.filter(available, wanted.layer_id)
    if not matches:
        raise LayerError(unknown_id(pattern, [f"{layer_id}.{wanted.part}" for layer_id in available], _NAMES[wanted.part]))
    for layer_id in matches:
        count = config.head_count(layer_id)
        if wanted.heads and wanted.heads.stop > count:
            raise LayerError(f"{pattern!r} asks for heads that {layer_id}.{wanted.part} does not have: there are {count}, 0 to {count - 1}")
    return [wanted._replace(layer_id=layer_id) for layer_id in matches]


def select_captures(patterns: str | Iterable[str], config: ModelConfig) -> tuple[str, ...]:
    """The sites that any pattern matches, in the order in which they are computed: what is inside a step comes before its layer.

    Heads are written without leading zeros and `:3-3` as `:3`. Every id returned is a pattern that selects itself.

    Args:
        patterns: shell-style patterns, as one comma-separated string or as several: of layers as in
            `und3rstand_jax.model.layer_ids.select_layers`, of what is inside them as above.
        config: the backbone, whose blocks and heads there are to choose from.

    Raises:
        LayerError: a pattern matches nothing, or names heads that do not exist.
    """
    requested = {str(site) for pattern in split_patterns(patterns) for site in select_sites(pattern, config)}
    return tuple(name for name in with_insides(config.layer_ids, requested) if name in requested)


def with_insides(steps: Sequence[str], requested: Collection[str]) -> tuple[str, ...]:
    """The steps (of a block, or as layer ids), and before each those of its inside that are requested, lowest head first."""
    inside: dict[str, list[Site]] = {}
    for site in map(parse_site, requested):
        if site.part is not None:
            inside.setdefault(site.layer_id, []).append(site)
    return tuple(name for step in steps for name in (*map(str, sorted(inside.get(step, ()), key=_order)), step))


def groups_at(site: str, captured: Iterable[str]) -> dict[str, slice]:
    """Those of the captured ids that are at a site -> the heads that each keeps. `site` is an id without heads."""
    found = [of for of in map(parse_site, captured) if of.id == site]
    return {str(of): slice(of.heads.start, of.heads.stop) if of.heads else slice(None) for of in sorted(found, key=_order)}


def _is_inside(part: str, layer_id: str) -> bool:
    is_step = layer_id.count(".") == 2
    return is_step and (part == UPDATE or layer_id.endswith("_attn"))


def _order(site: Site) -> tuple[int, int, int]:
    heads = site.heads or range(0)
    return PARTS.index(site.part or UPDATE), heads.start, heads.stop
