"""The words and numbers of MLPs' names, in the order in which the network runs.

Layer ids in names, by whichever words: encoder/enc, decoder/dec, self_attn/attn/sa, cross_attn/ca, mlp/ffn/ff.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from und3rstand_jax.convert.findings import How, least_certain
from und3rstand_jax.convert.probes.names import Token, pieces, token_key
from und3rstand_jax.model.config import BackboneConfig

NETWORK_RANKS = {
    **{"enc": -5, "encoder": -5, "dec": -4, "decoder": -4},
    **dict.fromkeys(("self", "sa", "selfattn", "attn", "attention"), -3),
    **dict.fromkeys(("cross", "ca", "crossattn"), -2),
    **dict.fromkeys(("mlp", "ffn", "ff", "feed", "feedforward"), -1),
}


VIEW_WORDS = {"view", "views", "v", "img", "image", "frame", "cam", "camera", "pts3d", "pts", "pred"}


@dataclass(frozen=True)
class Word:
    """A word or number of a name, the component it stands in and, for a number, the word it is attached to."""

    token: Token
    part: int
    attached_to: Token | None = None


def split_words(names: Sequence[str]) -> list[list[Word]]:
    """The words and numbers of names that stand beside each other.

    Where a word comes bare and with a 2 attached (dec_blocks, dec_blocks2) the bare one is number 1.
    """
    split = [[(piece, part) for part, text in enumerate(name.split(".")) for piece in pieces(text)] for name in names]
    suffixes: dict[Token, set[int | None]] = {}
    for name in split:
        for piece, _ in name:
            if isinstance(piece[0], str):
                suffixes.setdefault(piece[0], set()).add(int(piece[1]) if len(piece) > 1 else None)
    first = {(word,) for word, found in suffixes.items() if found == {None, 2}}
    return [[word for piece, part in name for word in _words((*piece, 1) if piece in first else piece, part)] for name in split]


def _words(piece: tuple[Token, ...], part: int) -> list[Word]:
    return [Word(token, part, piece[0] if i else None) for i, token in enumerate(piece)]


def network_key(name: Sequence[Token]) -> tuple[tuple[int, int, str], ...]:
    """Orders the tokens of names as the network runs: numbers as numbers, encoder, decoder, sublayers, other words."""
    return tuple((1, NETWORK_RANKS[token], "") if token in NETWORK_RANKS else token_key(token) for token in name)


_SIDES = {"enc": "encoder", "encoder": "encoder", "dec": "decoder", "decoder": "decoder"}


_STEPS = {
    **dict.fromkeys([("self", "attn"), ("self", "attention"), ("selfattn",), ("sa",), ("attn",), ("attention",)], "self_attn"),
    **dict.fromkeys([("cross", "attn"), ("cross", "attention"), ("crossattn",), ("ca",), ("cross",)], "cross_attn"),
    **dict.fromkeys([("mlp",), ("ffn",), ("ff",), ("feed", "forward"), ("feedforward",)], "mlp"),
}


# Words that may stand between a block's number and the name of its sublayer.
_FILLERS = {"probe", "probes", "layer", "layers", "block", "blocks", "net", "nets", "mlps", "list"}


@dataclass(frozen=True)
class LayerName:
    """The layer a name carries; `block` and `step` as written, `rest` the tokens that say nothing of it."""

    side: str | None
    block: int | None
    step: str
    rest: tuple[Token, ...]


@dataclass(frozen=True)
class Reading:
    """The layer id of each name, or the problem that keeps them from being told."""

    ids: tuple[str, ...] = ()
    rests: tuple[tuple[Token, ...], ...] = ()
    how: How = "read"
    why: str = ""
    problem: str = ""


def read_names(names: Sequence[str], inputs: Sequence[int], backbone: BackboneConfig) -> Reading:
    """The layer ids that `names` carry, if they all carry one and each layer has one probe or each has two.

    Args:
        names: prefixes of the MLPs.
        inputs: the channels each reads; they tell encoder from decoder where no word does.
        backbone: which layers there are.
    """
    split = split_words(names)
    problem = ""
    # A number on either side of a sublayer's name can be its block (3.self_attn, sa.3): the reading that gives layers is it.
    for left_first in (True, False):
        reading = _read(names, split, inputs, backbone, left_first)
        if reading.ids:
            return reading
        problem = problem or reading.problem
    return Reading(problem=problem)


def _read(
    names: Sequence[str], split: Sequence[Sequence[Word]], inputs: Sequence[int], backbone: BackboneConfig, left_first: bool
) -> Reading:
    # A probe may call its own Sequential "mlp": alone, the word names a sublayer only beside a block's number.
    attention = any(_find_step(words, left_first, mlps=False) for words in split)
    found = [_layer_name(words, left_first, attention) for words in split]
    if not any(found):
        return Reading()
    missing = [name for name, layer in zip(names, found, strict=True) if layer is None]
    if missing:
        return Reading(problem=f"{len(missing)} of {len(names)} names carry no layer, {missing[0]} for one")
    layers = [_with_side(layer, width, backbone) for layer, width in zip(found, inputs, strict=True) if layer]
    unsided = [name for name, layer in zip(names, layers, strict=True) if layer.side is None]
    if unsided:
        return Reading(problem=f"{unsided[0]} says neither encoder nor decoder, and neither does its width")
    bases, how, why = _bases(layers, {"encoder": backbone.enc_depth, "decoder": backbone.dec_depth})
    if any(layer.side is None for layer in found if layer):
        how, why = least_certain({how, "inferred"}), f"{why}; encoder or decoder by width"
    ids = tuple(_layer_id(layer, bases) for layer in layers)
    problem = _ids_problem(ids, names, backbone)
    return Reading(problem=problem) if problem else Reading(ids, tuple(layer.rest for layer in layers), how, why)


def _layer_name(words: Sequence[Word], left_first: bool, attention: bool) -> LayerName | None:
    step = _find_step(words, left_first, mlps=False) or _find_step(words, left_first, mlps=True, apart=attention)
    if step:
        start, stop, name, block = step
        side = next((i for i in reversed(range(len(words))) if words[i].token in _SIDES), None)
        rest = tuple(w.token for i, w in enumerate(words) if i not in (block, side) and not start <= i < stop)
        number = words[block].token
        return LayerName(_SIDES[str(words[side].token)] if side is not None else None, int(number), name, rest)
    for i, (word, after) in enumerate(zip(words, words[1:], strict=False)):
        if (word.token in _SIDES and after.token == "norm") or (word.token in ("dec", "decoder") and after.token == "embed"):
            rest = tuple(w.token for j, w in enumerate(words) if j not in (i, i + 1))
            return LayerName(_SIDES[str(word.token)], None, str(after.token), rest)
    return None


def _find_step(words: Sequence[Word], left_first: bool, mlps: bool, apart: bool = True) -> tuple[int, int, str, int] | None:
    """Where the sublayer is named (start, stop), which it is, and where its block's number stands.

    `mlps` is whether the word mlp is looked for or those of attention, `apart` whether it may be another component than the number.
    """
    for start in range(len(words)):
        for stop in (start + 2, start + 1):
            step = _STEPS.get(tuple(str(word.token) for word in words[start:stop]))
            if step is None or (step == "mlp") != mlps:
                continue
            block = _block(words, start, stop, left_first)
            if block is not None and (apart or words[block].part == words[start].part):
                return start, stop, step, block
            break
    return None


def _block(words: Sequence[Word], start: int, stop: int, left_first: bool) -> int | None:
    left = next((i for i in reversed(range(start)) if words[i].token not in _FILLERS), None)
    right = next((i for i in range(stop, len(words)) if words[i].token not in _FILLERS), None)
    for i in (left, right) if left_first else (right, left):
        if i is not None and isinstance(words[i].token, int) and _may_count_blocks(words, i):
            return i
    return None


def _may_count_blocks(words: Sequence[Word], at: int) -> bool:
    """Whether the number at `at` can be a block's: not a view's, and not that of a word such as fc1."""
    attached = words[at].attached_to
    return not (at and words[at - 1].token in VIEW_WORDS) and (attached is None or attached in _FILLERS or attached in NETWORK_RANKS)


def _with_side(layer: LayerName, width: int, backbone: BackboneConfig) -> LayerName:
    fits = [side for side, dim in (("encoder", backbone.enc_embed_dim), ("decoder", backbone.dec_embed_dim)) if dim == width]
    if layer.side is not None or len(fits) != 1:
        return layer
    return LayerName(fits[0], layer.block, layer.step, layer.rest)


def _bases(layers: Sequence[LayerName], depths: Mapping[str, int]) -> tuple[dict[str, int], How, str]:
    """The number of the first block on each side."""
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


def _layer_id(layer: LayerName, bases: Mapping[str, int]) -> str:
    side = layer.side or ""
    return f"{side}.{layer.step}" if layer.block is None else f"{side}.{layer.block - bases[side]}.{layer.step}"


def _ids_problem(ids: Sequence[str], names: Sequence[str], backbone: BackboneConfig) -> str:
    known = set(backbone.layer_ids)
    for layer, name in zip(ids, names, strict=True):
        if layer not in known:
            return f"{name} reads as {layer}, which this backbone does not have"
    counts = Counter(ids)
    if set(counts.values()) in ({1}, {2}):
        return ""
    most, fewest = max(ids, key=counts.__getitem__), min(ids, key=counts.__getitem__)
    return f"{most} has {counts[most]} MLPs, {fewest} has {counts[fewest]}; expected one for each layer, or one for each layer and view"
