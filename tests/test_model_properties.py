"""What must hold of the model whatever its weights are."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.golden_cases import relative_error
from und3rstand_jax.model.backbone import Backbone
from und3rstand_jax.model.dust3r.config import BackboneConfig
from und3rstand_jax.model.families import backbone_module
from und3rstand_jax.probes.config import ProbeConfig, ProbeGroup
from und3rstand_jax.probes.probes import PointmapProbes, Probes
from und3rstand_jax.support.errors import LayerError, UserError

pytestmark = pytest.mark.quick

LINEAR = BackboneConfig(
    img_size=(64, 64), enc_embed_dim=32, enc_depth=2, enc_num_heads=2, dec_embed_dim=16, dec_depth=4, dec_num_heads=2, head_type="linear"
)
DPT = dataclasses.replace(LINEAR, head_type="dpt")
SIZES = ((48, 32), (32, 64))


def views(sizes=SIZES, batch=2):
    keys = jax.random.split(jax.random.key(3), 2)
    return [jax.random.uniform(key, (batch, *size, 3), minval=-1.0) for key, size in zip(keys, sizes, strict=True)]


def random_params(shapes, seed=0):
    """Kernels of size 1/√fan_in, norm scales near 1, biases near 0 but not 0: with zeros several mistakes would not show."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        kind, noise = path[-1].key, rng.standard_normal(leaf.shape).astype(np.float32)
        stacked = path[1].key.startswith("blocks")
        fan_in = np.prod(leaf.shape[1 if stacked else 0 : -1])
        return noise / np.sqrt(fan_in) if kind == "kernel" else 1 + 0.1 * noise if kind == "scale" else 0.05 * noise

    return jax.tree_util.tree_map_with_path(draw, shapes)


@functools.cache
def backbone(config, **options):
    shapes = jax.eval_shape(backbone_module(config).init, jax.random.key(0), *views(((32, 32), (32, 32)), 1))["params"]
    return Backbone(backbone_module(config, **options), random_params(shapes))


def outputs(out):
    """(layer or output, view) -> array."""
    tokens = {(layer, view): out[layer][view] for layer in out for view in (0, 1)}
    preds = {(name, view): pred[name] for view, pred in enumerate((out.pred1, out.pred2)) if pred for name in pred}
    return tokens | preds


def assert_same(one, other, tolerance=1e-5):
    one, other = outputs(one), outputs(other)
    assert one.keys() == other.keys()
    far = {key: error for key in one if not (error := relative_error(one[key], other[key])) <= tolerance}
    assert far == {}


@pytest.mark.parametrize("config", [LINEAR, pytest.param(DPT, marks=pytest.mark.slow)], ids=["linear", "dpt"])
def test_swapping_the_views_and_the_decoders_swaps_the_outputs(config):
    model, (view1, view2) = backbone(config), views()
    params = dict(model.params)
    params["head1"], params["head2"] = params["head2"], params["head1"]
    decoder = params["decoder"]
    params["decoder"] = decoder | {"blocks1": decoder["blocks2"], "blocks2": decoder["blocks1"]}
    swapped = Backbone(model.module, params)
    straight = outputs(model(view1, view2, capture="*", head=True))
    for (name, view), value in outputs(swapped(view2, view1, capture="*", head=True)).items():
        assert relative_error(value, straight[name, 1 - view]) < 1e-5, (name, view)


def test_the_views_have_decoders_of_their_own():
    model, (view1, _) = backbone(LINEAR), views()
    out = model(view1, view1, capture="decoder.0.self_attn,decoder.embed")
    np.testing.assert_array_equal(*out["decoder.embed"])
    assert relative_error(*out["decoder.0.self_attn"]) > 0.01


@pytest.mark.parametrize("sizes", [SIZES, pytest.param(((32, 48), (32, 48)), marks=pytest.mark.slow)], ids=["mixed", "equal"])
def test_a_batch_equals_its_samples(sizes):
    model, pair = backbone(DPT), views(sizes, batch=3)
    whole = outputs(model(*pair, capture="*", head=True))
    for i in range(3):
        for key, value in outputs(model(*(view[i : i + 1] for view in pair), capture="*", head=True)).items():
            assert relative_error(value[0], whole[key][i]) < 1e-5, (i, key)


