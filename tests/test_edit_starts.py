"""Passes that begin at a captured layer, with edits there and behind it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import und3rstand_jax as u3d
from tests.edit_cases import SMALL, model, neutral, plain, small
from tests.test_attention_weights import SIZES, TINY, views
from tests.test_model_properties import DPT, assert_same, backbone
from und3rstand_jax.model.edits import Edit, Edits
from und3rstand_jax.model.output import BackboneOutput

pytestmark = pytest.mark.quick


def given(whole, layer, config, head=True):
    """What a pass from this layer on needs of a whole one."""
    return BackboneOutput({name: whole[name] for name in u3d.start_layers(layer, config, head)}, whole.image_sizes)


def rest_of(whole, out):
    """Of a whole pass, what another pass has captured too."""
    return BackboneOutput({name: whole[name] for name in out}, whole.image_sizes, whole.pointmaps)


def later(layer, config):
    layers = config.layer_ids
    return layers[layers.index(layer) :]


@functools.cache
def small_pass():
    return jax.device_get(small()(*views(), capture="*", head=True))


STARTS = ("encoder.0.self_attn", "encoder.norm", "decoder.0.mlp", "decoder.1.self_attn")
BEHIND = (
    u3d.knock_out("decoder.1.cross_attn.heads:1") + u3d.skip("decoder.1.mlp", 2) + u3d.block_attention("decoder.1.cross_attn", keys=[0])
)


@pytest.mark.slow
@pytest.mark.parametrize("layer", STARTS)
def test_a_pass_from_a_layer_on_is_the_rest_of_the_whole_pass_with_edits_of_that_layer_and_behind_it(layer):
    at_starts = {start: Edits((Edit(start, 1, tokens=[2], scale=0.5, shift=1),)) for start in STARTS}
    edits = sum((edits if start == layer else neutral(edits) for start, edits in at_starts.items()), BEHIND)
    whole, before = small()(*views(), capture="*", head=True, edits=edits), small_pass()
    out = small()(start=given(before, layer, SMALL), capture=later(layer, SMALL), head=True, edits=at_starts[layer] + BEHIND)
    assert list(out) == list(later(layer, SMALL)) and out.image_sizes == SIZES["mixed"]
    assert_same(out, rest_of(whole, out))
    np.testing.assert_allclose(out[layer][0][:, 2], 0.5 * before[layer][0][:, 2] + 1, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(out[layer][1], before[layer][1])


LAST = u3d.steer("decoder.norm", 1.5, 2, tokens=[1]) + Edits((Edit("decoder.norm", scale=0.5),))
"""Edits that lie behind every other layer."""


@functools.cache
def whole_passes(config, sizes):
    """Without edits, and with the last ones."""
    return [backbone(config)(*views(SIZES[sizes]), capture="*", head=True, edits=edits) for edits in (None, LAST)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "sizes", "layer"),
    # All of the small model; of the other, whose head reads several layers, those at both ends of them.
    [(TINY, "mixed", layer) for layer in TINY.layer_ids]
    + [(DPT, "equal", layer) for layer in ("encoder.0.mlp", "decoder.1.mlp", "decoder.2.mlp")],
)
def test_a_pass_from_any_layer_on_is_the_rest_of_the_whole_pass(config, sizes, layer):
    whole, edited = whole_passes(config, sizes)
    out = backbone(config)(start=given(whole, layer, config), capture=later(layer, config), head=True, edits=LAST)
    assert_same(out, rest_of(edited, out))


@pytest.mark.slow
def test_a_pass_begins_at_the_last_layer_that_an_earlier_pass_captured():
    layer = "decoder.0.cross_attn"
    before = small()(*views(), capture=u3d.start_layers(layer, SMALL), head=False)
    assert list(before) == ["decoder.embed", layer]
    out = small()(start=before, capture=["decoder.embed", "decoder.1.mlp", layer], head=True)
    assert list(out) == ["decoder.embed", layer, "decoder.1.mlp"]
    assert_same(out, rest_of(small_pass(), out))
    for name in before:
        np.testing.assert_array_equal(out[name][1], before[name][1])


@pytest.mark.slow
def test_a_bfloat16_pass_goes_on_from_its_own_tokens():
    half = backbone(TINY, dtype=jnp.bfloat16)
    whole = half(*views(), capture="*", head=True)
    out = half(start=given(whole, "decoder.1.mlp", TINY), capture="decoder.2.mlp", head=True)
    assert out["decoder.2.mlp"][0].dtype == jnp.bfloat16
    assert_same(out, rest_of(whole, out), 0.01)


@pytest.mark.parametrize(
    ("layer", "head", "expected"),
    [
        ("encoder.0.self_attn", True, ["encoder.0.self_attn"]),
        ("encoder.norm", True, ["encoder.norm"]),
        ("decoder.embed", True, ["encoder.norm", "decoder.embed"]),
        ("decoder.0.cross_attn", False, ["decoder.embed", "decoder.0.cross_attn"]),
        ("decoder.3.self_attn", True, ["encoder.norm", "decoder.1.mlp", "decoder.2.mlp", "decoder.3.self_attn"]),
        ("decoder.2.mlp", True, ["encoder.norm", "decoder.1.mlp", "decoder.2.mlp"]),
        ("decoder.2.mlp", False, ["decoder.2.mlp"]),
        ("decoder.norm", True, ["encoder.norm", "decoder.1.mlp", "decoder.2.mlp", "decoder.norm"]),
    ],
)
def test_what_to_capture_for_a_start_is_the_layer_what_its_block_reads_and_what_the_head_reads(layer, head, expected):
    assert list(u3d.start_layers(layer, DPT, head)) == expected


def only(*layers):
    return BackboneOutput({layer: plain()[layer] for layer in layers}, SIZES["mixed"])


MISSING = [
    (
        ["decoder.1.self_attn"],
        {},
        r"from decoder\.1\.self_attn on needs decoder\.0\.mlp too, .*capture decoder\.0\.mlp, decoder\.1\.self_attn",
    ),
    (["decoder.0.cross_attn"], {}, r"needs decoder\.embed too, .*capture decoder\.embed, decoder\.0\.cross_attn"),
    (
        ["decoder.1.mlp"],
        {"capture": "decoder.0.mlp"},
        r"decoder\.0\.mlp comes before the start, decoder\.1\.mlp, and was not captured; captured: decoder\.1\.mlp",
    ),
    (["decoder.1.mlp"], {"capture": "decoder.1.mlp.update"}, r"decoder\.1\.mlp\.update comes before the start"),
    (["decoder.1.mlp"], {"capture": "decoder.1.self_attn.weights:0"}, r"decoder\.1\.self_attn\.weights:0 comes before the start"),
    (
        [],
        {"edits": u3d.skip("decoder.1.mlp")},
        "expected a start with a captured layer of this model to begin at; captured: none",
    ),
    ([], {}, r"expected a start with a captured layer of this model to begin at; captured: none"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("layers", "options", "message"), MISSING)
def test_a_start_without_what_is_needed_is_refused_with_what_to_capture(layers, options, message):
    with pytest.raises(u3d.LayerError, match=message):
        model()(start=only(*layers), **options)


def test_a_start_without_the_layers_that_the_head_reads_is_refused():
    grids = [np.zeros((1, 6, DPT.dec_embed_dim), np.float32)] * 2
    start = BackboneOutput({"decoder.3.mlp": tuple(grids)}, SIZES["equal"])
    with pytest.raises(
        u3d.LayerError, match=r"(encoder\.norm|decoder\.[12]\.mlp) comes before the start, decoder\.3\.mlp, and was not captured"
    ):
        backbone(DPT)(start=start, head=True)
    with pytest.raises(u3d.LayerError, match=r"no layer matches 'decoder\.9\.mlp'"):
        u3d.start_layers("decoder.9.mlp", TINY)


@pytest.mark.parametrize("site", ["encoder.norm", "decoder.0.cross_attn.heads", "decoder.1.self_attn.update", "decoder.1.self_attn.scores"])
def test_an_edit_before_the_start_is_refused(site):
    with pytest.raises(u3d.EditError, match=rf"an edit of {site} comes before the start, decoder\.1\.self_attn, and would change nothing"):
        model()(start=only("decoder.0.mlp", "decoder.1.self_attn"), edits=Edits((Edit(site, scale=0.5),)))


@pytest.mark.parametrize("edits", [None, u3d.skip("decoder.2.mlp")], ids=["unedited", "edited"])
def test_images_and_a_start_exclude_each_other_and_one_of_them_is_needed(edits):
    go, start = model(), only("decoder.1.mlp")
    for images in (views(), views()[:1]):
        with pytest.raises(u3d.OptionError, match="takes no images"):
            go(*images, start=start, edits=edits)
    with pytest.raises(u3d.OptionError, match="takes the views' images, or start="):
        go(edits=edits)
    with pytest.raises(u3d.OptionError, match="this model takes two views; found 1"):
        go(*views()[:1], edits=edits)


@pytest.mark.usefixtures("unchecked")
def test_a_start_of_another_shape_is_refused():
    tokens = plain()["decoder.1.mlp"]
    for wrong in (tokens[0], tokens[1][..., :16], tokens[1][:1]):
        start = BackboneOutput({"decoder.1.mlp": (tokens[0], wrong)}, SIZES["mixed"])
        with pytest.raises(
            u3d.EditError, match=r"start: expected tokens of decoder\.1\.mlp, view 2, of shape \(2, 8, 32\); found \(\d, \d, \d+\)"
        ):
            model()(start=start)
