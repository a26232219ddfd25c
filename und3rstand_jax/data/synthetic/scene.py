"""A room and what stands in it, drawn at random: sizes, places, a window, light.

The world's origin is the middle of the room, its axes run along the walls, z is up, and its unit is the metre. All scenes have arrays
of the same size: a solid that a scene lacks is put far below the floor, where no ray from inside the room reaches it.
"""

from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray

Number: TypeAlias = int | float | Array

BOXES, SPHERES, CYLINDERS = range(0, 6), range(6, 9), range(9, 12)
"""Indices of the solids by kind. The last two boxes are boards: thin and tilted."""

SOLIDS = 12

_BOARDS = slice(4, 6)

_PICTURE = 5
"""The board that may hang on a wall."""

_ALWAYS = np.isin(np.arange(SOLIDS), [0, 1, 6])
"""Two boxes and a sphere are in every scene."""

_ONTO = ((3, 2), (6, 0), (7, 1), (9, 3))
"""Which solids may stand on which boxes."""

_CELLS = (4, 3)
"""The floor is divided into this grid, one cell for each solid."""

_BURIED = (0.0, 0.0, -100.0)

_NOWHERE = 1e9


class Window(NamedTuple):
    """An opening in a wall, with nothing but sky behind it.

    `wall` is 0 for −x, then +x, −y, +y. `low` and `high` are corners, along the wall's horizontal axis and z. A room without a window
    has low > high.
    """

    wall: Float[Array, ""]
    low: Float[Array, " 2"]
    high: Float[Array, " 2"]


class Light(NamedTuple):
    """A lamp, whose light falls off as power / (distance² + radius²), and light from all around, strongest from the direction of the
    unit vector `sky`. `power` and `ambient` are RGB.
    """

    position: Float[Array, " 3"]
    power: Float[Array, " 3"]
    radius: Float[Array, ""]
    ambient: Float[Array, " 3"]
    sky: Float[Array, " 3"]


class Scene(NamedTuple):
    """A room of half size `room` and the solids in it: centres, axes (rows: the solid's x, y and z in the world) and half sizes,
    which are (r, r, r) for a sphere and (r, r, half the height) for an upright cylinder.
    """

    room: Float[Array, " 3"]
    center: Float[Array, "12 3"]
    axes: Float[Array, "12 3 3"]
    half: Float[Array, "12 3"]
    window: Window
    light: Light


def sample_scene(key: PRNGKeyArray) -> Scene:
    """A room 3 to 8 m across and 2.3 to 3.3 m high with 3 to 12 solids, a lamp, and in one case out of three a window."""
    room_key, window_key, solids_key, light_key = jax.random.split(key, 4)
    u = uniform(room_key, (3,))
    room = jnp.stack([span(u[0], 1.5, 4), span(u[1], 1.5, 4), span(u[2], 1.15, 1.65)])
    return Scene(room, *_solids(solids_key, room), _window(window_key, room), _light(light_key, room))


def uniform(key: PRNGKeyArray, shape: tuple[int, ...] = ()) -> Float[Array, "..."]:
    """Draws from [0, 1) in float32, whatever JAX's default is: a scene is the same under JAX_ENABLE_X64."""
    return jax.random.uniform(key, shape, jnp.float32)


def span(u: Float[Array, "..."], low: Number, high: Number) -> Float[Array, "..."]:
    """Maps draws from [0, 1) to draws from [low, high)."""
    return low + (high - low) * u


