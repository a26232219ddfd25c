"""The places and lenses of a scene's cameras."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from und3rstand_jax.data.records import Shape
from und3rstand_jax.data.synthetic.config import SyntheticConfig
from und3rstand_jax.data.synthetic.intersect import (
    ROOM,
    Reals,
    Vector,
    along,
    clearance,
    components,
    first_entry,
    frame,
    in_window,
    into,
    minus,
    nearest_surface,
)
from und3rstand_jax.data.synthetic.scene import SOLIDS, Scene, span, uniform

FIRST_CANDIDATES, SECOND_CANDIDATES = 16, 80
"""Number of cameras drawn for the first view and for each later one; the best is taken."""

GRID = 12
"""Candidates are judged by GRID² of their pixels."""

CLEARANCE = 0.4
"""Minimum distance of cameras from every surface, in metres."""


class Camera(NamedTuple):
    """`intrinsics` in pixels (pixel centres at integers); `cam2world` from the camera's frame (x right, y down, z forward)."""

    intrinsics: Float[Array, "*N 3 3"]
    cam2world: Float[Array, "*N 4 4"]


class Glimpse(NamedTuple):
    """What GRID² pixels, spread evenly over a view, show: the world points and their depth, and which are on solids or sky."""

    point: Vector
    depth: Float[Array, "*N"]
    solid: Bool[Array, "*N"]
    sky: Bool[Array, "*N"]


def sample_cameras(key: PRNGKeyArray, scene: Scene, shape: Shape, config: SyntheticConfig) -> Camera:
    """The cameras, along the leading axis; of the shape, only the aspect ratio matters.

    The first looks at one of the solids. The second is the candidate whose overlap with it is nearest to a draw from `config.overlap`.
    Each `config.second` has other places to choose from and its own draw of the overlap; the first camera and both lenses are the same.
    Each further camera is chosen in the same way around an earlier one, drawn at random. The first two are therefore those of a pair.
    """
    lens_key, first_key, second_key, overlap_key = jax.random.split(key, 4)
    lenses = sample_intrinsics(lens_key, 1 + SECOND_CANDIDATES, shape)
    first, glimpse = _first_camera(first_key, scene, lenses[0], shape)

    def choose(place_key: PRNGKeyArray, overlap_key: PRNGKeyArray, lenses: Float[Array, "N 3 3"], earlier: Camera, seen: Glimpse) -> Camera:
        candidates = Camera(lenses, _later_poses(place_key, earlier.cam2world, seen, config))
        shares = jax.vmap(lambda camera: overlap(scene, seen, camera, shape))(candidates)
        wanted = span(uniform(overlap_key), *config.overlap)
        best = jnp.argmin(jnp.abs(shares - wanted) + _crowding(scene, candidates.cam2world))
        return jax.tree.map(lambda many: many[best], candidates)

    second = choose(second_key, overlap_key, lenses[1:], first, glimpse)
    if config.second:
        second_key, overlap_key = (jax.random.fold_in(key, config.second) for key in (second_key, overlap_key))
        second = choose(second_key, overlap_key, jnp.broadcast_to(second.intrinsics, lenses[1:].shape), first, glimpse)
    pair = jax.tree.map(lambda one, two: jnp.stack([one, two]), first, second)
    if config.views == 2:
        return pair

    def add(number: ArrayLike, cameras: Camera) -> Camera:
        # Different from the four keys of the pair, which fold_in(key, 0) to fold_in(key, 3) would repeat.
        lens_key, place_key, overlap_key, earlier_key = jax.random.split(jax.random.fold_in(key, 2 + number), 4)
        # The same type whatever JAX's default is: draws differ between types.
        earlier = jax.random.randint(earlier_key, (), 0, number, jnp.int32)
        beside = jax.tree.map(lambda many: many[earlier], cameras)
        lenses = sample_intrinsics(lens_key, SECOND_CANDIDATES, shape)
        chosen = choose(place_key, overlap_key, lenses, beside, look(scene, beside, shape))
        return jax.tree.map(lambda many, one: many.at[number].set(one), cameras, chosen)

    room_for_all = jax.tree.map(lambda two: jnp.concatenate([two, jnp.broadcast_to(two[:1], (config.views - 2, *two.shape[1:]))]), pair)
    return lax.fori_loop(2, config.views, add, room_for_all)


