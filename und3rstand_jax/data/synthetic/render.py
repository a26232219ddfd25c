"""What pixels show: of the solid that a ray has met, which surface, facing where, and how much of it a pixel covers.

Pairs of views, rendered by casting a ray through every pixel. All of it is a pure function of (seed, index).
"""

from functools import partial
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, UInt8

from und3rstand_jax.data.records import Pair, Shape, View
from und3rstand_jax.data.synthetic.cameras import Camera, pixel_rays, sample_cameras
from und3rstand_jax.data.synthetic.config import SyntheticConfig
from und3rstand_jax.data.synthetic.intersect import (
    ROOM,
    Axes,
    Vector,
    along,
    components,
    dot,
    each,
    first_entry,
    frame,
    in_window,
    into,
    minus,
    nearest_surface,
    norm,
    out_of,
)
from und3rstand_jax.data.synthetic.scene import CYLINDERS, SOLIDS, SPHERES, Scene, sample_scene
from und3rstand_jax.data.synthetic.textures import Footprint, Paint, Texture, mix, sample_textures

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


BAND = 2**16
"""Pixels rendered at once; of larger images one band after the other, in memory that a CPU's cache can hold."""


class World(NamedTuple):
    """A scene and the looks of its surfaces."""

    scene: Scene
    paint: Paint
    texture: Texture


def render_pairs(seed: int | Array, indices: Int[Array, "B"], shape: Shape, config: SyntheticConfig) -> Pair:
    """`render_pair` of several indices, along a leading axis.

    One pair after the other, so that a pair's bits are the same in any batch and on any number of devices of one kind.
    """
    indices = jnp.asarray(indices).astype(jnp.uint32)
    count, (height, width) = len(indices), shape
    view = View(
        image=jnp.zeros((count, height, width, 3), jnp.uint8),
        depth=jnp.zeros((count, height, width)),
        intrinsics=jnp.zeros((count, 3, 3)),
        cam2world=jnp.zeros((count, 4, 4)),
    )

    # Knowing that there is one pair alone, XLA would drop the loop, fuse the pair's arithmetic with what is around it, and round it
    # differently. The barrier hides the number of turns, the padding that every turn renders the same pair.
    turns = lax.optimization_barrier(jnp.int32(count))
    padded = jnp.concatenate([indices, indices[:1]])

    def add(turn: Array, pairs: Pair) -> Pair:
        pair = _render(seed, padded[turn], shape, config)
        return jax.tree.map(lambda array, entry: array.at[turn].set(entry), pairs, pair)

    return lax.fori_loop(0, turns, add, Pair(view, view))


def render_pair(seed: int | Array, index: int | Array, shape: Shape, config: SyntheticConfig) -> Pair:
    """Two views of one room, (height, width) = `shape`: pure, for use under `jit` with `seed` and `index` (both in [0, 2³²)) traced.

    Depth is exact to float32, 0 only where a window shows the sky. The unit is the metre; the world is `scene.py`'s. The
    room does not depend on the shape, the cameras on its aspect ratio alone. Colours are Lambertian, so both views agree wherever they see
    the same point, but for what a pixel of one resolves and of the other does not.
    """
    return jax.tree.map(lambda array: array[0], render_pairs(seed, jnp.asarray(index)[None], shape, config))


def _render(seed: int | Array, index: Array, shape: Shape, config: SyntheticConfig) -> Pair:
    key = jax.random.key(0, impl="threefry2x32")
    for number in (seed, index):
        key = jax.random.fold_in(key, jnp.asarray(number, jnp.uint32))
    scene_key, texture_key, camera_key = jax.random.split(key, 3)
    scene = sample_scene(scene_key)
    world = World(scene, *sample_textures(texture_key, SURFACES))
    cameras = sample_cameras(camera_key, scene, shape, config)
    # For compilers that would fuse the sampling into the loops over pixels, and sample anew in each.
    world, cameras = lax.optimization_barrier((world, cameras))
    views = jax.vmap(partial(_render_view, world, shape))(cameras)
    return Pair(jax.tree.map(lambda array: array[0], views), jax.tree.map(lambda array: array[1], views))


def _render_view(world: World, shape: Shape, camera: Camera) -> View:
    height, width = shape
    bands = -(-height * width // BAND)
    rows = -(-height // bands)
    image, depth = lax.map(partial(_render_band, world, (rows, width), camera), rows * jnp.arange(bands))
    return View(image.reshape(-1, width, 3)[:height], depth.reshape(-1, width)[:height], *camera)


def _render_band(
    world: World, shape: Shape, camera: Camera, first_row: Int[Array, ""]
) -> tuple[UInt8[Array, "H W 3"], Float[Array, "H W"]]:
    v, u = jnp.meshgrid(*(jnp.arange(side, dtype=jnp.float32) for side in shape), indexing="ij")
    origin, direction = pixel_rays(camera, u, v + first_row)
    depth, solid = nearest_surface(world.scene, origin, direction)
    seen = see(world.scene, solid, origin, direction, depth, 1 / camera.intrinsics[0, 0])
    return _shade(world, seen), jnp.where(seen.surface == SKY, 0.0, depth)


def _shade(world: World, seen: Seen) -> UInt8[Array, "H W 3"]:
    """Colours of surfaces: Lambertian, with shadows; the sky shines by itself."""
    share, tone = mix(lookup(world.texture, seen.surface), seen.local, seen.plane, seen.footprint)
    direct, around = _irradiance(world.scene, seen)
    light, shines = world.scene.light, seen.surface == SKY

    def channel(values: tuple[Array, Array, Array, Array]) -> UInt8[Array, "H W"]:
        first, second, lamp, ambient = values
        a, b = lookup((first, second), seen.surface)
        radiance = tone * (a + share * (b - a)) * jnp.where(shines, 1.0, lamp * direct + ambient * around)
        # A film's curve: it brightens the dark as gamma does, and flattens towards white.
        return jnp.round(255 * jnp.minimum(1.2 * radiance / (radiance + 0.4), 1)).astype(jnp.uint8)

    # One after the other, since with the channels innermost nothing vectorises.
    channels = lax.map(channel, (world.paint.first, world.paint.second, light.power, light.ambient))
    return jnp.moveaxis(channels, 0, -1)


def _irradiance(scene: Scene, seen: Seen) -> tuple[Float[Array, "H W"], Float[Array, "H W"]]:
    """Light from the lamp, but for shadows, and from all around, over that of `scene.light`."""
    light = scene.light
    lamp = components(light.position)
    from_lamp = minus(seen.point, lamp)
    square = dot(from_lamp, from_lamp)
    cosine = jnp.maximum(-dot(seen.normal, from_lamp), 0) * lax.rsqrt(square)
    lit = first_entry(scene, lamp, from_lamp) > 1 - 2e-3
    return cosine * lit / (square + light.radius**2), 0.65 + 0.35 * dot(seen.normal, components(light.sky))
