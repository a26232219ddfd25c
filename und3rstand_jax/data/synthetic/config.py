"""The options of rendered scenes. No JAX: command lines read this before a device is chosen."""

import dataclasses
import math
from typing import TypeAlias

from und3rstand_jax.support.errors import OptionError

Range: TypeAlias = tuple[float, float]

LEAST_VIEWS, MOST_VIEWS = 2, 256
"""Bounds on the number of views in a set."""


@dataclasses.dataclass(frozen=True)
class SyntheticConfig:
    """How the cameras of a scene are placed: `views` of them, each but the first placed around an earlier one.

    `overlap` is the range from which each of these uniformly draws its overlap with that earlier one: the fraction of the earlier view's
    pixels with depth whose points the later one sees. `baseline` is the range of the distance between the two cameras, in metres: at the
    same overlap, a short baseline gives little parallax and an easier pair.

    `second` numbers the second cameras of a scene. Pairs that differ only in it share the room, view 1 and both lenses; the second camera
    has another place and its own draw of the overlap. Command lines use number 0.

    Raises:
        OptionError: no pair can be in a range, there is no such second camera, or there are too few or too many views.
    """

    overlap: Range = (0.25, 0.9)
    baseline: Range = (0.1, 3.0)
    second: int = 0
    views: int = 2

    def __post_init__(self) -> None:
        if not 0 <= self.second < 2**32:
            raise OptionError(f"second: expected the number of a second camera, 0 to 4294967295, found {self.second}")
        check_views(self.views)
        bounds = (
            ("overlap", self.overlap, 0.0, 1.0, "fractions of view 1's pixels between 0 and 1"),
            ("baseline", self.baseline, 0.1, 10.0, "distances in metres between 0.1 and 10"),
        )
        for name, (low, high), least, most, meaning in bounds:
            # Written so that NaN fails.
            if not least <= low <= high <= most:
                raise OptionError(f"{name}: expected two {meaning}, the smaller first, found {low:g}-{high:g}; write {_example(name)}")
        if self.baseline[0] > 1:
            raise OptionError(f"baseline: expected it to begin at 1 m or less, since rooms are small, found {self.baseline[0]:g}; lower it")


def check_views(views: int) -> None:
    """Checks that a set's number of views is from LEAST_VIEWS to MOST_VIEWS.

    Raises:
        OptionError: it is not.
    """
    if not LEAST_VIEWS <= views <= MOST_VIEWS:
        raise OptionError(f"--views {views}: expected {LEAST_VIEWS} to {MOST_VIEWS} views in a set")


_DEFAULTS = {"overlap": SyntheticConfig.overlap, "baseline": SyntheticConfig.baseline}


def _example(name: str) -> str:
    low, high = _DEFAULTS[name]
    return f"{name}={low:g}-{high:g}"


def parse_synthetic(text: str, views: int = 2) -> SyntheticConfig:
    """Options as a command line gives them, comma-separated: `overlap=0.5-0.9,baseline=0.1-1`.

    "" gives the defaults; a single number is both ends of its range. `views` is the number of cameras in a scene.

    Raises:
        OptionError: an option is unknown or given twice, its value is not a range in its bounds, or `views` is out of bounds.
    """
    options: dict[str, Range] = {}
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        if name not in _DEFAULTS:
            raise OptionError(f"synthetic data: expected options among {', '.join(_DEFAULTS)}, found {name!r}; write {_example('overlap')}")
        if name in options:
            raise OptionError(f"synthetic data: expected each option once, found {name} twice in {text!r}; remove one")
        low, dash, high = value.partition("-")
        try:
            numbers = float(low), float(high if dash else low)
        except ValueError:
            numbers = math.nan, math.nan
        if not all(map(math.isfinite, numbers)):
            raise OptionError(f"{name}: expected a range of two numbers, found {value!r}; write {_example(name)}")
        options[name] = numbers
    chosen = _DEFAULTS | options
    return SyntheticConfig(chosen["overlap"], chosen["baseline"], views=views)
