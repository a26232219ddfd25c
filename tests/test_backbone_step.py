"""The step that trains the backbone: against PyTorch, in parts, on several devices, and where it goes wrong."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import und3rstand_jax as u3d
from tests.conversion import converted
from tests.golden_cases import relative_error
from tests.test_step_parity_torch import batch_of_pairs, example_of, nothing_rendered
from tests.tiny import CONFIG, backbone_tensors, save_backbone
from tests.with_torch import HAS_TORCH, needs_torch
from und3rstand_jax.convert.mapping import export
from und3rstand_jax.data.records import NOT_RENDERED, Batch
from und3rstand_jax.model.families import backbone_leaves
from und3rstand_jax.train.step.backbone_step import MODEL, backbone_errors, backbone_step, initial_backbone_state
from und3rstand_jax.train.step.data_parallel import AXIS, total
from und3rstand_jax.train.step.optimizer import NOT_FROZEN, Recipe, optimizer

if HAS_TORCH:
    import torch

    from tests.torch_reference import load_reference
    from tests.torch_reference.training import adamw, images, learning_rate, pair_loss, pair_truth

# Rates so high that a part of the recipe left out would show in the parameters.
RECIPE = Recipe(steps=3, warmup_steps=1, learning_rate=1e-3, final_learning_rate=2e-4, weight_decay=0.5)
BAR = 2e-5


@pytest.fixture(scope="module", autouse=True)
def _no_renderer():
    """All pairs are given, and to compile the renderer takes longer than all the rest."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("und3rstand_jax.data.example.render_set", nothing_rendered)
        yield


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("backbone_step")
    return u3d.load_backbone(converted(save_backbone(folder / "torch"), folder / "jax"))


def step_of(backbone, total=lambda tree: tree, **static):
    return functools.partial(backbone_step, module=backbone.module, recipe=RECIPE, example_of=example_of, total=total, **static)


@pytest.fixture(scope="module")
def step(backbone):
    """Of both pairs at once, on one device."""
    return jax.jit(step_of(backbone))


def errors_of(backbone, batch):
    errors = functools.partial(backbone_errors, module=backbone.module, example_of=example_of)
    return np.asarray(jax.jit(errors)(backbone.params, batch)[MODEL])


def batch(number):
    return Batch(np.zeros(2, np.uint32), np.full(2, NOT_RENDERED, np.int32), batch_of_pairs(number))


@needs_torch
@pytest.mark.slow
def test_losses_and_every_parameter_equal_pytorch_step_by_step(backbone, step):
    model = load_reference(CONFIG, backbone_tensors()).double().requires_grad_(True)
    updates = adamw(model, weight_decay=RECIPE.weight_decay)
    state = initial_backbone_state(jax.tree.map(jnp.asarray, backbone.params), RECIPE)
    leaves = backbone_leaves(backbone.config)
    for number in range(RECIPE.steps):
        # The second step's batch has a view without a valid pixel in one pair.
        state, losses = step(state, batch(number))
        pair = jax.tree.map(lambda array: torch.from_numpy(array).double(), batch_of_pairs(number))
        for group in updates.param_groups:
            group["lr"] = learning_rate(number, RECIPE.steps, RECIPE.warmup_steps, RECIPE.learning_rate, RECIPE.final_learning_rate)
        output = model(*images(pair, torch.float64))
        expected = pair_loss(output.pred1, output.pred2, pair_truth(pair))
        updates.zero_grad()
        expected.total.backward()
        updates.step()
        np.testing.assert_allclose(
            [float(value[0]) for value in jax.tree.leaves(losses[MODEL])], [float(value) for value in expected], rtol=BAR
        )
        theirs = {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}
        ours = dict(export(jax.tree.map(np.asarray, state.params), leaves))
        for name, tensor in ours.items():
            error = relative_error(tensor, theirs[name])
            assert error < BAR, f"step {number}, {name}: {error:.1e}"


@pytest.mark.slow
@pytest.mark.quick
def test_a_batch_in_parts_gives_the_same_step(backbone, step):
    state = initial_backbone_state(jax.tree.map(jnp.asarray, backbone.params), RECIPE)
    whole, losses = step(state, batch(1))
    parts, losses_of_parts = jax.jit(step_of(backbone, micro_batches=2))(state, batch(1))
    np.testing.assert_allclose(jax.tree.leaves(losses), jax.tree.leaves(losses_of_parts), rtol=1e-5)
    assert_close(parts.params, whole.params, state.params)


