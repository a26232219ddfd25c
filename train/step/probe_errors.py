"""The test metric of every layer's probe on a batch, for validation."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from train.data.assemble import assemble
from train.data.batch import Batch
from train.evaluation.metrics import pair_errors
from train.step.probe_step import ProbeTask, captured_tokens
from und3rstand_jax.probe_config import ProbeGroup
from und3rstand_jax.probes import read_group


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
