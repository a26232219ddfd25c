"""A backbone's learning curve: plots the errors in a run's log, or in those of several runs that each continued the one before."""

import dataclasses
import logging
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, Required

from typing_extensions import TypedDict

from und3rstand_jax.model.layer_ids import HEAD
from und3rstand_jax.support.documents import json_lines, parse_json, read_text
from und3rstand_jax.support.errors import DataError, OutputError
from und3rstand_jax.support.files import fresh_file, open_own

LOG = "metrics.jsonl"  # in the folder of a run

_LARGEST = 2**32  # bytes of a log
_SOFTWARE = {"Software": "und3rstand_jax learning curve"}  # in the picture, to recognise it

_logger = logging.getLogger(__name__)

_Values = dict[str, float | Literal["inf", "-inf"] | None]


class _Entry(TypedDict, total=False):
    step: Required[int]
    layers: dict[str, _Values]
    validation: dict[str, _Values]


@dataclasses.dataclass(frozen=True)
class Curve:
    """Normalised point errors of every view: in training, means over the steps since the previous entry, and on held-out pairs.

    Entries are (steps done, {"view1": error, "view2": error, …}). Rendered scenes never repeat, so with them the training error,
    too, is measured on new scenes. `begins` are the steps after which another run continued.
    """

    training: tuple[tuple[int, dict[str, float]], ...]
    validations: tuple[tuple[int, dict[str, float]], ...]
    begins: tuple[int, ...] = ()

    @property
    def steps(self) -> int:
        """The total number of steps."""
        return max((step for step, _ in (*self.training, *self.validations)), default=0)


def read_curve(log: Path) -> Curve:
    """The curve in a run's metrics.jsonl. Unreadable lines, such as one cut short by a kill, are skipped and logged.

    Raises:
        DataError: the log cannot be read.
    """
    training: list[tuple[int, dict[str, float]]] = []
    validations: list[tuple[int, dict[str, float]]] = []
    for number, text in json_lines(read_text(log, DataError, largest=_LARGEST)):
        try:
            entry = parse_json(text, f"line {number} of {log}", _Entry, DataError)
        except DataError as error:
            _logger.warning("skipped an unreadable line: %s", error)
            continue
        step = entry["step"]
        if (losses := entry.get("layers")) is not None:
            training.append((step, _by_view(losses.get(HEAD, {}), "regression")))
        elif (errors := entry.get("validation")) is not None:
            validations.append((step, _by_view(errors.get(HEAD, {}), "view")))
    return Curve(tuple(training), tuple(validations))


def _by_view(values: Mapping[str, float | str | None], what: str) -> dict[str, float]:
    """Errors under `view1`, `view2`, … from an entry's `{what}1`, `{what}2`, …; at least two, NaN where the entry lacks one."""
    views = max([2, *(int(match[1]) for name in values if (match := re.fullmatch(rf"{what}([1-9]\d*)", name)))])
    return {f"view{view}": _number(values.get(f"{what}{view}")) for view in range(1, views + 1)}


def _number(value: float | str | None) -> float:
    """A number of the log. As strict JSON, it writes NaN as null and an infinity as text; a missing number is NaN."""
    return math.nan if value is None else float(value)


def joined(curves: Sequence[Curve]) -> Curve:
    """One curve of several runs that each continued the one before; each run counts its steps from 0."""
    whole = Curve((), ())
    for curve in curves:
        before = whole.steps
        later = [tuple((before + step, errors) for step, errors in points) for points in (curve.training, curve.validations)]
        begins = (*whole.begins, before) if before else ()
        whole = Curve(whole.training + later[0], whole.validations + later[1], begins)
    return whole


def plot_curve(file: Path, curve: Curve, batch_size: int) -> None:
    """Plots every view's errors against the number of sets seen, as a PNG."""
    import matplotlib.ticker
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    views = max((len(errors) for _, errors in (*curve.training, *curve.validations)), default=2)
    for number in range(1, views + 1):
        view, name, colour = f"view{number}", f"view {number}", f"C{(number - 1) % 10}"
        if curve.training:
            pairs, errors = zip(*[(step * batch_size, errors.get(view, math.nan)) for step, errors in curve.training], strict=True)
            axes.plot(pairs, errors, color=colour, alpha=0.35, linewidth=1, label=f"{name}, training")
        if curve.validations:
            pairs, errors = zip(*[(step * batch_size, errors.get(view, math.nan)) for step, errors in curve.validations], strict=True)
            axes.plot(pairs, errors, color=colour, marker="o", markersize=3, label=f"{name}, held-out scenes")
    for step in curve.begins:
        axes.axvline(step * batch_size, color="grey", linewidth=0.8, linestyle=":")
    axes.set(xlabel="pairs seen" if views == 2 else f"sets of {views} views seen", ylabel="normalised point error", yscale="log")
    axes.yaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%.2g"))
    axes.yaxis.set_minor_formatter(matplotlib.ticker.FormatStrFormatter("%.2g"))
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    with fresh_file(file, "wb") as picture:
        figure.savefig(picture, format="png", dpi=150, metadata=_SOFTWARE)


def is_curve(file: Path) -> bool:
    """Whether a file is a picture that `plot_curve` drew."""
    from PIL import Image

    try:
        with open_own(file) as stream, Image.open(stream, formats=["PNG"]) as picture:
            return _SOFTWARE.items() <= picture.info.items()
    except (OSError, OutputError, SyntaxError, ValueError):  # no picture
        return False
