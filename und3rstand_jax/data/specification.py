"""Where sets of views come from: sources and their weights, as given to `--data`. No JAX: loader processes import this.

[WEIGHT*]synthetic[:overlap=LOW-HIGH,baseline=LOW-HIGH]    [WEIGHT*]co3d:DIR    [WEIGHT*]blendedmvs:DIR    [WEIGHT*]pairs:DIR
"""

import dataclasses
import math
import re
from collections.abc import Sequence
from pathlib import Path

from und3rstand_jax.data.files.file_sets import KINDS
from und3rstand_jax.data.synthetic.config import SyntheticConfig, check_views, parse_synthetic
from und3rstand_jax.support.errors import OptionError
from und3rstand_jax.support.files import in_home

SYNTHETIC = "synthetic"

_EXPECTED = f"{SYNTHETIC}, {', '.join(f'{kind}:DIR' for kind in KINDS)}, each with a weight in front if there are several (0.7*co3d:DIR)"


@dataclasses.dataclass(frozen=True)
class DataSpec:
    """One source: a data set's folder `root`, or how `scenes` are rendered.

    `weight` is its share of the sets, relative to the others'. `views` is the number of views in a set, two for pairs.
    """

    kind: str
    root: Path | None
    scenes: SyntheticConfig | None
    weight: float = 1.0
    views: int = 2

    def __str__(self) -> str:
        return self.kind if self.root is None else f"{self.kind}:{self.root}"


def parse_data(texts: Sequence[str], option: str = "--data", views: int = 2) -> tuple[DataSpec, ...]:
    """The sources that a repeatable option names; at most one of them synthetic.

    Args:
        texts: one source each.
        option: the option's name, for messages.
        views: number of views in a set, the same in all sources.

    Raises:
        OptionError: `views` is outside LEAST_VIEWS to MOST_VIEWS; there is no source, a text does not name one, or several are synthetic.
    """
    check_views(views)
    specs = tuple(_parse_source(text, option, views) for text in texts)
    if not specs:
        raise OptionError(f"{option} names no source; expected {_EXPECTED}")
    if sum(spec.kind == SYNTHETIC for spec in specs) > 1:
        raise OptionError(f"{option} names synthetic scenes twice; give them once, with the sum of the weights")
    return specs


def scenes_of(specs: Sequence[DataSpec]) -> SyntheticConfig | None:
    """How scenes are rendered; None if every source reads files."""
    return next((spec.scenes for spec in specs if spec.scenes is not None), None)


def _parse_source(text: str, option: str, views: int) -> DataSpec:
    matched = re.fullmatch(r"(?:(?P<weight>[^*:]+)\*)?(?P<kind>[^:*]+)(?::(?P<rest>.*))?", text.strip(), re.DOTALL)
    if matched is None:
        raise OptionError(f"{option} {text!r} is not [WEIGHT*]KIND[:DIR]; expected {_EXPECTED}")
    kind, rest = matched["kind"].strip(), matched["rest"]
    try:
        weight = float(matched["weight"] or 1)
    except ValueError:
        weight = math.nan
    if not 0 < weight < math.inf:
        raise OptionError(f"{option} {text!r}: expected a positive number as weight, found {matched['weight']!r}")
    if kind == SYNTHETIC:
        return DataSpec(kind, None, parse_synthetic(rest or "", views), weight, views)
    if kind not in KINDS:
        raise OptionError(f"{option} {text!r}: there is no source {kind!r}; expected {_EXPECTED}")
    if rest and "\0" in rest:
        raise OptionError(f"{option} {text!r}: a folder's name cannot contain a null character")
    if not rest:
        raise OptionError(f"{option} {text!r} needs a folder: {kind}:DIR")
    return DataSpec(kind, in_home(rest), None, weight, views)
