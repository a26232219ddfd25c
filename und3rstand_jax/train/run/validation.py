"""Errors on held-out pairs between training steps: on all devices of this host, without camera poses."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from und3rstand_jax.data.loader import Delivery, Sources, held_out, validation_batches
from und3rstand_jax.model.stack import Params
from und3rstand_jax.train.run.processes import Interruption
from und3rstand_jax.train.step.data_parallel import joined, parallel, split
from und3rstand_jax.train.task import Task

Errors = dict[str, dict[str, float]]
"""Layer id (or head) -> "view1", "view2", … (`Task.measured`) -> mean error over sets, as `Task.errors` measures it."""


class Validation:
    """The held-out pairs, and the compiled program that measures errors on them."""

    def __init__(self, task: Task[Any], sources: Sources) -> None:
        """Sets up the program; it is compiled at the first call."""
        self._task, self._sources = task, sources
        self._measure = parallel(task.errors())

    def __call__(self, fixed: Params, params: Params, stop: Interruption, report: Callable[[Delivery], None]) -> Errors | None:
        """Mean errors over the held-out pairs.

        Args:
            fixed: the task's fixed parameters, on every device.
            params: the parameters to validate, on every device.
            stop: checked after every batch.
            report: called with every batch, to report pairs that could not be read.

        Returns:
            The errors; None if this process was asked to stop before the end.
        """
        task, devices = self._task, jax.local_device_count()
        places = held_out(task.val_feed, self._sources, task.options.val_pairs)
        # As many pairs per device as a training step takes at once, or as there are.
        per_device = max(1, min(task.pairs_at_once, -(-len(places) // devices)))
        feed = dataclasses.replace(task.val_feed, batch_size=devices * per_device)
        batches: list[dict[str, np.ndarray]] = []
        for delivery in validation_batches(feed, self._sources, places):
            report(delivery)
            errors = joined(self._measure(params, fixed, split(delivery.batch)), axis=1)
            # The last batch is filled up with pairs that were measured before.
            new = delivery.batch.position < len(places)
            batches.append({name: np.asarray(stack)[:, new] for name, stack in errors.items()})
            # One of several hosts may not leave alone: the others would wait for it.
            if stop.requested and jax.process_count() == 1:
                return None
        means = jax.tree.map(lambda *stacks: np.nanmean(np.concatenate(stacks, axis=1), axis=1), *batches)
        return {
            name: {what: float(error) for what, error in zip(task.measured, errors, strict=True)}
            for name, errors in task.by_row(means).items()
        }


def mean_error(errors: Errors) -> float:
    """One figure for all layers and views, by which the best checkpoint is chosen."""
    return float(np.mean([value for views in errors.values() for value in views.values()]))
