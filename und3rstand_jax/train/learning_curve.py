"""How a backbone learned: the errors in a run's log as a picture, or those of several runs that continued from each other."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from und3rstand_jax.model.layer_ids import HEAD

LOG = "metrics.jsonl"  # in the folder of a run


@dataclasses.dataclass(frozen=True)
class Curve:
    """Normalised point errors of both views: in training, means over the steps since the previous entry, and on held-out pairs.

    Entries are (steps done, {"view1": error, "view2": error}). Rendered scenes never repeat, so on them the training error is one on
    new scenes as well. `begins` are the steps after which another run continued.
    """

    training: tuple[tuple[int, dict[str, float]], ...]
    validations: tuple[tuple[int, dict[str, float]], ...]
    begins: tuple[int, ...] = ()

    @property
    def steps(self) -> int:
        """How many there are in all."""
        return max((step for step, _ in (*self.training, *self.validations)), default=0)


def read_curve(log: Path) -> Curve:
    """The curve in a run's metrics.jsonl."""
    training, validations = [], []
    for line in map(json.loads, log.read_text().splitlines()):
        if "layers" in line:
            loss = line["layers"][HEAD]
            training.append((line["step"], {"view1": loss["regression1"], "view2": loss["regression2"]}))
        elif "validation" in line:
            validations.append((line["step"], line["validation"][HEAD]))
    return Curve(tuple(training), tuple(validations))


def joined(curves: Sequence[Curve]) -> Curve:
    """One curve of runs that continued from each other, each of which counts its steps from 0."""
    whole = Curve((), ())
    for curve in curves:
        before = whole.steps
        later = [tuple((before + step, errors) for step, errors in points) for points in (curve.training, curve.validations)]
        begins = (*whole.begins, before) if before else ()
        whole = Curve(whole.training + later[0], whole.validations + later[1], begins)
    return whole


def plot_curve(file: Path, curve: Curve, batch_size: int) -> None:
    """Draws both views' errors over the pairs seen, as a PNG."""
    import matplotlib.ticker
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for view, colour in (("view1", "tab:blue"), ("view2", "tab:orange")):
        name = f"view {view[-1]}"
        if curve.training:
            pairs, errors = zip(*[(step * batch_size, errors[view]) for step, errors in curve.training], strict=True)
            axes.plot(pairs, errors, color=colour, alpha=0.35, linewidth=1, label=f"{name}, training")
        if curve.validations:
            pairs, errors = zip(*[(step * batch_size, errors[view]) for step, errors in curve.validations], strict=True)
            axes.plot(pairs, errors, color=colour, marker="o", markersize=3, label=f"{name}, held-out scenes")
    for step in curve.begins:
        axes.axvline(step * batch_size, color="grey", linewidth=0.8, linestyle=":")
    axes.set(xlabel="pairs seen", ylabel="normalised point error", yscale="log")
    axes.yaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%.2g"))
    axes.yaxis.set_minor_formatter(matplotlib.ticker.FormatStrFormatter("%.2g"))
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.savefig(file, dpi=150)
