"""A furnished room, ray-cast in numpy from two places: a pair of pictures to run the model on, free of anyone's rights.

python -m tests.demo_scene --out DIR      # writes a.png and b.png, 640×480
"""

import argparse
import dataclasses
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

# World frame: x right, y up, z into the room, metres.
ROOM_LOW, ROOM_HIGH = np.array([-2.6, 0.0, -3.0]), np.array([2.6, 2.7, 3.4])
LAMP = np.array([-0.9, 2.45, -0.4])
FAR = 1e9

Rendering = tuple[UInt8[np.ndarray, "H W 3"], Float[np.ndarray, "H W 3"]]
"""A picture and its pointmap."""


@dataclasses.dataclass(frozen=True)
class Box:
    """A block standing on `base` (centre of its bottom), turned about the vertical by `turn` radians."""

    base: tuple[float, float, float]
    size: tuple[float, float, float]
    turn: float
    texture: str
    color: tuple[float, float, float]


@dataclasses.dataclass(frozen=True)
class Sphere:
    """A ball."""

    center: tuple[float, float, float]
    radius: float
    texture: str
    color: tuple[float, float, float]


def _table(x: float, z: float, turn: float) -> tuple[Box, ...]:
    top = Box((x, 0.66, z), (1.5, 0.06, 0.8), turn, "wood", (0.55, 0.35, 0.2))
    corners = np.array([(side * 0.68, 0, end * 0.33) for side in (-1, 1) for end in (-1, 1)]) @ _turn(turn)
    return top, *(Box((x + dx, 0.0, z + dz), (0.07, 0.66, 0.07), turn, "wood", (0.4, 0.25, 0.15)) for dx, _, dz in corners.tolist())


def _turn(angle: float) -> Float[np.ndarray, "3 3"]:
    """Directions of a turned box's axes, as rows."""
    cosine, sine = np.cos(angle), np.sin(angle)
    return np.array([[cosine, 0, sine], [0, 1, 0], [-sine, 0, cosine]], np.float32)


OBJECTS: tuple[Box | Sphere, ...] = (
    *_table(0.55, 1.35, 0.25),
    Box((0.25, 0.72, 1.45), (0.34, 0.24, 0.26), -0.5, "stripes", (0.75, 0.2, 0.18)),  # parcel on the table
    Sphere((0.92, 0.87, 1.2), 0.15, "checks", (0.95, 0.75, 0.2)),  # ball on the table
    Box((-1.75, 0.0, 2.75), (1.2, 1.9, 0.5), 0.0, "shelf", (0.62, 0.5, 0.36)),  # bookcase
    Box((-1.35, 0.0, 0.75), (0.55, 0.5, 0.55), 0.6, "checks", (0.2, 0.5, 0.45)),  # stool
    Sphere((-1.35, 0.73, 0.75), 0.23, "noise", (0.3, 0.42, 0.75)),  # globe on the stool
    Box((1.95, 0.0, 2.7), (0.6, 1.15, 0.6), -0.3, "stripes", (0.35, 0.45, 0.6)),  # cabinet
    Sphere((1.95, 1.4, 2.7), 0.25, "noise", (0.85, 0.85, 0.8)),  # globe lamp on the cabinet
)

CAMERAS = ((np.array([-0.55, 1.5, -2.3]), np.array([0.05, 0.75, 1.6])), (np.array([0.75, 1.65, -2.05]), np.array([-0.15, 0.75, 1.6])))
"""Of each picture, where the camera stands and what it looks at."""


def camera_axes(position: np.ndarray, target: np.ndarray) -> Float[np.ndarray, "3 3"]:
    """World directions of a camera's x (right), y (down) and z (forward), as rows."""
    forward = (target - position) / np.linalg.norm(target - position)
    right = np.cross([0.0, 1.0, 0.0], forward)
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(forward, right), forward]) * np.array([[1.0], [-1.0], [1.0]])


