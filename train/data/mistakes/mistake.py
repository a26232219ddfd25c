"""What a mistake is: how the data look, what would help, and the correction itself, so that one can try whether it helps."""

import dataclasses
from collections.abc import Callable

from train.data.overlap import ThinPair, ThinView


@dataclasses.dataclass(frozen=True)
class Mistake:
    """`symptom` is a clause ("cam2world looks like world2cam"), `remedy` the subject of one ("inverting it")."""

    symptom: str
    remedy: str
    correct: Callable[[ThinPair], ThinPair]


def each(correct: Callable[[ThinView], ThinView]) -> Callable[[ThinPair], ThinPair]:
    """A correction of views as one of pairs."""
    return lambda pair: (correct(pair[0]), correct(pair[1]))
