"""The words and numbers of MLPs' names, in the order in which the network runs."""

from collections.abc import Sequence
from dataclasses import dataclass

from convert.probes.names import Token, pieces, token_key

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
