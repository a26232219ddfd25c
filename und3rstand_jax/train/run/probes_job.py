"""What a run ends with: the probes as a checkpoint, and what they are worth.

Training probes on a frozen backbone.
"""

import dataclasses
import functools
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from und3rstand_jax.analysis.evaluate import evaluate_on
from und3rstand_jax.analysis.tables import METRICS, PLOT, TABLE, format_table, write_results
from und3rstand_jax.checkpoint.format import is_checkpoint, read_checkpoint_info
from und3rstand_jax.data.loader import Sources
from und3rstand_jax.data.records import Shape
from und3rstand_jax.loading import load_backbone, load_backbone_and_probe
from und3rstand_jax.train.run.checkpoints import Checkpoints
from und3rstand_jax.train.run.config_file import option_values
from und3rstand_jax.train.run.folder import PROBES
from und3rstand_jax.train.step.data_parallel import first, total
from und3rstand_jax.train.step.optimizer import NOT_FROZEN, ProbesState, initial_state
from und3rstand_jax.train.step.probe_step import layer_errors, probe_step, trunk_params
from und3rstand_jax.train.task import ProbesSetup
from und3rstand_jax.train.trained import write_trained_probes


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


class ProbesJob:
    """See `und3rstand_jax.train.run.job.Job`."""

    def __init__(self, setup: ProbesSetup, source: Path) -> None:
        """`source` is the converted checkpoint that holds the backbone."""
        self.setup, self._source = setup, source

    @property
    def rows(self) -> Mapping[str, tuple[str, ...]]:
        """The layers of every group."""
        return {f"group{number}": group.layer_ids for number, group in enumerate(self.setup.probes.groups)}

    @property
    def order(self) -> tuple[str, ...]:
        """The probed layers."""
        return self.setup.probes.layer_ids

    @property
    def identity(self) -> dict[str, Any]:
        """Layers and backbone."""
        provenance = read_checkpoint_info(self._source).provenance["backbone"]
        return {"layers": list(self.order), "backbone": repr(self.setup.backbone), "backbone_sha256": provenance["sha256"]}

    def announcement(self) -> str:
        """How many layers of what."""
        span = self.order[0] if len(self.order) == 1 else f"{self.order[0]} … {self.order[-1]}"
        return f"{len(self.order)} layers ({span}) of {self.setup.options.backbone}"

    def initial_state(self) -> ProbesState:
        """Freshly drawn probes."""
        return initial_state(self.setup.probes, self.setup.recipe, self.setup.options.seed)

    def fixed(self) -> Any:
        """The backbone's trunk."""
        options = self.setup.options
        return trunk_params(load_backbone(self._source, dtype=options.dtype, attention=options.attention).params)

    def step(self, shape: Shape) -> Callable[[Any, Any, Any], tuple[Any, Any]]:
        """All probes at once."""
        return functools.partial(probe_step, self.setup.task(shape), total)

    def errors(self) -> Callable[[Any, Any, Any], Any]:
        """The test metric of every layer."""
        return functools.partial(layer_errors, self.setup.val_task)

    def frozen_at(self, state: ProbesState) -> Mapping[str, np.ndarray]:
        """Of every probe."""
        return {name: np.asarray(first(group.frozen_at)) for name, group in state.groups.items()}

    def finish(self, sources: Sources, checkpoints: Checkpoints, state: ProbesState) -> None:
        """Probes, evaluation, table and plot."""
        finish(self.setup, sources, self._source, checkpoints, jax.tree.map(np.asarray, state))
