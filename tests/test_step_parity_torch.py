"""The training step against the PyTorch way, step by step: every loss and every parameter of every probe."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import und3rstand_jax as u3d
from tests.conversion import converted
from tests.golden import weights
from tests.golden_cases import relative_error
from tests.tiny import CONFIG, LAYERS, backbone_tensors, save_backbone
from tests.with_torch import HAS_TORCH, needs_torch
from und3rstand_jax.data.example import assemble
from und3rstand_jax.data.records import NOT_RENDERED, Batch, View
from und3rstand_jax.data.synthetic.config import SyntheticConfig
from und3rstand_jax.probes.config import probe_config
from und3rstand_jax.train.step.optimizer import Recipe
from und3rstand_jax.train.step.probe_step import initial_state, probe_step

if HAS_TORCH:
    import torch

    from tests.torch_reference import load_reference, training

pytestmark = needs_torch

SHAPE = (32, 48)
ENCODER_LAYER = "encoder.1.mlp"
# Two steps of warm-up and two of the cosine. Rates so high that a part of the recipe left out would show in the parameters.
RECIPE = Recipe(steps=4, warmup_steps=2, learning_rate=2e-3, final_learning_rate=2e-4, weight_decay=0.5)
BAR = 1e-5


def view(name, share_invalid):
    """A photo-like image, a depth with holes (0, NaN and infinity), a lens off the middle, a camera that is turned."""
    rng = np.random.default_rng(sum(name.encode()))
    depth = rng.uniform(1, 4, SHAPE).astype(np.float32)
    holes = rng.choice([0.0, np.nan, np.inf, -1.0], SHAPE).astype(np.float32)
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    cam2world = np.eye(4, dtype=np.float32)
    cam2world[:3, :3], cam2world[:3, 3] = rotation * np.sign(np.linalg.det(rotation)), rng.normal(size=3)
    intrinsics = np.array([[40, 0, 22], [0, 43, 17], [0, 0, 1]], np.float32)
    depth = np.where(rng.uniform(size=SHAPE) < share_invalid, holes, depth)
    return View(weights.image(name, *SHAPE, seed=3), depth, intrinsics, cam2world)


def batch_of_pairs(step):
    """Two pairs with different shares of invalid pixels; in the second step one view has no valid pixel at all."""
    pairs = [
        (view(f"{step}a1", 0.1), view(f"{step}a2", 1.0 if step == 1 else 0.6)),
        (view(f"{step}b1", 0.4), view(f"{step}b2", 0.0)),
    ]
    return jax.tree.map(lambda *arrays: np.stack(arrays), *pairs)


def perturbed(state):
    """Biases and norms away from 0 and 1, where weight decay on them would change nothing."""
    noise = np.random.default_rng(7)

    def moved(leaf):
        return np.asarray(leaf) + 0.1 * noise.standard_normal(leaf.shape, dtype=np.float32)

    groups = {name: group._replace(params=jax.tree.map(moved, group.params)) for name, group in state.groups.items()}
    return state._replace(groups=groups)


def torch_names(config, params):
    """Our parameter tree as each layer's PyTorch state dict."""
    tensors = {}
    for index, group in enumerate(config.groups):
        for place, layer in enumerate(group.layer_ids):
            own = jax.tree.map(lambda leaf, place=place: np.array(leaf[place]), params[f"group{index}"])
            tensors[layer] = _state_dict(group.steps, own)
    return tensors


def _state_dict(steps, params):
    entries, counts = {}, {"linear": 0, "norm": 0, "activation": 0}
    for place, step in enumerate(steps):
        module = params.get(f"{step}{counts[step]}", {})
        counts[step] += 1
        for name, array in module.items():
            entries[f"probes.0.{place}.{'bias' if name == 'bias' else 'weight'}"] = array.T
    return entries


def nothing_rendered(seed, scene, shape, scenes):
    return (View(jnp.zeros((*shape, 3), jnp.uint8), jnp.zeros(shape), jnp.zeros((3, 3)), jnp.zeros((4, 4))),) * 2


def example_of(batch):
    return assemble(batch, seed=0, shape=SHAPE, scenes=SyntheticConfig(), colour_jitter=False)


