"""The original's loss, its gradients and its test metric (`tests/golden/loss.npz`, float64), and the cases in which NaN lurks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from tests.golden_cases import GOLDEN, relative_error
from und3rstand_jax.geometry.loss import Target, _median, confidence_loss, invariant_error

pytestmark = pytest.mark.optimised


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "loss.npz") as file:
        return dict(file)


def inputs(golden):
    preds = [{key: golden[f"pred/{key}/view{view}"] for key in ("pts3d", "conf")} for view in (1, 2)]
    targets = [Target(*(golden[f"gt/{key}/view{view}"] for key in ("pts3d", "camera_pose", "valid_mask"))) for view in (1, 2)]
    return jax.tree.map(jnp.asarray, (preds, targets))


def parts(loss):
    """The total, then every view's loss and regression."""
    return np.array([*loss.named().values()])


@jax.jit
def loss_and_gradient(preds, targets):
    return jax.value_and_grad(lambda preds: confidence_loss(preds, tuple(targets)).total)(preds)


def test_training_loss_is_the_original(golden):
    preds, targets = inputs(golden)
    loss = jax.jit(lambda p, t: confidence_loss(p, tuple(t)))(preds, targets)
    names = ("train_loss", "train_details/conf_loss_1", "train_details/conf_loss2")
    names += ("train_details/Regr3D_pts3d_1", "train_details/Regr3D_pts3d_2")
    np.testing.assert_allclose(parts(loss), [golden[name] for name in names], rtol=1e-5)


def test_training_gradient_is_the_original(golden):
    _, gradient = loss_and_gradient(*inputs(golden))
    for view in (0, 1):
        for key in ("pts3d", "conf"):
            assert relative_error(gradient[view][key], golden[f"train_grad/{key}/view{view + 1}"]) < 1e-5


def test_metric_is_the_original(golden):
    preds, targets = inputs(golden)
    error = jax.jit(lambda p, t: invariant_error(p, tuple(t)))(preds, targets)
    details = [golden[f"test_details/Regr3D_ScaleShiftInv_pts3d_{view}"] for view in (1, 2)]
    np.testing.assert_allclose(parts(error)[:3], [golden["test_loss"], *details], rtol=1e-5)


def spoilt(golden, how):
    preds, targets = inputs(golden)
    if how == "one view all invalid":
        targets[1] = targets[1]._replace(valid=np.zeros_like(targets[1].valid))
    elif how == "nothing valid":
        targets = [target._replace(valid=np.zeros_like(target.valid)) for target in targets]
    elif how == "zero prediction":
        preds = [pred | {"pts3d": np.zeros_like(pred["pts3d"])} for pred in preds]
    elif how == "a single valid pixel":
        only = np.zeros_like(targets[0].valid)
        only[0, 3, 4] = True
        targets = [targets[0]._replace(valid=only), targets[1]._replace(valid=np.zeros_like(only))]
    elif how == "NaN where invalid":
        targets = [target._replace(pts3d=np.where(target.valid[..., None], target.pts3d, np.nan)) for target in targets]
        preds = [
            {key: np.where(t.valid.reshape(t.valid.shape + (1,) * (x.ndim - 3)), x, np.nan) for key, x in p.items()}
            for p, t in zip(preds, targets, strict=True)
        ]
    return jax.tree.map(jnp.asarray, (preds, targets))


@pytest.mark.parametrize("how", ["one view all invalid", "nothing valid", "zero prediction", "a single valid pixel", "NaN where invalid"])
def test_no_nan_in_value_or_gradient(golden, how):
    preds, targets = spoilt(golden, how)
    value, gradient = loss_and_gradient(preds, targets)
    assert np.isfinite(value)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    assert np.isfinite(parts(invariant_error(preds, tuple(targets)))).all()
    if how == "NaN where invalid":
        np.testing.assert_allclose(value, golden["train_loss"], rtol=1e-5)


@pytest.mark.parametrize("options", [{}, {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}])
def test_the_truth_itself_has_no_error_however_it_is_compiled(options):
    """Unoptimised, a difference of equal points was rounded to 0 in one of two copies, and each such point had the error 1."""
    rng = np.random.default_rng(0)
    points = [rng.normal(size=(1, 32, side, 3)).astype(np.float32) for side in (48, 24)]
    targets = [Target(view, np.eye(4, dtype=np.float32)[None], rng.uniform(size=view.shape[:3]) > 0.2) for view in points]
    preds = [{"pts3d": view, "conf": np.ones(view.shape[:3], np.float32)} for view in points]
    loss = jax.jit(lambda preds, targets: confidence_loss(preds, tuple(targets)), compiler_options=options)(preds, targets)
    np.testing.assert_allclose(parts(loss), 0, atol=1e-6)


def test_metric_ignores_scale_and_shift_along_z_and_the_choice_of_world(golden):
    preds, targets = inputs(golden)
    expected = parts(invariant_error(preds, tuple(targets)))
    moved = [pred | {"pts3d": 3.0 * pred["pts3d"] + np.array([0, 0, 5], np.float32)} for pred in preds]
    np.testing.assert_allclose(parts(invariant_error(moved, tuple(targets))), expected, rtol=1e-4)
    turn = np.array([[0, -1, 0, 2], [1, 0, 0, -1], [0, 0, 1, 3], [0, 0, 0, 1]], np.float32)
    elsewhere = [t._replace(pts3d=t.pts3d @ turn[:3, :3].T + turn[:3, 3], cam2world=turn @ t.cam2world) for t in targets]
    np.testing.assert_allclose(parts(invariant_error(preds, tuple(elsewhere))), expected, rtol=1e-4)
    losses = [parts(confidence_loss(preds, tuple(own))) for own in (elsewhere, targets)]
    np.testing.assert_allclose(*losses, rtol=1e-4)


