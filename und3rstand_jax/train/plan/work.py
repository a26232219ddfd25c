"""What a step computes and, from a chip's published peaks, the least time that this takes.

Programs are traced, not run. XLA's own analysis counts the body of a loop once; here every iteration counts.
"""

import collections
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var

from und3rstand_jax.data.records import Batch
from und3rstand_jax.geometry.loss import SetLoss, Truth
from und3rstand_jax.train.plan.chips import Chip
from und3rstand_jax.train.plan.shapes import Arguments, intermediates, planned_shape, tree_bytes
from und3rstand_jax.train.probes_task import ProbesTask
from und3rstand_jax.train.step.optimizer import update
from und3rstand_jax.train.step.probe_step import captured_tokens, layer_gradient, named_groups, truth_by_token

Kind = tuple[str, str]
"""Kind of a matrix product: dtype of its operands and, for float32, precision in lower case; for other dtypes, it is "default"."""

_MOVES = frozenset(
    (
        *("bitcast_convert_type", "broadcast_in_dim", "concatenate", "convert_element_type", "copy", "device_put", "dynamic_slice"),
        *("dynamic_update_slice", "expand_dims", "gather", "iota", "optimization_barrier", "pad", "psum", "reshape", "rev", "scatter"),
        *("select_n", "slice", "split", "squeeze", "stop_gradient", "transpose"),
    )
)
"""Primitives that move or create data without arithmetic."""


@dataclasses.dataclass(frozen=True)
class Count:
    """What a program computes.

    Attributes:
        products: flops of matrix products and convolutions by kind; a multiplication and an addition are two.
        traffic: their operands and results in bytes, as if each product read from memory and wrote to it.
        elementwise: all other arithmetic, one operation for each output element (for a reduction, for each input element).
    """

    products: collections.Counter[Kind] = dataclasses.field(default_factory=collections.Counter)
    traffic: int = 0
    elementwise: int = 0

    @property
    def flops(self) -> int:
        """FLOPs of all products."""
        return sum(self.products.values())

    def __add__(self, other: "Count") -> "Count":
        return Count(self.products + other.products, self.traffic + other.traffic, self.elementwise + other.elementwise)

    def times(self, rounds: int) -> "Count":
        """The count of `rounds` repetitions."""
        products = collections.Counter({kind: flops * rounds for kind, flops in self.products.items()})
        return Count(products, self.traffic * rounds, self.elementwise * rounds)


@dataclasses.dataclass(frozen=True)
class Part:
    """One part of one device's step. `exchanged` is the number of bytes it sends to other devices."""

    name: str
    count: Count
    exchanged: float = 0.0


def step_parts(task: ProbesTask, arguments: Arguments, devices: int) -> list[Part]:
    """A device's step in parts, each counted in its own program with every iteration of its loops.

    The updates' traffic is the state, read and written once. Gradients are summed in a ring of all devices, in which each device sends
    them twice, except for its own share.
    """
    # Every implementation of attention computes the same products, and this one has no kernel that hides them.
    task = dataclasses.replace(task, module=task.module.clone(attention="xla"))
    made = intermediates(task, arguments)
    example_of, micro_batches = task.example_of(planned_shape(task)), task.options.accumulate

    def prepare(part: Batch) -> tuple[tuple[jax.Array, ...], Truth]:
        example = example_of(part)
        return example.images, truth_by_token(task.probes, example)

    pairs = count(prepare, made.part)
    if micro_batches > 1:
        # Examples of micro-batches are made twice: valid pixels of all of them are counted before the first gradient.
        pairs += count(example_of, made.part)
    backbone = count(functools.partial(captured_tokens, task.module, task.probes), arguments.backbone, made.example)
    views = len(made.example.images)
    scalar = jnp.zeros((), jnp.float32)
    probes, updates = Count(), Count(traffic=2 * tree_bytes(arguments.state))
    for name, group in named_groups(task.probes).items():
        state, tokens = arguments.state.groups[name], made.tokens[name]
        layers = state.frozen_at.shape[0]
        layer, own = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), (state, tokens))
        gradient = functools.partial(layer_gradient, group, task.probes, task.precision)
        probes += count(gradient, layer.params, own, made.truth, (scalar,) * views).times(layers)
        updates += count(
            functools.partial(update, task.recipe), layer, layer.params, SetLoss(scalar, *[(scalar,) * views] * 2), arguments.state.step
        ).times(layers)
    parts = [
        Part("examples: rendering, colours", pairs.times(micro_batches)),
        Part("backbone, forward", backbone.times(micro_batches)),
        Part("probes, forward and backward", probes.times(micro_batches)),
        Part("updates of the probes", updates),
    ]
    if devices > 1:
        gradients = tree_bytes([group.params for group in arguments.state.groups.values()])
        parts.append(Part("gradients of all devices", Count(), 2 * (devices - 1) / devices * gradients))
    return parts


