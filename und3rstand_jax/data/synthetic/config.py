"""What may be asked of the rendered pairs. No JAX here: the command line reads this before a device is chosen."""

import dataclasses
import math

from und3rstand_jax.support.errors import UserError

Range = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class SyntheticConfig:
    """How the two views of a pair lie to each other.

    `overlap` is the range that each pair's overlap is drawn from, uniformly: the share of view 1's pixels with a depth whose
    points view 2 sees. `baseline` is the range of the distance between the two cameras, in metres: at the same overlap, a short
    one leaves little parallax and an easier pair. Raises UserError for a range that no pair can have.
    """

    overlap: Range = (0.25, 0.9)
    baseline: Range = (0.1, 3.0)

    def __post_init__(self) -> None:
        self._check("overlap", 0.0, 1.0, "shares of view 1's pixels between 0 and 1")
        self._check("baseline", 0.1, 10.0, "metres between 0.1 and 10")
        if self.baseline[0] > 1:
            raise UserError(f"baseline: expected it to begin at 1 m or less, since rooms are small, found {self.baseline[0]:g}; lower it")

    def _check(self, name: str, least: float, most: float, meaning: str) -> None:
        low, high = getattr(self, name)
        # Written so that NaN fails.
        if not least <= low <= high <= most:
            raise UserError(f"{name}: expected two {meaning}, the smaller first, found {low:g}-{high:g}; write {_example(name)}")


def parse_synthetic(text: str) -> SyntheticConfig:
    """Options as a command line gives them, comma-separated: `overlap=0.5-0.9,baseline=0.1-1`. "" is the defaults; one number
    stands for a range of itself. Raises UserError for an unknown option and for what is not a range.
    """
    options: dict[str, Range] = {}
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        if name not in _DEFAULTS:
            raise UserError(f"synthetic data: expected options among {', '.join(_DEFAULTS)}, found {name!r}; write {_example('overlap')}")
        if name in options:
            raise UserError(f"synthetic data: expected each option once, found {name} twice in {text!r}; remove one")
        options[name] = _range(name, value)
    return SyntheticConfig(**options)


def _range(name: str, text: str) -> Range:
    low, dash, high = text.partition("-")
    try:
        numbers = float(low), float(high if dash else low)
    except ValueError:
        numbers = math.nan, math.nan
    if not all(map(math.isfinite, numbers)):
        raise UserError(f"{name}: expected a range of two numbers, found {text!r}; write {_example(name)}")
    return numbers


def _example(name: str) -> str:
    low, high = _DEFAULTS[name]
    return f"{name}={low:g}-{high:g}"


_DEFAULTS: dict[str, Range] = {field.name: field.default for field in dataclasses.fields(SyntheticConfig)}  # type: ignore[misc]