def render(camera: int, width: int = 640, height: int = 480, samples: int = 2) -> Rendering:
    """A picture and its pointmap: each pixel's (mean) point in the frame of camera 0 (x right, y down, z forward), in metres.

    The field of view is 66° across; `samples`² rays are cast a pixel.
    """
    position, target = CAMERAS[camera]
    axes = camera_axes(position, target)
    columns, rows = ((np.arange(n * samples) + 0.5) / samples - n / 2 for n in (width, height))
    pixels = np.stack([*np.meshgrid(columns, rows), np.full((height * samples, width * samples), 0.77 * width)], -1).astype(np.float32)
    rays = pixels.reshape(-1, 3) @ axes.astype(np.float32)
    rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
    points, color = _shade(position.astype(np.float32), rays)
    first_position, first_target = CAMERAS[0]
    points = (points - first_position) @ camera_axes(first_position, first_target).T

    def per_pixel(values: np.ndarray) -> np.ndarray:
        return values.reshape(height, samples, width, samples, 3).mean(axis=(1, 3))

    # Gamma 2.2 after averaging light, as a camera does.
    picture = np.clip(per_pixel(color), 0, 1) ** (1 / 2.2)
    return np.rint(picture * 255).astype(np.uint8), per_pixel(points).astype(np.float32)


