"""Sets of views, rendered by casting a ray through every pixel. Everything is a pure function of (seed, index)."""

import dataclasses
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, UInt8

from und3rstand_jax.data.records import Shape, Split, View, ViewSet, held_out_scenes, training_scenes
from und3rstand_jax.data.synthetic.cameras import Camera, pixel_rays, sample_cameras
from und3rstand_jax.data.synthetic.config import SyntheticConfig
from und3rstand_jax.data.synthetic.intersect import components, dot, first_entry, minus, nearest_surface
from und3rstand_jax.data.synthetic.scene import Scene, sample_scene
from und3rstand_jax.data.synthetic.surfaces import SKY, SURFACES, Seen, lookup, see
from und3rstand_jax.data.synthetic.textures import Paint, Texture, mix, sample_textures

BAND = 2**16
"""Pixels rendered at once. Larger images are rendered band by band, in memory that a CPU's cache can hold."""


@dataclasses.dataclass(frozen=True)
class RenderedSets:
    """The first `count` scenes of a split as a list of sets on the host, like `FileSets`."""

    scenes: SyntheticConfig
    seed: int
    split: Split
    count: int
    shape: Shape
    name: str = "synthetic"
    notes: tuple[str, ...] = ("scenes are rendered on demand, without end",)

    @property
    def views(self) -> int:
        """Number of views in a set."""
        return self.scenes.views

    def __len__(self) -> int:
        return self.count

    def set_name(self, index: int) -> str:
        """A set's name in a report."""
        return f"scene {index}"

    def read(self, index: int) -> ViewSet:
        """One set."""
        number = (training_scenes if self.split == "train" else held_out_scenes)()[index]
        return jax.tree.map(np.asarray, _render_jitted(self.seed, number, self.shape, self.scenes))

    def fit(self, index: int, views: ViewSet, shape: Shape, rng: np.random.Generator | None) -> ViewSet:
        """The set unchanged: scenes are rendered at the requested shape."""
        return views


def render_set(seed: int | Array, index: int | Array, shape: Shape, config: SyntheticConfig) -> ViewSet:
    """The views of one room, (height, width) = `shape`: pure, for use under `jit` with `seed` and `index` (both in [0, 2³²)) traced.

    Depth is exact to float32, and 0 only where a window shows the sky. The unit is the metre, the world frame that of `scene.py`. The
    room does not depend on the shape, the cameras depend on its aspect ratio only. Colours are Lambertian: views agree wherever they see
    the same point, except for detail that only some of them resolve.
    """
    return jax.tree.map(lambda array: array[0], render_sets(seed, jnp.asarray(index)[None], shape, config))


_render_jitted = jax.jit(render_set, static_argnums=(2, 3))


def render_sets(seed: int | Array, indices: Int[Array, " B"], shape: Shape, config: SyntheticConfig) -> ViewSet:
    """`render_set` for several indices, along a leading axis.

    Sets are rendered one after the other, so that a set has the same bits in any batch and on any number of devices of one kind.
    """
    indices = jnp.asarray(indices).astype(jnp.uint32)
    count, (height, width) = len(indices), shape
    view = View(
        image=jnp.zeros((count, height, width, 3), jnp.uint8),
        depth=jnp.zeros((count, height, width), jnp.float32),
        intrinsics=jnp.zeros((count, 3, 3), jnp.float32),
        cam2world=jnp.zeros((count, 4, 4), jnp.float32),
    )

    # If XLA knew that there is a single set, it would drop the loop, fuse the set's arithmetic with its surroundings, and round it
    # differently. The barrier hides the number of iterations; the padding hides that every iteration renders the same set.
    turns = lax.optimization_barrier(jnp.int32(count))
    padded = jnp.concatenate([indices, indices[:1]])

    def add(turn: ArrayLike, sets: ViewSet) -> ViewSet:
        views = _render_traced_once(jnp.asarray(seed, jnp.uint32), padded[turn], shape, config)
        return jax.tree.map(lambda array, entry: array.at[turn].set(entry), sets, views)

    return lax.fori_loop(0, turns, add, (view,) * config.views)


