"""Rendered sets: the same bits however they are asked for, exact geometry, colours that agree, and the overlap that was asked for."""

import dataclasses
import functools
import itertools
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from und3rstand_jax.analysis.held_out import held_out_pairs, twins_of
from und3rstand_jax.data.loader import Feed
from und3rstand_jax.data.records import View, ViewSet
from und3rstand_jax.data.specification import DataSpec, parse_data
from und3rstand_jax.data.synthetic.cameras import sample_cameras, sample_intrinsics
from und3rstand_jax.data.synthetic.config import SyntheticConfig, parse_synthetic
from und3rstand_jax.data.synthetic.intersect import (
    FAR,
    ROOM,
    box_entry,
    clearance,
    cylinder_entry,
    first_entry,
    in_window,
    nearest_surface,
    room_exit,
    sphere_entry,
)
from und3rstand_jax.data.synthetic.render import render_set, render_sets
from und3rstand_jax.data.synthetic.scene import SOLIDS, Light, Scene, Window, sample_scene
from und3rstand_jax.data.synthetic.textures import coverage, value_noise
from und3rstand_jax.support.errors import UserError

SEED, COUNT = 5, 40
LANDSCAPE, PORTRAIT = (96, 128), (112, 80)
NARROW = SyntheticConfig(overlap=(0.55, 0.65), baseline=(0.3, 0.9))
FOUR = dataclasses.replace(NARROW, views=4)


@functools.cache
def renderer(shape, config):
    return jax.jit(lambda seed, indices: render_sets(seed, indices, shape, config))


@functools.cache
def landscape(seed: int = SEED) -> ViewSet:
    """Pairs 0 … COUNT − 1 of the default config."""
    return jax.device_get(renderer(LANDSCAPE, SyntheticConfig())(np.uint32(seed), np.arange(COUNT)))


@functools.cache
def portrait() -> ViewSet:
    return jax.device_get(renderer(PORTRAIT, NARROW)(np.uint32(SEED), np.arange(COUNT)))


@functools.cache
def four() -> ViewSet:
    """The scenes of `portrait`, with four cameras each."""
    return jax.device_get(renderer(PORTRAIT, FOUR)(np.uint32(SEED), np.arange(COUNT)))


def take(tree, i: int):
    return jax.tree.map(lambda array: array[i], tree)


# The same bits


def assert_same_bits(one: ViewSet, other: ViewSet) -> None:
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())


@pytest.mark.slow
def test_a_pair_has_the_same_bits_alone_as_in_a_batch():
    alone = jax.jit(lambda seed, index: render_set(seed, index, LANDSCAPE, SyntheticConfig()))
    assert_same_bits(jax.device_get(alone(np.uint32(SEED), np.uint32(3))), take(landscape(), 3))


@pytest.mark.slow
@pytest.mark.skipif(jax.default_backend() != "cpu", reason="bits are the same within one kind of device; the simulated ones are CPUs")
def test_a_pair_has_the_same_bits_on_each_of_several_devices(tmp_path: Path):
    code = f"""
import jax, numpy as np
from und3rstand_jax.data.synthetic.config import SyntheticConfig
from und3rstand_jax.data.synthetic.render import render_sets
render = jax.pmap(lambda indices: render_sets({SEED}, indices, {LANDSCAPE}, SyntheticConfig()))
pairs = jax.device_get(render(np.array([[1, 3, 7], [0, 2, 3], [3, 30, 5]])))
np.savez({str(tmp_path / "pairs.npz")!r}, *jax.tree.leaves(pairs))
"""
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=3"})
    with np.load(tmp_path / "pairs.npz") as stored:
        pairs = jax.tree.unflatten(jax.tree.structure(landscape()), list(stored.values()))
    for device, place in enumerate((1, 2, 0)):
        assert_same_bits(take(take(pairs, device), place), take(landscape(), 3))


@pytest.mark.slow
def test_other_seeds_and_other_indices_give_other_pairs():
    images = landscape()[0].image.astype(float)
    assert min(np.abs(images[i] - images[j]).mean() for i in range(COUNT) for j in range(i)) > 10
    assert np.abs(landscape(SEED + 1)[0].image - images).mean(axis=(1, 2, 3)).min() > 10


