"""VGGT's pose encodings against its own conversions (`tests/golden/utils_vggt.npz`), and what holds for all of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.golden_cases import GOLDEN, relative_error
from und3rstand_jax.geometry import unprojection
from und3rstand_jax.model import pose_encoding

SIZE = (392, 518)

# Compiled whole: operation by operation, the compiler would take most of the time.
cameras_of = jax.jit(pose_encoding.cameras_of, static_argnums=1)
encoding_of = jax.jit(pose_encoding.encoding_of, static_argnums=2)
quaternion_of, rotation_of = jax.jit(pose_encoding.quaternion_of), jax.jit(pose_encoding.rotation_of)
points_of_depth, unproject = jax.jit(unprojection.points_of_depth), jax.jit(unprojection.unproject)


@functools.cache
def golden():
    with np.load(GOLDEN / "utils_vggt.npz") as file:
        return {name: file[name] for name in file if name.startswith(("camera/", "unproject/"))}


def stored(name):
    return jnp.asarray(golden()[name], jnp.float32)


def random_encodings(count, seed=0):
    rng = np.random.default_rng(seed)
    quaternions = rng.normal(size=(count, 4)) * rng.uniform(0.1, 10, (count, 1))
    return jnp.asarray(np.concatenate([rng.normal(size=(count, 3)), quaternions, rng.uniform(0.1, 2.5, (count, 2))], -1), jnp.float32)


def turn(axis, degrees):
    """Rotation about an axis through the origin, by Rodrigues' formula."""
    x, y, z = np.asarray(axis, np.float64) / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = np.radians(degrees)
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def test_cameras_are_the_originals():
    extrinsics, intrinsics = cameras_of(stored("camera/pose_enc"), SIZE)
    assert (extrinsics.shape, intrinsics.shape, extrinsics.dtype) == ((2, 5, 3, 4), (2, 5, 3, 3), jnp.float32)
    assert relative_error(extrinsics, golden()["camera/extrinsic"]) < 2e-7
    assert relative_error(intrinsics, golden()["camera/intrinsic"]) < 2e-7


def test_encodings_are_the_originals():
    ours = encoding_of(stored("camera/extrinsic"), stored("camera/intrinsic"), SIZE)
    np.testing.assert_allclose(ours, golden()["camera/pose_enc_back"], atol=5e-7, rtol=5e-7)


def test_points_of_depth_are_the_originals():
    depth, *cameras = (stored(f"unproject/{name}") for name in ("depth", "extrinsic", "intrinsic"))
    ours = points_of_depth(depth[..., 0], *cameras)
    assert ours.shape == (5, 6, 8, 3)
    assert relative_error(ours, golden()["unproject/world_points"]) < 5e-7


def test_a_camera_worked_out_by_hand():
    """A quarter turn about z, a field of view of 90° over 392 rows and of 60° over 518 columns."""
    half = np.sqrt(0.5)
    extrinsics, intrinsics = cameras_of(jnp.asarray([1, 2, 3, 0, 0, half, half, np.pi / 2, np.pi / 3], jnp.float32), SIZE)
    np.testing.assert_allclose(extrinsics, [[0, -1, 0, 1], [1, 0, 0, 2], [0, 0, 1, 3]], atol=1e-7)
    np.testing.assert_allclose(intrinsics, [[259 * np.sqrt(3), 0, 259], [0, 196, 196], [0, 0, 1]], rtol=1e-6)


@pytest.mark.parametrize("degrees", [0.0, 1e-3, 30, 90, 120, 179.9, 180, 240])
@pytest.mark.parametrize("axis", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (-1, 2, 0.5), (1, 1, 1)])
def test_a_quaternion_is_that_of_its_axis_and_angle(axis, degrees):
    """(axis·sin(angle/2), cos(angle/2)), and its opposite where that has a negative scalar."""
    rotation = turn(axis, degrees)
    found = np.asarray(quaternion_of(jnp.asarray(rotation, jnp.float32)), np.float64)
    angle = np.radians(degrees) / 2
    expected = np.append(np.sin(angle) * np.asarray(axis) / np.linalg.norm(axis), np.cos(angle))
    assert found[3] >= 0 and np.linalg.norm(found) == pytest.approx(1, abs=2e-7)
    # At 180° both are right.
    np.testing.assert_allclose(found * np.sign(found @ expected), expected, atol=3e-7)
    np.testing.assert_allclose(rotation_of(jnp.asarray(found, jnp.float32)), rotation, atol=5e-7)