def _solids(key: PRNGKeyArray, room: Float[Array, " 3"]) -> tuple[Array, Array, Array]:
    """Centres, axes and half sizes."""
    u = uniform(key, (11, SOLIDS))
    cell = 2 * room[:2] / jnp.array(_CELLS, jnp.float32)
    half = _half_sizes(u[0:3], jnp.min(cell))
    tilt = jnp.zeros(SOLIDS, jnp.float32).at[_BOARDS].set(span(u[3, _BOARDS], 0.35, 1.3))
    axes = _axes(2 * jnp.pi * u[4], tilt)
    # One per cell, in random order, off the cell's middle by as much as there is room for.
    order = jnp.argsort(u[5])
    corner = jnp.stack([order % _CELLS[0], order // _CELLS[0]], axis=1) * cell - room[:2]
    space = jnp.maximum(cell - 2 * jnp.hypot(half[:, 0], half[:, 1])[:, None], 0)
    place = corner + cell / 2 + (u[6:8].T - 0.5) * space
    present = jnp.asarray(_ALWAYS) | (u[8] < span(u[9, 0], 0.3, 0.9))
    place, base = _stack(place, half, u[10], present, -room[2])
    # The height of a tilted board's middle follows from its slope.
    rise = half[:, 2] * jnp.cos(tilt) + half[:, 1] * jnp.sin(tilt)
    center = jnp.concatenate([place, (base + rise)[:, None]], axis=1)
    center, axes = _hang(center, axes, half[_PICTURE], room, u[9, 1:5])
    return jnp.where(present[:, None], center, jnp.array(_BURIED, jnp.float32)), axes, half


def _half_sizes(u: Float[Array, "3 12"], cell: Float[Array, ""]) -> Float[Array, "12 3"]:
    """Half sizes, horizontally less than half a cell."""
    block, board, sphere, cylinder = (0.12, 0.12, 0.15), (0.3, 0.3, 0.01), (0.1, 0.1, 0.1), (0.06, 0.06, 0.15)
    low = np.array([block] * 4 + [board] * 2 + [sphere] * 3 + [cylinder] * 3, np.float32)
    block, board, sphere, cylinder = (0.6, 0.5, 0.8), (0.7, 0.8, 0.03), (0.42, 0.42, 0.42), (0.35, 0.35, 0.9)
    high = np.array([block] * 4 + [board] * 2 + [sphere] * 3 + [cylinder] * 3, np.float32)
    # Cylinders share one draw between both horizontal axes, spheres among all three.
    number = np.arange(SOLIDS)
    round_, sphere_ = (number >= SPHERES.start)[:, None], np.isin(number, SPHERES)[:, None]
    drawn = jnp.where(sphere_ | (round_ & (np.arange(3) < 2)), u.T[:, :1], u.T)
    return jnp.minimum(span(drawn, jnp.array(low), jnp.array(high)), jnp.stack([0.48 * cell, 0.48 * cell, jnp.float32(_NOWHERE)]))


def _axes(yaw: Float[Array, "*N"], tilt: Float[Array, "*N"]) -> Float[Array, "*N 3 3"]:
    """Axes rotated by `tilt` about x, then by `yaw` about z, in radians."""
    cy, sy, ct, st, zero = jnp.cos(yaw), jnp.sin(yaw), jnp.cos(tilt), jnp.sin(tilt), jnp.zeros_like(yaw)
    rows = [[cy, sy, zero], [-sy * ct, cy * ct, st], [sy * st, -cy * st, ct]]
    return jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)


def _stack(
    place: Float[Array, "12 2"], half: Float[Array, "12 3"], chance: Float[Array, " 12"], present: Bool[Array, " 12"], floor: Array
) -> tuple[Float[Array, "12 2"], Float[Array, " 12"]]:
    """Horizontal places, and the heights at which solids stand: the floor, or the top of a box that is present and large enough."""
    base = jnp.full(SOLIDS, floor)
    for upper, lower in _ONTO:
        stands = present[lower] & (chance[upper] < 0.6) & jnp.all(half[upper, :2] < half[lower, :2])
        place = place.at[upper].set(jnp.where(stands, place[lower], place[upper]))
        base = base.at[upper].set(jnp.where(stands, base[lower] + 2 * half[lower, 2], base[upper]))
    return place, base


def _hang(
    center: Float[Array, "12 3"], axes: Float[Array, "12 3 3"], half: Float[Array, " 3"], room: Float[Array, " 3"], u: Float[Array, " 4"]
) -> tuple[Float[Array, "12 3"], Float[Array, "12 3 3"]]:
    """In half of the scenes, hangs one board on a wall as a picture."""
    upright = _axes(jnp.floor(4 * u[1]) * (jnp.pi / 2), jnp.float32(jnp.pi / 2))
    # The board's z axis points into a wall; along its x axis, it moves as far as the room is wide.
    sideways, outwards = upright[0], upright[2]
    aside = span(u[2], -0.9, 0.9) * (jnp.abs(sideways) @ room - half[0])
    out = jnp.abs(outwards) @ room - half[2] - 0.005
    there = sideways * aside + outwards * out + jnp.array([0.0, 0.0, 1.0], jnp.float32) * span(u[3], -0.1, 0.3)
    hangs = u[0] < 0.5
    return (
        center.at[_PICTURE].set(jnp.where(hangs, there, center[_PICTURE])),
        axes.at[_PICTURE].set(jnp.where(hangs, upright, axes[_PICTURE])),
    )


def _window(key: PRNGKeyArray, room: Float[Array, " 3"]) -> Window:
    u = uniform(key, (6,))
    wall, half_width = jnp.floor(4 * u[0]), span(u[1], 0.35, 0.9)
    middle = span(u[2], -1, 1) * (jnp.where(wall < 2, room[1], room[0]) - half_width - 0.2)
    low = jnp.stack([middle - half_width, span(u[3], 0.5, 1.0) - room[2]])
    high = jnp.stack([middle + half_width, span(u[4], 1.6, 2.1) - room[2]])
    return Window(wall, jnp.where(u[5] < 1 / 3, low, _NOWHERE), high)


def _light(key: PRNGKeyArray, room: Float[Array, " 3"]) -> Light:
    def tint(u: Array) -> Array:
        """From candlelight to an overcast sky, at equal brightness."""
        color = jnp.stack([span(u, 1.25, 0.85), jnp.float32(1), span(u, 0.6, 1.2)])
        return color / jnp.dot(color, jnp.array([0.3, 0.6, 0.1], jnp.float32))

    u = uniform(key, (10,))
    position = jnp.stack([span(u[0], -0.6, 0.6) * room[0], span(u[1], -0.6, 0.6) * room[1], room[2] - span(u[2], 0.15, 0.6)])
    # Walls get the same light in rooms of any size, and nothing gets more than about three times as much.
    size = jnp.dot(room, room)
    power, ambient = span(u[3], 0.7, 1.4) * size * tint(u[4]), span(u[5], 0.12, 0.32) * tint(u[6])
    sky = jnp.stack([span(u[7], -1, 1), span(u[8], -1, 1), span(u[9], 0.3, 1.5)])
    return Light(position, power, jnp.sqrt(0.5 * size), ambient, sky / jnp.sqrt(jnp.dot(sky, sky)))