class _World(NamedTuple):
    """A scene and the colours and textures of its surfaces."""

    scene: Scene
    paint: Paint
    texture: Texture


def _render(seed: int | Array, index: Array, shape: Shape, config: SyntheticConfig) -> ViewSet:
    key = jax.random.key(0, impl="threefry2x32")
    for number in (seed, index):
        key = jax.random.fold_in(key, jnp.asarray(number, jnp.uint32))
    scene_key, texture_key, camera_key = jax.random.split(key, 3)
    scene = sample_scene(scene_key)
    world = _World(scene, *sample_textures(texture_key, SURFACES))
    cameras = sample_cameras(camera_key, scene, shape, config)
    # Keeps compilers from fusing the sampling into the loops over pixels and repeating it in each.
    world, cameras = lax.optimization_barrier((world, cameras))

    height, width = shape
    bands = -(-height * width // BAND)
    rows = -(-height // bands)

    def render_band(camera: Camera, first_row: Int[Array, ""]) -> tuple[UInt8[Array, "H W 3"], Float[Array, "H W"]]:
        v, u = jnp.meshgrid(*(jnp.arange(side, dtype=jnp.float32) for side in (rows, width)), indexing="ij")
        origin, direction = pixel_rays(camera, u, v + first_row)
        depth, solid = nearest_surface(world.scene, origin, direction)
        seen = see(world.scene, solid, origin, direction, depth, 1 / camera.intrinsics[0, 0])
        return _shade(world, seen), jnp.where(seen.surface == SKY, 0.0, depth)

    def render_view(camera: Camera) -> View:
        image, depth = lax.map(partial(render_band, camera), rows * jnp.arange(bands))
        return View(image.reshape(-1, width, 3)[:height], depth.reshape(-1, width)[:height], *camera)

    views = jax.vmap(render_view)(cameras)
    return tuple(jax.tree.map(lambda array, view=view: array[view], views) for view in range(config.views))


_render_traced_once = jax.jit(_render, static_argnums=(2, 3))
"""Tracing takes seconds, and a process of training has several programs that render: the step, validation and the evaluation."""


def _shade(world: _World, seen: Seen) -> UInt8[Array, "H W 3"]:
    """Colours of surfaces: Lambertian, lit by the lamp except in shadow, and from all around; the sky is a light of its own."""
    share, tone = mix(lookup(world.texture, seen.surface), seen.local, seen.plane, seen.footprint)
    light = world.scene.light
    lamp = components(light.position)
    from_lamp = minus(seen.point, lamp)
    square = dot(from_lamp, from_lamp)
    cosine = jnp.maximum(-dot(seen.normal, from_lamp), 0) * lax.rsqrt(square)
    # t is 1 at the point itself, which float32 may miss by a little.
    lit = first_entry(world.scene, lamp, from_lamp) > 1 - 2e-3
    direct, around = cosine * lit / (square + light.radius**2), 0.65 + 0.35 * dot(seen.normal, components(light.sky))
    shines = seen.surface == SKY

    def channel(values: tuple[Array, Array, Array, Array]) -> UInt8[Array, "H W"]:
        first, second, power, ambient = values
        a, b = lookup((first, second), seen.surface)
        radiance = tone * (a + share * (b - a)) * jnp.where(shines, 1.0, power * direct + ambient * around)
        # A film response curve: like gamma it brightens shadows, and it flattens towards white.
        return jnp.round(255 * jnp.minimum(1.2 * radiance / (radiance + 0.4), 1)).astype(jnp.uint8)

    # One channel after the other: with channels innermost, nothing vectorises.
    channels = lax.map(channel, (world.paint.first, world.paint.second, light.power, light.ambient))
    return jnp.moveaxis(channels, 0, -1)