def test_lenses_depend_on_the_shape_by_its_aspect_ratio_alone():
    small, large = (jax.jit(lambda key, s=s: sample_intrinsics(key, 16, s))(jax.random.key(0)) for s in ((32, 48), (128, 192)))
    # Pixel centres are at integers, so that it is c + ½ that scales with the image.
    np.testing.assert_allclose(4 * (small[:, :2, 2] + 0.5), large[:, :2, 2] + 0.5, rtol=1e-5)
    np.testing.assert_allclose(4 * small[:, :2, :2], large[:, :2, :2], rtol=1e-5)


# Rays and solids, against answers known by hand


def vector(*values):
    return tuple(jnp.float32(v) for v in values)


@pytest.mark.parametrize(
    ("origin", "direction", "t"),
    [
        ((-3, 0, 0), (1, 0, 0), 2),
        ((-3, 0, 0), (2, 0, 0), 1),  # t is in units of the direction
        ((-2, -5, 0), (1, 2, 0), 1.5),  # by way of y = −2
        ((-3, 0, 0), (-1, 0, 0), FAR),
        ((-3, 2.5, 0), (1, 0, 0), FAR),
        ((0, 0, 0), (1, 0, 0), FAR),  # starts within
        ((-3, 2, 0), (1, 0, 0), FAR),  # in the plane of a side, whose slab 0 · ∞ would make NaN
        ((0, 0, 5), (0.1, 0.2, -1), 2),
    ],
)
def test_rays_enter_a_box_where_they_must(origin, direction, t):
    assert box_entry(vector(1, 2, 3), vector(*origin), vector(*direction)) == pytest.approx(t, rel=1e-6)


@pytest.mark.parametrize(
    ("radius", "origin", "direction", "t"),
    [
        (1, (-3, 0, 0), (2, 0, 0), 1),
        (1, (-3, 0.6, 0), (1, 0, 0), 2.2),
        (1, (-3, 1.1, 0), (1, 0, 0), FAR),
        (1, (3, 0, 0), (1, 0, 0), FAR),
        (1, (0, 0, 0), (1, 0, 0), FAR),
        (0.1, (0, -50, 0.06), (0, 1, 0), 49.92),  # small and far, where b² − ac loses its digits
    ],
)
def test_rays_enter_a_sphere_where_they_must(radius, origin, direction, t):
    assert sphere_entry(jnp.float32(radius), vector(*origin), vector(*direction)) == pytest.approx(t, rel=1e-6)


@pytest.mark.parametrize(
    ("origin", "direction", "t"),
    [
        ((-3, 0, 0.5), (1, 0, 0), 2),
        ((-3, 0.6, 0), (1, 0, 0), 2.2),
        ((0.3, 0.4, 5), (0, 0, -1), 3),  # straight down on the cap
        ((-3, 0, 4), (1, 0, -1), 2),  # through the rim, where side and cap meet
        ((-3, 0, 4.5), (1, 0, -1), 2.5),  # through the cap
        ((-3, 0, 2.5), (1, 0, 0), FAR),  # over it
        ((0.8, 0.8, 5), (0, 0, -1), FAR),  # past it
    ],
)
def test_rays_enter_a_cylinder_where_they_must(origin, direction, t):
    assert cylinder_entry(jnp.float32(1), jnp.float32(2), vector(*origin), vector(*direction)) == pytest.approx(t, rel=1e-6)


def test_rays_leave_a_room_where_they_must():
    half = vector(2, 3, 1)
    assert room_exit(half, vector(1, 0, 0), vector(1, 1, 0)) == 1
    assert room_exit(half, vector(1, 0, 0), vector(-1, 1, 0)) == 3
    assert room_exit(half, vector(0, 0, 0.5), vector(0, 0, -2)) == 0.75


def scene_of(**solids) -> Scene:
    """A room of 6 × 6 × 3 m with a window in the wall at x = 3, and of solids only those given as box3=(centre, axes, half)."""
    center, axes, half = np.tile([0.0, 0, -100], (SOLIDS, 1)), np.tile(np.eye(3), (SOLIDS, 1, 1)), np.full((SOLIDS, 3), 0.1)
    for name, (where, turned, size) in solids.items():
        number = int(name[1:])
        center[number], axes[number], half[number] = where, turned, size
    window = Window(jnp.float32(1), jnp.array([-1.0, -0.5]), jnp.array([1.0, 1.0]))
    light = Light(jnp.zeros(3), jnp.ones(3), jnp.float32(1), jnp.ones(3), jnp.array([0.0, 0, 1]))
    room = jnp.array([3.0, 3.0, 1.5])
    return Scene(room, *(jnp.asarray(a, jnp.float32) for a in (center, axes, half)), window, light)


