"""Ids of attention weights, which `capture` takes beside layer ids.

    encoder.I.self_attn.weights   decoder.I.self_attn.weights   decoder.I.cross_attn.weights

name the weights after the softmax with which one step mixes values, for both views: (B, heads, N, M) each, tokens
that attend by tokens attended to. `:H` or `:H-K` behind an id keeps one head or heads H to K, both included and
counted from 0: `decoder.3.cross_attn.weights:0-3`.

They are not layers: no probe reads them, and no layer pattern (`all`, `decoder.*`, `*`) matches them. A pattern means
attention weights if it ends in `.weights`, with or without heads: `decoder.*.cross_attn.weights:0`.
"""

import fnmatch
import re
from collections.abc import Collection, Iterable, Sequence

from und3rstand_jax.model.config import BackboneConfig
from und3rstand_jax.model.layer_ids import select_layers, split_patterns, unknown_id
from und3rstand_jax.support.errors import LayerError

_WEIGHTS = re.compile(r"(?P<attention>.*)\.weights(?P<heads>:.*)?", re.DOTALL)
_HEADS = re.compile(r":(?P<first>[0-9]{1,9})(?:-(?P<last>[0-9]{1,9}))?")


def select_captures(patterns: str | Iterable[str], config: BackboneConfig) -> tuple[str, ...]:
    """The layers and attention weights that any pattern matches, in network order; weights come before their step.

    Attention weights have the heads that the pattern names, without leading zeros and with `:3-3` as `:3`. Every id returned
    is a pattern that selects itself.

    Args:
        patterns: shell-style patterns, as one comma-separated string or as several: of layers as in
            `und3rstand_jax.model.layer_ids.select_layers`, of attention weights as above.
        config: the backbone, whose blocks and heads there are to choose from.

    Raises:
        LayerError: a pattern matches nothing, or names heads that do not exist.
    """
    wanted = split_patterns(patterns)
    weights = [pattern for pattern in wanted if _WEIGHTS.fullmatch(pattern)]
    layers = set(select_layers((pattern for pattern in wanted if pattern not in weights), config.layer_ids))
    requested = {name for pattern in weights for name in _matching_weights(pattern, config)}
    in_order = with_weights(config.layer_ids, requested)
    return tuple(name for name in in_order if name in layers or name in requested)


def with_weights(steps: Sequence[str], requested: Collection[str]) -> tuple[str, ...]:
    """The steps (of a block, or as layer ids), and before each the requested weights of its attention, lowest head first."""
    return tuple(name for step in steps for name in (*_weights_of(step, requested), step))


def heads_of_weights(step: str, captured: Iterable[str]) -> dict[str, slice]:
    """The captured weights of one attention step of a block -> the heads that each holds."""
    return {name: _heads(name) for name in _weights_of(step, captured)}


def _weights_of(attention: str, requested: Iterable[str]) -> list[str]:
    """The requested weights of one attention (a layer id or the step of a block), lowest head first."""
    found = [name for name in requested if (match := _WEIGHTS.fullmatch(name)) and match["attention"] == attention]
    return sorted(found, key=lambda name: (_heads(name).start or 0, _heads(name).stop or 0))


def _heads(name: str) -> slice:
    match = _HEADS.fullmatch(name.partition(".weights")[2])
    return slice(int(match["first"]), int(match["last"] or match["first"]) + 1) if match else slice(None)


def _matching_weights(pattern: str, config: BackboneConfig) -> list[str]:
    """The attention weights that one pattern selects."""
    match = _WEIGHTS.fullmatch(pattern)
    assert match is not None
    heads = ""
    if match["heads"]:
        bounds = _HEADS.fullmatch(match["heads"])
        first, last = (int(bounds["first"]), int(bounds["last"] or bounds["first"])) if bounds else (1, 0)
        if last < first:
            written = "heads are written :H, or :H-K with H ≤ K, counted from 0 (such as :0-3)"
            raise LayerError(f"{pattern!r}: {written}; found {match['heads']!r}")
        heads = f":{first}" if first == last else f":{first}-{last}"
    available = [f"{layer}.weights" for layer in config.layer_ids if layer.endswith("_attn")]
    matches = [name for name in available if fnmatch.fnmatchcase(name, f"{match['attention']}.weights")]
    if not matches:
        raise LayerError(unknown_id(pattern, available, "attention map"))
    for name in matches:
        count = config.enc_num_heads if name.startswith("encoder.") else config.dec_num_heads
        if heads and _heads(name + heads).stop > count:
            raise LayerError(f"{pattern!r} asks for heads that {name} does not have: there are {count}, 0 to {count - 1}")
    return [name + heads for name in matches]