def test_channels_first_images_are_taken_too():
    model, pair = backbone(LINEAR), views()
    first = [jnp.transpose(view, (0, 3, 1, 2)) for view in pair]
    assert_same(model(*first, capture="*", head=True), model(*pair, capture="*", head=True), 0)


CAPTURES = [
    ("decoder.0.self_attn", True),
    ("decoder.2.cross_attn", False),
    ("decoder.*.mlp", True),
    ("encoder.0.*,decoder.3.mlp", False),
    ("encoder.1.self_attn", False),
    ("encoder.norm", True),
    ("decoder.embed", False),
    ("decoder.norm", False),
]


@pytest.mark.parametrize(("capture", "head"), CAPTURES)
def test_what_is_captured_never_changes_what_comes_out(capture, head):
    model, pair = backbone(DPT), views()
    everything = outputs(model(*pair, capture="*", head=True))
    out = model(*pair, capture=capture, head=head)
    assert (out.pred1 is not None) == head
    for key, value in outputs(out).items():
        assert relative_error(value, everything[key]) < 1e-5, key


def test_the_output_holds_exactly_the_layers_asked_for_in_network_order():
    out = backbone(LINEAR)(*views(), capture=["decoder.1.mlp", "encoder.0.*", "decoder.norm"], head=False)
    assert list(out) == ["encoder.0.self_attn", "encoder.0.mlp", "decoder.1.mlp", "decoder.norm"]
    assert [tuple(t.shape for t in out[layer]) for layer in out][1:3] == [((2, 6, 32), (2, 8, 32)), ((2, 6, 16), (2, 8, 16))]
    assert out.image_sizes == SIZES
    with pytest.raises(KeyError, match=r"decoder\.0\.mlp was not captured"):
        out["decoder.0.mlp"]


@pytest.mark.parametrize("config", [LINEAR, pytest.param(DPT, marks=pytest.mark.slow)], ids=["linear", "dpt"])
def test_jitted_unjitted_and_unrolled_agree(config):
    model, pair = backbone(config), views()
    jitted = model(*pair, capture="*", head=True)
    assert_same(model.module.apply({"params": model.params}, *pair, capture="*", head=True), jitted)
    assert_same(backbone(config, unroll=True)(*pair, capture="*", head=True), jitted)


@pytest.mark.parametrize("attention", ["per_head", "xla"])
def test_attention_implementations_agree(attention):
    assert_same(backbone(LINEAR, attention=attention)(*views(), capture="*", head=True), backbone(LINEAR)(*views(), capture="*", head=True))


def test_cudnn_attention_in_float32_is_refused():
    with pytest.raises(UserError, match="cudnn' computes in bfloat16"):
        backbone(LINEAR, attention="cudnn")(*views())


@pytest.mark.slow
def test_gradients_reach_every_parameter_and_are_finite_at_a_zero_prediction():
    model, pair = backbone(LINEAR), views()
    zero_heads = {name: jax.tree.map(jnp.zeros_like, model.params[name]) for name in ("head1", "head2")}

    def loss(params):
        out = model.module.apply({"params": params}, *pair)
        return sum(jnp.sum(pred["pts3d"]) + jnp.sum(pred["conf"]) for pred in (out.pred1, out.pred2))

    gradient = jax.jit(jax.grad(loss))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient(model.params | zero_heads)))
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient(model.params)):
        # A constant added to every key's projection is the same for all keys: softmax takes it out.
        assert np.any(leaf != 0) or "['projk']['bias']" in jax.tree_util.keystr(path), path


# Measured here: 0.013 in the worst layer, 0.016 in the heads' outputs.
BFLOAT16_DISTANCE = {"tokens": 0.02, "heads": 0.03}