def sample_intrinsics(key: PRNGKeyArray, count: int, shape: Shape) -> Float[Array, "N 3 3"]:
    """`count` lenses of 45° to 85° along the longer side, with fx and fy up to 2 % apart and the principal point up to 4 % of a side
    off the centre.
    """
    height, width = shape
    u = uniform(key, (4, count))
    focal = 0.5 * max(shape) / jnp.tan(0.5 * jnp.deg2rad(span(u[0], 45, 85)))
    cx, cy = (((side - 1) / 2 + span(v, -0.04, 0.04) * side) for side, v in ((width, u[2]), (height, u[3])))
    zero, one = jnp.zeros(count, jnp.float32), jnp.ones(count, jnp.float32)
    return _matrix([[focal, zero, cx], [zero, focal * span(u[1], 0.98, 1.02), cy], [zero, zero, one]])


def pixel_rays(camera: Camera, u: Reals, v: Reals) -> tuple[Vector, Vector]:
    """Origin (scalars) and world directions of the rays through pixels (u, v) of one camera; t along them is depth."""
    (fx, cx), (fy, cy) = ((camera.intrinsics[i, i], camera.intrinsics[i, 2]) for i in (0, 1))
    right, down, forward = frame(camera.cam2world[:3, :3].T)
    return components(camera.cam2world[:3, 3]), along(along(forward, right, (u - cx) / fx), down, (v - cy) / fy)


def look(scene: Scene, camera: Camera, shape: Shape) -> Glimpse:
    """What a camera sees of a scene."""
    v, u = (((jnp.arange(GRID) + 0.5) * (side / GRID) - 0.5) for side in shape)
    origin, direction = pixel_rays(camera, *(a.ravel() for a in jnp.meshgrid(u, v)))
    depth, solid = nearest_surface(scene, origin, direction)
    point = along(origin, direction, depth)
    return Glimpse(point, depth, solid != ROOM, (solid == ROOM) & in_window(scene, point))


def overlap(scene: Scene, glimpse: Glimpse, camera: Camera, shape: Shape) -> Float[Array, ""]:
    """The fraction of a glimpse's surface points that a camera sees: they fall inside its image, and nothing occludes them."""
    height, width = shape
    center = components(camera.cam2world[:3, 3])
    to_point = minus(glimpse.point, center)
    x, y, z = into(frame(camera.cam2world[:3, :3].T), to_point)
    u, v = (camera.intrinsics[i, i] * a / jnp.maximum(z, 1e-6) + camera.intrinsics[i, 2] for i, a in ((0, x), (1, y)))
    inside = (z > 0) & (u > -0.5) & (u < width - 0.5) & (v > -0.5) & (v < height - 0.5)
    # t is 1 at the point itself, which float32 may miss by a little.
    seen = inside & (first_entry(scene, center, to_point) > 1 - 2e-3) & ~glimpse.sky
    return jnp.sum(seen, dtype=jnp.float32) / jnp.maximum(jnp.sum(~glimpse.sky, dtype=jnp.float32), 1)


