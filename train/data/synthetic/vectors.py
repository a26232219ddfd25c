"""Vectors as three arrays, x, y and z: compilers make one wide loop of their arithmetic, which a last axis of 3 would prevent."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

Vector = tuple[Float[Array, "*N"], Float[Array, "*N"], Float[Array, "*N"]]
"""x, y and z: arrays that broadcast with one another, each vector of an array of vectors at one place of all three."""

Axes = tuple[Vector, Vector, Vector]
"""The x, y and z axes of a frame: unit vectors, given in the frame around it."""


def components(array: Float[Array, "*N 3"]) -> Vector:
    """The vectors along an array's last axis."""
    return array[..., 0], array[..., 1], array[..., 2]


def frame(array: Float[Array, "*N 3 3"]) -> Axes:
    """The axes in the rows of matrices."""
    return components(array[..., 0, :]), components(array[..., 1, :]), components(array[..., 2, :])


def each(function: Callable[..., Array], *vectors: Vector) -> Vector:
    """A function of the vectors' x, of their y and of their z."""
    x, y, z = (function(*values) for values in zip(*vectors, strict=True))
    return x, y, z


def minus(a: Vector, b: Vector) -> Vector:
    """a − b."""
    return a[0] - b[0], a[1] - b[1], a[2] - b[2]


def along(origin: Vector, direction: Vector, t: Float[Array, "*N"]) -> Vector:
    """origin + t · direction."""
    return origin[0] + t * direction[0], origin[1] + t * direction[1], origin[2] + t * direction[2]


def dot(a: Vector, b: Vector) -> Float[Array, "*N"]:
    """The scalar product."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def norm(a: Vector) -> Float[Array, "*N"]:
    """The length."""
    return jnp.sqrt(dot(a, a))


def into(axes: Axes, vector: Vector) -> Vector:
    """A vector of the frame around, in the frame of these axes."""
    return dot(axes[0], vector), dot(axes[1], vector), dot(axes[2], vector)


def out_of(axes: Axes, vector: Vector) -> Vector:
    """A vector of the frame of these axes, in the frame around: the inverse of `into`."""
    x, y, z = axes
    return along(along(each(lambda a: a * vector[0], x), y, vector[1]), z, vector[2])
