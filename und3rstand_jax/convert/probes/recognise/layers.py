"""Finds layer ids in names, in any of these words: encoder/enc, decoder/dec, self_attn/attn/sa, cross_attn/ca, mlp/ffn/ff."""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from und3rstand_jax.convert.findings import How, Token, least_certain, pieces, token_key
from und3rstand_jax.model.config import ModelConfig

VIEW_WORDS = {"view", "views", "v", "img", "image", "frame", "cam", "camera", "pts3d", "pts", "pred"}

_NETWORK_RANKS = {
    **{"enc": -5, "encoder": -5, "dec": -4, "decoder": -4},
    **dict.fromkeys(("self", "sa", "selfattn", "attn", "attention"), -3),
    **dict.fromkeys(("cross", "ca", "crossattn"), -2),
    **dict.fromkeys(("mlp", "ffn", "ff", "feed", "feedforward"), -1),
}
_SIDES = {"enc": "encoder", "encoder": "encoder", "dec": "decoder", "decoder": "decoder", "frame": "frame", "global": "global"}
_STEPS = {
    **dict.fromkeys([("self", "attn"), ("self", "attention"), ("selfattn",), ("sa",), ("attn",), ("attention",)], "self_attn"),
    **dict.fromkeys([("cross", "attn"), ("cross", "attention"), ("crossattn",), ("ca",), ("cross",)], "cross_attn"),
    **dict.fromkeys([("mlp",), ("ffn",), ("ff",), ("feed", "forward"), ("feedforward",)], "mlp"),
}

# Words that may stand between a block's number and the name of its sublayer.
_FILLERS = {"probe", "probes", "layer", "layers", "block", "blocks", "net", "nets", "mlps", "list"}


@dataclass(frozen=True)
class Word:
    """A word or number in a name, the component it is in and, for a number, the word it is attached to."""

    token: Token
    part: int
    attached_to: Token | None = None


def split_words(names: Sequence[str]) -> list[list[Word]]:
    """The words and numbers of sibling names.

    If a word appears both bare and with a 2 attached (dec_blocks, dec_blocks2), the bare one counts as number 1.
    """
    split = [[(piece, part) for part, text in enumerate(name.split(".")) for piece in pieces(text)] for name in names]
    suffixes: dict[Token, set[Token | None]] = {}
    for name in split:
        for (word, *suffix), _ in name:
            if isinstance(word, str):
                suffixes.setdefault(word, set()).add(suffix[0] if suffix else None)
    first = {(word,) for word, found in suffixes.items() if found == {None, 2}}
    return [
        [
            Word(token, part, piece[0] if i else None)
            for piece, part in name
            for i, token in enumerate((*piece, 1) if piece in first else piece)
        ]
        for name in split
    ]


def stacks(backbone: ModelConfig) -> dict[str, tuple[int, int]]:
    """Name of each stack of blocks -> its tokens' width and its number of blocks."""
    parts = [layer.split(".") for layer in backbone.layer_ids]
    blocks = Counter(stack for stack, *place in parts if len(place) == 2 and place[1] == "mlp")
    return {stack: (backbone.layer_width(f"{stack}.0.mlp"), depth) for stack, depth in blocks.items()}


def network_key(name: Sequence[Token]) -> tuple[tuple[int, int, str], ...]:
    """Sort key that orders the tokens of names as the network runs: numbers as numbers, encoder, decoder, sublayers, other words."""
    return tuple((1, _NETWORK_RANKS[token], "") if token in _NETWORK_RANKS else token_key(token) for token in name)


@dataclass(frozen=True)
class LayerName:
    """The layer in a name; `block` and `step` as written, `rest` the tokens that say nothing about the layer."""

    side: str | None
    block: int | None
    step: str
    rest: tuple[Token, ...]


@dataclass(frozen=True)
class NamedLayers:
    """The layer id in each name, or the problem that leaves them undetermined."""

    ids: tuple[str, ...] = ()
    rests: tuple[tuple[Token, ...], ...] = ()
    how: How = "read"
    why: str = ""
    problem: str = ""


def read_layer_names(names: Sequence[str], inputs: Sequence[int], backbone: ModelConfig) -> NamedLayers:
    """The layer ids in `names`, if every name has one and either each layer has one probe or each has two.

    Args:
        names: prefixes of the MLPs.
        inputs: the channels that each MLP reads; they tell encoder from decoder if no word does.
        backbone: the model that has the layers.
    """
    split = split_words(names)
    sides = {word: side for word, side in _SIDES.items() if side in stacks(backbone)}
    # A number on either side of a sublayer's name can be its block (3.self_attn, sa.3): the reading that gives layers is right.
    readings = []
    for left_first in (True, False):
        # A probe may call its own Sequential "mlp": alone, the word names a sublayer only beside a block's number.
        attention = any(_find_step(words, sides, left_first, mlps=False) for words in split)
        readings.append(_ids_of([_layer_name(words, sides, left_first, attention) for words in split], names, inputs, backbone))
        if readings[-1].ids:
            return readings[-1]
    return NamedLayers(problem=readings[0].problem or readings[1].problem)


