"""What a run ends with: the probes as a checkpoint, and what they are worth."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from train.data.loader import Sources
from train.evaluation.on_data import evaluate_on
from train.evaluation.tables import METRICS, PLOT, TABLE, format_table, write_results
from train.run.checkpoints import Checkpoints
from train.run.config_file import option_values
from train.run.folder import PROBES
from train.setup import ProbesSetup
from train.step.state import NOT_FROZEN, ProbesState
from train.trained_checkpoint import write_trained_probes
from und3rstand_jax.checkpoint import is_checkpoint
from und3rstand_jax.loading import load_backbone_and_probe


def finish(setup: ProbesSetup, sources: Sources, source: Path, checkpoints: Checkpoints, state: ProbesState) -> None:
    """Writes `probes/`, evaluates them as anybody would who loads them, and writes table and plot.

    Args:
        setup: of the run.
        sources: opened, of what it is validated on.
        source: the converted checkpoint that holds the backbone.
        checkpoints: to take the best from, where that is asked for.
        state: after the last step; NumPy arrays.
    """
    options, out = setup.options, setup.options.out
    step = int(state.step)
    if options.export == "best" and (best := checkpoints.best()) is not None and best != step:
        state, step = checkpoints.read(best, state).state, best
    facts = {"step": step, "frozen": frozen_layers(setup, state), "options": option_values(options)}
    if _is_done(out, facts):
        print(f"{out} is finished already: {out / PROBES}, {out / TABLE}, {out / PLOT}")
        return
    write_trained_probes(out / PROBES, source, setup.probes, state.params, facts, overwrite=True)
    print("evaluating", file=sys.stderr, flush=True)
    backbone, probes = load_backbone_and_probe(out / PROBES, dtype=options.dtype, attention=options.attention)
    # On one device, with what one device takes at once in training.
    feed = dataclasses.replace(setup.val_feed, batch_size=setup.pairs_at_once)
    evaluation, unreadable = evaluate_on(backbone, probes, feed, sources, options.val_pairs, show_progress=True)
    write_results(out, evaluation, facts | {"unreadable": unreadable})
    print(format_table(evaluation))
    print(f"probes: {out / PROBES}\ntable:  {out / TABLE}\nplot:   {out / PLOT}")


def frozen_layers(setup: ProbesSetup, state: ProbesState) -> dict[str, int]:
    """Layers whose probes were frozen -> the step that gave no finite loss, counted from 1."""
    found: dict[str, int] = {}
    for number, group in enumerate(setup.probes.groups):
        frozen_at = state.groups[f"group{number}"].frozen_at
        found |= {layer: int(at) + 1 for layer, at in zip(group.layer_ids, frozen_at, strict=True) if at != NOT_FROZEN}
    return found


def _is_done(out: Path, facts: dict[str, Any]) -> bool:
    """Whether an earlier call has written just this."""
    if not is_checkpoint(out / PROBES) or not all((out / name).is_file() for name in (METRICS, TABLE, PLOT)):
        return False
    try:
        earlier = json.loads((out / METRICS).read_text())["facts"]
    except ValueError:  # half written when the run was killed
        return False
    earlier.pop("unreadable", None)
    return earlier == json.loads(json.dumps(facts))
