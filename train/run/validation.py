"""Errors on held-out pairs, in between: on all devices, without poses."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from train.data.loader import Delivery, Sources, held_out, validation_batches
from train.run.interruption import Interruption
from train.run.job import Job, by_name
from train.setup import Setup
from train.step.data_parallel import parallel, split

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
