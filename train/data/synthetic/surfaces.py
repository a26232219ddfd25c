"""What pixels show: of the solid that a ray has met, which surface, facing where, and how much of it a pixel covers."""

from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from train.data.synthetic.intersect import ROOM, in_window
from train.data.synthetic.scene import CYLINDERS, SOLIDS, SPHERES, Scene
from train.data.synthetic.textures import Footprint
from train.data.synthetic.vectors import Axes, Vector, along, components, dot, each, frame, into, minus, norm, out_of

FACES = 6
"""Of the room: −x, +x, −y, +y, floor, ceiling."""
SKY = FACES + SOLIDS
SURFACES = SKY + 1
"""The room's faces, the solids and the sky, in this order: each has a texture."""

Reals = Float[Array, "*N"]
Table = TypeVar("Table")


class Seen(NamedTuple):
    """A surface's number, place and unit normal (towards the viewer) in the world; the place in the solid's frame (of the sky: its
    direction), the two coordinates of it that patterns lie in, and the pixel's footprint there.
    """

    surface: Int[Array, "*N"]
    point: Vector
    normal: Vector
    local: Vector
    plane: tuple[Reals, Reals]
    footprint: Footprint


class _Solid(NamedTuple):
    center: Vector
    axes: Axes
    half: Vector
    sphere: Bool[Array, "*N"]
    cylinder: Bool[Array, "*N"]


def see(scene: Scene, solid: Int[Array, "*N"], origin: Vector, direction: Vector, t: Reals, spread: float | Array) -> Seen:
    """What rays show that meet `solid` (ROOM, or its number) at t; `spread` is a pixel's width at t = 1."""
    point = along(origin, direction, t)
    shape = lookup(_solids(scene), solid - ROOM)
    local, ray = into(shape.axes, minus(point, shape.center)), into(shape.axes, direction)
    normal = _normal(shape, local, ray)
    sky = (solid == ROOM) & in_window(scene, point)
    surface = jnp.where(sky, SKY, jnp.where(solid == ROOM, _face(components(scene.room), point), FACES + solid))
    # Clouds as on a dome 2 m off, which no step to the side brings nearer.
    dome = each(lambda p, d: jnp.where(sky, 2 * d / norm(direction), p), local, direction)
    plane, footprint = _footprint(dome, ray, normal, t * spread)
    return Seen(surface, point, out_of(shape.axes, normal), dome, plane, footprint)


def lookup(table: Table, index: Int[Array, "*N"]) -> Table:
    """A table's entries, along the last axis of each of its arrays (…, rows), at `index`."""
    # A gather for each column: those of single numbers fuse with what uses them, those of rows do not.
    return jax.tree.map(lambda column: jnp.asarray(column).at[index].get(mode="promise_in_bounds"), table)


def _solids(scene: Scene) -> _Solid:
    """The room, then the solids."""
    number = np.arange(SOLIDS + 1) + ROOM
    return _Solid(
        center=components(jnp.concatenate([jnp.zeros((1, 3)), scene.center])),
        axes=frame(jnp.concatenate([jnp.eye(3)[None], scene.axes])),
        half=components(jnp.concatenate([scene.room[None], scene.half])),
        sphere=jnp.asarray(np.isin(number, SPHERES)),
        cylinder=jnp.asarray(np.isin(number, CYLINDERS)),
    )


def _face(room: Vector, point: Vector) -> Int[Array, "*N"]:
    """Which of the room's faces points of them are on."""
    x, y, z = each(lambda h, p: h - jnp.abs(p), room, point)
    on_z, on_x = z <= jnp.minimum(x, y), x < y
    axis, coordinate = (jnp.where(on_z, c, jnp.where(on_x, a, b)) for a, b, c in ((0, 1, 2), point))
    return 2 * axis + (coordinate > 0)


def _normal(shape: _Solid, point: Vector, ray: Vector) -> Vector:
    """Unit normals at points of solids, in their frames. What is flat faces the ray, met from outside or, as the room's, from inside."""
    x, y, z = each(lambda h, p: h - jnp.abs(p), shape.half, point)
    side = shape.half[0] - jnp.sqrt(point[0] ** 2 + point[1] ** 2)
    on_z = z <= jnp.where(shape.cylinder, side, jnp.minimum(x, y))
    on_x = ~on_z & (x < y)
    flat = each(lambda on, d: jnp.where(on, -jnp.sign(d), 0.0), (on_x, ~on_z & ~on_x, on_z), ray)
    radial = each(lambda p, h: p / h, point, shape.half)
    curved = shape.sphere | (shape.cylinder & ~on_z)
    upright = radial[0], radial[1], jnp.where(shape.sphere, radial[2], 0.0)
    return each(lambda a, b: jnp.where(curved, a, b), upright, flat)


def _footprint(point: Vector, ray: Vector, normal: Vector, width: Reals) -> tuple[tuple[Reals, Reals], Footprint]:
    """The coordinates of points that patterns lie in, and what pixels of `width` across the ray cover there.

    Along an axis a of the surface, a pixel's projection along the ray d onto it is √(1 + (d·a / d·n)²) times as wide as the pixel.
    """
    x, y, z = each(jnp.abs, normal)
    level, facing_x = z >= jnp.maximum(x, y), x > y

    def in_plane(v: Vector) -> tuple[Reals, Reals]:
        return jnp.where(~level & facing_x, v[1], v[0]), jnp.where(level, v[1], v[2])

    length = norm(ray)
    # Grazing pixels cover no more than 50 times their width: they show nothing but the mean long before.
    slope = 1 / jnp.maximum(jnp.abs(dot(ray, normal)), 0.02 * length)
    u, v = (width * jnp.sqrt(1 + (d * slope) ** 2) for d in in_plane(ray))
    return in_plane(point), Footprint(u, v, width * jnp.sqrt(length * slope))