def test_there_and_back_is_the_same_up_to_the_quaternions_length():
    encodings = random_encodings(200)
    back = np.asarray(encoding_of(*cameras_of(encodings, SIZE), SIZE))
    encodings = np.asarray(encodings)
    unit = encodings[:, 3:7] / np.linalg.norm(encodings[:, 3:7], axis=-1, keepdims=True)
    np.testing.assert_allclose(back[:, 3:7], unit * np.where(unit[:, 3:] < 0, -1, 1), atol=5e-7)
    np.testing.assert_array_equal(back[:, :3], encodings[:, :3])
    np.testing.assert_allclose(back[:, 7:], encodings[:, 7:], rtol=1e-6)


def test_extrinsics_are_rigid_whatever_the_quaternion():
    rotations = np.asarray(cameras_of(random_encodings(100), SIZE).extrinsics, np.float64)[..., :3]
    np.testing.assert_allclose(rotations @ rotations.swapaxes(-1, -2), np.broadcast_to(np.eye(3), rotations.shape), atol=1e-6)
    np.testing.assert_allclose(np.linalg.det(rotations), 1, atol=1e-6)


def test_points_project_to_their_own_pixels_at_their_own_depth():
    size = (5, 7)
    extrinsics, intrinsics = cameras_of(random_encodings(3), size)
    depth = jnp.asarray(np.random.default_rng(1).uniform(1, 5, (3, *size)), jnp.float32)
    points = np.asarray(points_of_depth(depth, extrinsics, intrinsics), np.float64)
    rotation, translation = np.asarray(extrinsics)[..., :3], np.asarray(extrinsics)[:, None, None, :, 3]
    in_camera = np.einsum("bij,bhwj->bhwi", rotation, points) + translation
    projected = np.einsum("bij,bhwj->bhwi", np.asarray(intrinsics), in_camera)
    np.testing.assert_allclose(projected[..., 2], depth, rtol=1e-5)
    v, u = np.mgrid[: size[0], : size[1]]
    np.testing.assert_allclose(projected[..., :2] / projected[..., 2:], np.broadcast_to(np.dstack([u, v]), (3, *size, 2)), atol=2e-5)
    # The camera's own frame is the world's where the extrinsics are [1 | 0].
    still = jnp.asarray(np.broadcast_to(np.eye(3, 4, dtype=np.float32), (3, 3, 4)))
    np.testing.assert_allclose(points_of_depth(depth, still, intrinsics), unproject(depth, intrinsics), rtol=1e-6)


def test_a_field_of_view_of_0_is_a_focal_length_of_infinity():
    encoding = jnp.asarray([1, 2, 3, 0.1, 0.2, 0.3, 0.4, 0, 0], jnp.float32)
    extrinsics, intrinsics = cameras_of(encoding, SIZE)
    np.testing.assert_array_equal(intrinsics, [[np.inf, 0, 259], [0, np.inf, 196], [0, 0, 1]])
    np.testing.assert_array_equal(encoding_of(extrinsics, intrinsics, SIZE)[7:], [0, 0])


@pytest.mark.parametrize("quaternion", [(0, 0, 0, 1), (1, 0, 0, 0), (0.5, 0.5, 0.5, 0.5), (0.3, -2, 1, 0.7)])
def test_gradients_are_those_of_finite_differences(quaternion):
    encoding = np.array([0.1, -0.2, 0.3, *quaternion, 0.9, 1.1])

    def there(encoding):
        return points_of_depth(jnp.full((2, 3), 2.0), *cameras_of(encoding, (2, 3)))

    def back(encoding):
        return encoding_of(*cameras_of(encoding, (2, 3)), (2, 3))

    step = 1e-5
    with jax.enable_x64():
        moves = jnp.asarray(step * np.eye(9))
        for function in (there, back) if quaternion[3] else (there,):  # at a scalar of 0 the way back jumps
            gradient = jax.jit(jax.jacrev(function))(encoding)
            ahead, behind = (jax.jit(jax.vmap(function, out_axes=-1))(encoding + sign * moves) for sign in (1, -1))
            np.testing.assert_allclose(gradient, (ahead - behind) / (2 * step), atol=1e-6)