def run_ours(backbone, config):
    """Losses and parameters of each step, and the parameters before the first one."""
    static = {"module": backbone.module, "probes": config, "recipe": RECIPE, "example_of": example_of, "total": lambda sums: sums}
    step = jax.jit(functools.partial(probe_step, **static))
    state = perturbed(initial_state(config, RECIPE, seed=0))
    first, history = torch_names(config, state.params), []
    for number in range(RECIPE.steps):
        batch = Batch(np.zeros(2, np.uint32), np.full(2, NOT_RENDERED, np.int32), batch_of_pairs(number))
        state, losses = step(state, backbone.params, batch)
        by_layer = {
            layer: [float(values[i]) for values in jax.tree.leaves(losses[f"group{g}"])]
            for g, group in enumerate(config.groups)
            for i, layer in enumerate(group.layer_ids)
        }
        history.append((by_layer, torch_names(config, state.params)))
    return first, history


def run_torch(config, first, loop="step_probe_by_probe", optimizer=None):
    """The same in PyTorch, in float64."""
    model = load_reference(CONFIG, backbone_tensors()).double().requires_grad_(False)
    probes = {}
    for layer, probe in training.single_probes(config).items():
        probe.load_state_dict({name: torch.from_numpy(array) for name, array in first[layer].items()})
        probes[layer] = training.TrainedProbe(probe.double(), (optimizer or training.adamw)(probe, weight_decay=RECIPE.weight_decay))
    history = []
    for number in range(RECIPE.steps):
        pair = jax.tree.map(lambda array: torch.from_numpy(array).double(), batch_of_pairs(number))
        rate = training.learning_rate(number, RECIPE.steps, RECIPE.warmup_steps, RECIPE.learning_rate, RECIPE.final_learning_rate)
        for trained in probes.values():
            for parameters in trained.optimizer.param_groups:
                parameters["lr"] = rate
        with torch.no_grad():
            features = dict(model(*training.images(pair, torch.float64)).activations)
        losses = getattr(training, loop)(probes, features, training.pair_truth(pair))
        numbers = {layer: training.PairLoss(*map(float, loss)) for layer, loss in losses.items()}
        history.append((numbers, {layer: _arrays(trained.probe) for layer, trained in probes.items()}))
    return history


def _arrays(probe):
    return {name: tensor.numpy().copy() for name, tensor in probe.state_dict().items()}


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    folder = tmp_path_factory.mktemp("step_parity")
    backbone = u3d.load_backbone(converted(save_backbone(folder / "torch"), folder / "jax"))
    config = probe_config(backbone.config, (ENCODER_LAYER, *LAYERS))
    assert [group.widths[0] for group in config.groups] == [32, 16]
    with pytest.MonkeyPatch.context() as patch:
        # All pairs are given, and to compile the renderer takes longer than all the rest.
        patch.setattr("und3rstand_jax.data.example.render_set", nothing_rendered)
        return config, *run_ours(backbone, config)


@pytest.mark.parametrize("loop", ["step_probe_by_probe", "step_after_all_outputs"])
def test_every_loss_and_parameter_of_every_step_equals_pytorch(ours, loop):
    config, first, history = ours
    for number, (our_step, torch_step) in enumerate(zip(history, run_torch(config, first, loop), strict=True)):
        (our_losses, our_params), (torch_losses, torch_params) = our_step, torch_step
        assert list(our_losses) == list(torch_losses) == [ENCODER_LAYER, *LAYERS]
        for layer in torch_losses:
            np.testing.assert_allclose(our_losses[layer], torch_losses[layer], rtol=BAR, err_msg=f"step {number}, {layer}")
            assert our_params[layer].keys() == torch_params[layer].keys()
            for name, expected in torch_params[layer].items():
                error = relative_error(our_params[layer][name], expected)
                assert error < BAR, f"step {number}, {layer}, {name}: {error:.1e}"


def decay_on_everything(probe, weight_decay):
    return torch.optim.AdamW(probe.parameters(), betas=(0.9, 0.95), weight_decay=weight_decay)


def test_weight_decay_on_biases_and_norms_would_show(ours):
    """What the bar of the test above is worth: with decay on all parameters, only matrices still agree after the first step."""
    config, first, history = ours
    (_, ours_once), (_, decayed) = history[0], run_torch(config, first, optimizer=decay_on_everything)[0]
    for layer, params in decayed.items():
        for name, expected in params.items():
            error = relative_error(ours_once[layer][name], expected)
            assert (error < BAR) == (expected.ndim == 2), f"{layer}, {name}: {error:.1e}"