COS = np.sqrt(0.5)
TURNED = [[COS, COS, 0], [-COS, COS, 0], [0, 0, 1]]
TILTED = [[1, 0, 0], [0, COS, COS], [0, -COS, COS]]
FURNISHED = scene_of(
    _1=((2, 0, 0), TURNED, (0.5, 0.5, 1)),  # a box with an edge towards −x, at 2 − √½
    _4=((0, 2, 0), TILTED, (0.5, 0.5, 0)),  # a plane that rises by 45° towards +y: z = y − 2
    _6=((-2, 0, 0), np.eye(3), (0.5, 0.5, 0.5)),
    _10=((0, -2, -0.5), TURNED, (0.25, 0.25, 1)),
)


def test_the_nearest_surface_is_found_whatever_stands_in_a_room():
    directions = np.array([(1, 0, 0), (0, 1, 0.0), (-1, 0, 0), (0, -1, 0), (0, 0, 1), (0, 0, -2), (0, 2, 0.25), (0, -1, 1)], np.float32)
    origin, direction = vector(0, 0, 0), tuple(jnp.asarray(directions.T))
    t, solid = nearest_surface(FURNISHED, origin, direction)
    np.testing.assert_array_equal(solid, [1, 4, 6, 10, ROOM, ROOM, 4, ROOM])
    # The last but one meets z = y − 2 where 0.25 t = 2 t − 2.
    np.testing.assert_allclose(t, [2 - COS, 2, 1.5, 1.75, 1.5, 0.75, 2 / 1.75, 1.5], rtol=1e-6)
    # Of rays that meet no solid, the first entry is beyond the room.
    entry = np.asarray(first_entry(FURNISHED, origin, direction))
    np.testing.assert_array_equal(entry > np.asarray(t) + 1, np.asarray(solid) == ROOM)
    np.testing.assert_array_equal(np.minimum(entry, t), t)


def test_the_distance_to_the_nearest_surface_is_known_at_points():
    points = np.array(
        [(0, 0, 0), (2, 0, 0), (2.9, 2, 0), (-2, 1, 0), (0, -1, 0), (0, -2, 1), (0, 2 + 0.1 * COS, 0.5 * COS), (4, 0, 0)], np.float32
    )
    found = clearance(FURNISHED, tuple(jnp.asarray(points.T)))
    # By the cylinder's side, box (within: 0), wall, sphere, cylinder's side, its cap, the tilted plane, and outside: at most 0.
    np.testing.assert_allclose(found[:7], [2 - COS, 0, 0.1, 0.5, 0.75, 0.5, 0.2], atol=1e-5)
    assert found[7] <= 0


def test_the_window_is_where_its_corners_say():
    points = np.array([(3, 0, 0), (3, 0.9, 0.9), (3, 1.1, 0), (3, 0, -0.6), (-3, 0, 0), (0, 3, 0), (2.9, 0, 0)], np.float32)
    np.testing.assert_array_equal(in_window(FURNISHED, tuple(jnp.asarray(points.T))), [True, True] + [False] * 5)


# Geometry of rendered pairs


def world_points(view: View) -> np.ndarray:
    """By a float64 unprojection of the tests' own."""
    v, u = np.mgrid[: view.depth.shape[0], : view.depth.shape[1]]
    pixels = np.stack([u, v, np.ones_like(u)], axis=-1)
    rays = pixels @ np.linalg.inv(view.intrinsics.astype(np.float64)).T
    cam2world = view.cam2world.astype(np.float64)
    return (view.depth[..., None] * rays) @ cam2world[:3, :3].T + cam2world[:3, 3]


