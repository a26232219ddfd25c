"""Errors of pointmaps with known answers, and what must not influence them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from und3rstand_jax.geometry.loss import Target, invariant_error
from und3rstand_jax.geometry.metrics import mean_distance, set_errors

HEIGHTS, WIDTH, PAIRS = (6, 5), 8, 3  # the views differ in size
ERRORS = jax.jit(set_errors)


def turn(axis, degrees):
    """Rotation about a coordinate axis."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    matrix = np.eye(3)
    i, j = [k for k in range(3) if k != axis]
    matrix[i, i], matrix[i, j], matrix[j, i], matrix[j, j] = c, -s, s, c
    return matrix


@pytest.fixture
def truth():
    """Both views' points in view 1's frame: float64, in front of the camera, every third pixel invalid."""
    rng = np.random.default_rng(0)
    points = [rng.uniform((-1, -1, 2), (1, 1, 5), (PAIRS, height, WIDTH, 3)) for height in HEIGHTS]
    valid = [rng.random(view.shape[:3]) < 0.7 for view in points]
    return points, valid


def targets(truth):
    """The same truth in a world in which no camera stands at the origin."""
    poses = np.tile(np.eye(4), (PAIRS, 1, 1))
    for pair in range(PAIRS):
        poses[pair, :3, :3] = turn(1, 40 * pair + 10) @ turn(0, 25)
        poses[pair, :3, 3] = (pair, -2, 1)
    worlds = [np.einsum("bij,bhwj->bhwi", poses[:, :3, :3], view) + poses[:, None, None, :3, 3] for view in truth[0]]
    return tuple(Target(*(jnp.float32(x) for x in (world, poses)), jnp.asarray(mask)) for world, mask in zip(worlds, truth[1], strict=True))


def errors(points, own_targets):
    preds = [{"pts3d": np.float32(view)} for view in points]
    return jax.tree.map(np.asarray, ERRORS(preds, tuple(own_targets)))


@pytest.mark.parametrize("scale", [1.0, 0.02, 300.0])
def test_the_truth_at_any_scale_has_no_error(truth, scale):
    for view in errors([scale * points for points in truth[0]], targets(truth)):
        np.testing.assert_allclose(view, 0, atol=1e-5)


def test_a_shift_along_z_is_taken_out_of_the_metric_and_not_of_the_relative_error(truth):
    for view in errors([2 * points + (0, 0, 7) for points in truth[0]], targets(truth)):
        np.testing.assert_allclose(view.invariant, 0, atol=1e-5)
        assert (view.relative_mean > 0.02).all() and (view.relative_median > 0.02).all()


def test_one_view_three_times_too_large_gives_the_errors_worked_out_by_hand(truth):
    directions = [points / np.linalg.norm(points, axis=-1, keepdims=True) for points in truth[0]]
    everywhere = [np.ones(points.shape[:3], bool) for points in directions]
    view1, view2 = errors([directions[0], 3 * directions[1]], targets((directions, everywhere)))
    # All points are at distance 1; predicted ones at (6·1 + 5·3)/11 on average, which the joint scale takes to 1.
    scale = 11 / 21
    for values, expected in ((view1, 1 - scale), (view2, 3 * scale - 1)):
        np.testing.assert_allclose(values.relative_mean, expected, rtol=1e-5)
        np.testing.assert_allclose(values.relative_median, expected, rtol=1e-5)


def test_a_turn_about_the_camera_moves_points_by_twice_the_sine_of_half_the_angle(truth):
    flat = [points * (1, 0, 1) for points in truth[0]]
    turned = [points @ turn(1, 30).T for points in flat]
    for view in errors(turned, targets((flat, truth[1]))):
        np.testing.assert_allclose(view.relative_mean, 2 * np.sin(np.radians(15)), rtol=1e-4)
        np.testing.assert_allclose(view.relative_median, 2 * np.sin(np.radians(15)), rtol=1e-4)


def test_median_and_mean_are_over_valid_pixels_of_each_view(truth):
    points, valid = truth
    # A minority of view 1 is mirrored at the camera: same distances, hence the same scale, and a relative error of 2.
    wrong = [np.where((np.arange(WIDTH) < 2)[None, None, :, None], -points[0], points[0]), points[1]]
    view1, view2 = errors(wrong, targets(truth))
    shares = np.array([mask[:, :2].sum() / mask.sum() for mask in valid[0]])
    assert (shares > 0).all() and (shares < 0.5).all()
    np.testing.assert_allclose(view1.relative_mean, 2 * shares, rtol=1e-4)
    np.testing.assert_allclose(view1.relative_median, 0, atol=1e-5)
    np.testing.assert_allclose(view2.relative_mean, 0, atol=1e-5)


def test_whatever_stands_in_invalid_pixels_changes_nothing(truth):
    rng = np.random.default_rng(1)
    points = [view + rng.normal(0, 0.3, view.shape) for view in truth[0]]
    expected = errors(points, targets(truth))
    spoilt = [np.where(mask[..., None], view, np.nan) for view, mask in zip(points, truth[1], strict=True)]
    spoilt[1] = np.where(np.isnan(spoilt[1]), np.inf, spoilt[1])
    own_targets = [target._replace(pts3d=np.where(target.valid[..., None], target.pts3d, np.nan)) for target in targets(truth)]
    np.testing.assert_array_equal(errors(spoilt, own_targets), expected)


def test_a_view_without_a_valid_pixel_has_no_error_and_leaves_the_other_its_own(truth):
    points, valid = truth
    valid[1][1] = False
    view1, view2 = errors([2 * view for view in points], targets(truth))
    assert np.isnan(np.stack(view2)[:, 1]).all() and not np.isnan(np.stack(view2)[:, [0, 2]]).any()
    np.testing.assert_allclose(view1, 0, atol=1e-5)
    assert np.isfinite(mean_distance(targets(truth))).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_a_prediction_that_is_not_finite_in_a_valid_pixel_has_an_infinite_error(truth, value):
    points = [view.copy() for view in truth[0]]
    row, column = np.argwhere(truth[1][0][0])[0]
    points[0][0, row, column, 1] = value
    both = np.stack(errors(points, targets(truth)))
    assert np.isposinf(both[..., 0]).all()
    np.testing.assert_allclose(both[..., 1:], 0, atol=1e-5)  # other pairs are other pairs


def test_pairs_have_the_same_errors_alone_and_in_a_batch(truth):
    rng = np.random.default_rng(2)
    points = [view + rng.normal(0, 0.3, view.shape) for view in truth[0]]
    together = errors(points, targets(truth))
    for pair in range(PAIRS):
        own = slice(pair, pair + 1)
        alone = errors([view[own] for view in points], jax.tree.map(lambda leaf, own=own: leaf[own], targets(truth)))
        np.testing.assert_allclose(np.stack(alone)[..., 0], np.stack(together)[..., pair], rtol=1e-6)
    preds = [{"pts3d": jnp.float32(view[:1])} for view in points]
    metric = invariant_error(preds, jax.tree.map(lambda leaf: leaf[:1], targets(truth)))
    np.testing.assert_allclose([view.invariant[0] for view in together], metric.views, rtol=1e-6)


def test_the_size_of_a_scene_is_the_mean_distance_of_valid_points_to_camera_1(truth):
    norms = [np.linalg.norm(view, axis=-1) for view in truth[0]]
    expected = [np.concatenate([n[pair][mask[pair]] for n, mask in zip(norms, truth[1], strict=True)]).mean() for pair in range(PAIRS)]
    np.testing.assert_allclose(mean_distance(targets(truth)), expected, rtol=1e-5)