def _ids_of(found: Sequence[LayerName | None], names: Sequence[str], inputs: Sequence[int], backbone: ModelConfig) -> NamedLayers:
    """The ids of layers as written."""
    if not any(found):
        return NamedLayers()
    missing = [name for name, layer in zip(names, found, strict=True) if layer is None]
    if missing:
        return NamedLayers(problem=f"{len(missing)} of {len(names)} names have no layer, for example {missing[0]}")
    dims = {stack: width for stack, (width, _) in stacks(backbone).items()}
    layers = []
    for name, layer, width in zip(names, found, inputs, strict=True):
        assert layer is not None
        fits = [side for side, dim in dims.items() if dim == width]
        side = layer.side or (fits[0] if len(fits) == 1 else None)
        if side is None:
            return NamedLayers(problem=f"{name} says neither {' nor '.join(dims)}, and neither does its width")
        layers.append(dataclasses.replace(layer, side=side))
    bases, how, why = _first_blocks(layers, {stack: depth for stack, (_, depth) in stacks(backbone).items()})
    if any(layer.side is None for layer in found if layer):
        how, why = least_certain({how, "inferred"}), f"{why}; {' or '.join(dims)} by width"
    ids = [
        f"{layer.side}.{layer.step}" if layer.block is None else f"{layer.side}.{layer.block - bases[str(layer.side)]}.{layer.step}"
        for layer in layers
    ]
    known = set(backbone.layer_ids)
    for layer_id, name in zip(ids, names, strict=True):
        if layer_id not in known:
            return NamedLayers(problem=f"{name} reads as {layer_id}, which this backbone does not have")
    counts = Counter(ids)
    if set(counts.values()) not in ({1}, {2}):
        most, fewest = max(ids, key=counts.__getitem__), min(ids, key=counts.__getitem__)
        found_counts = f"{most} has {counts[most]} MLPs, {fewest} has {counts[fewest]}"
        return NamedLayers(problem=f"{found_counts}; expected one for each layer, or one for each layer and view")
    return NamedLayers(tuple(ids), tuple(layer.rest for layer in layers), how, why)


def _layer_name(words: Sequence[Word], sides: Mapping[str, str], left_first: bool, attention: bool) -> LayerName | None:
    step = _find_step(words, sides, left_first, mlps=False) or _find_step(words, sides, left_first, mlps=True, apart=attention)
    if step:
        start, stop, name, block = step
        side = next((i for i in reversed(range(len(words))) if words[i].token in sides), None)
        rest = tuple(w.token for i, w in enumerate(words) if i not in (block, side) and not start <= i < stop)
        number = words[block].token
        return LayerName(sides[str(words[side].token)] if side is not None else None, int(number), name, rest)
    for i, (word, after) in enumerate(zip(words, words[1:], strict=False)):
        if (word.token in sides and after.token == "norm") or (word.token in ("dec", "decoder") and after.token == "embed"):
            rest = tuple(w.token for j, w in enumerate(words) if j not in (i, i + 1))
            return LayerName(sides[str(word.token)], None, str(after.token), rest)
    return None


def _find_step(
    words: Sequence[Word], sides: Mapping[str, str], left_first: bool, mlps: bool, apart: bool = True
) -> tuple[int, int, str, int] | None:
    """The place of the sublayer's name (start, stop), the sublayer, and the place of its block's number.

    `mlps` is whether to look for the word mlp or for those of attention, `apart` whether it may be outside the number's component.
    """

    def counts_blocks(at: int) -> bool:
        """Whether the word at `at` can be a block's number: not a view's, and not that of a word such as fc1."""
        attached = words[at].attached_to
        of_view = at > 0 and words[at - 1].token in VIEW_WORDS - sides.keys()
        return isinstance(words[at].token, int) and not of_view and (attached is None or attached in _FILLERS or attached in _NETWORK_RANKS)

    for start in range(len(words)):
        for stop in (start + 2, start + 1):
            step = _STEPS.get(tuple(str(word.token) for word in words[start:stop]))
            if step is None or (step == "mlp") != mlps:
                continue
            left = next((i for i in reversed(range(start)) if words[i].token not in _FILLERS), None)
            right = next((i for i in range(stop, len(words)) if words[i].token not in _FILLERS), None)
            near = (left, right) if left_first else (right, left)
            block = next((i for i in near if i is not None and counts_blocks(i)), None)
            if block is not None and (apart or words[block].part == words[start].part):
                return start, stop, step, block
            break
    return None


def _first_blocks(layers: Sequence[LayerName], depths: Mapping[str, int]) -> tuple[dict[str, int], How, str]:
    """The number of the first block on each side, 0 or 1."""
    bases: dict[str, int] = {}
    hows: set[How] = {"read"}
    why = ["the names say so"]
    for side, depth in depths.items():
        blocks = {layer.block for layer in layers if layer.side == side and layer.block is not None}
        bases[side] = int(0 not in blocks and max(blocks, default=0) == depth)
        if bases[side]:
            hows.add("inferred")
            why.append(f"{side} blocks are counted from 1, as there is a block {depth} and no 0")
        elif blocks and 0 not in blocks:
            hows.add("default")
            why.append(f"{side} blocks are taken as counted from 0, as in DUSt3R")
    return bases, least_certain(hows), "; ".join(why)