class Reprojection:
    """View 1's pixels in view 2: where they fall, what view 2 has there, and which of them it sees."""

    def __init__(self, pair: ViewSet, shift: float = 0.0):
        first, second = pair
        cam2world, (self.height, self.width) = second.cam2world.astype(np.float64), second.depth.shape
        in_camera = (world_points(first) - cam2world[:3, 3]) @ cam2world[:3, :3]
        depth = in_camera[..., 2]
        u, v, _ = np.moveaxis(in_camera @ second.intrinsics.T.astype(np.float64) / np.where(depth > 0, depth, 1)[..., None], -1, 0)
        self.inside = (first.depth > 0) & (depth > 0) & (np.abs(u + 0.5 - self.width / 2) < self.width / 2)
        self.inside &= np.abs(v + 0.5 - self.height / 2) < self.height / 2
        self.u, self.v = np.clip(u + shift, 0, self.width - 1.001), np.clip(v, 0, self.height - 1.001)
        # Inverse depth is linear in the pixel on a plane.
        inverse = np.where(second.depth > 0, 1 / np.maximum(second.depth, 1e-3), 0)
        self.error = np.abs(self.sample(inverse) * depth - 1)
        near, far = self._extremes(inverse)
        self.seen = self.inside & (1 / np.maximum(depth, 1e-3) < near * 1.02) & (1 / np.maximum(depth, 1e-3) > far * 0.98)
        self.flat = self.seen & (near - far < 0.06 * near) & (self.sample(np.pad(self._bend(inverse), 1)) < 1e-3)

    def sample(self, image: np.ndarray) -> np.ndarray:
        """Bilinear interpolation where the pixels fall."""
        column, row = self.u.astype(int), self.v.astype(int)
        du, dv = (w.reshape(w.shape + (1,) * (image.ndim - 2)) for w in (self.u - column, self.v - row))
        upper, lower = ((1 - du) * image[r, column] + du * image[r, column + 1] for r in (row, row + 1))
        return (1 - dv) * upper + dv * lower

    def _extremes(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        windows = np.lib.stride_tricks.sliding_window_view(np.pad(image, 1, mode="edge"), (3, 3))
        at = np.rint(self.v).astype(int), np.rint(self.u).astype(int)
        return windows.max(axis=(2, 3))[at], windows.min(axis=(2, 3))[at]

    @staticmethod
    def _bend(image: np.ndarray) -> np.ndarray:
        """How far from linear an image is at its inner pixels, relative: large at edges and creases."""
        middle = image[1:-1, 1:-1]
        bends = (image[1:-1, :-2] + image[1:-1, 2:] - 2 * middle, image[:-2, 1:-1] + image[2:, 1:-1] - 2 * middle)
        return np.maximum(*map(np.abs, bends)) / np.maximum(middle, 1e-3)


@functools.cache
def reprojections(source) -> list[Reprojection]:
    return [Reprojection(take(source(), i)) for i in range(COUNT)]


@pytest.mark.parametrize("source", [landscape, portrait])
def test_view_1_reprojected_has_the_depth_of_view_2(source):
    found = reprojections(source)
    # Away from edges and creases, over which depth cannot be interpolated.
    agree = [np.mean(r.error[r.flat] < 1e-3) for r in found]
    assert min(agree) > 0.96 and np.median(agree) > 0.985
    assert np.median([np.median(r.error[r.flat]) for r in found]) < 1e-5
    assert min(r.flat.sum() / r.seen.sum() for r in found) > 0.4
    # Half a pixel off, they must not agree.
    shifted = [Reprojection(take(source(), i), shift=0.5) for i in range(8)]
    assert np.median([np.mean(r.error[r.flat] < 1e-3) for r in shifted]) < 0.6


@pytest.mark.parametrize(("source", "config"), [(landscape, SyntheticConfig()), (portrait, NARROW)])
def test_the_overlap_is_in_the_range_asked_for(source, config):
    shares = np.array([r.seen.sum() / np.count_nonzero(take(source(), i)[0].depth) for i, r in enumerate(reprojections(source))])
    # The renderer judges by a grid of 144 pixels.
    low, high = config.overlap
    assert np.mean((shares > low - 0.03) & (shares < high + 0.03)) >= 0.9
    assert np.ptp(shares) > 0.6 * (high - low)


@pytest.mark.parametrize(("source", "config"), [(landscape, SyntheticConfig()), (portrait, NARROW), (four, FOUR)])
def test_cameras_are_rigid_and_as_far_apart_as_asked(source, config):
    first, second, *further = (view.cam2world.astype(np.float64) for view in source())
    for poses in (first, second, *further):
        np.testing.assert_allclose(poses[:, :3, :3] @ poses[:, :3, :3].transpose(0, 2, 1), np.tile(np.eye(3), (COUNT, 1, 1)), atol=1e-6)
        np.testing.assert_allclose(np.linalg.det(poses[:, :3, :3]), 1, atol=1e-6)
        np.testing.assert_array_equal(poses[:, 3], np.tile([0, 0, 0, 1], (COUNT, 1)))
        # The world is z up, cameras are y down.
        assert (poses[:, 2, 1] < -0.5).all()
    baseline = np.linalg.norm(first[:, :3, 3] - second[:, :3, 3], axis=1)
    assert baseline.min() > config.baseline[0] - 1e-3 and baseline.max() < config.baseline[1] + 1e-3


@pytest.mark.parametrize(("source", "shape"), [(landscape, LANDSCAPE), (portrait, PORTRAIT), (four, PORTRAIT)])
def test_lenses_have_moderate_angles_and_differ(source, shape):
    height, width = shape
    for view in source():
        fx, fy, cx, cy = (view.intrinsics[:, i, j] for i, j in ((0, 0), (1, 1), (0, 2), (1, 2)))
        angle = np.degrees(2 * np.arctan(max(shape) / (2 * fx)))
        assert 45 <= angle.min() < 55 and 75 < angle.max() <= 85.01
        assert np.abs(fy / fx - 1).max() < 0.021 and np.ptp(fy / fx) > 0.02
        assert np.abs((cx - (width - 1) / 2) / width).max() < 0.041 and np.abs((cy - (height - 1) / 2) / height).max() < 0.041
        rest = view.intrinsics - np.stack([np.array([[a, 0, c], [0, b, d], [0, 0, 1]]) for a, b, c, d in zip(fx, fy, cx, cy, strict=True)])
        assert not rest.any()
    for one, other in itertools.combinations(source(), 2):
        assert (np.abs(one.intrinsics - other.intrinsics).max(axis=(1, 2)) > 0.1).all()


@pytest.mark.parametrize(("source", "shape"), [(landscape, LANDSCAPE), (portrait, PORTRAIT), (four, PORTRAIT)])
def test_depth_is_missing_only_where_there_is_sky(source, shape):
    for view in source():
        assert view.image.shape == (COUNT, *shape, 3) and view.depth.shape == (COUNT, *shape)
        assert (view.image.dtype, view.depth.dtype) == (np.uint8, np.float32)
        assert np.isfinite(view.depth).all()
        missing = view.depth == 0
        # 0.4 m from every surface, and depth is less than distance by the cosine of at most 53°; no room's diagonal is longer than 12 m.
        assert view.depth[~missing].min() > 0.24 and view.depth.max() < 12
        # Sky is between blue and white. A window is in one room of three, and not in every view.
        red, green, blue = np.moveaxis(view.image[missing].astype(int), -1, 0)
        assert ((red <= green) & (green <= blue)).all()
        assert 0 < np.mean(missing.any(axis=(1, 2))) < 0.4


# Sets of four views


def test_the_first_two_views_of_a_larger_set_are_its_scenes_pair():
    for one, other in zip(portrait(), four(), strict=False):
        np.testing.assert_allclose(other.intrinsics, one.intrinsics, rtol=1e-5)
        np.testing.assert_allclose(other.cam2world, one.cam2world, atol=1e-5)
        assert np.mean(np.abs(other.depth - one.depth) < 1e-3) > 0.999
        assert np.mean(np.abs(other.image.astype(int) - one.image) <= 1) > 0.999


def test_a_set_of_four_has_the_same_bits_in_every_batch():
    indices = np.random.default_rng(0).permutation(COUNT)
    shuffled = jax.device_get(renderer(PORTRAIT, FOUR)(np.uint32(SEED), indices))
    assert_same_bits(shuffled, jax.tree.map(lambda array: array[indices], four()))


@functools.cache
def shares_and_baselines() -> tuple[np.ndarray, np.ndarray]:
    """Of every view (last axis) seen from every earlier one (middle), in ten scenes: overlap and distance; NaN for others."""
    shares, baselines = np.full((2, 10, 4, 4), np.nan)
    for i in range(10):
        views = take(four(), i)
        for earlier, later in itertools.combinations(range(4), 2):
            seen = Reprojection((views[earlier], views[later])).seen
            shares[i, earlier, later] = seen.sum() / np.count_nonzero(views[earlier].depth)
            baselines[i, earlier, later] = np.linalg.norm(views[earlier].cam2world[:3, 3] - views[later].cam2world[:3, 3])
    return shares, baselines


def test_every_further_view_overlaps_an_earlier_one_as_asked_and_stands_as_near():
    shares, baselines = shares_and_baselines()
    (low, high), (near, far) = FOUR.overlap, FOUR.baseline
    fits = (shares > low - 0.03) & (shares < high + 0.03) & (baselines > near - 1e-3) & (baselines < far + 1e-3)
    # As of the second views: the renderer judges by a grid of 144 pixels.
    assert np.mean(fits.any(axis=1)[:, 1:]) >= 0.9
    assert np.mean(fits.any(axis=1)[:, 2:]) >= 0.9
    # The one beside which it stands may be any earlier one, and another one seldom fits by chance.
    alone = fits[:, :, 3] & (fits[:, :, 3].sum(axis=1, keepdims=True) == 1)
    assert (alone.any(axis=0)[:3]).all()


def test_no_two_cameras_of_a_set_stand_in_one_place():
    _, baselines = shares_and_baselines()
    assert np.nanmin(baselines) > 0.05


@pytest.mark.parametrize("views", [-3, 0, 1, 257])
def test_so_few_or_many_views_are_refused(views):
    with pytest.raises(UserError, match=f"^--views {views}: expected 2 to 256 views in a set$"):
        SyntheticConfig(views=views)
    with pytest.raises(UserError, match="expected 2 to 256 views"):
        parse_synthetic("overlap=0.5", views)


# Colours


def disagreement(reprojection: Reprojection, first: np.ndarray, second: np.ndarray) -> float:
    """Mean difference of 8-bit colours, where both views see the same point."""
    same = reprojection.seen & (reprojection.error < 1e-3)
    return float(np.abs(reprojection.sample(second.astype(float)) - first)[same].mean())


@pytest.mark.parametrize("source", [landscape, portrait])
def test_views_agree_in_colour_where_they_see_the_same_point(source):
    first, second = source()[0].image, source()[1].image
    found = reprojections(source)
    same = np.array([disagreement(r, first[i], second[i]) for i, r in enumerate(found)])
    # Of 255; what remains is interpolation at the edges of patterns and shadows.
    assert np.median(same) < 3 and same.max() < 10
    other = np.array([disagreement(r, first[i], second[(i + 1) % COUNT]) for i, r in enumerate(found)])
    assert np.median(other) > 40 and (other > 3 * same).all()


def test_images_use_the_range_of_colours_and_have_structure_at_several_scales():
    gray = np.concatenate([view.image for view in landscape()]).mean(axis=-1)
    brightness, contrast = gray.mean(axis=(1, 2)), gray.std(axis=(1, 2))
    assert 90 < np.median(brightness) < 150 and brightness.min() > 30 and brightness.max() < 210
    assert np.median(contrast) > 35 and contrast.min() > 10
    assert np.mean(gray >= 254) < 0.01
    height, width = LANDSCAPE
    coarse = gray.reshape(-1, height // 8, 8, width // 8, 8).mean(axis=(2, 4))
    fine_steps, coarse_steps = (np.abs(np.diff(image, axis=2)).mean(axis=(1, 2)) for image in (gray, coarse))
    assert np.mean(fine_steps > 2) > 0.9 and np.mean(coarse_steps > 5) > 0.9
    # Hue too.
    assert np.median(np.ptp(landscape()[0].image.astype(int), axis=-1).mean(axis=(1, 2))) > 15


def test_stripes_cover_pixels_by_the_share_that_lies_in_them():
    x, width = jnp.array([0.1, 0.4, 0.25, 0.0, -0.75, 7.3]), jnp.array([0.01, 0.01, 0.1, 0.2, 0.01, 3.0])
    np.testing.assert_allclose(coverage(x, jnp.full(6, 0.25), width), [1, 0, 0.5, 0.5, 0.5, 0.25], atol=1e-3)


def test_noise_is_smooth_bounded_and_different_for_every_salt():
    rng = np.random.default_rng(0)
    points = tuple(jnp.asarray(p, jnp.float32) for p in rng.uniform(-40, 40, (3, 20000)))
    noise = np.asarray(value_noise(points, jnp.uint32(1)))
    assert np.abs(noise).max() <= 1 and np.abs(noise.mean()) < 0.02 and 0.2 < noise.std() < 0.5
    assert np.abs(np.corrcoef(noise, value_noise(points, jnp.uint32(2)))[0, 1]) < 0.05
    # No steps, at the lattice's planes neither: the steepest weight is 1.5, between values of at most 2 apart.
    step = 1e-3
    assert np.abs(value_noise((points[0] + step, *points[1:]), jnp.uint32(1)) - noise).max() < 3.1 * step


# Options


def test_options_are_read_from_text():
    assert parse_synthetic("") == SyntheticConfig()
    assert parse_synthetic("overlap=0.5-0.9") == SyntheticConfig(overlap=(0.5, 0.9))
    assert parse_synthetic("overlap=0.5-0.9", 5) == SyntheticConfig(overlap=(0.5, 0.9), views=5)
    assert parse_synthetic("baseline=0.1-1,overlap=0.7") == SyntheticConfig(overlap=(0.7, 0.7), baseline=(0.1, 1.0))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("overlp=0.5-0.9", "expected options among overlap, baseline, found 'overlp'"),
        ("overlap", "overlap: expected a range of two numbers, found ''"),
        ("overlap=much", "found 'much'; write overlap=0.25-0.9"),
        ("overlap=nan-1", "found 'nan-1'"),
        ("overlap=0.2-0.5-0.9", "found '0.2-0.5-0.9'"),
        ("overlap=0.9-0.5", "the smaller first, found 0.9-0.5"),
        ("overlap=0.5-1.5", "between 0 and 1"),
        ("overlap=0.5,overlap=0.6", "each option once"),
        ("baseline=0-1", "between 0.1 and 10"),
        ("baseline=2-3", "begin at 1 m or less"),
    ],
)
def test_unusable_options_are_refused_by_name(text, message):
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        parse_synthetic(text)


