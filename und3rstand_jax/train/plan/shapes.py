"""Shapes of the arguments and intermediates of one device's step; nothing is computed."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from und3rstand_jax.data.example import Example
from und3rstand_jax.data.records import Batch, Shape, View
from und3rstand_jax.geometry.loss import Truth
from und3rstand_jax.loading import stored_dtype
from und3rstand_jax.model.module import MultiViewModel
from und3rstand_jax.model.stack import Params
from und3rstand_jax.train.probes_task import ProbesTask
from und3rstand_jax.train.step.probe_step import ProbesState, Tokens, captured_tokens, trunk_params, truth_by_token


class Arguments(NamedTuple):
    """The step's arguments on one device: the state, the backbone's parameters, and the device's share of a batch."""

    state: ProbesState
    backbone: Params
    batch: Batch


def planned_shape(task: ProbesTask) -> Shape:
    """The image size to plan for: of several resolutions, the largest must fit."""
    return max(task.feed.shapes, key=math.prod)


def step_arguments(task: ProbesTask, pairs: int) -> Arguments:
    """The step's arguments for `pairs` pairs on each device, every array a `jax.ShapeDtypeStruct`."""

    def array(dtype: DTypeLike, *sides: int) -> Any:
        return jax.ShapeDtypeStruct((pairs, *sides), np.dtype(dtype))

    shape = planned_shape(task)
    view = View(array(np.uint8, *shape, 3), array(np.float32, *shape), array(np.float32, 3, 3), array(np.float32, 4, 4))
    from_files = any(spec.root is not None for spec in task.feed.specs)
    batch = Batch(array(np.uint32), array(np.int32), (view,) * task.feed.views if from_files else None)
    return Arguments(jax.eval_shape(task.initial_state), trunk(task.module), batch)


def trunk(module: MultiViewModel) -> Params:
    """The trunk's parameters, in the dtypes in which training keeps them."""
    side = module.config.patch_size
    view = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    init = functools.partial(module.init, head=bool(module.config.heads))
    params = trunk_params(jax.eval_shape(init, jax.random.key(0), view, view)["params"], module.config)
    dtype = jnp.dtype(module.dtype)
    parts = module.config.trunk
    return jax.tree_util.tree_map_with_path(lambda path, leaf: jax.ShapeDtypeStruct(leaf.shape, stored_dtype(path, dtype, parts)), params)


class Intermediates(NamedTuple):
    """What the step computes from one micro-batch before it runs the probes; `tokens` by group."""

    part: Batch
    example: Example
    truth: Truth
    tokens: dict[str, Tokens]


def intermediates(task: ProbesTask, arguments: Arguments) -> Intermediates:
    """Shapes of the step's intermediates for these arguments."""
    micro_batches = task.options.accumulate
    part = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((leaf.shape[0] // micro_batches, *leaf.shape[1:]), leaf.dtype), arguments.batch)
    example = jax.eval_shape(task.example_of(planned_shape(task)), part)
    truth = jax.eval_shape(functools.partial(truth_by_token, task.probes), example)
    tokens = jax.eval_shape(functools.partial(captured_tokens, task.module, task.probes), arguments.backbone, example)
    return Intermediates(part, example, truth, tokens)


def tree_bytes(tree: object) -> int:
    """The size of all arrays of a tree in bytes, without padding that a device's layout may add."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
