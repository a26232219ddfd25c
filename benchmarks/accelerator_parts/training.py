"""Measures whether a lower precision trains equally good probes: the pocket model's, trained at each precision from the same seeds.

A seed determines the probes' initial parameters and the order of the pairs. Differences at the same seed are due to the precision; they
are compared with the noise, which is how much the seeds differ at the same precision. Validation is always at precision "highest".
"""

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from benchmarks.accelerator_parts.plan import PRECISIONS, Training
from und3rstand_jax.data.example import to_example
from und3rstand_jax.data.records import NOT_RENDERED, Batch, ViewSet, held_out_scenes, training_scenes
from und3rstand_jax.loading import load_backbone
from und3rstand_jax.model.layer_ids import select_layers
from und3rstand_jax.probes.config import probe_config
from und3rstand_jax.train.step.optimizer import Recipe
from und3rstand_jax.train.step.probe_step import initial_state, layer_errors, probe_step, trunk_params

LEARNING_RATE = 2e-3
"""The learning rate of `make demo`, with which the pocket model's probes learn in as few steps."""


def errors_by_precision(folder: str, training: Training, render: Callable[[Array], ViewSet], at_once: int) -> dict[str, Any]:
    """Trains at every precision with every seed.

    Args:
        folder: the pocket model, converted.
        training: how long, and on what.
        render: makes `at_once` pairs from as many indices of scenes.
        at_once: how many pairs are rendered at once.

    Returns:
        "layers"; "errors", for each precision the mean validation error of every layer for every seed, in metres, (seeds, layers);
        "untrained", the same for the first seed's initial probes, (layers,); "summary", see `summary`; and "seconds_per_run" for each
        precision.
    """
    backbone = load_backbone(folder)
    layers = select_layers(training.layers, backbone.config.layer_ids)
    probes = probe_config(backbone.config, layers)
    recipe = Recipe(training.steps, training.steps // 10, LEARNING_RATE)
    shared: dict[str, Any] = {"module": backbone.module, "probes": probes, "example_of": _given}
    trunk = trunk_params(backbone.params, backbone.config)
    pool, held_out = _rendered(training, render, at_once)
    measure = jax.jit(functools.partial(layer_errors, **shared, precision=lax.Precision.HIGHEST))

    def validated(params: Any) -> np.ndarray:
        chunks = [measure(params, trunk, chunk) for chunk in held_out]
        return np.nanmean(np.concatenate([_by_layer(errors, probes) for errors in jax.device_get(chunks)], axis=1), axis=(1, 2))

    steps = {precision: _step(trunk, pool, recipe, precision, shared) for precision in PRECISIONS}
    errors: dict[str, list[np.ndarray]] = {precision: [] for precision in PRECISIONS}
    seconds: dict[str, list[float]] = {precision: [] for precision in PRECISIONS}
    untrained = None
    for seed in range(training.seeds):
        initial = initial_state(probes, recipe, seed)
        untrained = validated(initial.params) if untrained is None else untrained
        for precision, step in steps.items():
            start, state = time.perf_counter(), initial
            for chosen in _order(seed, training):
                state = step(state, chosen)
            jax.block_until_ready(state)
            seconds[precision].append(time.perf_counter() - start)
            errors[precision].append(validated(state.params))
    assert untrained is not None  # there is a seed
    found = {precision: np.stack(rows) for precision, rows in errors.items()}
    return {
        "layers": list(layers),
        "errors": {precision: rows.tolist() for precision, rows in found.items()},
        "untrained": untrained.tolist(),
        "summary": summary(found),
        "seconds_per_run": seconds,  # the first run of each compiles
    }


def summary(errors: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Statistics for each precision; except for "error", they are relative to the layer's mean error at precision "highest".

    Args:
        errors: precision -> (seeds, layers).

    Returns:
        "error", the mean over seeds and layers, in the errors' unit; "spread", the standard deviation over seeds of the mean over layers;
        "difference", the mean difference from "highest" at the same seeds and layers; "layer_spread", the root mean square over layers
        of the standard deviation over seeds; and "layer_difference", the root mean square over seeds and layers of the difference.
    """
    base = errors["highest"].mean(axis=0)
    found = {}
    for precision, values in errors.items():
        relative, difference = values / base, (values - errors["highest"]) / base
        found[precision] = {
            "error": float(values.mean()),
            "spread": float(relative.mean(axis=1).std(ddof=1)),
            "difference": float(difference.mean()),
            "layer_spread": float(np.sqrt(relative.var(axis=0, ddof=1).mean())),
            "layer_difference": float(np.sqrt((difference**2).mean())),
        }
    return found


def _given(batch: Batch) -> Any:
    """The example of a batch with given pairs; colours stay as they are."""
    return to_example(batch.views)


def _batch(pair: ViewSet) -> Batch:
    position = jnp.arange(len(pair[0].depth), dtype=jnp.uint32)
    return Batch(position, jnp.full(position.shape, NOT_RENDERED, jnp.int32), pair)


def _rendered(training: Training, render: Callable[[Array], ViewSet], at_once: int) -> tuple[ViewSet, list[Batch]]:
    """The pairs to train on, and the held-out ones in batches."""

    def chunks(scenes: range) -> list[ViewSet]:
        return [render(jnp.asarray(scenes[at : at + at_once], jnp.int32)) for at in range(0, len(scenes), at_once)]

    pool = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *chunks(training_scenes()[: training.pairs]))
    return pool, [_batch(pair) for pair in chunks(held_out_scenes()[: training.held_out])]


def _step(trunk: Any, pool: ViewSet, recipe: Recipe, precision: str, shared: dict[str, Any]) -> Callable[[Any, np.ndarray], Any]:
    """(state, numbers of pairs in the pool) -> state, compiled when it is first called."""

    @jax.jit
    def step(state: Any, trunk: Any, pool: ViewSet, chosen: Any) -> Any:
        batch = _batch(jax.tree.map(lambda leaf: leaf[chosen], pool))
        return probe_step(
            state, trunk, batch, recipe=recipe, total=lambda values: values, precision=lax.Precision[precision.upper()], **shared
        )[0]

    return lambda state, chosen: step(state, trunk, pool, chosen)


def _order(seed: int, training: Training) -> np.ndarray:
    """(steps, batch) numbers of pairs: each pair as often as any other, give or take one."""
    random, wanted = np.random.default_rng(seed), training.steps * training.batch
    rounds = [random.permutation(training.pairs) for _ in range(-(-wanted // training.pairs))]
    return np.concatenate(rounds)[:wanted].reshape(training.steps, training.batch)


def _by_layer(errors: dict[str, Any], probes: Any) -> np.ndarray:
    """(layers, pairs, views) of all groups; the pocket model's probes all have one shape, and thus one group."""
    (group,) = errors.values()
    assert len(group) == len(probes.layer_ids)
    return np.asarray(group)