def _shade(origin: np.ndarray, rays: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    distance, hit = _nearest(origin, rays)
    points = origin + distance[:, None] * rays
    normals, albedo = np.zeros_like(points), np.zeros_like(points)
    for index, thing in enumerate((None, *OBJECTS)):
        here = hit == index
        normals[here], albedo[here] = _surface(thing, points[here])
    from_lamp = (points - LAMP).astype(np.float32)
    lamp_distance = np.sqrt(np.einsum("nc,nc->n", from_lamp, from_lamp))
    from_lamp /= lamp_distance[:, None]
    # A point is lit where the first thing the lamp's ray meets is the point itself.
    lit = _nearest(LAMP.astype(np.float32), from_lamp)[0] > lamp_distance - 2e-3
    direct = np.clip(-np.einsum("nc,nc->n", normals, from_lamp), 0, None) * lit * 4.2 / (1.2 + lamp_distance**2)
    # Light from all sides, weaker near the floor and below things, stands in for the walls' reflections.
    ambient = 0.16 + 0.07 * normals[:, 1] + 0.05 * points[:, 1] / ROOM_HIGH[1]
    return points, albedo * (direct + ambient)[:, None] * np.array([1.0, 0.96, 0.88])


def _nearest(origin: np.ndarray, rays: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distance to the first surface along each ray and which one it is: 0 the room, i + 1 OBJECTS[i]."""
    with np.errstate(divide="ignore", invalid="ignore"):
        exits = np.maximum((ROOM_LOW - origin) / rays, (ROOM_HIGH - origin) / rays).min(axis=-1)
    distance, hit = exits.astype(np.float32), np.zeros(len(rays), np.int8)
    for index, thing in enumerate(OBJECTS, start=1):
        entry = _entry(thing, origin, rays)
        closer = entry < distance
        distance[closer], hit[closer] = entry[closer], index
    return distance, hit


def _surface(thing: Box | Sphere | None, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Normals and reflectance at points of a thing's surface; None is the room."""
    if isinstance(thing, Box):
        return _box_surface(points, thing)
    return _room_surface(points) if thing is None else _sphere_surface(points, thing)


def _entry(thing: Box | Sphere, origin: np.ndarray, rays: np.ndarray) -> np.ndarray:
    """Distance at which rays from one point enter a thing; FAR where they miss it."""
    if isinstance(thing, Sphere):
        center, radius = np.array(thing.center), thing.radius
    else:
        # The ball around a box: what misses it misses the box.
        center, radius = _box_center(thing), float(np.linalg.norm(thing.size)) / 2
    to_center = center.astype(np.float32) - origin
    along = rays @ to_center
    discriminant = along**2 - np.float32(to_center @ to_center - radius**2)
    near = np.flatnonzero((discriminant > 0) & (along > 0))
    entry = np.full(len(rays), FAR, np.float32)
    entry[near] = _box_entry(thing, origin, rays[near]) if isinstance(thing, Box) else along[near] - np.sqrt(discriminant[near])
    return entry


def _box_entry(box: Box, origin: np.ndarray, rays: np.ndarray) -> np.ndarray:
    start, directions, half = _to_box(box, origin), rays @ _turn(box.turn).T, np.asarray(box.size, np.float32) / 2
    near, far = np.full(len(rays), -FAR, np.float32), np.full(len(rays), FAR, np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        for axis in range(3):
            one, other = ((side * half[axis] - start[axis]) / directions[:, axis] for side in (-1, 1))
            near, far = np.maximum(near, np.minimum(one, other)), np.minimum(far, np.maximum(one, other))
    return np.where((near < far) & (near > 1e-3), near, FAR)


def _box_center(box: Box) -> np.ndarray:
    return np.array(box.base) + np.array([0, box.size[1] / 2, 0])


def _to_box(box: Box, points: np.ndarray) -> np.ndarray:
    """Points in the box's own axes, from its centre."""
    return (points - _box_center(box).astype(np.float32)) @ _turn(box.turn).T


def _box_surface(points: np.ndarray, box: Box) -> tuple[np.ndarray, np.ndarray]:
    local = _to_box(box, points)
    relative = local / (np.asarray(box.size) / 2)
    axis = np.abs(relative).argmax(-1)
    normals = np.zeros_like(local)
    rows = np.arange(len(local))
    normals[rows, axis] = np.sign(relative[rows, axis])
    return normals @ _turn(box.turn), _texture(box.texture, local, np.asarray(box.color))


def _sphere_surface(points: np.ndarray, sphere: Sphere) -> tuple[np.ndarray, np.ndarray]:
    normals = (points - np.asarray(sphere.center)) / sphere.radius
    angles = np.stack([np.arctan2(normals[:, 2], normals[:, 0]), 1.5 * np.arcsin(np.clip(normals[:, 1], -1, 1)), 0 * normals[:, 0]], -1)
    return normals, _texture(sphere.texture, angles * 0.19, np.asarray(sphere.color))


def _room_surface(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    gaps = np.concatenate([points - ROOM_LOW, ROOM_HIGH - points], axis=-1)
    wall = gaps.argmin(-1)
    normals = np.zeros_like(points)
    normals[np.arange(len(points)), wall % 3] = np.where(wall < 3, 1.0, -1.0)
    albedo = np.empty_like(points)
    for side, (texture, color) in enumerate(_WALLS):
        here = wall == side
        albedo[here] = _texture(texture, points[here], np.asarray(color))
    return normals, albedo


_WALLS = (
    ("bricks", (0.62, 0.3, 0.22)),  # left
    ("planks", (0.5, 0.34, 0.21)),  # floor
    ("plaster", (0.8, 0.78, 0.7)),  # behind
    ("plaster", (0.55, 0.66, 0.62)),  # right
    ("plaster", (0.85, 0.85, 0.83)),  # ceiling
    ("paintings", (0.72, 0.68, 0.56)),  # in front
)


def _texture(name: str, p: np.ndarray, color: np.ndarray) -> np.ndarray:
    """Reflectance at points of a surface, in its own coordinates (metres)."""
    x, y, z = p.T
    grain = 0.85 + 0.3 * _noise(p, 23.0)
    if name == "checks":
        dark = (np.floor(x / 0.09) + np.floor(y / 0.09) + np.floor(z / 0.09 + 0.5)) % 2
        return color * (0.35 + 0.65 * dark * grain)[:, None]
    if name == "stripes":
        band = np.floor((x + z) / 0.05 + 100) % 3
        pale = np.array([0.85, 0.82, 0.75])
        return np.where((band == 0)[:, None], pale, color) * grain[:, None]
    if name == "wood":
        rings = 0.5 + 0.5 * np.sin(60 * (z + 0.25 * _noise(p * np.array([0.3, 1, 1]), 9.0)))
        return color * (0.7 + 0.4 * rings * grain)[:, None]
    if name == "planks":
        plank = np.floor(x / 0.22)
        tone = _hash(plank, np.floor((z + 1.3 * _hash(plank, plank, 5)) / 1.4), 3)
        seam = (np.abs(x / 0.22 - np.round(x / 0.22)) < 0.02) * 0.6
        streak = _noise(p * np.array([1.0, 1.0, 0.12]), 30.0)
        return color * ((0.6 + 0.5 * tone + 0.35 * streak) * (1 - seam))[:, None]
    if name == "bricks":
        row = np.floor(y / 0.09)
        along = z / 0.26 + 0.5 * (row % 2)
        mortar = (np.abs(y / 0.09 - np.round(y / 0.09)) < 0.07) | (np.abs(along - np.round(along)) < 0.03)
        tone = 0.65 + 0.5 * _hash(row, np.floor(along), 1)
        return np.where(mortar[:, None], [0.6, 0.58, 0.54], color * tone[:, None]) * grain[:, None]
    if name == "shelf":
        return _books(x, y, color) * grain[:, None]
    if name == "paintings":
        return _paintings(p, color * (0.9 + 0.15 * _noise(p, 5.0))[:, None] * (0.93 + 0.07 * np.sign(np.sin(24 * x)))[:, None])
    rough = _noise(p, 4.0) * 0.2 + _noise(p, 17.0) * (0.6 if name == "noise" else 0.08)
    return color * (0.7 + rough)[:, None]


def _books(x: np.ndarray, y: np.ndarray, frame: np.ndarray) -> np.ndarray:
    """The front of a bookcase: boards, and between them backs of books of many colours."""
    shelf, height = np.floor(y / 0.38), y / 0.38 - np.floor(y / 0.38)
    book = np.floor(x / 0.055)
    colors = np.stack([_hash(book, shelf, channel) for channel in (7, 8, 9)], -1) * 0.7 + 0.06
    above = height > 0.68 + 0.2 * _hash(book, shelf, 4)
    board = (height < 0.07) | (np.abs(x) > 0.56)
    gap = np.abs(x / 0.055 - np.round(x / 0.055)) < 0.06
    return np.where(board[:, None], frame, np.where((above | gap)[:, None], 0.05, colors))


def _paintings(p: np.ndarray, wall: np.ndarray) -> np.ndarray:
    """Two framed abstract pictures on the wall the cameras look at."""
    result = wall
    for left, low, right, high, seed in ((-0.7, 1.3, 0.35, 2.1, 11), (0.65, 1.45, 1.25, 2.2, 12)):
        across, up = (p[:, 0] - left) / (right - left), (p[:, 1] - low) / (high - low)
        inside = (np.minimum(across, up) > 0) & (np.maximum(across, up) < 1)
        frame = (np.minimum(across, up) < 0.06) | (np.maximum(across, up) > 0.94)
        cells = [_hash(np.floor(across * 5 + _noise(p, 6.0)), np.floor(up * 4), seed + channel) for channel in (0, 20, 40)]
        canvas = np.where(frame[:, None], [0.12, 0.08, 0.05], np.stack(cells, -1) * 0.8 + 0.1)
        result = np.where(inside[:, None], canvas, result)
    return result


def _hash(a: np.ndarray, b: np.ndarray, seed: float) -> np.ndarray:
    """A repeatable random number in [0, 1) for a pair of integers."""
    value = np.sin(a * 127.1 + b * 311.7 + seed * 74.7) * 43758.5453
    return value - np.floor(value)


def _noise(p: np.ndarray, frequency: float) -> np.ndarray:
    """Smooth noise in [0, 1]: random values at lattice points, interpolated trilinearly with eased weights."""
    scaled = (p * frequency).T
    cells = np.floor(scaled)
    weights = scaled - cells
    weights = weights * weights * (3 - 2 * weights)
    total = np.zeros(len(p))
    for corner in np.ndindex(2, 2, 2):
        x, y, z = (cell + step for cell, step in zip(cells, corner, strict=True))
        shares = [weight if step else 1 - weight for weight, step in zip(weights, corner, strict=True)]
        total += shares[0] * shares[1] * shares[2] * _hash(x + 57.0 * z, y, 2.0)
    return total


def main() -> None:
    """Writes both pictures."""
    parser = argparse.ArgumentParser(prog="python -m tests.demo_scene", description="Two pictures of a made-up room, a.png and b.png.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    for camera, name in enumerate(("a.png", "b.png")):
        Image.fromarray(render(camera)[0]).save(out / name)


if __name__ == "__main__":
    main()
