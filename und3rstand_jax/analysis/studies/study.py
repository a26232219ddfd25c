"""What every study takes and returns, and how it goes over the pairs.

    setting (backbone, probes, pairs, …) ─▶ study ─▶ Study: records with standard errors, tables, figures, findings

A study is a function from a `Setting` to a `Study`; a second function estimates beforehand what it will take (`Cost`).
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float, Shaped
from matplotlib.figure import Figure

from und3rstand_jax.analysis.inputs import GroundTruth
from und3rstand_jax.analysis.pair_measures import Pairs
from und3rstand_jax.data.records import things_of
from und3rstand_jax.geometry.alignment import Alignment
from und3rstand_jax.geometry.pose import pose_errors
from und3rstand_jax.model.backbone import Backbone
from und3rstand_jax.model.output import Grids
from und3rstand_jax.model.start import token_grids
from und3rstand_jax.probes.epipolar import EpipolarProbes
from und3rstand_jax.probes.probes import Probes
from und3rstand_jax.support.pieces import Pieces
from und3rstand_jax.support.progress import progress_bar


class Mean(NamedTuple):
    """A mean over pairs and its standard error. Both are NaN without a pair; the error is NaN with only one."""

    mean: float
    error: float


Cell: TypeAlias = str | int | float | Mean | None
"""A record's value under a name; a `Mean` takes two columns in a file."""

Record: TypeAlias = Mapping[str, Cell]


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows to read; cells are text, ready to be shown."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


class Control(NamedTuple):
    """What probes can do on their own: the same probes, trained in the same way on a backbone with random weights.

    Attributes:
        backbone: with random weights.
        probes: trained on it.
        same: the same probes, trained in the same way on the model itself.
        training: how all of them were trained, in words.
    """

    backbone: Backbone
    probes: Probes
    same: Probes
    training: str


class EpipolarSet(NamedTuple):
    """Epipolar probes trained on the model, the same trained on a backbone with random weights as their control, and that backbone."""

    trained: EpipolarProbes
    control: EpipolarProbes
    control_backbone: Backbone


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a study runs on, and how.

    Attributes:
        backbone: the model.
        probes: on its layers, for the studies that read them.
        pairs: held-out pairs, or sets of more views; all views of one size.
        twins: for each pair, another that shares its view 1 and has a different view 2, for `patching`; None if there are none.
        control: of the probes; None if none was trained.
        epipolar: probes for the fundamental matrix, for `epipolar`; None if none were trained.
        seed: of everything that is drawn at random.
        alignment: how predicted points are aligned with the true ones; by scale, as usual for every metric here, by default.
        batch_size: most pairs in one pass.
        pieces: where finished parts are kept, so that an interrupted study can resume; None for nowhere.
        progress: whether a terminal shows progress bars.
    """

    backbone: Backbone
    probes: Probes | None
    pairs: Pairs
    twins: Pairs | None = None
    control: Control | None = None
    epipolar: EpipolarSet | None = None
    seed: int = 0
    alignment: Alignment = "scale"
    batch_size: int = 16
    pieces: Pieces | None = None
    progress: bool = False

    @property
    def count(self) -> int:
        """The number of pairs."""
        return len(self.pairs.truths)

    @property
    def views(self) -> int:
        """The number of views in a set; two in a pair."""
        return len(self.pairs.views)

    @property
    def things(self) -> str:
        """What its sets are called: "pairs" or "sets of 4 views"."""
        return things_of(self.views)

    @property
    def grids(self) -> Grids:
        """(rows, columns) of every view's tokens."""
        return token_grids(tuple((view.shape[1], view.shape[2]) for view in self.pairs.views), self.backbone.config)


@dataclasses.dataclass(frozen=True)
class Study:
    """What a study found.

    Attributes:
        name: of the command and of the files.
        title: what was asked, in one line.
        meaning: what every name in the records means, and in which unit.
        records: one for each thing measured: the rows of NAME.csv.
        tables: a few of the numbers, to read.
        figures: by the end of their file's name; "" for the main one.
        findings: what the numbers say, in sentences that quote them.
        facts: controls, thresholds and whatever else the numbers depend on.
        by_pair: the unrounded values of every pair, (S, …) each.
    """

    name: str
    title: str
    meaning: Mapping[str, str]
    records: Sequence[Record]
    tables: Sequence[Table]
    figures: Mapping[str, Figure]
    findings: Sequence[str]
    facts: Mapping[str, object]
    by_pair: Mapping[str, Float[np.ndarray, "S ..."]]


