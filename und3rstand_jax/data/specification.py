"""What `--data` says: sources and their weights. No JAX here: loader processes import this.

[WEIGHT*]synthetic[:overlap=LOW-HIGH]      [WEIGHT*]co3d:DIR      [WEIGHT*]blendedmvs:DIR      [WEIGHT*]pairs:DIR
"""

import dataclasses
import math
import re
from collections.abc import Sequence
from pathlib import Path

from und3rstand_jax.data.files.source import KINDS
from und3rstand_jax.data.synthetic.config import SyntheticConfig, parse_synthetic
from und3rstand_jax.support.errors import UserError

SYNTHETIC = "synthetic"


@dataclasses.dataclass(frozen=True)
class DataSpec:
    """One `--data`: its share of the pairs, relative to the others', and where they come from."""

    kind: str
    root: Path | None
    scenes: SyntheticConfig | None
    weight: float = 1.0

    def __str__(self) -> str:
        return self.kind if self.root is None else f"{self.kind}:{self.root}"


def parse_data(texts: Sequence[str], option: str = "--data") -> tuple[DataSpec, ...]:
    """The sources that are named; at most one of them synthetic.

    Raises:
        UserError: a text names no source.
    """
    specs = tuple(_parse_one(text, option) for text in texts)
    if not specs:
        raise UserError(f"{option} names no source; give {_known()}")
    if sum(spec.kind == SYNTHETIC for spec in specs) > 1:
        raise UserError(f"{option} names synthetic scenes twice; once is enough: give it the sum of the weights")
    return specs


def scenes_of(specs: Sequence[DataSpec]) -> SyntheticConfig | None:
    """How scenes are rendered; None where everything comes from files."""
    return next((spec.scenes for spec in specs if spec.scenes is not None), None)


def _parse_one(text: str, option: str) -> DataSpec:
    matched = re.fullmatch(r"(?:(?P<weight>[^*:]+)\*)?(?P<kind>[^:*]+)(?::(?P<rest>.*))?", text.strip(), re.DOTALL)
    if matched is None:
        raise UserError(f"{option} {text!r} is not [WEIGHT*]KIND[:DIR]; give {_known()}")
    kind, rest = matched["kind"].strip(), matched["rest"]
    weight = _weight(matched["weight"], text, option)
    if kind == SYNTHETIC:
        return DataSpec(kind, None, parse_synthetic(rest or ""), weight)
    if kind not in KINDS:
        raise UserError(f"{option} {text!r}: there is no source {kind!r}; give {_known()}")
    if not rest:
        raise UserError(f"{option} {text!r} needs a folder: {kind}:DIR")
    return DataSpec(kind, Path(rest).expanduser(), None, weight)


def _weight(text: str | None, whole: str, option: str) -> float:
    try:
        weight = 1.0 if text is None else float(text)
    except ValueError:
        weight = math.nan
    if not 0 < weight < math.inf:
        raise UserError(f"{option} {whole!r}: a weight is a positive number; found {text!r}")
    return weight


def _known() -> str:
    return f"{SYNTHETIC}, {', '.join(f'{kind}:DIR' for kind in KINDS)}, with a weight before it where there are several (0.7*co3d:DIR)"
