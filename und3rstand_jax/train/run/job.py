"""What a run trains, as the loop sees it: probes on a frozen backbone, or the backbone itself.

Errors on held-out pairs, in between: on all devices, without poses.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import numpy as np

from und3rstand_jax.data.loader import Delivery, Sources, held_out, validation_batches
from und3rstand_jax.data.records import Shape
from und3rstand_jax.train.run.checkpoints import Checkpoints
from und3rstand_jax.train.run.interruption import Interruption
from und3rstand_jax.train.step.data_parallel import parallel, split
from und3rstand_jax.train.task import Setup


class Job(Protocol):
    """A thing to train. Losses, errors and `frozen_at` come as stacked rows under the names of `rows`."""

    @property
    def setup(self) -> Setup:
        """What every run is made of."""
        ...

    @property
    def rows(self) -> Mapping[str, tuple[str, ...]]:
        """Name of a stack -> what each of its rows belongs to, as logs call it: a layer id, or the model's head."""
        ...

    @property
    def order(self) -> tuple[str, ...]:
        """All that the rows belong to, in the order of logs."""
        ...

    @property
    def identity(self) -> dict[str, Any]:
        """What a run and its checkpoints are tied to besides the options; plain values."""
        ...

    def announcement(self) -> str:
        """What is trained on what, for the first line of a run."""
        ...

    def initial_state(self) -> Any:
        """The state before the first step: a named tuple with `step` and `params`."""
        ...

    def fixed(self) -> Any:
        """Parameters that every step reads and none changes."""
        ...

    def step(self, shape: Shape) -> Callable[[Any, Any, Any], tuple[Any, Any]]:
        """(state, fixed, batch) -> (next state, losses), for batches of this shape, on one device of several."""
        ...

    def errors(self) -> Callable[[Any, Any, Any], Any]:
        """(parameters, fixed, batch) -> error of every row, pair and view, each stack (L, B, 2)."""
        ...

    def frozen_at(self, state: Any) -> Mapping[str, np.ndarray]:
        """Of a replicated state, the step in which each row was frozen, NOT_FROZEN for one that trains."""
        ...

    def finish(self, sources: Sources, checkpoints: Checkpoints, state: Any) -> None:
        """Writes what the run is for; `state` is the last, as NumPy arrays."""
        ...


def by_name(job: Job, stacks: Mapping[str, Any], row: Callable[[Any, int], Any]) -> dict[str, Any]:
    """`row(stack, index)` of every row, in the order of logs."""
    found = {name: row(stacks[stack], index) for stack, names in job.rows.items() for index, name in enumerate(names)}
    return {name: found[name] for name in job.order}


Errors = dict[str, dict[str, float]]
"""Layer id (or head) -> "view1", "view2" -> mean error: of probes the test metric in the ground truth's unit."""


class Validation:
    """Held-out pairs and the compiled program that measures on them."""

    def __init__(self, job: Job, sources: Sources) -> None:
        """Nothing is compiled before the first call."""
        self._job, self._setup, self._sources = job, job.setup, sources
        self._measure = parallel(job.errors())

    def __call__(self, fixed: Any, params: Any, stop: Interruption, report: Callable[[Delivery], None]) -> Errors | None:
        """The errors with these (replicated) parameters; None if this process is told to stop meanwhile.

        `report` is told of pairs that could not be read.
        """
        places = held_out(self._setup.val_feed, self._sources, self._setup.options.val_pairs)
        feed = dataclasses.replace(self._setup.val_feed, batch_size=_batch_size(self._setup, len(places)))
        found: dict[str, list[np.ndarray]] = {}
        for delivery in validation_batches(feed, self._sources, places):
            report(delivery)
            measured = self._measure(params, fixed, split(delivery.batch))
            new = delivery.batch.position < len(places)
            for name, errors in measured.items():
                local = np.concatenate([np.asarray(shard.data)[0] for shard in errors.addressable_shards], axis=1)
                found.setdefault(name, []).append(local[:, new])
            # One of several hosts may not leave alone: the others would wait for it.
            if stop.told and jax.process_count() == 1:
                return None
        stacks = {name: np.concatenate(batches, axis=1) for name, batches in found.items()}
        return by_name(self._job, stacks, lambda stack, index: _mean_of_views(stack[index]))


def mean_error(errors: Errors) -> float:
    """One figure for all layers and both views; it chooses the best checkpoint."""
    return float(np.mean([value for views in errors.values() for value in views.values()]))


def _batch_size(setup: Setup, pairs: int) -> int:
    """Pairs at once on this host: as many for each device as a training step takes at once, or as there are."""
    devices = jax.local_device_count()
    return devices * max(1, min(setup.pairs_at_once, -(-pairs // devices)))


def _mean_of_views(errors: np.ndarray) -> dict[str, float]:
    # A view without a valid pixel has no error.
    one, two = np.nanmean(errors, axis=0)
    return {"view1": float(one), "view2": float(two)}