class Cost(NamedTuple):
    """What a study will take.

    Attributes:
        passes: forward passes of one pair, or equivalent work.
        memory: approximate bytes in memory at once, besides parameters and pairs.
        disk: approximate bytes of unfinished parts and results.
    """

    passes: int
    memory: int
    disk: int


def mean_of(values: Sequence[float] | Float[np.ndarray, " S"]) -> Mean:
    """The mean over the pairs whose value is not NaN."""
    known = np.asarray(values, np.float64)
    known = known[~np.isnan(known)]
    if not known.size:
        return Mean(math.nan, math.nan)
    with np.errstate(invalid="ignore"):  # an infinite error counts as an error
        error = known.std(ddof=1) / math.sqrt(known.size) if known.size > 1 else math.nan
    return Mean(float(known.mean()), float(error))


def median_of(values: Sequence[float] | Float[np.ndarray, " S"]) -> Mean:
    """The median over the pairs whose value is not NaN, and its standard error by the bootstrap (Efron 1979), 1000 resamples."""
    known = np.asarray(values, np.float64)
    known = known[~np.isnan(known)]
    if not known.size:
        return Mean(math.nan, math.nan)
    resampled = np.random.default_rng(0).choice(known, (1000, known.size))
    with np.errstate(invalid="ignore"):
        error = np.median(resampled, axis=1).std(ddof=1) if known.size > 1 else math.nan
    return Mean(float(np.median(known)), float(error))


def mean_in(record: Record, name: str) -> Mean:
    """A record's mean under a name; NaN if it has no mean there."""
    cell = record.get(name)
    return cell if isinstance(cell, Mean) else Mean(math.nan, math.nan)


def text_in(record: Record, name: str, digits: int = 3) -> str:
    """The same as text."""
    return plus_minus(mean_in(record, name), digits)


def holds_from(holds: Sequence[bool]) -> int | None:
    """The first index from which all are true; None if the last is not."""
    since = max((index + 1 for index, one in enumerate(holds) if not one), default=0)
    return since if since < len(holds) else None


def turn_of(truth: GroundTruth) -> float:
    """Degrees of rotation between view 1's camera and a later one: the mean over the later views."""
    return float(np.mean([pose_errors(np.eye(4), pose)[0] for pose in truth.poses[1:]]))


def other_pair(number: int, count: int) -> int:
    """Another pair, half of all pairs further on: neighbours in a data set may show the same scene."""
    return (number + count // 2) % count


def pairs_at_once(setting: "Setting", bytes_a_pair: int, most: int = 2**29) -> int:
    """The most pairs that together take up to `most` bytes, but no more than the setting's batch size; at least one."""
    return max(1, min(setting.batch_size, setting.count, most // max(bytes_a_pair, 1)))


def plus_minus(mean: Mean, digits: int = 3) -> str:
    """0.123 ± 0.004."""
    return f"{mean.mean:.{digits}f} ± {mean.error:.{digits}f}"


def share_text(mean: Mean) -> str:
    """12 ± 1 %."""
    return f"{100 * mean.mean:.0f} ± {100 * mean.error:.0f} %"


def over_pairs(
    setting: Setting, what: str, compute: Callable[[range], Mapping[str, np.ndarray]], batch_size: int | None = None, asked: str = ""
) -> dict[str, Shaped[np.ndarray, "S ..."]]:
    """Runs a function over all pairs, some at a time, with a progress bar; finished parts are kept in `setting.pieces`.

    Args:
        setting: the study's.
        what: what is computed: for the progress bar, and to tell the parts of one study apart.
        compute: maps the numbers of some pairs to arrays with a row for each.
        batch_size: most pairs at a time; by default the setting's.
        asked: what else the parts depend on that the setting does not say.

    Returns:
        The arrays of all pairs, joined.
    """
    most = min(batch_size or setting.batch_size, setting.count)
    together = -(-setting.count // -(-setting.count // most))  # of one size, so that they run the same programs
    parts: list[Mapping[str, np.ndarray]] = []
    with progress_bar(what, setting.count, "pair", setting.progress) as advance:
        for low in range(0, setting.count, together):
            some = range(low, min(low + together, setting.count))
            name = f"{what} {some} {asked}".rstrip()
            found = None if setting.pieces is None else setting.pieces.read(name)
            if found is None:
                found = {key: np.asarray(values) for key, values in compute(some).items()}
                if setting.pieces is not None:
                    setting.pieces.write(name, found)
            parts.append(found)
            advance(len(some))
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
