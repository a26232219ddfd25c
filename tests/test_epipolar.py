"""Epipolar geometry: the fundamental matrix of known cameras, distances to it, and the places that both views see."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

from und3rstand_jax.analysis.inputs import scene_inputs
from und3rstand_jax.analysis.studies.epipolar.measures import correspondences_of, exact_matrix
from und3rstand_jax.data.example import to_example
from und3rstand_jax.data.records import View
from und3rstand_jax.geometry.epipolar import (
    fundamental_matrix,
    half_side,
    line_distances,
    normalised,
    normalised_places,
    normaliser,
    root_sampson,
    seen_places,
    smallest_singular_value,
    squared_sampson,
)
from und3rstand_jax.geometry.matching import true_places

SIZE = (48, 64)


def cameras(seed=0):
    """Two cameras that look at points in front of both, and those points' places in pixels."""
    random = np.random.default_rng(seed)
    intrinsics = [np.array([[fx, 0, cx], [0, fx * 1.1, cy], [0, 0, 1.0]]) for fx, cx, cy in ((50.0, 30.0, 25.0), (60.0, 33.0, 20.0))]
    angles = random.uniform(-0.2, 0.2, 3)
    cross = np.array([[0, -angles[2], angles[1]], [angles[2], 0, -angles[0]], [-angles[1], angles[0], 0]])
    rotation = np.linalg.qr(np.eye(3) + cross)[0]
    rotation *= np.sign(np.diag(rotation))
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = rotation, random.uniform(-1, 1, 3)
    points = random.uniform((-1, -1, 3), (1, 1, 6), (40, 3))
    in_2 = (points - pose[:3, 3]) @ rotation
    places = [(x @ matrix.T)[:, :2] / x[:, 2:] for x, matrix in zip((points, in_2), intrinsics, strict=True)]
    return intrinsics, pose, places


def test_true_places_satisfy_the_matrix_of_their_cameras_and_no_other():
    intrinsics, pose, (one, two) = cameras()
    matrix = fundamental_matrix(*intrinsics, pose)
    homogeneous = [np.concatenate([places, np.ones((len(places), 1))], axis=1) for places in (one, two)]
    np.testing.assert_allclose(np.sum((homogeneous[0] @ matrix.T) * homogeneous[1], axis=1), 0, atol=1e-12)
    assert np.linalg.norm(matrix) == pytest.approx(1)
    assert np.linalg.svd(matrix)[1][2] == pytest.approx(0, abs=1e-12)
    other = fundamental_matrix(*intrinsics, np.linalg.inv(pose))
    assert np.abs(np.sum((homogeneous[0] @ other.T) * homogeneous[1], axis=1)).max() > 1e-3


def test_cameras_in_one_place_have_no_matrix():
    intrinsics, pose, _ = cameras()
    pose[:3, 3] = 0
    assert np.isnan(fundamental_matrix(*intrinsics, pose)).all()


def test_normalised_places_satisfy_the_normalised_matrix():
    intrinsics, pose, (one, two) = cameras()
    matrix = normalised(fundamental_matrix(*intrinsics, pose), SIZE, SIZE)
    assert np.linalg.norm(matrix) == pytest.approx(1)
    places = [jnp.asarray(normalised_places(of_view, SIZE), jnp.float32) for of_view in (one, two)]
    assert float(root_sampson(jnp.asarray(matrix, jnp.float32), *places).max()) * half_side(SIZE) < 1e-3
    corners = np.array([[0, 0, 1], [63, 47, 1], [31.5, 23.5, 1.0]]) @ normaliser(SIZE).T
    np.testing.assert_allclose(corners, [[-63 / 64, -47 / 64, 1], [63 / 64, 47 / 64, 1], [0, 0, 1]])
    np.testing.assert_allclose(normalised_places(np.array([[0.0, 0.0]]), SIZE), corners[:1, :2])


def test_the_views_swapped_and_the_matrix_transposed_give_the_same_distance():
    intrinsics, pose, (one, two) = cameras()
    matrix = jnp.asarray(fundamental_matrix(*intrinsics, np.linalg.inv(pose)), jnp.float32)
    one, two = (jnp.asarray(places, jnp.float32) for places in (one, two))
    np.testing.assert_allclose(root_sampson(matrix, one, two), root_sampson(matrix.T, two, one), rtol=1e-4)
    np.testing.assert_allclose(root_sampson(matrix, one, two), root_sampson(-7 * matrix, one, two), rtol=1e-4)
    swapped = line_distances(matrix.T, two, one)
    for distances, others in zip(line_distances(matrix, one, two), reversed(swapped), strict=True):
        np.testing.assert_allclose(distances, others, rtol=1e-4)


