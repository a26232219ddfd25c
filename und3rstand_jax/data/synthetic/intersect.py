"""Where rays meet a room and the solids in it, in closed form.

A solid is a box, a sphere or an upright cylinder, in its own frame, which is centred on it. All three are convex: a ray is
inside for one interval of t, and only that interval needs computing. A ray's points are origin + t · direction, for
directions of any length: if the component along a camera's optical axis is 1, t is the depth.

A vector is three arrays, x, y and z: compilers turn arithmetic on them into one wide loop, which a last axis of size 3 would prevent.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from und3rstand_jax.data.synthetic.scene import BOXES, CYLINDERS, SOLIDS, SPHERES, Scene

FAR = 1e9
"""The value of t for a ray that meets nothing."""

ROOM = -1
"""The room's number among the solids."""

Carry = TypeVar("Carry")

Reals: TypeAlias = Float[Array, "..."]

Vector: TypeAlias = tuple[Reals, Reals, Reals]
"""x, y and z: arrays that broadcast against one another."""

Axes: TypeAlias = tuple[Vector, Vector, Vector]
"""The x, y and z axes of a frame: unit vectors, given in the surrounding frame."""


def components(array: Float[Array, "*N 3"]) -> Vector:
    """The vectors along an array's last axis."""
    return array[..., 0], array[..., 1], array[..., 2]


def frame(array: Float[Array, "*N 3 3"]) -> Axes:
    """The axes in the rows of matrices."""
    return components(array[..., 0, :]), components(array[..., 1, :]), components(array[..., 2, :])


def each(function: Callable[..., Array], *triples: tuple[ArrayLike, ArrayLike, ArrayLike]) -> Vector:
    """Applies the function to all x, to all y and to all z."""
    x, y, z = (function(*values) for values in zip(*triples, strict=True))
    return x, y, z


def minus(a: Vector, b: Vector) -> Vector:
    """a − b."""
    return a[0] - b[0], a[1] - b[1], a[2] - b[2]


def along(origin: Vector, direction: Vector, t: Reals) -> Vector:
    """origin + t · direction."""
    return origin[0] + t * direction[0], origin[1] + t * direction[1], origin[2] + t * direction[2]


def dot(a: Vector, b: Vector) -> Reals:
    """The scalar product."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def norm(a: Vector) -> Reals:
    """The length."""
    return jnp.sqrt(dot(a, a))


def into(axes: Axes, vector: Vector) -> Vector:
    """A vector of the surrounding frame, expressed in the frame of these axes."""
    return dot(axes[0], vector), dot(axes[1], vector), dot(axes[2], vector)


def out_of(axes: Axes, vector: Vector) -> Vector:
    """A vector of the frame of these axes, expressed in the surrounding frame: the inverse of `into`."""
    x, y, z = axes
    return along(along(each(lambda a: a * vector[0], x), y, vector[1]), z, vector[2])


def room_exit(half: Vector, origin: Vector, direction: Vector) -> Reals:
    """t at which rays from inside a box of half size `half`, centred on the origin, leave it."""
    return functools.reduce(jnp.minimum, each(lambda h, o, i: h * jnp.abs(i) - o * i, half, origin, each(_inverse, direction)))


def box_entry(half: Vector, origin: Vector, direction: Vector) -> Reals:
    """t at which rays enter a box of half size `half`; FAR if they miss it, point away from it or start in it."""
    slabs = [_slab(*values) for values in zip(half, origin, direction, strict=True)]
    return _entry(functools.reduce(jnp.maximum, (s[0] for s in slabs)), functools.reduce(jnp.minimum, (s[1] for s in slabs)))


def sphere_entry(radius: Reals, origin: Vector, direction: Vector) -> Reals:
    """t at which rays enter a sphere; FAR as in `box_entry`."""
    return _entry(*_ball(radius, origin, direction))


def cylinder_entry(radius: Reals, half_height: Reals, origin: Vector, direction: Vector) -> Reals:
    """t at which rays enter a cylinder about z, through its side or a cap; FAR as in `box_entry`."""
    zero = jnp.float32(0)
    side = _ball(radius, (origin[0], origin[1], zero), (direction[0], direction[1], zero))
    caps = _slab(half_height, origin[2], direction[2])
    return _entry(jnp.maximum(side[0], caps[0]), jnp.minimum(side[1], caps[1]))


def _entry(near: Reals, far: Reals) -> Reals:
    return jnp.where((near <= far) & (near > 0), near, FAR)


def _slab(half: Reals, origin: Reals, direction: Reals) -> tuple[Reals, Reals]:
    inverse = _inverse(direction)
    middle, reach = -origin * inverse, half * jnp.abs(inverse)
    return middle - reach, middle + reach


def _ball(radius: Reals, origin: Vector, direction: Vector) -> tuple[Reals, Reals]:
    # From the point nearest to the centre, not by b² − ac, whose terms cancel for a small ball far away
    # (Haines et al., "Precision Improvements for Ray/Sphere Intersection", Ray Tracing Gems, ch. 7).
    inverse = 1 / jnp.maximum(dot(direction, direction), 1e-18)
    nearest = -dot(origin, direction) * inverse
    offset = along(origin, direction, nearest)
    square = (radius * radius - dot(offset, offset)) * inverse
    reach = jnp.sqrt(jnp.maximum(square, 0.0))
    return nearest - reach, jnp.where(square > 0, nearest + reach, -FAR)


def _inverse(direction: Reals) -> Reals:
    """1/d, finite where d is 0: for rays that start in a slab's plane, infinity times 0 would be NaN."""
    return 1 / jnp.where(jnp.abs(direction) < 1e-9, 1e-9, direction)


