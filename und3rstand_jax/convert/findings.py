"""What a plan reports: facts about a checkpoint and how each was found, and what is wrong with it.

Whatever applies to many tensors is reported once: names are read as words and numbers, in natural order, and names that differ only in
numbers are merged.
"""

import functools
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from und3rstand_jax.model.checkpoint_form import How
from und3rstand_jax.support.errors import CheckpointError
from und3rstand_jax.support.text import listed

MOST_SHOWN = 20
"""The most kinds of complaints, rows or names that are shown: a stranger's file may hold a hundred thousand of them."""

Token = int | str
"""A word or a number in a name."""

_CERTAINTY: tuple[How, ...] = ("option", "read", "inferred", "default")

# Words with a digit inside are words: the 3 of pts3d does not count anything.
_WORD = "pts3d|dust3r|mast3r|und3rstand|[a-z]+"
_TOKEN = re.compile(f"{_WORD}|[0-9]+")
_PIECE = re.compile(f"(?P<word>{_WORD})(?P<suffix>[0-9]*)|(?P<number>[0-9]+)")


@dataclass(frozen=True)
class Finding:
    """One fact about a backbone or a set of probes.

    See `How` for the kinds of evidence.
    """

    field: str
    value: str
    how: How
    why: str


def least_certain(hows: set[How]) -> How:
    """The weakest of several kinds of evidence: a fact is as certain as its least certain part."""
    return max(hows, key=_CERTAINTY.index)


@dataclass(frozen=True)
class Complaint:
    """What is wrong with the thing that `subject` names."""

    subject: str
    text: str


def raise_if_any(complaints: Sequence[Complaint], what: str) -> None:
    """Raises all complaints together, in one line.

    Raises:
        CheckpointError: there are any.
    """
    if complaints:
        raise CheckpointError(in_one_line(complaints, what))


def in_one_line(complaints: Sequence[Complaint], what: str) -> str:
    """`what: 3 problems: …`, or an empty string if there are none; only the first kinds of problems if there are very many."""
    if not complaints:
        return ""
    problems = listed(grouped_by_block(complaints), "; ", MOST_SHOWN, 400)
    return f"{what}: {len(complaints):,} problem{'s' if len(complaints) > 1 else ''}: {problems}"


def grouped_by_block(complaints: Iterable[Complaint]) -> list[str]:
    """Complaints as text in natural order, merged if they differ only in a block's index: `enc_blocks.{0…23}.norm1.bias: …`."""
    alike: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for complaint in complaints:
        index = re.search(r"(?<=\.)\d+(?=\.|$)", complaint.subject)
        before, after = (complaint.subject[: index.start()], complaint.subject[index.end() :]) if index else (complaint.subject, "")
        alike[before, after, complaint.text] += [int(index[0])] if index else []
    keys = sorted(alike, key=lambda key: (natural_key(key[0]), min(alike[key], default=-1), natural_key(key[1]), key[2]))
    return [f"{before}{_runs(sorted(set(alike[before, after, text])))}{after}: {text}" for before, after, text in keys]


def _runs(numbers: Sequence[int]) -> str:
    """0, 1, 2, 5 as {0…2,5}; a single number as it is."""
    if len(numbers) < 2:
        return "".join(map(str, numbers))
    # Consecutive numbers have the same distance from their position.
    runs: dict[int, list[int]] = defaultdict(list)
    for position, number in enumerate(numbers):
        runs[number - position].append(number)
    return "{" + ",".join(f"{run[0]}…{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs.values()) + "}"


def grouped_by_pattern(complaints: Iterable[Complaint]) -> list[str]:
    """Complaints as text; for subjects that differ only in numbers, wherever these stand, the first one and how many more."""
    alike: dict[tuple[str, str], list[str]] = defaultdict(list)
    for complaint in complaints:
        alike[pattern(complaint.subject), complaint.text].append(complaint.subject)
    return [
        f"{subjects[0]}{f' (and {len(subjects) - 1} more like it)' if len(subjects) > 1 else ''} {text}"
        for (_, text), subjects in alike.items()
    ]


def natural_key(name: str) -> tuple[tuple[tuple[int, int, str], ...], str]:
    """Sort key that orders the numbers in names as numbers, so that 10 follows 9."""
    return tuple(map(token_key, tokens(name))), name


@functools.lru_cache(maxsize=16384)
def tokens(name: str) -> tuple[Token, ...]:
    """A name's words and numbers in order: "dec3_ca" is ("dec", 3, "ca")."""
    return tuple(int(token) if token.isdecimal() else token for token in _TOKEN.findall(name.lower()))


def token_key(token: Token) -> tuple[int, int, str]:
    """Sort key that orders numbers as numbers, before words."""
    return (0, token, "") if isinstance(token, int) else (1, 0, token)


def pieces(name: str) -> list[tuple[Token, ...]]:
    """A name's words, each with the number attached to it if any, and its free numbers: "dec_blocks2.3" is
    [("dec",), ("blocks", 2), (3,)]."""
    return [
        tuple(part if part == match["word"] else int(part) for part in match.groups() if part) for match in _PIECE.finditer(name.lower())
    ]


def pattern(name: str) -> str:
    """A name with # in place of each number."""
    return re.sub(r"[0-9]+", "#", name)


def name_range(names: Sequence[str]) -> str:
    """Names with one pattern, merged: probes.{0…35}.net. Numbers that never change stay."""
    columns = zip(*(re.findall(r"[0-9]+", name) for name in names), strict=True)
    spans = iter([f"{{{min(map(int, c))}…{max(map(int, c))}}}" if len(set(c)) > 1 else c[0] for c in columns])
    return re.sub(r"[0-9]+", lambda _: next(spans), names[0])
