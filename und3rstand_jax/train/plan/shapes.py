"""Shapes of everything that one device's step takes and makes on its way; nothing of it is computed."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from und3rstand_jax.data.example import Example, assemble
from und3rstand_jax.data.records import Batch, Pair, Shape, View
from und3rstand_jax.geometry.loss import Truth, normalised_truth
from und3rstand_jax.loading import stored_dtype
from und3rstand_jax.model.dust3r import DUSt3R
from und3rstand_jax.train.step.optimizer import ProbesState, initial_state
from und3rstand_jax.train.step.probe_step import ProbeTask, Tokens, captured_tokens, trunk_params


class Arguments(NamedTuple):
    """What the step takes on one device: the state, the backbone's parameters, and the device's share of a batch."""

    state: ProbesState
    backbone: Any
    batch: Batch


class Intermediates(NamedTuple):
    """What it makes of one part of its share (`task.accumulate`) before probes are read; `tokens` by group."""

    part: Batch
    example: Example
    truth: Truth
    tokens: dict[str, Tokens]


def step_arguments(task: ProbeTask, pairs: int, from_files: bool) -> Arguments:
    """The step's arguments for `pairs` pairs a device; `from_files` says whether any of them may come from files."""
    state = jax.eval_shape(lambda: initial_state(task.probes, task.recipe, task.seed))
    return Arguments(state, trunk(task.module), loaded_batch(pairs, task.shape, from_files))


def trunk(module: DUSt3R) -> Any:
    """The trunk's parameters, in the dtypes in which they are kept for training."""
    side = module.config.patch_size
    view = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    init = functools.partial(module.init, head=module.config.head_type is not None)
    params = trunk_params(jax.eval_shape(init, jax.random.key(0), view, view)["params"])
    dtype = jnp.dtype(module.dtype)
    return jax.tree_util.tree_map_with_path(lambda path, leaf: jax.ShapeDtypeStruct(leaf.shape, stored_dtype(path, dtype)), params)


def loaded_batch(pairs: int, shape: Shape, from_files: bool) -> Batch:
    """A batch as the loader hands it over."""

    def array(dtype: Any, *sides: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((pairs, *sides), np.dtype(dtype))

    view: Any = View(array(np.uint8, *shape, 3), array(np.float32, *shape), array(np.float32, 3, 3), array(np.float32, 4, 4))
    return Batch(array(np.uint32), array(np.int32), Pair(view, view) if from_files else None)


def intermediates(task: ProbeTask, arguments: Arguments) -> Intermediates:
    """Shapes of what the step makes of these arguments."""
    part = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((leaf.shape[0] // task.accumulate, *leaf.shape[1:]), leaf.dtype), arguments.batch)
    example = jax.eval_shape(functools.partial(example_of, task), part)
    truth = jax.eval_shape(normalised_truth, *example.targets)
    return Intermediates(part, example, truth, jax.eval_shape(functools.partial(captured_tokens, task), arguments.backbone, example))


def example_of(task: ProbeTask, batch: Batch) -> Example:
    """The example that a task makes of a batch."""
    return assemble(batch, task.seed, task.shape, task.scenes, task.colour_jitter)


def tree_bytes(tree: Any) -> int:
    """Size of all arrays of a tree, without what a device's layout may add."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
