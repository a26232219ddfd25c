"""Attention weights as captures: against their definition, against PyTorch, and what they cost."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import und3rstand_jax as u3d
from tests.conversion import converted
from tests.golden_cases import relative_error
from tests.make_checkpoint import save_hub_folder
from tests.tiny import CONFIG, backbone_tensors
from tests.with_torch import needs_torch
from und3rstand_jax.model import blocks
from und3rstand_jax.model.backbone import Backbone
from und3rstand_jax.model.dust3r.config import BackboneConfig
from und3rstand_jax.model.dust3r.module import DUSt3R
from und3rstand_jax.model.layer_ids import select_layers
from und3rstand_jax.model.sites import select_captures
from und3rstand_jax.support.errors import UserError

TINY = BackboneConfig(
    img_size=(64, 64), enc_embed_dim=48, enc_depth=2, enc_num_heads=3, dec_embed_dim=32, dec_depth=3, dec_num_heads=4, head_type="linear"
)
FULL = BackboneConfig()
SIZES = {"mixed": ((48, 32), (32, 64)), "equal": ((32, 48), (32, 48))}
EVERYTHING = "*,*.weights"


def views(sizes=SIZES["mixed"], batch=2):
    rng = np.random.default_rng(1)
    return [rng.uniform(-1, 1, (batch, *size, 3)).astype(np.float32) for size in sizes]


@functools.cache
def params():
    """Kernels large enough that attention prefers some tokens: near-equal weights would hide mistakes."""
    shapes = jax.eval_shape(DUSt3R(TINY).init, jax.random.key(0), *views(((32, 32), (32, 32)), 1))["params"]
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        noise = rng.standard_normal(leaf.shape).astype(np.float32)
        kind, stacked = path[-1].key, path[1].key.startswith("blocks")
        fan_in = math.prod(leaf.shape[1 if stacked else 0 : -1])
        return 1.5 * noise / np.sqrt(fan_in) if kind == "kernel" else 1 + 0.1 * noise if kind == "scale" else 0.3 * noise

    return jax.tree_util.tree_map_with_path(draw, shapes)


@functools.cache
def captured(capture, sizes="mixed", **options):
    return jax.device_get(Backbone(DUSt3R(TINY, **options), params())(*views(SIZES[sizes]), capture=capture, head=False))


# The definition, in float64: softmax((R q)(R k)ᵀ/√D), R the rotation by the tokens' places.


def double(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


def norm(x, p):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]


def dense(x, p):
    return x @ p["kernel"] + p["bias"]


def heads_first(x, heads):
    return x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2)


def rotated(x, grid):
    """Each half of a head's channels as complex numbers, turned by position · base^(−2i/D')."""
    half = x.shape[-1] // 2
    y, x_place = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
    speeds = TINY.rope_base ** (-np.arange(0, half, 2) / half)
    parts = []
    for channels, places in ((x[..., :half], y), (x[..., half:], x_place)):
        turned = (channels[..., : half // 2] + 1j * channels[..., half // 2 :]) * np.exp(1j * np.outer(places, speeds))
        parts += [turned.real, turned.imag]
    return np.concatenate(parts, -1)


def softmax(x):
    raised = np.exp(x - x.max(-1, keepdims=True))
    return raised / raised.sum(-1, keepdims=True)


def block_of(layer, view):
    stack, index, _ = layer.split(".")
    name = "blocks" if stack == "encoder" else f"blocks{view + 1}"
    return double(jax.tree.map(lambda leaf: leaf[int(index)], params()[stack][name]))


def stream_before(out, layer):
    stack, index, step = layer.split(".")
    before = {"self_attn": f"{stack}.{int(index) - 1}.mlp", "cross_attn": f"{stack}.{index}.self_attn"}[step]
    return double(out["decoder.embed" if before == "decoder.-1.mlp" else before])


def defined(out, layer, view):
    """(weights, values, output projection) of one attention of one view, computed from the streams before it."""
    heads = TINY.enc_num_heads if layer.startswith("encoder") else TINY.dec_num_heads
    grids = [(height // 16, width // 16) for height, width in out.image_sizes]
    block, x = block_of(layer, view), stream_before(out, layer)[view]
    if layer.endswith("self_attn"):
        of, tokens = view, norm(x, block["norm1"])
        query, key, value = np.split(dense(tokens, block["attn"]["qkv"]), 3, -1)
        project = block["attn"]["proj"]
    else:
        of, part = 1 - view, block["cross_attn"]
        other = norm(stream_before(out, layer.replace("cross", "self"))[of], block["norm_y"])
        query, key, value = dense(norm(x, block["norm2"]), part["projq"]), dense(other, part["projk"]), dense(other, part["projv"])
        project = part["proj"]
    query, key = rotated(heads_first(query, heads), grids[view]), rotated(heads_first(key, heads), grids[of])
    return softmax(query @ key.swapaxes(-1, -2) / np.sqrt(query.shape[-1])), heads_first(value, heads), project


ATTENTIONS = ("encoder.1.self_attn", "decoder.0.self_attn", "decoder.0.cross_attn", "decoder.2.self_attn", "decoder.2.cross_attn")


@pytest.mark.parametrize("sizes", SIZES)
def test_weights_are_those_of_the_definition(sizes):
    out = captured(EVERYTHING, sizes)
    for layer in ATTENTIONS:
        for view in (0, 1):
            found, (expected, *_) = out[f"{layer}.weights"][view], defined(out, layer, view)
            assert found.shape == expected.shape and found.dtype == np.float32
            np.testing.assert_allclose(found, expected, atol=3e-6, err_msg=f"{layer} view {view + 1}")
            assert expected.max() > 2 / expected.shape[-1]  # some tokens are preferred


def test_an_attention_adds_its_weights_times_the_values():
    out = captured(EVERYTHING)
    for layer in ATTENTIONS:
        for view in (0, 1):
            _, value, project = defined(out, layer, view)
            mixed = double(out[f"{layer}.weights"][view]) @ value
            added = dense(mixed.swapaxes(1, 2).reshape(*mixed.shape[0:1], mixed.shape[2], -1), project)
            np.testing.assert_allclose(out[layer][view] - stream_before(out, layer)[view], added, atol=2e-5, err_msg=layer)


def test_weights_of_both_views_have_rows_of_one_view_over_columns_of_the_one_read():
    out = captured(EVERYTHING)  # 6 tokens and 8
    assert [w.shape for w in out["encoder.0.self_attn.weights"]] == [(2, 3, 6, 6), (2, 3, 8, 8)]
    assert [w.shape for w in out["decoder.2.self_attn.weights"]] == [(2, 4, 6, 6), (2, 4, 8, 8)]
    assert [w.shape for w in out["decoder.2.cross_attn.weights"]] == [(2, 4, 6, 8), (2, 4, 8, 6)]
    for name in (name for name in out if name.endswith(".weights")):
        for weights in out[name]:
            np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-6)
            assert weights.min() >= 0


@needs_torch
def test_weights_are_those_of_pytorch(tmp_path, monkeypatch):
    import torch

    from tests.torch_reference import backbone as reference

    found = []

    def recording(q, k, v):
        found.append(((q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5).softmax(-1))
        return found[-1] @ v

    monkeypatch.setitem(reference.ATTENTION, "plain", recording)
    images = [view.transpose(0, 3, 1, 2) for view in views()]
    for dtype in (torch.float64, torch.float32):
        model = reference.load_reference(CONFIG, backbone_tensors()).to(dtype)
        with torch.no_grad():
            model(*(torch.from_numpy(image).to(dtype) for image in images))
    backbone = u3d.load_backbone(converted(save_hub_folder(tmp_path / "hub", backbone_tensors(), CONFIG), tmp_path / "jax"))
    ours = backbone(*images, capture="*.weights", head=False)
    # PyTorch runs view 1's whole block before view 2's; ours lists both views of each attention.
    order = [("encoder", 0, 0, "self"), ("encoder", 0, 1, "self"), ("encoder", 1, 0, "self"), ("encoder", 1, 1, "self")]
    order += [("decoder", i, view, kind) for i in range(2) for view in (0, 1) for kind in ("self", "cross")]
    exact, single = found[: len(order)], found[len(order) :]
    assert len(order) == len(single) == 2 * len(ours)
    for (stack, index, view, kind), expected, torch_float32 in zip(order, exact, single, strict=True):
        weights = ours[f"{stack}.{index}.{kind}_attn.weights"][view]
        bar = max(3 * relative_error(torch_float32, expected), 2e-6)
        assert relative_error(weights, expected) <= bar, (stack, index, view, kind)


@pytest.mark.optimised
@pytest.mark.parametrize("sizes", SIZES)
def test_capturing_weights_changes_the_stream_by_rounding_alone(sizes):
    # Bit for bit on jax 0.10; on 0.12, where XLA compiles a program with other outputs to other sums, up to 2.4e-7 was seen.
    with_weights, without = (captured.__wrapped__(capture, sizes) for capture in (EVERYTHING, "*"))
    assert [name for name in with_weights if not name.endswith(".weights")] == list(without)
    for layer in without:
        for view in (0, 1):
            assert relative_error(with_weights[layer][view], without[layer][view]) < 1e-6, (layer, view)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"unroll": True}, {"attention": "xla"}], ids=["unrolled", "xla"])
def test_weights_do_not_depend_on_how_the_model_is_run(options):
    usual, other = captured(EVERYTHING), captured("*.cross_attn.weights", **options)
    for name in other:
        for view in (0, 1):
            np.testing.assert_allclose(other[name][view], usual[name][view], atol=3e-6, err_msg=name)


def test_weights_of_a_bfloat16_trunk_are_normalised_in_float32():
    usual, half = captured(EVERYTHING), captured(EVERYTHING, dtype=jnp.bfloat16)
    assert half["decoder.2.mlp"][0].dtype == jnp.bfloat16
    for name in (name for name in half if name.endswith(".weights")):
        for view in (0, 1):
            assert half[name][view].dtype == np.float32
            np.testing.assert_allclose(half[name][view].sum(-1), 1, atol=1e-6)
            assert 1e-5 < np.abs(half[name][view] - usual[name][view]).max() < 0.2


GROUPS = "decoder.1.cross_attn.weights:1-2,decoder.1.cross_attn.weights:03,decoder.[01].self_attn.weights:0-0,encoder.1.self_attn.weights"


def test_a_group_holds_the_heads_it_names_under_its_normalised_id():
    usual, out = captured(EVERYTHING), captured(GROUPS)
    self_attention = [f"decoder.{i}.self_attn.weights:0" for i in (0, 1)]
    cross_attention = ["decoder.1.cross_attn.weights:1-2", "decoder.1.cross_attn.weights:3"]
    assert list(out) == ["encoder.1.self_attn.weights", *self_attention, *cross_attention]
    for name in out:
        whole, _, heads = name.partition(":")
        kept = {"": slice(None), "0": [0], "1-2": [1, 2], "3": [3]}[heads]
        for view in (0, 1):
            np.testing.assert_allclose(out[name][view], usual[whole][view][:, kept], atol=1e-6, err_msg=name)


def test_the_output_is_a_pytree_that_keeps_ids_and_order():
    out = captured(GROUPS)
    doubled = jax.tree.map(lambda leaf: 2 * leaf, out)
    assert list(doubled) == list(out) and len(jax.tree.leaves(out)) == 2 * len(out)
    np.testing.assert_array_equal(doubled["decoder.1.cross_attn.weights:3"][1], 2 * out["decoder.1.cross_attn.weights:3"][1])
    with pytest.raises(KeyError, match=r"decoder\.1\.cross_attn\.weights:0 was not captured; captured: .*weights:1-2"):
        out["decoder.1.cross_attn.weights:0"]


def traced(capture, head=False):
    """The program of a capture with its blocks written out, not compiled."""
    module = DUSt3R(TINY, unroll=True, attention="xla")
    return jax.make_jaxpr(lambda p, a, b: module.apply({"params": p}, a, b, capture=capture, head=head))(params(), *views())


def products(capture):
    return str(traced(capture)).count("dot_general[")


@pytest.mark.slow
def test_weights_cost_queries_keys_and_their_products_and_nothing_behind_them():
    # Per view: q, k and q·kᵀ; the attention itself is q, k, v, q·kᵀ, w·v and the projection.
    assert products("decoder.2.cross_attn.weights") - products("decoder.2.self_attn") == 2 * 3
    assert products("decoder.2.cross_attn") - products("decoder.2.self_attn") == 2 * 6
    assert products("decoder.2.self_attn.weights") - products("decoder.1.mlp") == 2 * 2  # q, k and v are one product here
    assert products("encoder.1.self_attn.weights") - products("encoder.0.mlp") == 2 * 2
    # Beside the stream, one product more a view and group.
    assert products("decoder.2.*,decoder.2.cross_attn.weights") - products("decoder.2.*") == 2
    assert products("decoder.2.*,decoder.2.cross_attn.weights:0,decoder.2.cross_attn.weights:2") - products("decoder.2.*") == 4


def test_only_the_heads_asked_for_are_computed(monkeypatch):
    shapes = []
    compute = blocks.attention_scores
    monkeypatch.setattr(blocks, "attention_scores", lambda *args: shapes.append((w := compute(*args)).shape) or w)
    traced("decoder.1.cross_attn.weights:1-3,decoder.2.mlp")
    assert shapes == [(2, 3, 6, 8), (2, 3, 8, 6)]


def test_nothing_is_computed_that_was_not_asked_for(monkeypatch):
    def never(*args):
        raise AssertionError("attention weights were computed")

    monkeypatch.setattr(blocks, "attention_scores", never)
    names = [aval.shape for aval in traced("*", head=True).out_avals]
    assert len(names) == 2 * len(TINY.layer_ids) + 4  # tokens of both views, and points and confidence of both
    with pytest.raises(AssertionError, match="were computed"):
        traced("decoder.0.self_attn.weights:0")


def test_initialising_with_a_capture_of_weights_draws_every_parameter():
    init = functools.partial(DUSt3R(TINY).init, capture="decoder.0.cross_attn.weights:0", head=True)
    assert jax.tree.structure(jax.eval_shape(init, jax.random.key(0), *views())["params"]) == jax.tree.structure(params())


def every_weight():
    encoder = [f"encoder.{i}.self_attn.weights" for i in range(24)]
    return (*encoder, *(f"decoder.{i}.{step}_attn.weights" for i in range(12) for step in ("self", "cross")))


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ("*.weights", every_weight()),
        ("decoder.1[01].cross_attn.weights:0", ("decoder.10.cross_attn.weights:0", "decoder.11.cross_attn.weights:0")),
        (
            ["decoder.3.cross_attn", "decoder.3.cross_attn.weights:10-11", "decoder.3.cross_attn.weights:2", "decoder.3.*.weights"],
            (
                "decoder.3.self_attn.weights",
                "decoder.3.cross_attn.weights",
                "decoder.3.cross_attn.weights:2",
                "decoder.3.cross_attn.weights:10-11",
                "decoder.3.cross_attn",
            ),
        ),
        ("encoder.0.self_attn.weights:15, encoder.0.self_attn.weights:015-15", ("encoder.0.self_attn.weights:15",)),
        ("", ()),
    ],
)
def test_selection_is_in_network_order_without_repeats_and_selects_itself(patterns, expected):
    assert select_captures(patterns, FULL) == expected == select_captures(expected, FULL)


@pytest.mark.parametrize("patterns", ["all", "*", "decoder.*", "decoder.3.*", "decoder.*.cross_attn*", "*attn*", "encoder.?.[sm]*"])
def test_layer_patterns_match_layers_alone(patterns):
    assert select_captures(patterns, FULL) == select_layers(patterns, FULL.layer_ids)
    assert not any("weights" in name for name in select_captures(patterns, FULL))


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (
            "decoder.12.cross_attn.weights",
            r"no attention map matches 'decoder\.12\.cross_attn\.weights'; the nearest are .*decoder\.1\d?\.cross_attn\.weights.*"
            r"48 attention maps here: encoder\.0\.self_attn\.weights … decoder\.11\.cross_attn\.weights",
        ),
        ("decoder.3.mlp.weights:0", "no attention map matches 'decoder.3.mlp.weights:0'; the nearest are decoder.3"),
        ("encoder.3.cross_attn.weights", "the nearest are encoder.3.self_attn.weights|the nearest are .*cross_attn.weights"),
        ("decoder.3.cross_attn.weights:12", r"asks for heads that decoder\.3\.cross_attn\.weights does not have: there are 12, 0 to 11"),
        ("*.weights:8-15", r"that decoder\.0\.self_attn\.weights does not have: there are 12, 0 to 11"),
        ("decoder.3.cross_attn.weights:3-1", "heads are written :H, or :H-K with H ≤ K, counted from 0 .* found ':3-1'"),
        ("decoder.3.cross_attn.weights:", "found ':'"),
        ("decoder.3.cross_attn.weights:-1", "found ':-1'"),
        ("decoder.3.cross_attn.weights:a", "found ':a'"),
        ("decoder.3.cross_attn.weight", "no layer matches 'decoder.3.cross_attn.weight'; the nearest are decoder.3.cross_attn"),
    ],
)
def test_what_there_is_not_is_refused_with_what_there_is(pattern, message):
    with pytest.raises(UserError, match=message):
        select_captures(pattern, FULL)


@pytest.mark.parametrize("pattern", ["decoder.3.cross_attn.weights", "decoder.3.cross_attn.weights:0-3"])
def test_weights_are_no_layer_that_a_probe_could_read(pattern):
    with pytest.raises(UserError, match=r"no layer matches 'decoder\.3\.cross_attn\.weights.*the nearest are .*decoder\.3\.cross_attn"):
        select_layers(pattern, FULL.layer_ids)