def test_sampson_is_the_geometric_distance_of_slightly_wrong_places():
    """In pixels: how far both places have to move, together, to satisfy F, found by minimisation."""
    intrinsics, pose, (one, two) = cameras()
    matrix = fundamental_matrix(*intrinsics, pose)
    noise = np.random.default_rng(1).normal(0, 0.3, (2, 6, 2))
    noisy = [places[:6] + own for places, own in zip((one, two), noise, strict=True)]
    found = root_sampson(jnp.asarray(matrix, jnp.float32), *(jnp.asarray(places, jnp.float32) for places in noisy))
    for index in range(6):
        start = np.concatenate([places[index] for places in noisy])

        ends = [np.append(places[index], 1) for places in noisy]
        slope = np.linalg.norm([*(matrix @ ends[0])[:2], *(matrix.T @ ends[1])[:2]])

        def product(x, slope=slope):
            return np.append(x[2:], 1) @ matrix @ np.append(x[:2], 1) / slope

        moved = minimize(
            lambda x, start=start: np.sum((x - start) ** 2), start, constraints={"type": "eq", "fun": product}, tol=1e-12, method="SLSQP"
        )
        assert abs(product(moved.x)) < 1e-6
        assert float(found[index]) == pytest.approx(np.sqrt(moved.fun), rel=0.02, abs=2e-3)


def test_distances_to_lines_that_are_known():
    # Camera 2 straight to the side: epipolar lines are the rows.
    sideways = jnp.array([[0.0, 0, 0], [0, 0, -1], [0, 1, 0]])
    one, two = jnp.array([[3.0, 5.0]]), jnp.array([[9.0, 7.0]])
    assert [float(distance[0]) for distance in line_distances(sideways, one, two)] == [2.0, 2.0]
    assert float(root_sampson(sideways, one, two)[0]) == pytest.approx(np.sqrt(2))  # both rows move by 1


def test_gradients_are_finite_where_a_distance_is_0_and_where_lines_are_undefined():
    sideways = jnp.array([[0.0, 0, 0], [0, 0, -1], [0, 1, 0]])
    places = jnp.array([[3.0, 5.0]])
    for matrix in (sideways, jnp.zeros((3, 3)), jnp.zeros((3, 3)).at[2, 2].set(1.0)):
        for distance in (squared_sampson, root_sampson):
            gradient = jax.grad(lambda x, distance=distance: distance(x, places, places).sum())(matrix)
            assert np.isfinite(gradient).all()
    assert np.all(jax.grad(lambda x: root_sampson(x, places, places).sum())(sideways) == 0)


def test_the_smallest_singular_value_is_of_the_matrix_scaled_to_norm_1():
    turned = jnp.asarray(np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0], jnp.float32)
    values = smallest_singular_value(jnp.stack([5 * turned, turned.at[:, 0].set(0)]))
    np.testing.assert_allclose(values, [1 / np.sqrt(3), 0], atol=1e-6)


@pytest.fixture(scope="module")
def scene():
    return scene_inputs(0, "synthetic:overlap=0.5-0.7", SIZE)


@pytest.mark.optimised
def test_a_rendered_scene_satisfies_its_own_matrix(scene):
    one, two, seen = correspondences_of(scene.truth)
    assert 0.2 < seen.mean() < 0.9
    places = [jnp.asarray(places[seen], jnp.float32) for places in (one, two)]
    matrix = exact_matrix(scene.truth)
    assert float(root_sampson(jnp.asarray(matrix, jnp.float32), *places).max()) * half_side(SIZE) < 0.01
    wrong = jnp.asarray(matrix.T, jnp.float32)
    assert float(root_sampson(wrong, *places).mean()) * half_side(SIZE) > 1


@pytest.mark.optimised
def test_places_drawn_on_the_device_are_seen_and_satisfy_the_matrix(scene):
    truth = scene.truth
    depths = [truth.views[0].points[..., 2], ((truth.views[1].points - truth.pose[:3, 3]) @ truth.pose[:3, :3])[..., 2]]
    views = [
        View(
            np.zeros((1, *SIZE, 3), np.uint8),
            np.where(truth.views[view].valid, depths[view], 0)[None].astype(np.float32),
            truth.intrinsics[view][None].astype(np.float32),
            pose[None].astype(np.float32),
        )
        for view, pose in enumerate((np.eye(4), truth.pose))
    ]
    example = to_example(tuple(views))
    keys = jax.random.split(jax.random.key(0), 1)
    places = seen_places(keys, example.targets, example.intrinsics[1], 200)
    assert places.seen.all()
    assert len(np.unique(np.asarray(places.places1[0]), axis=0)) == 200
    matrix = jnp.asarray(exact_matrix(truth), jnp.float32)
    assert float(root_sampson(matrix, places.places1[0], places.places2[0]).max()) * half_side(SIZE) < 0.01
    again = seen_places(keys, example.targets, example.intrinsics[1], 200)
    assert np.array_equal(places.places1, again.places1)
    every = seen_places(keys, example.targets, example.intrinsics[1], SIZE[0] * SIZE[1])
    expected = np.isfinite(true_places(truth.views, truth.pose, truth.intrinsics[1])).all(axis=-1).sum()
    assert abs(int(every.seen.sum()) - int(expected)) <= 2  # rounding at the 2 % bar
