"""Counts a traced program's arithmetic. XLA's own analysis counts the body of a loop once; this counts every round of it."""

import collections
import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr

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
