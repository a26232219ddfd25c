"""What the model card of a trained checkpoint says about its training: data, steps, the command, and the errors at the end."""

import dataclasses
import math
import shlex
from collections.abc import Mapping, Sequence

from und3rstand_jax.analysis.evaluate import Evaluation
from und3rstand_jax.analysis.evaluation_files import evaluation_table
from und3rstand_jax.analysis.studies.study import Mean, plus_minus
from und3rstand_jax.checkpoint.content import Metric, Results
from und3rstand_jax.convert.push import public_text
from und3rstand_jax.data.records import things_of
from und3rstand_jax.data.specification import SYNTHETIC
from und3rstand_jax.probes.rows import CONSTANT
from und3rstand_jax.train.kept_options import PoseOptions
from und3rstand_jax.train.options import NOT_PART_OF_A_RUN, BackboneOptions, RunOptions
from und3rstand_jax.train.step.pose_step import MEASURES

_LEFT_OUT = (*NOT_PART_OF_A_RUN, "validate_every", "save_every", "keep", "log_every", "workers")
"""Options that change nothing about the result."""

_COMMANDS: dict[type[RunOptions], str] = {BackboneOptions: "backbone", PoseOptions: "pose"}


def probes_results(options: RunOptions, step: int, evaluation: Evaluation) -> Results:
    """The results of trained probes: a row for each layer, and the best layer's error of each view as a metric."""
    head, rows, note = evaluation_table(evaluation)
    metrics = []
    for view in range(1, evaluation.views + 1):
        known = [(layer.views[view - 1].relative_mean, layer.layer_id) for layer in evaluation.layers]
        known = [(error, layer) for error, layer in known if math.isfinite(error)]
        if known:
            error, layer = min(known)
            name = f"mean relative point error of view {view}, best layer ({layer})"
            metrics.append(Metric(type="relative_point_error", name=name, value=error))
    head = [" ".join(title.split()) for title in head]
    return _results(options, step, head, rows, f"On {note}.", metrics)


def backbone_results(options: RunOptions, step: int, errors: Mapping[str, float] | None, things: str) -> Results:
    """The results of a trained backbone: a row and a metric for each view.

    Args:
        options: the run's options.
        step: the step after which the parameters were taken.
        errors: "view1", "view2", … -> normalised point error; None if it was not measured.
        things: what the errors were measured on: pairs or sets of views.
    """
    known = {f"view {name[4:]}": error for name, error in (errors or {}).items() if math.isfinite(error)}
    metrics = [
        Metric(type="normalised_point_error", name=f"normalised point error of {view}", value=error) for view, error in known.items()
    ]
    note = f"On {options.val_pairs} held-out {things}: the distance between predicted and true points, each side divided by its mean"
    rows = [[view, f"{error:.4f}"] for view, error in known.items()]
    return _results(options, step, ["view", "normalised point error"], rows, f"{note} distance from view 1's camera.", metrics)


def pose_results(options: PoseOptions, step: int, means: Mapping[str, Sequence[Mean]], count: int) -> Results:
    """The results of trained pose probes: a row for each layer, and the best layer's error in each angle as a metric.

    Args:
        options: the run's options.
        step: the number of steps.
        means: layer id, or CONSTANT -> mean error in degrees for each of MEASURES.
        count: how many sets they were measured on.
    """
    metrics = []
    for index, measure in enumerate(MEASURES):
        known = [(row[index].mean, layer) for layer, row in means.items() if layer != CONSTANT and math.isfinite(row[index].mean)]
        if known:
            error, layer = min(known)
            name = f"mean error of the {measure.replace('_', ' ')} in degrees, best layer ({layer})"
            metrics.append(Metric(type=f"{measure}_error", name=name, value=error))
    rows = [[layer, *(plus_minus(mean, 2) for mean in row)] for layer, row in means.items()]
    note = (
        f"Mean error ± standard error on {count} held-out {things_of(options.views)}, of the views after the first; "
        f"{CONSTANT}: one camera for all, trained in the same way."
    )
    return _results(options, step, ["layer", "rotation °", "translation °", "field of view °"], rows, note, metrics)


def _results(options: RunOptions, step: int, head: list[str], rows: list[list[str]], note: str, metrics: list[Metric]) -> Results:
    data = ", ".join(map(public_text, options.data or (SYNTHETIC,)))
    return Results(command=command_of(options), data=data, steps=step, head=head, rows=rows, note=note, metrics=metrics)


def command_of(options: RunOptions) -> str:
    """The command line that trains the same probes or backbone: only options that differ from their defaults, paths without folders."""
    words = ["python", "-m", "train", *(name for kind, name in _COMMANDS.items() if isinstance(options, kind))]
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if field.name in _LEFT_OUT or value is None or value == field.default:
            continue
        option = field.name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
            continue
        for one in value if isinstance(value, tuple) else (value,):
            words += [f"--{option}", public_text(str(one))]
    return shlex.join(words)