def test_bfloat16_trunk_stays_near_float32_and_heads_stay_float32():
    exact = outputs(backbone(DPT)(*views(), capture="*", head=True))
    half = backbone(DPT, dtype=jnp.bfloat16)(*views(), capture="*", head=True)
    assert {half[layer][0].dtype for layer in half} == {jnp.dtype(jnp.bfloat16)}
    assert half.pred1["pts3d"].dtype == half.pred2["conf"].dtype == jnp.float32
    errors = {key: relative_error(value, exact[key]) for key, value in outputs(half).items()}
    assert max(error for (name, _), error in errors.items() if "." in name) < BFLOAT16_DISTANCE["tokens"]
    assert max(error for (name, _), error in errors.items() if "." not in name) < BFLOAT16_DISTANCE["heads"]
    assert min(errors.values()) > 1e-4  # else nothing was computed in bfloat16


GROUP = ProbeGroup(("decoder.1.mlp", "decoder.3.mlp"), (16, 24, 1024), ("linear", "activation", "linear"), (True, True))


def probes(views="shared"):
    module = PointmapProbes(ProbeConfig((GROUP,), views=views))
    features = backbone(LINEAR)(*globals()["views"](), capture=GROUP.layer_ids)
    return Probes(module, jax.jit(module.init)(jax.random.key(7), features)["params"]), features


@pytest.mark.parametrize("kind", ["shared", "separate"])
def test_a_token_probe_output_depends_on_that_token_only(kind):
    module, features = probes(kind)
    before = module(features)
    token = 4  # of 3×2: row 2, column 0
    for view in (0, 1):
        changed = jax.tree.map(lambda x: x, features)
        tokens = list(changed.activations["decoder.3.mlp"])
        tokens[view] = tokens[view].at[1, token].add(1.0)
        changed.activations["decoder.3.mlp"] = tuple(tokens)
        after = module(changed)
        np.testing.assert_array_equal(after[0][view]["pts3d"], before[0][view]["pts3d"])
        np.testing.assert_array_equal(after[1][1 - view]["pts3d"], before[1][1 - view]["pts3d"])
        differs = np.any(np.asarray(after[1][view]["pts3d"] != before[1][view]["pts3d"]), axis=-1)
        columns = SIZES[view][1] // 16
        patch = np.zeros_like(differs)
        row, column = divmod(token, columns)
        patch[1, row * 16 : row * 16 + 16, column * 16 : column * 16 + 16] = True
        np.testing.assert_array_equal(differs, patch)


def test_probes_of_different_layers_are_drawn_differently_and_named_when_missing():
    module, features = probes()
    kernel = module.params["group0"]["linear0"]["kernel"]
    assert relative_error(kernel[0], kernel[1]) > 0.5
    assert np.std(kernel) == pytest.approx(16**-0.5, rel=0.1)  # LeCun: 1/√fan_in, not counting the layers
    with pytest.raises(UserError, match=r"decoder\.3\.mlp; pass them as capture"):
        module(backbone(LINEAR)(*views(), capture="decoder.1.mlp"))
    with pytest.raises(LayerError, match=r"layer decoder\.3\.mlp was not captured; captured: decoder\.1\.mlp; pass it"):
        module.read_layer("decoder.3.mlp", backbone(LINEAR)(*views(), capture="decoder.1.mlp"))
    with pytest.raises(UserError, match="layer decoder.0.mlp has no probe"):
        module.read_layer("decoder.0.mlp", features)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.zeros((48, 32, 3), np.float32), r"found shape \(48, 32, 3\); add a batch axis"),
        (np.zeros((1, 48, 32, 4), np.float32), r"found shape \(1, 48, 32, 4\)"),
        (np.zeros((1, 48, 32, 3), np.uint8), "found uint8: scale 8-bit images"),
        (np.zeros((1, 50, 32, 3), np.float32), "view1 is 50×32; both sides must be multiples of 16"),
        (np.zeros((2, 48, 32, 3), np.float32), "view1 has 2 images and view2 has 1"),
    ],
)
def test_bad_images_are_refused_with_what_was_found(bad, message):
    with pytest.raises(UserError, match=message):
        backbone(LINEAR)(bad, np.zeros((1, 48, 32, 3), np.float32))


def test_an_unknown_layer_lists_near_ones():
    with pytest.raises(UserError, match=r"no layer matches 'decoder.2.crossattn'; the nearest are decoder\.2\.cross_attn"):
        backbone(LINEAR)(*views(), capture="decoder.2.crossattn")