@pytest.mark.slow
@pytest.mark.quick
def test_two_devices_with_a_pair_each_take_the_step_of_one_with_both(backbone, step):
    state = initial_backbone_state(jax.tree.map(jnp.asarray, backbone.params), RECIPE)
    whole, losses = step(state, batch(1))
    divided = jax.tree.map(lambda leaf: leaf.reshape(2, 1, *leaf.shape[1:]), batch(1))
    of_two = jax.jit(jax.vmap(step_of(backbone, total), in_axes=(None, 0), axis_name=AXIS))
    both, losses_of_both = of_two(state, divided)
    for device in range(2):
        np.testing.assert_allclose(jax.tree.leaves(losses), [leaf[device] for leaf in jax.tree.leaves(losses_of_both)], rtol=1e-5)
        assert_close(jax.tree.map(lambda leaf, device=device: leaf[device], both.params), whole.params, state.params)


def assert_close(ours, expected, before):
    """The steps taken agree, relative to their length: parameters themselves would agree without any."""
    for one, other, start in zip(*map(jax.tree.leaves, (ours, expected, before)), strict=True):
        taken = np.asarray(other) - np.asarray(start)
        # A gradient of rounding errors alone (a bias before a softmax) is blown up by Adam to a whole step.
        difference = np.median(np.abs(np.asarray(one) - np.asarray(other)))
        assert difference <= 1e-3 * np.abs(taken).max()


@pytest.mark.slow
@pytest.mark.quick
def test_a_loss_that_is_not_finite_changes_nothing_from_then_on(backbone, step):
    bad = batch(0)
    far = jax.tree.map(np.array, bad.views)
    far[0].cam2world[0, 0, 0] = np.nan
    start = initial_backbone_state(jax.tree.map(jnp.asarray, backbone.params), RECIPE)
    once, _ = step(start, batch(0))
    assert once.model.frozen_at == NOT_FROZEN
    broken, losses = step(once, bad._replace(views=far))
    assert not np.isfinite(losses[MODEL].total[0]) and broken.model.frozen_at == 1
    after, _ = step(broken, batch(1))
    # The last parameters that gave a finite loss are those that the good step began with.
    for state in (broken, after):
        assert all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (state.params, start.params)), strict=True))


@needs_torch
def test_validation_measures_each_pairs_own_regression_loss(backbone):
    errors = errors_of(backbone, batch(0))
    assert errors.shape == (1, 2, 2)
    model = load_reference(CONFIG, backbone_tensors()).double()
    for number in range(2):
        pair = jax.tree.map(lambda array, number=number: torch.from_numpy(array[number : number + 1]).double(), batch_of_pairs(0))
        with torch.no_grad():
            output = model(*images(pair, torch.float64))
            expected = pair_loss(output.pred1, output.pred2, pair_truth(pair))
        np.testing.assert_allclose(errors[0, number], [float(expected.regression1), float(expected.regression2)], rtol=1e-4)


def test_a_view_without_a_valid_pixel_has_no_error(backbone):
    errors = errors_of(backbone, batch(1))[0]
    valid = [(view.depth > 0) & np.isfinite(view.depth) for view in batch_of_pairs(1)]
    assert not valid[1][0].any() and np.isnan(errors[0, 1]) and np.isfinite(errors[[0, 1, 1], [0, 0, 1]]).all()


def test_muon_turns_block_matrices_by_equal_singular_values_and_leaves_the_rest_to_adamw(backbone):
    muon, adam = Recipe(10, 0, weight_decay=0.0, optimizer="muon"), Recipe(10, 0, weight_decay=0.0)
    params = jax.tree.map(jnp.asarray, backbone.params)
    rng = np.random.default_rng(0)
    gradient = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), params)
    taken, expected = (jax.jit(tx.update)(gradient, tx.init(params), params)[0] for tx in (optimizer(muon), optimizer(adam)))
    matrices = [path for path, _ in jax.tree_util.tree_leaves_with_path(params) if is_block_matrix(path)]
    assert len(matrices) == 4 + 2 * 8  # qkv, proj, fc1, fc2; and projq, projk, projv, proj of both decoders' blocks
    for (path, update), other in zip(jax.tree_util.tree_leaves_with_path(taken), jax.tree.leaves(expected), strict=True):
        if not is_block_matrix(path):
            # optax' Muon gives its Adam Nesterov's look-ahead: at the first step the same sign, and for all entries the same length.
            assert np.array_equal(np.sign(update), np.sign(other)) and np.ptp(np.abs(update)) < 1e-3 * np.abs(update).max()
            continue
        rows, columns = update.shape[1:]
        for block in update:
            values = np.linalg.svd(np.asarray(block), compute_uv=False)
            # Newton–Schulz in five rounds brings singular values near 1, not to it; then the size of Adam's updates.
            scaled = values / (muon.learning_rate * 0.2 * max(rows, columns) ** 0.5)
            assert scaled.min() > 0.4 and scaled.max() < 1.3, path


def is_block_matrix(path):
    return any(key.key.startswith("blocks") for key in path) and path[-1].key == "kernel"
