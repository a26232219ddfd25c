"""What a pixel shows of the solid that its ray meets: which surface, its orientation, and how much of it the pixel covers."""

from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from und3rstand_jax.data.synthetic.intersect import (
    ROOM,
    Axes,
    Reals,
    Vector,
    along,
    components,
    dot,
    each,
    frame,
    in_window,
    into,
    minus,
    norm,
    out_of,
)
from und3rstand_jax.data.synthetic.scene import CYLINDERS, SOLIDS, SPHERES, Scene
from und3rstand_jax.data.synthetic.textures import Footprint

FACES = 6
"""Number of the room's faces: −x, +x, −y, +y, floor, ceiling."""

SKY = FACES + SOLIDS
"""The sky's number among the surfaces."""

SURFACES = SKY + 1
"""The room's faces, the solids and the sky, in this order. Each has a texture."""

Table = TypeVar("Table")


class Seen(NamedTuple):
    """What pixels show.

    The surface's number; the point and the unit normal (towards the viewer) in the world; the point in the solid's frame (for the
    sky: its direction); the two of its coordinates in which patterns are defined; the pixel's footprint there.
    """

    surface: Int[Array, "..."]
    point: Vector
    normal: Vector
    local: Vector
    plane: tuple[Reals, Reals]
    footprint: Footprint


class _Solid(NamedTuple):
    center: Vector
    axes: Axes
    half: Vector
    sphere: Bool[Array, "..."]
    cylinder: Bool[Array, "..."]


def see(scene: Scene, solid: Int[Array, "..."], origin: Vector, direction: Vector, t: Reals, spread: float | Reals) -> Seen:
    """What is seen along rays that meet `solid` (ROOM, or its number) at t; `spread` is a pixel's width at t = 1."""
    point = along(origin, direction, t)
    number = np.arange(SOLIDS + 1) + ROOM
    # The room comes first, at index 0.
    table = _Solid(
        center=components(jnp.concatenate([jnp.zeros((1, 3), jnp.float32), scene.center])),
        axes=frame(jnp.concatenate([jnp.eye(3, dtype=jnp.float32)[None], scene.axes])),
        half=components(jnp.concatenate([scene.room[None], scene.half])),
        sphere=jnp.asarray(np.isin(number, SPHERES)),
        cylinder=jnp.asarray(np.isin(number, CYLINDERS)),
    )
    shape = lookup(table, solid - ROOM)
    local, ray = into(shape.axes, minus(point, shape.center)), into(shape.axes, direction)
    normal = _normal(shape, local, ray)
    sky = (solid == ROOM) & in_window(scene, point)
    gap_x, gap_y, gap_z = each(lambda h, p: h - jnp.abs(p), components(scene.room), point)
    on_z, on_x = gap_z <= jnp.minimum(gap_x, gap_y), gap_x < gap_y
    axis, coordinate = (jnp.where(on_z, c, jnp.where(on_x, a, b)) for a, b, c in ((0, 1, 2), point))
    face = 2 * axis + (coordinate > 0)
    surface = jnp.where(sky, SKY, jnp.where(solid == ROOM, face, FACES + solid))
    # Clouds as if on a dome 2 m away that moves with the viewer.
    dome = each(lambda p, d: jnp.where(sky, 2 * d / norm(direction), p), local, direction)
    plane, footprint = _footprint(dome, ray, normal, t * spread)
    return Seen(surface, point, out_of(shape.axes, normal), dome, plane, footprint)


def lookup(table: Table, index: Int[Array, "..."]) -> Table:
    """A table's entries, along the last axis of each of its arrays (…, rows), at `index`."""
    # A gather for each column: gathers of single numbers fuse with what uses them, gathers of rows do not.
    return jax.tree.map(lambda column: jnp.asarray(column).at[index].get(mode="promise_in_bounds"), table)


def _normal(shape: _Solid, point: Vector, ray: Vector) -> Vector:
    """Unit normals at points of solids, in their frames. Flat sides face the ray, which meets solids from outside, the room from inside."""
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
    """The coordinates of points in which patterns are defined, and what pixels of `width` across the ray cover there.

    Along an axis a of the surface, a pixel's projection along the ray d onto it is √(1 + (d·a / d·n)²) times as wide as the pixel.
    """
    x, y, z = each(jnp.abs, normal)
    level, facing_x = z >= jnp.maximum(x, y), x > y

    def in_plane(v: Vector) -> tuple[Reals, Reals]:
        return jnp.where(~level & facing_x, v[1], v[0]), jnp.where(level, v[1], v[2])

    length = norm(ray)
    # Grazing pixels cover at most 50 times their width: they show only the mean long before that.
    slope = 1 / jnp.maximum(jnp.abs(dot(ray, normal)), 0.02 * length)
    u, v = (width * jnp.sqrt(1 + (d * slope) ** 2) for d in in_plane(ray))
    return in_plane(point), Footprint(u, v, width * jnp.sqrt(length * slope))
