"""The test metric of every layer on held-out pairs, in between: on all devices, without poses."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from train.data.assemble import assemble
from train.data.batch import Batch
from train.data.loader import Delivery, Sources, held_out, validation_batches
from train.evaluation.metrics import pair_errors
from train.run.interruption import Interruption
from train.setup import Setup
from train.step.data_parallel import parallel, split
from train.step.probe_step import ProbeTask, captured_tokens
from und3rstand_jax.probe_config import ProbeGroup
from und3rstand_jax.probes import read_group

Errors = dict[str, dict[str, float]]
"""Layer id -> "view1", "view2" -> mean test metric in the ground truth's unit."""


class Validation:
    """Held-out pairs and the compiled program that measures on them."""

    def __init__(self, setup: Setup, sources: Sources) -> None:
        """Nothing is compiled before the first call."""
        self._setup, self._sources = setup, sources
        self._measure = parallel(functools.partial(layer_errors, setup.val_task))

    def __call__(self, backbone: Any, params: Any, stop: Interruption, report: Callable[[Delivery], None]) -> Errors | None:
        """The errors of probes with these (replicated) parameters; None if this process is told to stop meanwhile.

        `report` is told of pairs that could not be read.
        """
        places = held_out(self._setup.val_feed, self._sources, self._setup.options.val_pairs)
        feed = dataclasses.replace(self._setup.val_feed, batch_size=_batch_size(self._setup, len(places)))
        found: dict[str, list[np.ndarray]] = {}
        for delivery in validation_batches(feed, self._sources, places):
            report(delivery)
            measured = self._measure(params, backbone, split(delivery.batch))
            new = delivery.batch.position < len(places)
            for name, errors in measured.items():
                local = np.concatenate([np.asarray(shard.data)[0] for shard in errors.addressable_shards], axis=1)
                found.setdefault(name, []).append(local[:, new])
            # One of several hosts may not leave alone: the others would wait for it.
            if stop.told and jax.process_count() == 1:
                return None
        return _by_layer(self._setup, {name: np.concatenate(batches, axis=1) for name, batches in found.items()})


def layer_errors(task: ProbeTask, params: Mapping[str, Any], backbone: Any, batch: Batch) -> dict[str, jax.Array]:
    """Of each group the test metric of its layers on each pair and view, (L, B, 2)."""
    example = assemble(batch, task.seed, task.shape, task.scenes, task.colour_jitter)
    tokens = captured_tokens(task, backbone, example)
    errors = {}
    for name, group in task.named_groups.items():

        def measure(own: Any, group: ProbeGroup = group) -> jax.Array:
            weights, *views = jax.tree.map(lambda leaf: leaf[None], own)
            preds = read_group(weights, views, (task.shape, task.shape), group, task.probes, task.precision)
            pred1, pred2 = jax.tree.map(lambda leaf: leaf[0], preds)
            view1, view2 = pair_errors(pred1, pred2, *example.targets)
            return jnp.stack([view1.invariant, view2.invariant], axis=-1)

        errors[name] = lax.map(measure, (params[name], *tokens[name]))
    return errors


def mean_error(errors: Errors) -> float:
    """One figure for all layers and both views; it chooses the best checkpoint."""
    return float(np.mean([value for views in errors.values() for value in views.values()]))


def _batch_size(setup: Setup, pairs: int) -> int:
    """Pairs at once on this host: as many for each device as a training step takes at once, or as there are."""
    devices = jax.local_device_count()
    return devices * max(1, min(setup.pairs_at_once, -(-pairs // devices)))


def _by_layer(setup: Setup, errors: Mapping[str, np.ndarray]) -> Errors:
    rows: Errors = {}
    for number, group in enumerate(setup.probes.groups):
        # A view without a valid pixel has no error.
        means = np.nanmean(errors[f"group{number}"], axis=1)
        rows |= {layer: {"view1": float(one), "view2": float(two)} for layer, (one, two) in zip(group.layer_ids, means, strict=True)}
    return {layer: rows[layer] for layer in setup.probes.layer_ids}
