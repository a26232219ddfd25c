"""A model that takes any number of views: what it computes with two is a pair's, and what with more follows from that."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import und3rstand_jax as u3d
from tests.tiny import NO_PROVENANCE
from und3rstand_jax.checkpoint.format import CheckpointInfo, read_checkpoint_info, write_checkpoint_info
from und3rstand_jax.model.backbone import Backbone, random_backbone
from und3rstand_jax.model.dust3r.config import BackboneConfig
from und3rstand_jax.model.edits import Edits
from und3rstand_jax.model.families import backbone_module
from und3rstand_jax.probes.config import probe_config
from und3rstand_jax.probes.probes import PointmapProbes, init_probes
from und3rstand_jax.support.errors import CheckpointError

CONFIG = BackboneConfig(
    img_size=(32, 48), enc_embed_dim=32, enc_depth=1, enc_num_heads=2, dec_embed_dim=16, dec_depth=2, dec_num_heads=2, head_type="linear",
    max_views=None,
)  # fmt: skip
SIZES = {"same": ((32, 48),) * 4, "mixed": ((32, 48), (48, 32), (32, 32), (16, 48))}


@functools.cache
def model(max_views=None) -> Backbone:
    """With weights at which attention is uneven and tokens differ from view to view."""
    made = random_backbone(dataclasses.replace(CONFIG, max_views=max_views), 3)
    rng = np.random.default_rng(4)
    loud = jax.tree.map(lambda leaf: leaf + jnp.asarray(rng.normal(0, 0.15, leaf.shape), leaf.dtype), made.params)
    return dataclasses.replace(made, params=loud)


@functools.cache
def images(sizes="same"):
    rng = np.random.default_rng(5)
    return tuple(rng.uniform(-1, 1, (2, *size, 3)).astype(np.float32) for size in SIZES[sizes])


def tokens(view, sizes="same"):
    height, width = SIZES[sizes][view]
    return height * width // 256


def points(output):
    return [np.asarray(pred["pts3d"]) for pred in output.pointmaps]


def close(found, expected):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-5)


def test_with_two_views_it_is_the_model_of_pairs_bit_for_bit():
    pair, many = (model(views)(*images()[:2], capture="*", head=True) for views in (2, None))
    for one, other in zip(jax.tree.leaves(pair), jax.tree.leaves(many), strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize("sizes", SIZES)
def test_views_whose_tokens_nobody_may_read_leave_a_pair(sizes):
    one, two, three = (tokens(view, sizes) for view in range(3))
    third = range(two, two + three)  # among view 1's keys, which are view 2's tokens, then view 3's
    hidden = u3d.block_attention("decoder.*.cross_attn", view=1, keys=third)
    hidden += u3d.block_attention("decoder.*.cross_attn", view=2, keys=range(one, one + three))
    found = model()(*images(sizes)[:3], capture="decoder.*", head=True, edits=hidden)
    pair = model()(*images(sizes)[:2], capture="decoder.*", head=True)
    close(points(found)[:2], points(pair))
    for layer in pair:
        close(found[layer][:2], pair[layer])
    # Without the edit they do read it.
    assert np.abs(points(model()(*images(sizes)[:3], head=True))[0] - points(pair)[0]).max() > 1e-3


def test_later_views_may_come_in_any_order():
    one, *others = images()
    straight = model()(one, *others, capture="decoder.1.mlp", head=True)
    turned = model()(one, *others[::-1], capture="decoder.1.mlp", head=True)
    for found, expected in ((points(turned), points(straight)), (turned["decoder.1.mlp"], straight["decoder.1.mlp"])):
        close([found[0], *found[:0:-1]], expected)


def test_the_first_view_has_its_own_decoder_and_head():
    one, two, three = images()[:3]
    straight, turned = points(model()(one, two, three, head=True)), points(model()(two, one, three, head=True))
    assert np.abs(straight[0] - turned[1]).max() > 1e-2 and np.abs(straight[2] - turned[2]).max() > 1e-3


@pytest.mark.parametrize("sizes", SIZES)
def test_weights_are_over_the_tokens_of_all_other_views(sizes):
    output = model()(*images(sizes), capture="decoder.0.cross_attn.weights,decoder.0.self_attn.weights", head=False)
    own = [tokens(view, sizes) for view in range(4)]
    for view, (cross, self_) in enumerate(zip(output["decoder.0.cross_attn.weights"], output["decoder.0.self_attn.weights"], strict=True)):
        assert cross.shape == (2, 2, own[view], sum(own) - own[view]) and self_.shape == (2, 2, own[view], own[view])
        np.testing.assert_allclose(cross.sum(axis=-1), 1, rtol=1e-5)


def test_an_edit_of_view_3_is_of_view_3_alone():
    plain = model()(*images(), capture="decoder.1.*", head=True)
    edited = model()(*images(), capture="decoder.1.*", head=True, edits=u3d.knock_out("decoder.1.mlp.update@3"))
    for view in (0, 1, 3):
        assert np.array_equal(points(plain)[view], points(edited)[view])
    np.testing.assert_allclose(edited["decoder.1.mlp"][2], plain["decoder.1.cross_attn"][2], atol=1e-6)
    shifted = model()(*images(), capture="decoder.1.mlp", head=False, edits=u3d.steer("encoder.0.mlp", np.ones(32), view=3))
    assert all(not np.array_equal(one, other) for one, other in zip(shifted["decoder.1.mlp"], plain["decoder.1.mlp"], strict=True))


def test_all_views_are_each_view():
    every = u3d.knock_out("decoder.0.cross_attn.heads:1")
    each = functools.reduce(Edits.__add__, (u3d.knock_out("decoder.0.cross_attn.heads:1", view=view) for view in (1, 2, 3, 4)))
    assert u3d.knock_out("decoder.0.cross_attn.heads:1", view="both").edits[0].view == "all"
    found, expected = (points(model()(*images(), head=True, edits=edits)) for edits in (every, each))
    assert all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True))


def test_values_of_another_run_take_a_views_place():
    other = model()(*(image[::-1] for image in images()), capture="decoder.0.mlp", head=False)
    patched = model()(*images(), capture="decoder.0.mlp", head=False, edits=u3d.patch_from(other, "decoder.0.mlp@3"))
    assert np.array_equal(patched["decoder.0.mlp"][2], other["decoder.0.mlp"][2])
    with pytest.raises(u3d.EditError, match="the other run has 4 views, 1 to 4; found view 5"):
        u3d.patch_from(other, "decoder.0.mlp", view=5)


@pytest.mark.parametrize("layer", ["encoder.0.self_attn", "encoder.norm", "decoder.0.cross_attn", "decoder.1.mlp"])
def test_a_pass_may_begin_at_a_layer(layer):
    whole = model()(*images("mixed"), capture="decoder.norm", head=True)
    before = model()(*images("mixed"), capture=u3d.start_layers(layer, CONFIG), head=False)
    after = model()(start=before, capture="decoder.norm", head=True)
    close(points(after), points(whole))
    close(after["decoder.norm"], whole["decoder.norm"])
    with pytest.raises(u3d.OptionError, match="this model takes two views; found 4"):
        model(2)(start=before)


@pytest.mark.parametrize(
    ("most", "given", "message"),
    [
        (2, 3, "takes two views; found 3"),
        (2, 1, "takes two views; found 1"),
        (None, 1, "takes two views or more; found 1"),
        (3, 4, "up to 3; found 4"),
    ],
)
def test_other_numbers_of_views_are_refused(most, given, message):
    with pytest.raises(u3d.OptionError, match=message):
        model(most)(*images()[:given])
    with pytest.raises(u3d.OptionError, match=message):
        model(most).resolve(u3d.knock_out("decoder.0.mlp"), images()[:given])


def test_views_that_do_not_exist_are_not_edited():
    with pytest.raises(u3d.EditError, match=r"'decoder\.0\.mlp': there are 3 views, 1 to 3; found view 4"):
        model()(*images()[:3], edits=u3d.knock_out("decoder.0.mlp", view=4))
    with pytest.raises(u3d.EditError, match="there are 2 views, 1 to 2; found view 3"):
        model(2)(*images()[:2], edits=u3d.knock_out("decoder.0.mlp@3"))


def test_a_checkpoint_keeps_how_many_views_its_model_takes(tmp_path):
    for most in (2, None, 5):
        folder = tmp_path / str(most)
        folder.mkdir()
        config = dataclasses.replace(CONFIG, max_views=most)
        write_checkpoint_info(folder, CheckpointInfo(config, None, {"backbone": NO_PROVENANCE}, {"backbone": {}}))
        assert read_checkpoint_info(folder).backbone == config
    with pytest.raises(u3d.ConfigError, match="max_views must be 2 or more, or None"):
        dataclasses.replace(CONFIG, max_views=1)
    assert repr(CONFIG) == repr(dataclasses.replace(CONFIG, max_views=2)), "runs of earlier versions are found again"


def test_a_checkpoint_of_an_earlier_version_takes_two_views(tmp_path):
    write_checkpoint_info(tmp_path, CheckpointInfo(CONFIG, None, {"backbone": NO_PROVENANCE}, {"backbone": {}}))
    file = tmp_path / "config.json"
    from und3rstand_jax.checkpoint.format import sealed

    file.write_text(sealed(file.read_text().replace('"max_views": null', '"came_later": 1')))
    assert read_checkpoint_info(tmp_path).backbone == dataclasses.replace(CONFIG, max_views=2)
    file.write_text(sealed(file.read_text().replace('"came_later": 1', '"max_views": "many"')))
    with pytest.raises(CheckpointError, match="max_views"):
        read_checkpoint_info(tmp_path)


@functools.cache
def probes(views="shared", count=3):
    config = probe_config(CONFIG, ("decoder.0.mlp", "decoder.1.mlp"), hidden=8, depth=2, views=views, view_count=count)
    return PointmapProbes(config), init_probes(config, 7)


def test_one_mlp_reads_every_view_as_it_reads_one():
    module, params = probes()
    output = model()(*images("mixed"), capture="decoder.*.mlp", head=False)
    found = module.apply({"params": params}, output)
    assert [len(views) for views in found] == [4, 4]
    pair = module.apply({"params": params}, u3d.BackboneOutput({k: v[1:3] for k, v in output.items()}, output.image_sizes[1:3]))
    for of_layer, of_pair in zip(found, pair, strict=True):
        for one, other in zip(of_layer[1:3], of_pair, strict=True):
            np.testing.assert_allclose(one["pts3d"], other["pts3d"], rtol=1e-5, atol=1e-6)


def test_each_view_may_have_an_mlp_of_its_own():
    module, params = probes("separate")
    assert params["group0"]["linear0"]["kernel"].shape == (2, 3, 16, 8)
    output = model()(*images()[:3], capture="decoder.*.mlp", head=False)
    found = module.apply({"params": params}, output)
    alone, _ = probes()
    for view in range(3):
        own = jax.tree.map(lambda leaf, view=view: leaf[:, view], params)
        expected = alone.apply({"params": own}, output)
        for layer in range(2):
            np.testing.assert_allclose(found[layer][view]["pts3d"], expected[layer][view]["pts3d"], rtol=1e-5, atol=1e-6)
    with pytest.raises(u3d.OptionError, match="an MLP for each of 3 views; found 4"):
        module.apply({"params": params}, model()(*images(), capture="decoder.*.mlp", head=False))


def test_the_program_grows_with_the_views_and_not_with_their_pairs():
    def flops(count):
        module = backbone_module(CONFIG, unroll=True)
        views = [jax.ShapeDtypeStruct((1, 32, 48, 3), np.float32)] * count
        params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), model().params)
        program = jax.jit(lambda params, *views: module.apply({"params": params}, *views, capture="encoder.norm", head=False))
        return program.lower(params, *views).compile().cost_analysis()["flops"]

    two, four = flops(2), flops(4)
    assert four == pytest.approx(2 * two, rel=0.02)
