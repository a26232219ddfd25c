"""What every layer knows, as its probe reads it: geometry of all views, matches between them, the poses of those after the first.

    pairs ─▶ backbone, once ─▶ probe of each layer, and the head ─▶ errors, on the device ─▶ matches and pose, on the host

As in "Understanding Multi-View Transformers" (arXiv 2510.24907). A probe reads each token on its own: the study shows where geometry is
readable, not which step computed it.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from und3rstand_jax.analysis.descriptor_places import RIGHT_MEANING, descriptor_head
from und3rstand_jax.analysis.pair_measures import KNOWN, MATCHES, ROTATION, VIEW1, meaning_of, view_names
from und3rstand_jax.analysis.steps import kinds_of, steps_of
from und3rstand_jax.analysis.studies.layers.figure import control_figure, layers_figure
from und3rstand_jax.analysis.studies.layers.measures import (
    DESCRIPTORS,
    control_errors,
    layers_at_once,
    measure_layers,
    metrics_of,
    right_matches,
)
from und3rstand_jax.analysis.studies.study import (
    Cost,
    Mean,
    Record,
    Setting,
    Study,
    Table,
    mean_in,
    mean_of,
    median_of,
    plus_minus,
    share_text,
    text_in,
    turn_of,
)
from und3rstand_jax.model.config import ModelConfig
from und3rstand_jax.model.layer_ids import HEAD
from und3rstand_jax.support.errors import CheckpointError

FIRST_BLOCKS = (1, 2)
"""The first blocks for comparing the kinds of steps; not block 0, whose first step has no layer before it."""

_OF_VIEWS = {
    "adds": "what the step takes off view 1's error: the layer before less this one, pair by pair; none where that has no probe",
    "same": "control: view 1's error by a probe on this layer that was trained like those on random weights",
    "random": "control: view 1's error by a probe on this layer of a backbone with random weights",
}
"""For every view, such as adds1."""


def _meaning(views: int) -> dict[str, str]:
    meaning = meaning_of(views)
    return {
        "layer": "the layer whose probe was read, or head: the model's own",
        **meaning,
        "rotation_median": f"{meaning[ROTATION]}; the median, with the standard error of the bootstrap",
        "descriptor_matches": f"of the model's own head, where it makes descriptors: {RIGHT_MEANING}",
        **{
            f"{name}{number}": text if number == 1 else f"the same of view {number}"
            for name, text in _OF_VIEWS.items()
            for number in range(1, views + 1)
        },
    }


def cost(setting: Setting) -> Cost:
    """Per pair, one pass, two for a control (even without one), one for descriptors. A batch's points of all layers are in memory."""
    layers = len(setting.probes.layer_ids) + 1 if setting.probes else 0
    pixels = sum(view.shape[1] * view.shape[2] for view in setting.pairs.views)
    passes = 3 + (descriptor_head(setting.backbone.config) is not None)
    return Cost(
        passes * setting.count, 2 * layers_at_once(setting) * layers * pixels * 16, setting.count * layers * (3 * setting.views + 4) * 20
    )


def layers(setting: Setting) -> Study:
    """The study of layers.

    Raises:
        CheckpointError: there are no probes.
    """
    if setting.probes is None:
        raise CheckpointError("the study of layers reads probes, and this checkpoint has none; train them with --layers all")
    alignment = setting.alignment
    by_pair = measure_layers(setting, setting.probes, alignment)
    names = [*setting.probes.layer_ids, *([HEAD] if f"{HEAD}/{VIEW1}" in by_pair else [])]
    if setting.control is not None:
        by_pair |= control_errors(setting, alignment)
    if descriptor_head(setting.backbone.config) is not None:
        by_pair |= right_matches(setting)
    order = setting.backbone.config.layer_ids
    before = dict(zip(order[1:], order, strict=False))
    views = setting.views
    records = [_record(by_pair, layer, before.get(layer), views) for layer in names]
    turn = median_of([turn_of(truth) for truth in setting.pairs.truths])
    distances = np.array([np.mean([np.linalg.norm(pose[:3, 3]) for pose in truth.poses[1:]]) for truth in setting.pairs.truths])
    is_whole = set(setting.backbone.config.all_layers) <= set(names)
    # A step's share is known only where the layer before it has a probe too.
    falls = {block: step_falls(by_pair, names, block, setting.backbone.config, views) for block in FIRST_BLOCKS} if is_whole else {}
    facts = {
        "alignment": alignment,
        "median_turn_of_the_cameras": turn._asdict(),
        "falls_from_block": {n: {kind: [fall._asdict() for fall in of_views] for kind, of_views in of.items()} for n, of in falls.items()},
        "control": None if setting.control is None else setting.control.training,
    }
    return Study(
        "layers",
        "What can be read from every layer by its probe",
        _meaning(views),
        records,
        _tables(setting, records, falls, by_pair, names[-1], distances),
        {"": layers_figure(records, views)} | ({"control": control_figure(records, views)} if setting.control else {}),
        _findings(records, falls, turn, views),
        facts,
        by_pair | {"baseline": distances},
    )


def _record(by_pair: Mapping[str, np.ndarray], layer: str, before: str | None, views: int) -> Record:
    found: dict[str, Any] = {"layer": layer, **{metric: mean_of(by_pair[f"{layer}/{metric}"]) for metric in metrics_of(views)}}
    found["rotation_median"] = median_of(by_pair[f"{layer}/{ROTATION}"])
    if f"{before}/{VIEW1}" in by_pair:
        for number, view in enumerate(view_names(views), start=1):
            found[f"adds{number}"] = mean_of(by_pair[f"{before}/{view}"] - by_pair[f"{layer}/{view}"])
    if layer == HEAD and DESCRIPTORS in by_pair:
        found["descriptor_matches"] = mean_of(by_pair[DESCRIPTORS])
    for name in (f"{kind}{number}" for kind in ("same", "random") for number in range(1, views + 1)):
        if f"{layer}/{name}" in by_pair:
            found[name] = mean_of(by_pair[f"{layer}/{name}"])
    return found


