"""Alignments of predicted points with the true ones: what each is allowed to change changes nothing, and all else does."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from tests.walls import wall_pairs
from und3rstand_jax.geometry.alignment import ALIGNMENT_MEANING, ALIGNMENTS, aligned_errors, shape_errors
from und3rstand_jax.geometry.loss import Target, invariant_error
from und3rstand_jax.geometry.metrics import normalised_errors
from und3rstand_jax.model.heads import Pointmap

ROTATION = Rotation.from_rotvec([0.3, -0.5, 0.2]).as_matrix()
SHIFT, SCALE = np.array([0.4, -0.2, 1.5]), 1.7


def case(noise=0.0):
    """True points of two pairs in metres, and a prediction with noise."""
    pairs = wall_pairs(0.0, 12.0)
    true = [np.stack([truth.views[view].points for truth in pairs.truths]) for view in (0, 1)]
    random = np.random.default_rng(0)
    return pairs, [points + noise * random.standard_normal(points.shape) for points in true]


def errors(alignment, noise=0.0, change=lambda points: points):
    pairs, points = case(noise)
    preds = [Pointmap(pts3d=jnp.asarray(change(view), jnp.float32)) for view in points]
    return np.array(aligned_errors(preds, pairs.truth.truth, jnp.asarray(pairs.truth.unit), alignment))


CHANGES = {
    "scaled": lambda points: SCALE * points,
    "deeper": lambda points: points + [0, 0, 1.5],
    "moved": lambda points: SCALE * points @ ROTATION.T + SHIFT,
}
SEES = {"none": {"scaled", "deeper", "moved"}, "scale": {"deeper", "moved"}, "median": {"moved"}, "similarity": set()}


@pytest.mark.parametrize("alignment", ALIGNMENTS)
@pytest.mark.parametrize("change", CHANGES)
def test_an_error_does_not_see_what_its_alignment_may_change(alignment, change):
    found = errors(alignment, change=CHANGES[change])
    if change in SEES[alignment]:
        assert (found > 0.02).all()
    else:
        assert found == pytest.approx(0, abs=2e-5)


def test_scale_is_the_normalised_error():
    pairs, points = case(0.1)
    preds = [Pointmap(pts3d=jnp.asarray(view, jnp.float32)) for view in points]
    assert errors("scale", 0.1) == pytest.approx(np.array(normalised_errors(preds, pairs.truth.truth)), rel=1e-6)


def test_without_alignment_the_error_is_in_units_of_the_true_mean_distance():
    pairs, points = case()
    distance = np.mean([np.linalg.norm(view[0], axis=-1) for view in points])
    assert pairs.truth.unit[0] == pytest.approx(distance, rel=1e-5)
    assert errors("none", change=lambda points: points + [0.3, 0, 0])[:, 0] == pytest.approx(0.3 / distance, rel=1e-4)


def test_a_misplaced_view_2_changes_the_scale_of_view_1_but_not_its_shape():
    pairs, points = case(0.1)

    def both(moved):
        preds = [Pointmap(pts3d=jnp.asarray(view, jnp.float32)) for view in (points[0], SCALE * points[1] @ ROTATION.T + moved)]
        given = preds, pairs.truth.truth, jnp.asarray(pairs.truth.unit)
        return np.array(aligned_errors(*given)), np.array(shape_errors(*given))

    (near, near_shape), (far, far_shape) = both(SHIFT), both(40 * SHIFT)
    assert (far[0] > 2 * near[0]).all()
    assert far_shape == pytest.approx(near_shape, rel=1e-2)
    assert near_shape[0] == pytest.approx(errors("similarity", 0.1)[0], rel=0.3) and (near_shape[1] < 0.2 * near[1]).all()


def test_median_is_the_test_metric_in_other_units():
    pairs, points = case(0.1)
    eye = np.eye(4, dtype=np.float32)[None]
    for number in (0, 1):
        preds = [Pointmap(pts3d=jnp.asarray(2 * view[number][None], jnp.float32)) for view in points]
        views = pairs.truths[number].views
        truth = [Target(jnp.asarray(view.points[None], jnp.float32), jnp.asarray(eye), jnp.asarray(view.valid[None])) for view in views]
        metric = invariant_error(preds, tuple(truth))
        found = errors("median", 0.1, lambda points: 2 * points)[:, number] * pairs.truth.unit[number]
        assert found == pytest.approx([float(view) for view in metric.views], rel=1e-4)


def test_a_similarity_has_the_least_squared_distance():
    """Against SciPy's rotation (Kabsch) with the scale of least squares."""
    pairs, points = case(0.3)
    given = np.concatenate([view[1].reshape(-1, 3) for view in points]) @ ROTATION.T
    true = np.concatenate([view.points.reshape(-1, 3) for view in pairs.truths[1].views]) / pairs.truth.unit[1]
    from_centre, target = given - given.mean(0), true - true.mean(0)
    rotation, _ = Rotation.align_vectors(target, from_centre)
    turned = rotation.apply(from_centre)
    laid = (turned * target).sum() / (turned**2).sum() * turned + true.mean(0)
    expected = np.linalg.norm(laid - true, axis=-1).reshape(2, -1).mean(axis=1)
    assert errors("similarity", 0.3, lambda points: points @ ROTATION.T)[:, 1] == pytest.approx(expected, rel=1e-4)


def test_a_mirror_image_is_no_similarity():
    assert (errors("similarity", 0.2, lambda points: points * [1, 1, -1]) > 0.03).all()


@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_what_is_not_known_does_not_count_and_what_is_not_finite_does(alignment):
    pairs, points = case(0.1)
    truth = pairs.truth.truth
    unit = jnp.asarray(pairs.truth.unit)
    hidden = np.array(truth.valid[1])
    hidden[0, :10] = False  # of the first pair's view 2
    hidden[1] = False
    known = truth._replace(valid=(truth.valid[0], hidden))
    points[1][0, :10] = np.nan
    preds = [Pointmap(pts3d=jnp.asarray(view, jnp.float32)) for view in points]
    one, two = (np.array(error) for error in aligned_errors(preds, known, unit, alignment))
    assert np.isfinite(one).all() and np.isfinite(two[0]) and np.isnan(two[1])
    one, two = (np.array(error) for error in aligned_errors(preds, truth, unit, alignment))
    assert np.isinf([one[0], two[0]]).all() and np.isfinite([one[1], two[1]]).all()


def test_every_alignment_is_explained():
    assert set(ALIGNMENT_MEANING) == set(ALIGNMENTS)
