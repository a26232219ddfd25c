"""What the training step computes its loss on: predictions token by token, planes instead of vectors, and a norm folded into a layer."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from und3rstand_jax.geometry.loss import Target, confidence_sums, normalised_truth
from und3rstand_jax.model.dust3r.config import BackboneConfig
from und3rstand_jax.model.heads import planes_of
from und3rstand_jax.probes.config import ProbeConfig, probe_config
from und3rstand_jax.probes.mlp import run_mlp
from und3rstand_jax.probes.probes import by_token, init_probes, read_layer, read_planes

BACKBONE = BackboneConfig(
    img_size=(64, 64), enc_embed_dim=48, enc_depth=1, enc_num_heads=2, dec_embed_dim=32, dec_depth=1, dec_num_heads=2, head_type="linear"
)
SIZES = ((32, 48), (64, 16))  # 6 and 4 tokens


def probe(**changes):
    """A config with one layer, and parameters in which norms and biases do something."""
    config = probe_config(BACKBONE, ["decoder.0.mlp"], hidden=24)
    if changes.get("views") == "separate":
        config = dataclasses.replace(config, views="separate")
    config = dataclasses.replace(config, **changes)
    layer = jax.tree.map(lambda leaf: leaf[0], init_probes(config, 0)["group0"])
    random = np.random.default_rng(0)
    return config, jax.tree.map(lambda leaf: leaf + 0.1 * random.standard_normal(leaf.shape).astype(np.float32), layer)


def tokens():
    random = np.random.default_rng(1)
    return [jnp.asarray(random.standard_normal((2, h * w // 256, 32)), jnp.float32) for h, w in SIZES]


@pytest.mark.parametrize("views", ["shared", "separate"])
@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
@pytest.mark.parametrize("depth_mode", [("exp", -np.inf, np.inf), ("square", -np.inf, np.inf), ("linear", -np.inf, np.inf)])
def test_planes_are_the_pointmaps_pixel_by_pixel(views, layout, depth_mode):
    config, params = probe(views=views, output_layout=layout, depth_mode=depth_mode)
    images = read_layer(params, tokens(), SIZES, config.groups[0], config)
    for image, planes in zip(images, read_planes(params, tokens(), config.groups[0], config), strict=True):
        for axis, plane in enumerate(planes.points):
            np.testing.assert_allclose(by_token(image["pts3d"][..., axis], 16), plane, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(by_token(image["conf"], 16), planes.conf, rtol=1e-6)


def test_an_image_by_token_has_each_patch_in_a_row():
    image = jnp.arange(2 * 32 * 48).reshape(2, 32, 48)
    assert np.array_equal(by_token(image, 16)[1, 4], np.asarray(image)[1, 16:, 16:32].ravel())  # row 1, column 1 of 2 × 3 tokens


def test_sums_do_not_depend_on_the_order_of_the_pixels():
    random = np.random.default_rng(2)
    preds = [{"pts3d": random.standard_normal((2, *size, 3)), "conf": 1 + random.uniform(size=(2, *size))} for size in SIZES]
    pose = np.tile(np.eye(4), (2, 1, 1))
    targets = tuple(Target(random.standard_normal((2, *size, 3)), pose, random.uniform(size=(2, *size)) > 0.2) for size in SIZES)
    preds, targets = jax.tree.map(lambda leaf: jnp.asarray(leaf, None if leaf.dtype == bool else jnp.float32), (preds, targets))
    planes, truth = [planes_of(pred) for pred in preds], normalised_truth(targets)
    usual = confidence_sums(planes, truth)
    other = confidence_sums(*jax.tree.map(lambda plane: by_token(plane, 16), (planes, truth)))
    np.testing.assert_allclose(other, usual, rtol=1e-5)


def plainly(params, x, config: ProbeConfig):
    """The MLP with its norm and first layer one after the other."""
    x = x - x.mean(-1, keepdims=True)
    x = x / jnp.sqrt((x**2).mean(-1, keepdims=True) + config.norm_epsilon)
    x = x * params["norm0"]["scale"] + params["norm0"]["bias"]
    for number in range(5):
        layer = params[f"linear{number}"]
        x = x @ layer["kernel"] + layer["bias"]
        x = jax.nn.gelu(x, approximate=False) if number < 4 else x
    return x


def test_a_folded_norm_gives_the_same_outputs_and_gradients():
    config, params = probe()
    rows = tokens()[0].reshape(-1, 32)
    weights = jax.random.normal(jax.random.key(0), (len(rows), 1024))

    def value_and_gradient(mlp):
        return jax.jit(jax.value_and_grad(lambda params: jnp.sum(mlp(params) * weights)))(params)

    folded, gradient = value_and_gradient(lambda params: run_mlp(params, rows, config.groups[0], config))
    plain, expected = value_and_gradient(lambda params: plainly(params, rows, config))
    assert float(folded) == pytest.approx(float(plain), rel=1e-5)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        other = expected[path[0].key][path[1].key]
        assert np.linalg.norm(leaf - other) <= 1e-5 * np.linalg.norm(other), path


def test_a_default_probes_gradient_takes_no_product_for_tokens_that_need_none():
    """Forwards five products with all tokens, backwards five for the weights and four for the layers' inputs."""
    config, params = probe()
    rows = tokens()[0].reshape(-1, 32)
    gradient = jax.grad(lambda params: jnp.sum(run_mlp(params, rows, config.groups[0], config, lax.Precision.HIGHEST)))
    products = [eqn for eqn in jax.make_jaxpr(gradient)(params).jaxpr.eqns if eqn.primitive.name == "dot_general"]
    with_all_tokens = [eqn for eqn in products if len(rows) in (*eqn.invars[0].aval.shape, *eqn.invars[1].aval.shape)]
    assert len(with_all_tokens) == 14
