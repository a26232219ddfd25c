"""Layer ids: the names that model, converter, probes, command lines, plots and files share.

A layer id names the residual stream *after* one step of the network, for every view. A DUSt3R's and a MASt3R's:

    encoder.I.self_attn   encoder.I.mlp   encoder.norm
    decoder.embed   decoder.I.self_attn   decoder.I.cross_attn   decoder.I.mlp   decoder.norm

A VGGT's, besides those inside its heads (`und3rstand_jax.model.vggt.config`):

    patch_embed   encoder.embed   encoder.I.self_attn   encoder.I.mlp   encoder.norm
    aggregator.embed   frame.I.self_attn   frame.I.mlp   global.I.self_attn   global.I.mlp

`all` stands for the residual stream after every skip connection of the blocks in which views meet: three layers per decoder block, as
probed in "Understanding Multi-View Transformers" (arXiv 2510.24907), and four per pair of a frame and a global block.

Attention weights have ids of their own (`und3rstand_jax.model.sites`); they are captured like layers but are not layers.
"""

import difflib
import fnmatch
from collections.abc import Iterable, Sequence

from und3rstand_jax.support.errors import LayerError

ENCODER_STEPS = ("self_attn", "mlp")
DECODER_STEPS = ("self_attn", "cross_attn", "mlp")
PAPER_STEPS = ("self_attn", "cross_attn", "mlp")
ALL_STACKS = ("decoder.", "frame.", "global.")
"""The beginnings of the layers that `all` stands for."""

_PLACES = {"patch_embed": (0, 0), "encoder": (1, 0), "decoder": (2, 0), "aggregator": (2, 0), "frame": (2, 0), "global": (2, 1)}
"""First word of a layer id -> its part of the network, and its rank among that part's blocks of the same number."""

HEAD = "head"
"""Stands in place of a layer id for the model's own head, in tables and files."""


def layer_name(layer_id: str) -> str:
    """A layer's name in tables and figures."""
    return "the model's own head" if layer_id == HEAD else layer_id


def layer_ids(enc_depth: int, dec_depth: int) -> tuple[str, ...]:
    """Every layer id of a backbone with these depths, in network order."""
    return (
        *(f"encoder.{i}.{step}" for i in range(enc_depth) for step in ENCODER_STEPS),
        "encoder.norm",
        "decoder.embed",
        *(f"decoder.{i}.{step}" for i in range(dec_depth) for step in DECODER_STEPS),
        "decoder.norm",
    )


def paper_layer_ids(dec_depth: int) -> tuple[str, ...]:
    """The layers the paper probes (`all`): three per decoder block, 36 for the published models."""
    return tuple(f"decoder.{i}.{step}" for i in range(dec_depth) for step in PAPER_STEPS)


def network_order(layer_id: str) -> tuple[int, ...]:
    """Sort key that puts layer ids of any depth in network order."""
    stack, *place = layer_id.split(".")
    part, within = _PLACES[stack]
    if len(place) < 2:
        return (part, 1 << 30 if place == ["norm"] else -1, 0, 0)
    return (part, int(place[0]), within, PAPER_STEPS.index(place[1]))


def stack_positions(stack: str, layers: Iterable[str]) -> set[tuple[int, str]]:
    """(block, step) of those layers that are in the stack of this name."""
    parts = (layer.split(".", 2) for layer in layers)
    return {(int(part[1]), part[2]) for part in parts if part[0] == stack and len(part) == 3}


def select_layers(patterns: str | Iterable[str], available: Sequence[str]) -> tuple[str, ...]:
    """The layers of `available` that any pattern matches, in the order of `available`.

    Args:
        patterns: shell-style patterns (`decoder.*.mlp`), as one comma-separated string or as several; `all` stands
            for the layers of the blocks in which views meet: of the decoder, or of frame and global blocks.
        available: the ids to choose from, in network order.

    Raises:
        LayerError: a pattern matches nothing; the message lists the ids nearest to it.
    """
    chosen: set[str] = set()
    for pattern in split_patterns(patterns):
        if pattern == "all":
            matches = [layer for layer in available if layer.startswith(ALL_STACKS) and layer.endswith(PAPER_STEPS)]
        else:
            matches = [layer for layer in available if fnmatch.fnmatchcase(layer, pattern)]
        if not matches:
            raise LayerError(unknown_id(pattern, available))
        chosen.update(matches)
    return tuple(layer for layer in available if layer in chosen)


def split_patterns(patterns: str | Iterable[str]) -> list[str]:
    """The patterns of one comma-separated string, or of several strings; empty ones are dropped."""
    parts = patterns.split(",") if isinstance(patterns, str) else patterns
    return [pattern for pattern in (part.strip() for part in parts) if pattern]


def unknown_id(pattern: str, available: Sequence[str], what: str = "layer") -> str:
    """The error message for a pattern that matches none of the ids, with those nearest to it."""
    near = difflib.get_close_matches(pattern, available, n=3, cutoff=0.5)
    hint = f"; the nearest are {', '.join(near)}" if near else ""
    span = f"{available[0]} … {available[-1]}" if available else "none"
    return f"no {what} matches {pattern!r}{hint} (there are {len(available)} {what}s here: {span})"
