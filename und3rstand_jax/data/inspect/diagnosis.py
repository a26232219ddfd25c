"""Which of the usual mistakes explains why two views disagree."""

import dataclasses
import operator
from collections.abc import Iterator, Sequence

from und3rstand_jax.data.inspect.agreement import Agreement, ThinPair, both_ways
from und3rstand_jax.data.inspect.depth_mistakes import RAY, far_away, few_of, fitted_unit, usual_units
from und3rstand_jax.data.inspect.mistakes import INTRINSICS, POSES, Mistake
from und3rstand_jax.support.progress import with_progress

_score = operator.attrgetter("agreement.score")

_BELIEVED = 0.5  # share of agreeing points from which geometry counts as right

_ONE_IS_ENOUGH = 0.6  # score from which a single mistake explains enough

_CLEARLY, _TIE = 0.1, 0.02  # differences in score

_BEYOND_FAR = 0.05  # by how much a unit must exceed the score of the same scene far away

_PAIRED_ON_ALL = 4  # combinations of two mistakes, the best on few pairs, that are tried on all


@dataclasses.dataclass(frozen=True)
class Explanation:
    """A mistake, or two at once, and how the pairs agree after correction."""

    mistakes: tuple[Mistake, ...]
    agreement: Agreement

    @property
    def symptom(self) -> str:
        """What the data look like."""
        return " and ".join(mistake.symptom for mistake in self.mistakes)

    @property
    def remedy(self) -> str:
        """What corrects it."""
        return " and ".join(mistake.remedy for mistake in self.mistakes)


def explain(pairs: Sequence[ThinPair], progress: bool = False) -> list[Explanation]:
    """The mistakes that explain the pairs clearly better than taking them as they are; empty if none does.

    The first is the best, or the most usual among equals; the others are equally good. Two mistakes at once are tried if no single
    one explains enough.

    Args:
        pairs: a sample of a data set.
        progress: whether to show a progress bar.
    """
    given = both_ways(pairs)
    single = (*POSES, *INTRINSICS, RAY)
    tried = [_try((mistake,), pairs) for mistake in with_progress(single, "trying corrections", len(single), "", progress)]
    tried += _try_units(pairs, (), fitted_unit(pairs))
    if given.share < _BELIEVED and max(map(_score, tried)) < _ONE_IS_ENOUGH:
        few, combined = few_of(pairs), []
        before = (*POSES, *INTRINSICS)
        for first in with_progress(before, "trying two corrections", len(before), "", progress):
            corrected = [first.correct(pair) for pair in few]
            combined += [_try((first, RAY), few), *_try_units(corrected, (first,), usual_units(corrected))]
        likely = sorted(combined, key=_score, reverse=True)[:_PAIRED_ON_ALL]
        tried += [_try(explanation.mistakes, pairs) for explanation in likely]
    best = max(tried, key=_score)
    if best.agreement.share < _BELIEVED or best.agreement.score < given.score + _CLEARLY:
        return []
    return [explanation for explanation in tried if explanation.agreement.score > best.agreement.score - _TIE]


def _try_units(corrected: Sequence[ThinPair], before: tuple[Mistake, ...], units: Sequence[Mistake]) -> Iterator[Explanation]:
    """Wrong units of the depth, on top of mistakes already corrected.

    However wrong the translations are, much agrees once the scene is so far away that they make no difference. A unit must do better.
    """
    far = both_ways(map(far_away, corrected)).score
    for unit in units:
        agreement = _try((unit,), corrected).agreement
        if agreement.score > far + _BEYOND_FAR:
            yield Explanation((*before, unit), agreement)


def _try(mistakes: tuple[Mistake, ...], pairs: Sequence[ThinPair]) -> Explanation:
    for mistake in mistakes:
        pairs = [mistake.correct(pair) for pair in pairs]
    return Explanation(mistakes, both_ways(pairs))