def test_a_config_with_nan_is_refused():
    with pytest.raises(UserError, match="overlap: expected"):
        SyntheticConfig(overlap=(float("nan"), 0.9))


# Second cameras


@pytest.mark.slow
def test_another_second_camera_leaves_room_first_camera_and_lenses_and_takes_another_place():
    @functools.partial(jax.jit, static_argnums=0)
    def cameras(config):
        scene_key, camera_key = jax.random.split(jax.random.key(3))
        return sample_cameras(camera_key, sample_scene(scene_key), (64, 96), config)

    first, second, again = (jax.device_get(cameras(SyntheticConfig(second=number))) for number in (0, 1, 1))
    np.testing.assert_array_equal(first.intrinsics, second.intrinsics)
    np.testing.assert_array_equal(first.cam2world[0], second.cam2world[0])
    assert np.linalg.norm(first.cam2world[1] - second.cam2world[1]) > 0.05
    np.testing.assert_array_equal(second.cam2world, again.cam2world)


def test_a_second_camera_is_counted_from_0():
    with pytest.raises(UserError, match="second: expected the number of a second camera"):
        SyntheticConfig(second=-1)


@pytest.mark.slow
def test_twins_share_view_1_and_only_rendered_pairs_have_some():
    specs = parse_data(("synthetic",))
    feed = Feed(specs, ((64, 96),), 4, 0, crop_jitter=False)
    pairs = held_out_pairs(feed, 6)
    twins = twins_of(feed, pairs)
    assert twins is not None
    np.testing.assert_array_equal(twins.views[0], pairs.views[0])
    for one, two in zip(pairs.truths, twins.truths, strict=True):
        np.testing.assert_array_equal(one.views[0].points, two.views[0].points)
        np.testing.assert_array_equal(one.intrinsics[1], two.intrinsics[1])
        assert np.abs(one.pose - two.pose).max() > 0.01
    on_disk = dataclasses.replace(feed, specs=(*specs, DataSpec("pairs", Path("photos"), None)))
    assert twins_of(on_disk, pairs) is None