def seconds(part: Part, chip: Chip) -> float:
    """The least time a part takes: the longest of its products, its traffic and its exchange.

    Elementwise arithmetic is left out: no rate for it is published for TPUs.
    """
    products = sum(flops / chip.rate(*kind) for kind, flops in part.count.products.items())
    return max(products, part.count.traffic / chip.bandwidth, part.exchanged / chip.interconnect)


def count(fn: Callable[..., object], *args: object) -> Count:
    """What `fn(*args)` computes; arguments may be abstract. A `cond` counts as its most expensive branch, a `while` as one iteration."""
    return _of_jaxpr(jax.make_jaxpr(fn)(*args).jaxpr)


def _of_jaxpr(jaxpr: Jaxpr) -> Count:
    return sum(map(_of_equation, jaxpr.eqns), Count())


def _of_equation(equation: JaxprEqn) -> Count:
    name, params = equation.primitive.name, equation.params
    if name in ("dot_general", "conv_general_dilated"):
        return _of_product(equation)
    if name == "cond":
        return max((_of_jaxpr(branch.jaxpr) for branch in params["branches"]), key=lambda c: (c.flops, c.elementwise))
    inner = list(_inner_programs(params))
    total = sum(map(_of_jaxpr, inner), Count())
    if name == "scan":
        return total.times(params["length"])
    if inner or name in _MOVES:
        return total
    is_reduction = name.startswith(("reduce_", "arg", "cum"))
    return Count(elementwise=max(_elements(equation.outvars), _elements(equation.invars) if is_reduction else 0))


def _of_product(equation: JaxprEqn) -> Count:
    left, right, out = (cast(jax.core.ShapedArray, variable.aval) for variable in (*equation.invars, *equation.outvars))
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        summands = math.prod(left.shape[axis] for axis in contracted)
    else:
        out_features = equation.params["dimension_numbers"].rhs_spec[0]
        summands = math.prod(right.shape) // right.shape[out_features]
    traffic = sum(math.prod(array.shape) * array.dtype.itemsize for array in (left, right, out))
    dtype, precision = str(np.result_type(left.dtype, right.dtype)), "default"
    if dtype == "float32":
        given = equation.params["precision"]
        # The higher of both operands' precisions.
        both = given if isinstance(given, tuple) else (given,)
        precision = max((one or lax.Precision.DEFAULT for one in both), key=lambda one: one.value).name.lower()
    return Count(collections.Counter({(dtype, precision): 2 * math.prod(out.shape) * summands}), traffic)


def _inner_programs(params: Mapping[str, object]) -> Iterator[Jaxpr]:
    """The programs inside an equation: those of a loop, a call or a custom derivative."""
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, Jaxpr):
                yield item


def _elements(variables: list[Var] | list[Var | Literal]) -> int:
    return sum(math.prod(getattr(variable.aval, "shape", ())) for variable in variables)
