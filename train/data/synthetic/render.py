"""Pairs of views, rendered by casting a ray through every pixel. All of it is a pure function of (seed, index)."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, UInt8

from train.data.records import Pair, Shape, View
from train.data.synthetic.cameras import Camera, pixel_rays, sample_cameras
from train.data.synthetic.config import SyntheticConfig
from train.data.synthetic.intersect import first_entry, nearest_surface
from train.data.synthetic.scene import Scene, sample_scene
from train.data.synthetic.surfaces import SKY, SURFACES, Seen, lookup, see
from train.data.synthetic.textures import Paint, Texture, mix, sample_textures
from train.data.synthetic.vectors import components, dot, minus

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