def test_a_prediction_that_is_not_a_number_shows_in_the_loss(golden):
    (pred1, pred2), (target1, target2) = inputs(golden)
    spoiled = {**pred1, "pts3d": jnp.where(np.arange(32)[:, None] == 5, np.nan, pred1["pts3d"])}
    assert np.asarray(target1.valid)[:, :, 5].any()
    assert np.isnan(confidence_loss((spoiled, pred2), (target1, target2)).total)
    assert np.isnan(invariant_error((spoiled, pred2), (target1, target2)).total)


@pytest.mark.parametrize("count", [1, 2, 7, 8])
def test_medians_are_the_lower_of_two_middle_values(count):
    rng = np.random.default_rng(count)
    values = (rng.normal(size=(5, 40)) * 10.0 ** rng.integers(-6, 6, (5, 1))).astype(np.float32)
    values[0, :3], values[1, 0] = (0.0, -0.0, np.inf), -np.inf
    valid = np.argsort(rng.random((5, 40)), axis=1) < count
    expected = [np.sort(row[mask])[(count - 1) // 2] for row, mask in zip(values, valid, strict=True)]
    assert np.array_equal(_median(jnp.asarray(values), jnp.asarray(valid)), expected)
    assert _median(jnp.asarray(values), jnp.zeros((5, 40), bool)).tolist() == [0.0] * 5


SIDES = (5, 7, 4)
"""Widths of three views of one set."""


def three_views(seed=0, sets=2):
    """Predictions and targets of sets of three views of different sizes, some pixels invalid; every set in a world of its own."""
    rng = np.random.default_rng(seed)
    preds, targets = [], []
    for side in SIDES:
        shape = (sets, 6, side)
        preds.append({"pts3d": rng.normal(size=(*shape, 3)), "conf": 1 + rng.random(shape)})
        cameras = np.tile(np.eye(4), (sets, 1, 1))
        cameras[:, :3, :3] = Rotation.random(sets, rng).as_matrix()
        cameras[:, :3, 3] = rng.normal(size=(sets, 3))
        targets.append(Target(rng.normal(size=(*shape, 3)), cameras, rng.random(shape) < 0.7))
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, bool if leaf.dtype == bool else jnp.float32), (tuple(preds), tuple(targets)))


def by_hand(preds, targets):
    """Each view's loss and regression, pixel by pixel in float64: one scale for all three views of a set, means over the batch's pixels."""
    sums = np.zeros((3, 2))
    for number in range(len(targets[0].pts3d)):
        camera = np.linalg.inv(np.asarray(targets[0].cam2world[number], np.float64))
        masks = [np.asarray(target.valid[number]) for target in targets]
        true = [np.asarray(t.pts3d[number], np.float64)[m] @ camera[:3, :3].T + camera[:3, 3] for t, m in zip(targets, masks, strict=True)]
        said = [np.asarray(pred["pts3d"][number], np.float64)[mask] for pred, mask in zip(preds, masks, strict=True)]
        of_true, of_said = (np.linalg.norm(np.concatenate(points), axis=-1).mean() for points in (true, said))
        for view, (own, other, mask) in enumerate(zip(said, true, masks, strict=True)):
            distance = np.linalg.norm(own / of_said - other / of_true, axis=-1)
            confidence = np.asarray(preds[view]["conf"][number], np.float64)[mask]
            sums[view] += (confidence * distance - 0.2 * np.log(confidence)).sum(), distance.sum()
    return (sums / [[int(target.valid.sum())] for target in targets]).T


def test_three_views_share_one_scale_and_the_total_is_the_sum_over_views():
    preds, targets = three_views()
    loss, expected = confidence_loss(preds, targets), by_hand(preds, targets)
    np.testing.assert_allclose(loss.views, expected[0], rtol=2e-5)
    np.testing.assert_allclose(loss.regressions, expected[1], rtol=2e-5)
    assert float(loss.total) == pytest.approx(expected[0].sum(), rel=2e-5)
    assert list(loss.named()) == ["total", "view1", "view2", "view3", "regression1", "regression2", "regression3"]
    # One scale for all: another view that is larger changes what is found of view 1.
    larger = (*preds[:2], {**preds[2], "pts3d": 9 * preds[2]["pts3d"]})
    assert abs(float(confidence_loss(larger, targets).views[0] - loss.views[0])) > 0.1


@pytest.mark.parametrize("measure", [confidence_loss, invariant_error])
def test_another_order_of_the_later_views_is_another_order_of_their_losses(measure):
    preds, targets = three_views()
    straight = measure(preds, targets)
    turned = measure((preds[0], preds[2], preds[1]), (targets[0], targets[2], targets[1]))
    np.testing.assert_allclose(turned.views, [straight.views[0], straight.views[2], straight.views[1]], rtol=1e-5)
    np.testing.assert_allclose(turned.total, straight.total, rtol=1e-5)


@pytest.mark.parametrize("measure", [confidence_loss, invariant_error])
def test_a_third_view_without_a_valid_pixel_is_as_if_it_were_not_there(measure):
    preds, targets = three_views()
    hidden = targets[2]._replace(valid=jnp.zeros_like(targets[2].valid), pts3d=jnp.full_like(targets[2].pts3d, jnp.nan))
    found, expected = measure(preds, (*targets[:2], hidden)), measure(preds[:2], targets[:2])
    np.testing.assert_allclose(found.views, [*expected.views, 0.0], rtol=1e-5)
    np.testing.assert_allclose(found.total, expected.total, rtol=1e-5)