def _first_camera(key: PRNGKeyArray, scene: Scene, lens: Float[Array, "3 3"], shape: Shape) -> tuple[Camera, Glimpse]:
    """A camera between sitting and standing eye height that looks at a solid, is clear of surfaces, and has a good view."""
    u = uniform(key, (9, FIRST_CANDIDATES))
    x, y = span(u[:2], -1, 1) * (scene.room[:2, None] - CLEARANCE)
    position = x, y, span(u[2], 0.8, 1.8) - scene.room[2]
    solids = scene.center[jnp.floor(u[3] * SOLIDS).astype(jnp.int32)]
    # Solids that the scene lacks are replaced by the middle of the room.
    target = jnp.where(solids[:, 2:] < -scene.room[2], 0.0, solids) + span(u[4:7].T, -0.4, 0.4)
    yaw, pitch = _angles(minus(components(target), position))
    poses = _poses(position, yaw, jnp.clip(pitch, -0.7, 0.35), span(u[7], -0.06, 0.06))

    glimpses = jax.vmap(lambda pose: look(scene, Camera(lens, pose), shape))(poses)
    # Each term is capped: without that, the best view would always be the one from a corner.
    quality = (
        jnp.minimum(jnp.mean(glimpses.depth > 1.5, axis=1, dtype=jnp.float32), 0.8)
        + jnp.minimum(jnp.mean(glimpses.solid, axis=1, dtype=jnp.float32), 0.3)
        + jnp.minimum(jnp.std(jnp.log(glimpses.depth), axis=1), 0.4)
    )
    best = jnp.argmax(quality + 0.2 * u[8] - _crowding(scene, poses))
    return Camera(lens, poses[best]), jax.tree.map(lambda a: a[best], glimpses)


def _later_poses(key: PRNGKeyArray, earlier: Float[Array, "4 4"], glimpse: Glimpse, config: SyntheticConfig) -> Float[Array, "N 4 4"]:
    """Poses around an earlier camera, near and far, each looking at what that camera sees or somewhat past it."""
    u = uniform(key, (7, SECOND_CANDIDATES))
    low, high = config.baseline
    azimuth, elevation = 2 * jnp.pi * u[1], span(u[2], -0.2, 0.2)
    step = jnp.cos(elevation) * jnp.cos(azimuth), jnp.cos(elevation) * jnp.sin(azimuth), jnp.sin(elevation)
    position = along(components(earlier[:3, 3]), step, span(u[0] ** 1.5, low, high))
    x, y, z = (jnp.mean(a) for a in glimpse.point)
    yaw, pitch = _angles(minus((x, y, z), position))
    # Squared, as the baseline's draw is raised to 1.5: overlap changes fastest near the easy end.
    turn = u[3] ** 2
    yaw, pitch = yaw + turn * span(u[4], -2, 2), pitch + turn * span(u[5], -0.3, 0.3)
    return _poses(position, yaw, jnp.clip(pitch, -0.8, 0.5), span(u[6], -0.06, 0.06))


def _crowding(scene: Scene, poses: Float[Array, "N 4 4"]) -> Float[Array, " N"]:
    """0 for cameras that keep CLEARANCE from every surface; otherwise a penalty that outweighs everything else and grows with nearness."""
    missing = CLEARANCE - clearance(scene, components(poses[:, :3, 3]))
    return jnp.where(missing > 0, 10 + 10 * missing, 0.0)


def _angles(direction: Vector) -> tuple[Array, Array]:
    """Yaw (from x towards y) and pitch (upwards) of directions, in radians."""
    x, y, z = direction
    return jnp.arctan2(y, x), jnp.arctan2(z, jnp.hypot(x, y))


def _poses(position: Vector, yaw: Float[Array, " N"], pitch: Float[Array, " N"], roll: Float[Array, " N"]) -> Float[Array, "N 4 4"]:
    """cam2world of cameras that look along yaw and pitch and are rotated about the optical axis by `roll`, all in radians."""
    cy, sy, cp, sp, cr, sr = (function(angle) for angle in (yaw, pitch, roll) for function in (jnp.cos, jnp.sin))
    zero, one = jnp.zeros_like(yaw), jnp.ones_like(yaw)
    level = zip((sy, -cy, zero), (sp * cy, sp * sy, -cp), (cp * cy, cp * sy, sp), position, strict=True)
    rows = [[cr * right + sr * down, cr * down - sr * right, forward, place] for right, down, forward, place in level]
    return _matrix([*rows, [zero, zero, zero, one]])


def _matrix(rows: list[list[Array]]) -> Float[Array, "*N R C"]:
    return jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)
