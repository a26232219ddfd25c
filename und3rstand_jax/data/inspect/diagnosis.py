"""Which of the usual mistakes explains why two views disagree."""

import dataclasses
import sys
from collections.abc import Iterable, Iterator, Sequence

from tqdm import tqdm

from und3rstand_jax.data.inspect.agreement import Agreement, ThinPair, both_ways
from und3rstand_jax.data.inspect.mistakes import INTRINSICS, POSES, RAY, Mistake, far_away, few_of, fitted_unit, units

_MOST = 0.5  # share of agreement below which geometry is not believed


_GOOD = 0.6  # score at which one mistake explains enough


_CLEARLY, _TIE = 0.1, 0.02  # differences in score


_BEYOND_FAR = 0.05


_TRIED_ON_ALL = 4


@dataclasses.dataclass(frozen=True)
class Explanation:
    """A mistake, or two at once, and how the pairs agree without."""

    mistakes: tuple[Mistake, ...]
    agreement: Agreement

    @property
    def symptom(self) -> str:
        """What the data look like."""
        return " and ".join(mistake.symptom for mistake in self.mistakes)

    @property
    def remedy(self) -> str:
        """What helps."""
        return " and ".join(mistake.remedy for mistake in self.mistakes)


def score(agreement: Agreement) -> float:
    """From 0 to 1, the mean closeness of the points compared.

    Finer than the share that agrees: much of two neighbouring video frames agrees by accident. Where next to nothing can be compared, low.
    """
    return agreement.closeness / (agreement.compared + 0.01 * agreement.points + 1)


def explain(pairs: Sequence[ThinPair]) -> list[Explanation]:
    """What explains the pairs clearly better than taking them as they are; none if nothing does.

    The first is the best, or the most usual among equals; the others are as good. Two mistakes at once are tried where no single
    one will do.
    """
    given = both_ways(pairs)
    tried = list(_shown(_singles(pairs)))
    if given.share < _MOST and max(map(_score, tried)) < _GOOD:
        likely = sorted(_shown(_doubles(few_of(pairs))), key=_score, reverse=True)[:_TRIED_ON_ALL]
        tried += [_try(explanation.mistakes, pairs) for explanation in likely]
    best = max(tried, key=_score)
    if best.agreement.share < _MOST or _score(best) < score(given) + _CLEARLY:
        return []
    return [explanation for explanation in tried if _score(explanation) > _score(best) - _TIE]


def _singles(pairs: Sequence[ThinPair]) -> Iterator[Explanation]:
    yield from (_try((mistake,), pairs) for mistake in (*POSES, *INTRINSICS, RAY))
    yield from _with_units(pairs, (), fitted_unit(pairs, lambda corrected: score(both_ways(corrected))))


def _doubles(pairs: Sequence[ThinPair]) -> Iterator[Explanation]:
    for first in (*POSES, *INTRINSICS):
        corrected = [first.correct(pair) for pair in pairs]
        yield Explanation((first, RAY), _try((RAY,), corrected).agreement)
        yield from _with_units(corrected, (first,), units(corrected))


def _with_units(corrected: Sequence[ThinPair], before: tuple[Mistake, ...], wrong: Sequence[Mistake]) -> Iterator[Explanation]:
    """Wrong units of the depth, on top of mistakes already corrected.

    However wrong the translations are, much agrees once the scene is so far away that they do not count; a unit must do better.
    """
    far = score(both_ways([far_away(pair) for pair in corrected]))
    for unit in wrong:
        explained = _try((unit,), corrected)
        if _score(explained) > far + _BEYOND_FAR:
            yield Explanation((*before, unit), explained.agreement)


def _score(explanation: Explanation) -> float:
    return score(explanation.agreement)


def _try(mistakes: tuple[Mistake, ...], pairs: Sequence[ThinPair]) -> Explanation:
    for mistake in mistakes:
        pairs = [mistake.correct(pair) for pair in pairs]
    return Explanation(mistakes, both_ways(pairs))


def _shown(attempts: Iterable[Explanation]) -> Iterable[Explanation]:
    return tqdm(attempts, desc="trying corrections", unit="", file=sys.stderr, disable=None, leave=False, delay=0.5)