def nearest_surface(scene: Scene, origin: Vector, direction: Vector) -> tuple[Reals, Int[Array, "..."]]:
    """t at which rays from inside the room first meet a surface, and whose surface it is: a solid's number, or ROOM."""
    t = room_exit(components(scene.room), origin, direction)

    def step(solid: ArrayLike, entry: Reals, found: tuple[Reals, Array]) -> tuple[Reals, Array]:
        t, nearest = found
        return jnp.minimum(t, entry), jnp.where(entry < t, solid, nearest)

    return _over_solids(scene, origin, direction, step, (t, jnp.full(t.shape, ROOM, jnp.int32)))


def first_entry(scene: Scene, origin: Vector, direction: Vector) -> Reals:
    """t at which rays enter the first solid; FAR if they meet none."""
    shape = jnp.broadcast_shapes(*(jnp.shape(a) for a in (*origin, *direction)))
    return _over_solids(scene, origin, direction, lambda _, entry, t: jnp.minimum(t, entry), jnp.full(shape, FAR, jnp.float32))


def _over_solids(scene: Scene, origin: Vector, direction: Vector, step: Callable[[ArrayLike, Reals, Carry], Carry], carry: Carry) -> Carry:
    """Folds `step(solid, t at which rays enter it, carry)` over the solids.

    In loops: on CPUs, XLA recomputes unrolled code for each of its uses, and a pair takes four times as long.
    """

    def fold(solids: range, entry: Callable[..., Reals], carry: Carry) -> Carry:
        def body(k: Any, carry: Carry) -> Carry:
            axes = frame(scene.axes[k])
            ray = into(axes, minus(origin, components(scene.center[k]))), into(axes, direction)
            return step(k, entry(components(scene.half[k]), *ray), carry)

        return lax.fori_loop(np.int32(solids.start), np.int32(solids.stop), body, carry)

    carry = fold(BOXES, box_entry, carry)
    carry = fold(SPHERES, lambda half, *ray: sphere_entry(half[0], *ray), carry)
    return fold(CYLINDERS, lambda half, *ray: cylinder_entry(half[0], half[2], *ray), carry)


def in_window(scene: Scene, point: Vector) -> Bool[Array, "..."]:
    """Which points of the room's surface are in its window, which shows only sky."""
    window, (x, y, z) = scene.window, point
    on_x = window.wall < 2
    across, sideways = jnp.where(on_x, x, y), jnp.where(on_x, y, x)
    wall = jnp.where(on_x, scene.room[0], scene.room[1]) * jnp.where(window.wall % 2 == 1, 1, -1)
    inside = (sideways > window.low[0]) & (sideways < window.high[0]) & (z > window.low[1]) & (z < window.high[1])
    return inside & (jnp.abs(across - wall) < 1e-3)


def clearance(scene: Scene, point: Vector) -> Reals:
    """Distance from points (N,) to the nearest surface; at most 0 inside a solid or outside the room."""
    walls = functools.reduce(jnp.minimum, each(lambda h, p: h - jnp.abs(p), components(scene.room), point))
    half = components(scene.half)
    local = into(frame(scene.axes), minus(each(lambda p: p[:, None], point), components(scene.center)))
    beyond = each(lambda p, h: jnp.maximum(jnp.abs(p) - h, 0.0), local, half)
    beside = jnp.maximum(jnp.hypot(local[0], local[1]) - half[0], 0.0)
    number = np.arange(SOLIDS)
    sphere, cylinder = np.isin(number, SPHERES), np.isin(number, CYLINDERS)
    gaps = jnp.where(sphere, norm(local) - half[0], jnp.where(cylinder, jnp.hypot(beside, beyond[2]), norm(beyond)))
    return jnp.minimum(walls, jnp.min(gaps, axis=1))
