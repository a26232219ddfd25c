"""Training probes on a frozen backbone."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from train.data.loader import Sources
from train.data.records import Shape
from train.run.checkpoints import Checkpoints
from train.run.ending import finish
from train.setup import ProbesSetup
from train.step.backbone import trunk_params
from train.step.data_parallel import first, total
from train.step.probe_errors import layer_errors
from train.step.probe_step import probe_step
from train.step.state import ProbesState, initial_state
from und3rstand_jax.checkpoint import read_checkpoint_info
from und3rstand_jax.loading import load_backbone


class ProbesJob:
    """See `train.run.job.Job`."""

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
