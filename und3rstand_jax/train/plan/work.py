"""Counts a traced program's arithmetic. XLA's own analysis counts the body of a loop once; this counts every round of it.

What a step does and, from a chip's published peaks, how long that takes at least.
"""

import collections
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr

from und3rstand_jax.geometry.loss import PairLoss, Truth, normalised_truth
from und3rstand_jax.train.plan.shapes import Arguments, example_of, intermediates, tree_bytes
from und3rstand_jax.train.plan.topology import Chip
from und3rstand_jax.train.step.probe_step import ProbeTask, captured_tokens, layer_gradient, update_layer

Kind = tuple[str, str]
"""Of a matrix product: dtype of its operands and, for float32, precision in lower case; other dtypes have one, "default"."""


@dataclasses.dataclass(frozen=True)
class Count:
    """What a program does.

    `products` are flops of matrix products and convolutions (a multiplication and an addition are two) by kind. `traffic` is their
    operands and results in bytes, each product counted as if it read from memory and wrote to it. `elementwise` is all other
    arithmetic, one an output element (of a reduction, one an input element).
    """

    products: collections.Counter[Kind] = dataclasses.field(default_factory=collections.Counter)
    traffic: int = 0
    elementwise: int = 0

    @property
    def flops(self) -> int:
        """Of products alone."""
        return sum(self.products.values())

    def __add__(self, other: "Count") -> "Count":
        return Count(self.products + other.products, self.traffic + other.traffic, self.elementwise + other.elementwise)

    def times(self, rounds: int) -> "Count":
        """The count of as many repetitions."""
        products = collections.Counter({kind: flops * rounds for kind, flops in self.products.items()})
        return Count(products, self.traffic * rounds, self.elementwise * rounds)


def count(fn: Callable[..., Any], *args: Any) -> Count:
    """What `fn(*args)` does; arguments may be abstract. Of a condition's branches the dearest counts, of a `while` one round."""
    return _of_jaxpr(jax.make_jaxpr(fn)(*args).jaxpr)


def _of_jaxpr(jaxpr: Jaxpr) -> Count:
    return sum((_of_equation(equation) for equation in jaxpr.eqns), Count())


def _of_equation(equation: Any) -> Count:
    name, params = equation.primitive.name, equation.params
    if name in ("dot_general", "conv_general_dilated"):
        return _of_product(equation)
    if name == "cond":
        return max((_of_jaxpr(branch.jaxpr) for branch in params["branches"]), key=lambda c: (c.flops, c.elementwise))
    inner = sum((_of_jaxpr(jaxpr) for jaxpr in _inner(params)), Count())
    if name == "scan":
        return inner.times(params["length"])
    if any(True for _ in _inner(params)) or name in _MOVES:
        return inner
    return Count(elementwise=max(sum(_size(v) for v in equation.outvars), _reduced(equation)))


def _of_product(equation: Any) -> Count:
    left, right = (variable.aval for variable in equation.invars)
    out = equation.outvars[0].aval
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        summands = math.prod(left.shape[axis] for axis in contracted)
    else:
        out_features = equation.params["dimension_numbers"].rhs_spec[0]
        summands = math.prod(right.shape) // right.shape[out_features]
    traffic = sum(math.prod(array.shape) * array.dtype.itemsize for array in (left, right, out))
    dtype = str(np.result_type(left.dtype, right.dtype))
    kind = dtype, _precision(equation.params["precision"]) if dtype == "float32" else "default"
    return Count(collections.Counter({kind: 2 * math.prod(out.shape) * summands}), traffic)


def _precision(given: Any) -> str:
    """The more exact of both operands' precisions."""
    pair = given if isinstance(given, tuple) else (given, given)
    return max((one or lax.Precision.DEFAULT for one in pair), key=lambda one: one.value).name.lower()


def _inner(params: dict[str, Any]) -> Iterator[Jaxpr]:
    """The programs within an equation: of a loop, a call, a custom derivative."""
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, Jaxpr):
                yield item


def _size(variable: Any) -> int:
    return math.prod(getattr(variable.aval, "shape", ()))


def _reduced(equation: Any) -> int:
    is_reduction = equation.primitive.name.startswith(("reduce_", "arg", "cum"))
    return sum(_size(variable) for variable in equation.invars) if is_reduction else 0


# What moves or makes data without computing with it.
_MOVES = frozenset(
    (
        *("broadcast_in_dim", "reshape", "transpose", "squeeze", "expand_dims", "concatenate", "pad", "split", "rev", "iota", "copy"),
        *(
            "slice",
            "dynamic_slice",
            "dynamic_update_slice",
            "gather",
            "scatter",
            "select_n",
            "convert_element_type",
            "bitcast_convert_type",
        ),
        *("stop_gradient", "optimization_barrier", "device_put", "psum"),
    )
)


_SCALAR: Any = jax.ShapeDtypeStruct((), jnp.float32)


@dataclasses.dataclass(frozen=True)
class Part:
    """One part of one device's step. `exchanged` are the bytes it sends to other devices."""

    name: str
    count: Count
    exchanged: float = 0.0


def step_parts(task: ProbeTask, arguments: Arguments, devices: int) -> list[Part]:
    """A device's step in parts, each counted in its own program, all rounds of it.

    The updates' traffic is the state, read and written once. Gradients are added up in a ring of all devices, which sends each of them
    twice but for the devices' own share.
    """
    # Every implementation of attention makes the same products, and this one has no kernel that hides them.
    task = dataclasses.replace(task, module=task.module.clone(attention="xla"))
    made = intermediates(task, arguments)
    pairs = count(lambda part: _truth(task, part), made.part)
    if task.accumulate > 1:
        # Taken in parts, examples are made twice: the valid pixels of all parts are counted before the first gradient.
        pairs += count(functools.partial(example_of, task), made.part)
    backbone = count(functools.partial(captured_tokens, task), arguments.backbone, made.example)
    probes, updates = Count(), Count(traffic=2 * tree_bytes(arguments.state))
    for name, group in task.named_groups.items():
        state, tokens = arguments.state.groups[name], made.tokens[name]
        layers = state.frozen_at.shape[0]
        layer, own = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), (state, tokens))
        read = functools.partial(layer_gradient, task, group)
        probes += count(read, layer.params, own, made.truth, (_SCALAR, _SCALAR)).times(layers)
        update = functools.partial(update_layer, task.recipe)
        updates += count(update, layer, layer.params, PairLoss(*[_SCALAR] * 5), arguments.state.step).times(layers)
    gradients = tree_bytes([group.params for group in arguments.state.groups.values()])
    parts = [
        Part("examples: rendering, colours", pairs.times(task.accumulate)),
        Part("backbone, forward", backbone.times(task.accumulate)),
        Part("probes, forward and backward", probes.times(task.accumulate)),
        Part("updates of the probes", updates),
    ]
    return [*parts, Part("gradients of all devices", Count(), 2 * (devices - 1) / devices * gradients)] if devices > 1 else parts


def seconds(part: Part, chip: Chip) -> float:
    """The least time a part takes: the longest of its products, its traffic and its exchange. Elementwise arithmetic is left out:
    no rate of it is published for TPUs.
    """
    products = sum(flops / chip.rate(*kind) for kind, flops in part.count.products.items())
    return max(products, part.count.traffic / chip.bandwidth, part.exchanged / chip.interconnect)


def _truth(task: ProbeTask, part: Any) -> tuple[Any, Truth]:
    example = example_of(task, part)
    return example.images, normalised_truth(*example.targets)