def step_falls(
    by_pair: Mapping[str, np.ndarray], names: Sequence[str], first_block: int, config: ModelConfig, views: int = 2
) -> dict[str, tuple[Mean, ...]]:
    """For each kind of step, the fall of every view's error over all steps of that kind from a block on, in blocks where views meet.

    A fall is the error before a step minus that after it. They are summed within each pair first, so that the standard errors are those
    of what is compared, pair by pair.
    """

    def fall(kind: str, view: str) -> Mean:
        counted = steps_of(kind, config)[first_block:]
        steps = [(before, after) for before, after in zip(names, names[1:], strict=False) if after in counted]
        return mean_of(sum((by_pair[f"{before}/{view}"] - by_pair[f"{after}/{view}"] for before, after in steps), np.zeros(1)))

    return {kind: tuple(fall(kind, view) for view in view_names(views)) for kind in kinds_of(config).steps}


def _tables(
    setting: Setting,
    records: Sequence[Record],
    falls: Mapping[int, Mapping[str, tuple[Mean, ...]]],
    by_pair: Mapping[str, np.ndarray],
    last: str,
    distances: Float[np.ndarray, " S"],
) -> list[Table]:
    views = setting.views
    columns = (*(f"view {number}" for number in range(1, views + 1)), "right matches", "place seen", "rotation °, median")

    def cells(record: Record) -> tuple[str, ...]:
        errors = (text_in(record, name) for name in view_names(views))
        shares = (share_text(mean_in(record, name)) for name in (MATCHES, KNOWN))
        return *errors, *shares, text_in(record, "rotation_median", 1)

    by_layer = tuple((str(record["layer"]), *cells(record)) for record in records)
    tables = [Table("By layer", ("layer", *columns), by_layer)]
    if falls:
        steps = tuple((kind, *(plus_minus(fall) for of in falls.values() for fall in of[kind])) for kind in next(iter(falls.values())))
        over = tuple(f"view {view}, from block {block} on" for block in falls for view in range(1, views + 1))
        tables.append(Table("Fall of the error over all steps of a kind", ("step", *over), steps))
    rows = []
    for group in np.array_split(np.argsort(distances), min(3, len(distances))):
        part = {name: values[group] for name, values in by_pair.items() if name.startswith(f"{last}/")}
        rows.append((f"{distances[group[0]]:.2f} to {distances[group[-1]]:.2f}", *cells(_record(part, last, None, views))))
    tables.append(
        Table(f"{last}, by the distance of the cameras, a third of the {setting.things} each", ("cameras apart", *columns), tuple(rows))
    )
    return tables


def _findings(records: Sequence[Record], falls: Mapping[int, Mapping[str, tuple[Mean, ...]]], turn: Mean, views: int) -> list[str]:
    probed = [record for record in records if record["layer"] != HEAD]
    first, last = probed[0], probed[-1]

    def fall(view: str) -> str:
        start, end = mean_in(first, view), mean_in(last, view)
        if not start.mean > end.mean:
            return f"goes from {plus_minus(start)} to {plus_minus(end)} and does not fall"
        half = next(record["layer"] for record in probed if mean_in(record, view).mean <= (start.mean + end.mean) / 2)
        return f"falls from {plus_minus(start)} to {plus_minus(end)}, half of it by {half}"

    def is_below(record: Record) -> bool:
        rotation = mean_in(record, "rotation_median")
        return turn.mean - rotation.mean > 2 * math.hypot(turn.error, rotation.error)

    others = "; ".join(f"view {number}'s {fall(name)}" for number, name in enumerate(view_names(views)[1:], start=2))
    found = [f"From the first probed layer to the last, view 1's error {fall(VIEW1)}; {others}."]
    against = "each other" if views == 2 else "view 1's"
    posed = next((record for record in probed if is_below(record)), None)
    found.append(
        f"The cameras are turned against {against} by {plus_minus(turn, 1)}° in the median, the error of predicting no rotation; "
        + (
            f"{posed['layer']} is the first layer whose rotation error ({text_in(posed, 'rotation_median', 1)}°) is lower by more than two "
            "standard errors."
            if posed
            else "no layer's rotation error is lower by more than two standard errors."
        )
    )
    for block, of in falls.items():
        for later in range(1, views):
            ranked = sorted(of, key=lambda kind: -of[kind][later].mean)
            said = ", ".join(f"{kind} {plus_minus(of[kind][later])}" for kind in ranked)
            found.append(f"From block {block} on, the steps of one kind together lower view {later + 1}'s error by: {said}.")
    if "descriptor_matches" in records[-1]:
        found.append(
            f"The model's descriptors match {share_text(mean_in(records[-1], 'descriptor_matches'))} of what can be checked rightly, the "
            f"points of its head {share_text(mean_in(records[-1], MATCHES))}."
        )
    if "random2" in last:
        found.extend(
            f"Control: probes trained in one way reach {plus_minus(mean_in(last, f'same{view}'))} for view {view} on {last['layer']}, and "
            f"{plus_minus(mean_in(last, f'random{view}'))} on the same layer of a backbone with random weights."
            for view in range(2, views + 1)
        )
    return found
