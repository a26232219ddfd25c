"""What must hold of edited runs whatever the weights are, and what is refused."""

import dataclasses
import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import und3rstand_jax as u3d
from tests.golden_cases import relative_error
from tests.test_attention_weights import SIZES, TINY, defined, dense, double, params, softmax, stream_before, views
from tests.test_model_properties import DPT, assert_same, backbone, outputs
from und3rstand_jax.model import backbone as backbones
from und3rstand_jax.model.backbone import Backbone
from und3rstand_jax.model.dust3r import DUSt3R
from und3rstand_jax.model.edit_files import edits_to_json
from und3rstand_jax.model.edits import Edit, Edits
from und3rstand_jax.model.output import BackboneOutput

BLOCKED = -math.inf
INSIDE = "*,*.scores,*.weights,*.heads,*.update"
SMALL = dataclasses.replace(TINY, enc_depth=1, dec_depth=2)


@functools.cache
def small_params(left_out=((1,), (2,))):
    """The parameters without some blocks of the encoder and of the decoders."""
    blocks = dict(zip(("encoder", "decoder"), left_out, strict=True))
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: np.delete(leaf, blocks[path[0].key], 0) if path[1].key.startswith("blocks") else leaf, params()
    )


def model(**options):
    return Backbone(DUSt3R(TINY, **options), params())


def small():
    return Backbone(DUSt3R(SMALL), small_params())


def run(edits=None, capture="*", sizes="mixed", head=False, **options):
    return jax.device_get(model(**options)(*views(SIZES[sizes]), capture=capture, head=head, edits=edits))


def neutral(edits):
    """Edits that run the same program and change nothing."""
    numbers = ({"scale": np.ones(np.shape(edit.scale)), "shift": np.zeros(np.shape(edit.shift))} for edit in edits)
    return Edits(tuple(dataclasses.replace(edit, **one) for edit, one in zip(edits, numbers, strict=True)))


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def apart(one, other):
    """(site, view) -> how far two runs are from each other there."""
    one, other = outputs(one), outputs(other)
    return {key: relative_error(one[key], other[key]) for key in one}


# What is captured

EVERYWHERE = (
    u3d.block_attention("decoder.1.cross_attn", keys=[1, 2])
    + Edits((Edit("encoder.1.self_attn.scores", scale=0.5, shift=numbers(3, 1, 1)),))
    + Edits((Edit("decoder.1.self_attn.scores", 2, queries=[3], scale=2),))
    + Edits((Edit("decoder.*.cross_attn.heads:0-2", scale=-0.5, shift=0.1),))
    + Edits((Edit("*.mlp.update", tokens=[0, 4], shift=numbers(2, 1)), Edit("decoder.0.self_attn", 1, scale=0.5)))
)


@functools.cache
def plain():
    return run(None, INSIDE, head=True)


@pytest.mark.parametrize("edited", [False, True], ids=["unedited", "edited"])
def test_what_is_inside_a_block_fits_together_and_with_its_definition(edited):
    out = run(EVERYWHERE, INSIDE) if edited else plain()
    for layer in ("encoder.1.self_attn", "decoder.1.self_attn", "decoder.1.cross_attn"):
        for view in (0, 1):
            scores, weights, heads, update = (double(out[f"{layer}.{part}"][view]) for part in ("scores", "weights", "heads", "update"))
            np.testing.assert_allclose(weights, softmax(scores), atol=1e-6)
            expected, values, project = defined(out, layer, view)
            mixed = (weights @ values).swapaxes(1, 2)
            if edited and "cross" in layer:
                mixed[:, :, :3] = -0.5 * mixed[:, :, :3] + 0.1
            np.testing.assert_allclose(heads, mixed, atol=1e-5)
            np.testing.assert_allclose(update, dense(heads.reshape(*heads.shape[:2], -1), project), atol=2e-5)
            np.testing.assert_allclose(double(out[layer][view]) - stream_before(out, layer)[view], update, atol=1e-5)
            if not edited:
                np.testing.assert_allclose(weights, expected, atol=3e-6)
    for layer, before in (("encoder.0.mlp", "encoder.0.self_attn"), ("decoder.2.mlp", "decoder.2.cross_attn")):
        for view in (0, 1):
            np.testing.assert_allclose(out[f"{layer}.update"][view], out[layer][view] - out[before][view], atol=1e-5)
    assert {out[name][0].dtype for name in out} == {np.dtype(np.float32)}


def test_a_group_of_heads_is_those_heads():
    layer = "encoder.0.self_attn"
    groups = {"scores:0-1": np.s_[:, :2], "weights:0-1": np.s_[:, :2], "heads:0-1": np.s_[:, :, :2], "heads:2": np.s_[:, :, 2:]}
    out = run(capture=[f"{layer}.{group}" for group in reversed(groups)])
    assert list(out) == [f"{layer}.{group}" for group in groups]
    for group, of_heads in groups.items():
        for view in (0, 1):
            whole = plain()[f"{layer}.{group.partition(':')[0]}"][view]
            np.testing.assert_allclose(out[f"{layer}.{group}"][view], whole[of_heads], atol=1e-5)


@pytest.mark.parametrize("options", [{"unroll": True}, {"attention": "xla"}], ids=["unrolled", "xla"])
@pytest.mark.slow
def test_edits_do_not_depend_on_how_the_model_is_run(options):
    capture = INSIDE.replace("*.scores,", "")  # some are −∞
    assert_same(run(EVERYWHERE, capture, **options), run(EVERYWHERE, capture))


# What edits mean. All of these are one program, in which one of them is made and the others are neutral.

VECTORS = numbers(2, 2, TINY.dec_embed_dim)  # for each image and token its own
MEAN = numbers(TINY.dec_embed_dim // TINY.dec_num_heads, seed=1)
PAIRS, HEADS_OF_PAIRS = [(0, 3), (0, 5), (4, 7)], (1, 3)
SCORES = numbers(2, 4, 1, 8, seed=2)
EDITS = {
    "encoder_head": u3d.knock_out("encoder.1.self_attn.heads", heads=[2]),
    "self_head_of_view_1": u3d.knock_out("decoder.1.self_attn.heads:1", 1),
    "self_heads_of_view_2": u3d.knock_out("decoder.0.self_attn.heads@2", heads=[0, 3]),
    "cross_head_of_view_1": u3d.knock_out("decoder.0.cross_attn.heads:3@1"),
    "cross_heads_of_view_2": u3d.knock_out("decoder.2.cross_attn.heads", 2, heads=[1, 2]),
    "mean": u3d.replace("decoder.1.cross_attn.heads", MEAN, 2, heads=[2]),
    "vectors": u3d.steer("decoder.0.cross_attn", VECTORS, 2, tokens=(7, 0)),
    "pairs": u3d.block_attention("decoder.1.cross_attn", 1, HEADS_OF_PAIRS, pairs=PAIRS),
    "scores": Edits((Edit("decoder.2.cross_attn.scores", 1, scale=0.5, shift=SCORES),))
    + u3d.block_attention("decoder.2.cross_attn@1", heads=[0, 2], keys=[3]),
    "encoder_stream": u3d.steer("encoder.1.mlp", numbers(TINY.enc_embed_dim), 2),
    "embed": Edits((Edit("decoder.embed", 2, tokens=[3], scale=-1, shift=0.5),)),
    "block": u3d.knock_out("decoder.0.mlp", 2, tokens=[0, 7]),
    "update": u3d.skip("decoder.1.self_attn", 2),
}


@functools.cache
def made(name=None):
    """The run in which one of the edits is made, or none."""
    edits = sum((edits if name == other else neutral(edits) for other, edits in EDITS.items()), Edits())
    return run(edits, INSIDE, head=True)


def test_neutral_edits_change_nothing():
    assert_same(made(), plain())


BLIND = [
    ("encoder_head", "encoder.1.self_attn", "blocks", (2,)),
    ("self_head_of_view_1", "decoder.1.self_attn", "blocks1", (1,)),
    ("self_heads_of_view_2", "decoder.0.self_attn", "blocks2", (0, 3)),
    ("cross_head_of_view_1", "decoder.0.cross_attn", "blocks1", (3,)),
    ("cross_heads_of_view_2", "decoder.2.cross_attn", "blocks2", (1, 2)),
]


@pytest.mark.parametrize(("name", "layer", "blocks", "heads"), BLIND, ids=[name for name, *_ in BLIND])
def test_a_head_knocked_out_is_one_that_the_projection_does_not_read(name, layer, blocks, heads):
    stack, index, step = layer.split(".")
    place = [stack, blocks, {"self_attn": "attn", "cross_attn": "cross_attn"}[step], "proj", "kernel"]
    width = TINY.layer_width(layer) // (TINY.enc_num_heads if stack == "encoder" else TINY.dec_num_heads)

    def without_rows(path, leaf):
        if [part.key for part in path] != place:
            return leaf
        kept = np.array(leaf)
        for head in heads:
            kept[int(index), head * width : (head + 1) * width] = 0
        return kept

    blind = jax.tree_util.tree_map_with_path(without_rows, params())
    expected = Backbone(DUSt3R(TINY), blind)(*views(), capture="*", head=True)
    ours = made(name)
    assert_same(BackboneOutput({layer: ours[layer] for layer in expected}, ours.image_sizes, ours.pred1, ours.pred2), expected)
    assert max(apart(ours, plain()).values()) > 0.01


def test_a_block_whose_sublayers_are_skipped_is_a_block_less():
    fewer = Backbone(DUSt3R(SMALL), small_params((0, 1)))(*views(), capture="*", head=True)
    skipped = run(u3d.skip("encoder.0.*") + u3d.skip("decoder.1.*"), head=True)
    here = {"encoder.0": "encoder.1", "decoder.1": "decoder.2"}
    layers = {layer: layer.replace(block, here.get(block, block)) for layer in fewer for block in [layer.rpartition(".")[0]]}
    renamed = BackboneOutput({layer: skipped[ours] for layer, ours in layers.items()}, skipped.image_sizes, skipped.pred1, skipped.pred2)
    assert_same(renamed, fewer)


def test_where_all_keys_but_one_are_blocked_every_head_is_the_value_of_that_key():
    layers = ("encoder.1.self_attn", "decoder.1.self_attn", "decoder.1.cross_attn")
    own, open_keys = (6, 8), (2, 4)  # of view 1's queries and of view 2's
    edits = Edits()
    for layer in layers:
        for view, count in enumerate(own[::-1] if "cross" in layer else own):
            blocked = [key for key in range(count) if key != open_keys[view]]
            # Two edits of one site act both.
            edits += u3d.block_attention(layer, view + 1, keys=blocked[:2]) + u3d.block_attention(f"{layer}@{view + 1}", keys=blocked[2:])
    out = run(edits, INSIDE)
    for layer in layers:
        for view, key in enumerate(open_keys):
            weights, heads = out[f"{layer}.weights"][view], out[f"{layer}.heads"][view]
            np.testing.assert_array_equal(weights, np.broadcast_to(np.arange(weights.shape[-1]) == key, weights.shape))
            _, values, _ = defined(out, layer, view)
            np.testing.assert_allclose(heads, np.broadcast_to(values[:, :, key][:, None], heads.shape), atol=2e-5)


def test_blocked_pairs_lose_their_weight_to_the_other_keys_of_their_query():
    ours, before = made("pairs")["decoder.1.cross_attn.weights"], made()["decoder.1.cross_attn.weights"]
    expected = before[0].copy()
    for head in HEADS_OF_PAIRS:
        for query, key in PAIRS:
            expected[:, head, query, key] = 0
    np.testing.assert_allclose(ours[0], expected / expected.sum(-1, keepdims=True), atol=2e-6)
    assert [ours[0][:, head, query, key].any() for head in HEADS_OF_PAIRS for query, key in PAIRS] == [False] * 6
    np.testing.assert_array_equal(ours[1], before[1])


REACH = [
    ("encoder_stream", "encoder.1.mlp", "decoder.0.cross_attn"),
    ("embed", "decoder.embed", "decoder.0.cross_attn"),
    ("self_heads_of_view_2", "decoder.0.self_attn", "decoder.1.cross_attn"),
    ("vectors", "decoder.0.cross_attn", "decoder.1.cross_attn"),
    ("block", "decoder.0.mlp", "decoder.1.cross_attn"),
    ("update", "decoder.1.self_attn", "decoder.2.cross_attn"),
]


@pytest.mark.parametrize(("name", "edited", "reached"), REACH, ids=[name for name, *_ in REACH])
def test_an_edit_in_view_2_reaches_view_1_from_the_next_pairs_cross_attention_on(name, edited, reached):
    changed = apart(made(name), made())
    for view, start in ((0, reached), (1, edited)):
        first = TINY.layer_ids.index(start)
        assert {changed[layer, view] for layer in TINY.layer_ids[:first]} == {0}
        assert min(changed[layer, view] for layer in TINY.layer_ids[first:]) > 1e-4


def test_a_mean_ablation_puts_the_mean_in_place_of_one_head():
    layer, out, before = "decoder.1.cross_attn", made("mean"), made()
    expected = before[f"{layer}.heads"][1].copy()
    expected[:, :, 2] = MEAN
    np.testing.assert_array_equal(out[f"{layer}.heads"][1], expected)
    np.testing.assert_array_equal(out[f"{layer}.heads"][0], before[f"{layer}.heads"][0])
    added = dense(double(expected).reshape(*expected.shape[:2], -1), defined(out, layer, 1)[2])
    np.testing.assert_allclose(out[f"{layer}.update"][1], added, atol=2e-5)


def test_a_vector_steers_the_tokens_it_is_added_to():
    ours, before = made("vectors")["decoder.0.cross_attn"], made()["decoder.0.cross_attn"]
    np.testing.assert_allclose(ours[1][:, [7, 0]], before[1][:, [7, 0]] + VECTORS, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(ours[1][:, 1:7], before[1][:, 1:7])
    np.testing.assert_array_equal(ours[0], before[0])


def test_scores_are_captured_as_edited():
    ours, before = made("scores")["decoder.2.cross_attn.scores"], made()["decoder.2.cross_attn.scores"]
    expected = 0.5 * before[0] + SCORES
    expected[:, [0, 2], :, 3] = BLOCKED
    np.testing.assert_allclose(ours[0], expected, atol=1e-6)
    np.testing.assert_array_equal(ours[1], before[1])
    assert before[0].min() < 0 < before[0].max()


def test_edits_of_different_sites_or_places_commute_and_those_of_one_place_act_in_order():
    site = "encoder.0.mlp"
    elsewhere = u3d.knock_out("encoder.0.self_attn.heads:1") + u3d.steer(site, 2.0, 2) + u3d.steer(site, 1.0, tokens=[3], view=1)
    double_it, add = Edits((Edit(site, 1, tokens=[0, 2], scale=2),)), u3d.steer(site, 3.0, 1, tokens=[0, 1])
    turned = double_it + Edits(tuple(reversed(tuple(elsewhere)))) + add
    assert_same(run(elsewhere + double_it + add, site), run(turned, site), 0)
    quiet = neutral(elsewhere)
    edits = {"none": neutral(double_it + add), "double_add": double_it + add, "add_double": add + double_it}
    before, first, other = (run(quiet + one, site)[site][0] for one in edits.values())
    np.testing.assert_allclose(first[:, 0], 2 * before[:, 0] + 3, rtol=1e-6)
    np.testing.assert_allclose(other[:, 0], 2 * (before[:, 0] + 3), rtol=1e-6)
    np.testing.assert_allclose(first[:, [1, 2]], np.stack([before[:, 1] + 3, 2 * before[:, 2]], 1), rtol=1e-6)
    np.testing.assert_array_equal(first[:, 3:], before[:, 3:])


def test_patching_a_run_from_itself_changes_nothing():
    edits = u3d.patch_from(plain(), "encoder.norm", 1) + u3d.patch_from(plain(), "decoder.0.mlp", tokens=[5, 2])
    edits += u3d.patch_from(plain(), "decoder.1.cross_attn.update@2") + u3d.patch_from(plain(), "decoder.1.self_attn.heads")
    edits += u3d.patch_from(plain(), "encoder.0.self_attn.update", tokens=[1]) + u3d.patch_from(plain(), "decoder.2.cross_attn.scores", 2)
    before = plain()
    assert_same(run(edits, head=True), BackboneOutput({name: before[name] for name in TINY.layer_ids}, *vars_of(before)))


def vars_of(out):
    return out.image_sizes, out.pred1, out.pred2


def test_a_patch_puts_the_other_runs_values_in_place_and_leaves_the_rest():
    images, layer, heads = [view[::-1] for view in views()], "encoder.0.mlp", "encoder.1.self_attn.heads"
    other = jax.device_get(model()(*images, capture=f"{layer},{heads}:1-2,encoder.norm", head=False))
    first = BackboneOutput({"encoder.norm": tuple(x[:1] for x in other["encoder.norm"])}, other.image_sizes)
    edits = (
        u3d.patch_from(other, layer, 2, tokens=[6, 1]) + u3d.patch_from(other, f"{heads}:1-2", 1) + u3d.patch_from(first, "encoder.norm")
    )
    ours, before = (run(one, f"{layer},{heads},encoder.norm") for one in (edits, neutral(edits)))
    expected = before[layer][1].copy()
    expected[:, [1, 6]] = other[layer][1][:, [1, 6]]
    np.testing.assert_array_equal(ours[layer][1], expected)
    np.testing.assert_array_equal(ours[layer][0], before[layer][0])
    np.testing.assert_array_equal(ours[heads][0][:, :, 1:3], other[f"{heads}:1-2"][0])
    np.testing.assert_array_equal(ours[heads][0][:, :, :1], before[heads][0][:, :, :1])
    for view in (0, 1):  # a batch of one is put into both
        np.testing.assert_array_equal(ours["encoder.norm"][view], np.repeat(first["encoder.norm"][view], 2, 0))
    with pytest.raises(KeyError, match=r"decoder\.2\.mlp\.update was not captured; captured are: encoder\.0\.mlp, "):
        u3d.patch_from(other, "decoder.2.mlp.update")
    with pytest.raises(u3d.EditError, match=r"'encoder\.0\.mlp', view 1: there are 6 tokens.*; found \[6, 7\]"):
        u3d.patch_from(other, "encoder.0.mlp", tokens=[0, 6, 7])  # view 2 has 8
    with pytest.raises(u3d.EditError, match="not another one than view=1"):
        u3d.patch_from(other, "encoder.0.mlp@2", view=1)


ALONE = {
    "scores": Edits((Edit("encoder.0.self_attn.scores", 2, keys=[3], scale=-0.5, shift=0.75),)),
    "heads": Edits((Edit("encoder.0.self_attn.heads", 2, tokens=[3], scale=-0.5, shift=0.75),)),
    "update": Edits((Edit("encoder.1.mlp.update", 2, tokens=[3], scale=-0.5, shift=0.75),)),
    "layer": Edits((Edit("encoder.0.mlp", 2, tokens=[3], scale=-0.5, shift=0.75),)),
}


@pytest.mark.parametrize("name", ALONE)
def test_in_the_encoder_a_view_is_edited_alone_also_where_both_go_as_one_batch(name):
    def encoded(images, made, view):
        edits = sum((edits if made == other else neutral(edits) for other, edits in ALONE.items()), Edits())
        edits = Edits(tuple(dataclasses.replace(edit, view=view) for edit in edits))
        return model()(*images, capture="encoder.*", head=False, edits=edits)

    images = views(SIZES["equal"])
    edited = encoded(images, name, 2)
    changed = apart(edited, encoded(images, None, 2))
    assert {error for (_, view), error in changed.items() if view == 0} == {0}
    assert changed["encoder.norm", 1] > 1e-3
    as_both = encoded([images[1]] * 2, name, "both")
    for view in (0, 1):
        assert relative_error(as_both["encoder.norm"][view], edited["encoder.norm"][1]) < 1e-5


# Edits as a pytree, and as part of the program


def test_edits_add_up_in_order():
    one, two, three = u3d.knock_out("decoder.1.mlp"), u3d.skip("decoder.0.mlp", 2), u3d.steer("decoder.1.mlp", 1.0)
    assert [edit.site for edit in one + two + three] == ["decoder.1.mlp", "decoder.0.mlp.update", "decoder.1.mlp"]
    assert [edit.shift for edit in one + three] == [0.0, 1.0] and len(Edits() + one) == 1 and list(Edits()) == []


def test_heads_and_view_may_stand_behind_the_site():
    edits = u3d.knock_out("decoder.*.cross_attn.heads:0-2@2") + u3d.block_attention("decoder.3.cross_attn:1@1", keys=[0])
    edits += u3d.skip("encoder.0.mlp@1") + u3d.knock_out("decoder.0.mlp@2", view=2)
    assert [(edit.site, edit.view, edit.heads) for edit in edits] == [
        ("decoder.*.cross_attn.heads", 2, (0, 1, 2)),
        ("decoder.3.cross_attn.scores", 1, (1,)),
        ("encoder.0.mlp.update", 1, None),
        ("decoder.0.mlp", 2, None),
    ]


STEERING = numbers(TINY.dec_embed_dim)


def differentiable(head=0.75, steering=STEERING, score=0.9):
    """Edits that depend on numbers, and a blocked key at one of their sites."""
    edits = Edits((Edit("decoder.0.cross_attn.heads:1", 2, scale=head),)) + u3d.steer("decoder.0.mlp", steering, 1, tokens=[1, 4])
    return edits + u3d.block_attention("decoder.1.self_attn", keys=[0]) + Edits((Edit("decoder.1.self_attn.scores", scale=score),))


@jax.jit
def loss(edits, gain=1.0):
    """A number made of everything that the edits lead to."""
    images = [gain * view for view in views(SIZES["equal"])]
    out = DUSt3R(SMALL).apply({"params": small_params()}, *images, capture="decoder.1.mlp", head=True, edits=edits)
    values = (*out["decoder.1.mlp"], out.pred1["pts3d"], jnp.log(out.pred2["conf"]))
    return sum(jnp.mean(x * numbers(*x.shape, seed=9)) for x in values)


def test_gradients_of_scales_and_shifts_are_those_of_differences():
    gradient = jax.jit(jax.grad(loss))(differentiable())
    assert isinstance(gradient, Edits) and [edit.site for edit in gradient] == [edit.site for edit in differentiable()]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))  # of the blocked key too
    direction = numbers(TINY.dec_embed_dim, seed=5)
    along = {
        "head": (lambda step: {"head": 0.75 + step}, gradient.edits[0].scale),
        "steering": (lambda step: {"steering": STEERING + step * direction}, direction @ np.asarray(gradient.edits[1].shift)),
        "score": (lambda step: {"score": 0.9 + step}, gradient.edits[3].scale),
    }
    for name, (moved, expected) in along.items():
        above, below = (float(loss(differentiable(**moved(step)))) for step in (0.02, -0.02))
        assert (above - below) / 0.04 == pytest.approx(float(expected), rel=0.02, abs=5e-6), name
        assert abs(expected) > 1e-4, name


@pytest.mark.slow
def test_gradients_go_through_numbers_that_make_edits_and_through_images_and_parameters():
    of_edits = jax.jit(jax.grad(loss))(differentiable()).edits[0].scale
    of_number = jax.grad(lambda scale: loss(differentiable(head=scale)))(0.75)
    assert float(of_number) == pytest.approx(float(of_edits), rel=1e-4)
    above, below = (float(loss(differentiable(), 1 + step)) for step in (0.01, -0.01))
    assert (above - below) / 0.02 == pytest.approx(float(jax.grad(loss, argnums=1)(differentiable(), 1.0)), rel=0.05, abs=2e-5)

    images = views(SIZES["equal"])

    def of_params(values, remat):
        out = DUSt3R(SMALL, remat=remat).apply({"params": values}, *images, capture="decoder.1.mlp", edits=differentiable())
        return jnp.mean(out["decoder.1.mlp"][0] ** 2) + jnp.mean(out.pred2["pts3d"] ** 2)

    usual, again = (jax.jit(jax.grad(functools.partial(of_params, remat=remat)))(small_params()) for remat in (False, True))
    for (path, one), other in zip(jax.tree_util.tree_leaves_with_path(usual), jax.tree.leaves(again), strict=True):
        assert np.isfinite(one).all(), path
        # The bias of keys has none but rounding.
        assert np.linalg.norm(one - other) <= 1e-4 * np.linalg.norm(one) + 1e-4, path


def test_a_batch_of_edits_is_each_by_itself():
    def edits(scale, vector):
        return Edits((Edit("decoder.0.cross_attn.heads:2", 1, scale=scale),)) + u3d.steer("decoder.0.mlp", vector, tokens=[3])

    def last(edits):
        return small()(*views(SIZES["equal"]), capture="decoder.*.mlp", head=False, edits=edits)

    scales, vectors = np.array([0, 0.5, -1], np.float32), numbers(3, TINY.dec_embed_dim)
    by_numbers = jax.vmap(lambda scale, vector: last(edits(scale, vector)))(scales, vectors)
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *(edits(*both) for both in zip(scales, vectors, strict=True)))
    as_pytree = jax.vmap(last)(stacked)
    for number, one in enumerate(last(edits(*both)) for both in zip(scales, vectors, strict=True)):
        for together in (by_numbers, as_pytree):
            assert_same(BackboneOutput({name: tuple(x[number] for x in together[name]) for name in together}, one.image_sizes), one)
    assert apart(one, last(neutral(edits(1.0, vectors[0]))))["decoder.1.mlp", 0] > 0.01


def test_images_may_be_traced_while_they_are_edited():
    def encoded(view1, view2):
        return small()(view1, view2, capture="encoder.norm", head=False, edits=u3d.skip("encoder.0.mlp"))["encoder.norm"][0]

    np.testing.assert_allclose(jax.jit(encoded)(*views()), encoded(*views()), atol=1e-5)


FIRST = "encoder.0.self_attn"
SAME_PROGRAM = {
    "heads": [u3d.knock_out(f"{FIRST}.heads", 2, heads=heads) for heads in ([0], [1], [1, 2])],
    "tokens_and_vectors": [u3d.steer(FIRST, numbers(*shape), 1, tokens=tokens) for shape, tokens in (((48,), [1]), ((2, 48), [0, 5]))],
    "keys": [u3d.block_attention(FIRST, 1, keys=keys) for keys in ([0], [2, 4, 5])],
    "pairs": [u3d.block_attention(FIRST, pairs=pairs) for pairs in ([(0, 1)], [(2, 3), (5, 1)])],
    "numbers": [Edits((Edit(FIRST, 2, scale=scale),)) for scale in (0, 0.5, np.float64(2), jnp.float32(3), np.ones(1))],
    "knocked_out_or_steered": [u3d.knock_out(FIRST, 2, tokens=[0]), u3d.steer(FIRST, 2.0, 2, tokens=[4, 5])],
    "once_or_twice": [u3d.skip(FIRST, 1), u3d.skip(FIRST, 1) + u3d.steer(f"{FIRST}.update", 1.0, 1)],
}
ANOTHER_PROGRAM = [
    (None, FIRST),
    (u3d.skip(FIRST), FIRST),
    (u3d.knock_out(f"{FIRST}.heads"), FIRST),
    (u3d.skip(FIRST, 2), FIRST),
    (u3d.skip(FIRST, tokens=[0]), FIRST),
    (u3d.skip(FIRST), f"{FIRST}.update"),
]


def programs_run(runs):
    """How many programs are compiled for these (edits, capture)."""
    backbones._apply.clear_cache()
    for edits, capture in runs:
        model()(*views(SIZES["equal"]), capture=capture, head=False, edits=edits)
    return backbones._apply._cache_size()


@pytest.mark.parametrize("what", SAME_PROGRAM)
def test_other_places_and_numbers_run_the_same_program(what):
    assert programs_run([(edits, FIRST) for edits in SAME_PROGRAM[what]]) == 1


def test_other_sites_views_kinds_of_places_and_captures_are_other_programs():
    assert programs_run(ANOTHER_PROGRAM) == len(ANOTHER_PROGRAM)


def traced(edits, capture, head=False):
    def forward(values):
        return DUSt3R(TINY).apply({"params": values}, *views(SIZES["equal"]), capture=capture, head=head, edits=edits)

    return str(jax.make_jaxpr(forward)(params()))


def test_without_edits_and_with_edits_behind_all_that_is_needed_the_program_is_the_same():
    assert traced(None, "*", head=True) == traced(Edits(), "*", head=True)
    behind = u3d.knock_out("decoder.0.cross_attn.heads") + u3d.steer("decoder.norm", 3.0) + u3d.skip("decoder.2.mlp")
    behind += u3d.block_attention("decoder.0.cross_attn", keys=[0])
    assert traced(None, "decoder.0.self_attn") == traced(behind, "decoder.0.self_attn")
    assert traced(None, "decoder.0.cross_attn") != traced(behind, "decoder.0.cross_attn")


# Passes that begin at a layer


def given(whole, layer, config, head=True):
    """What a pass from this layer on needs of a whole one."""
    return BackboneOutput({name: whole[name] for name in u3d.start_layers(layer, config, head)}, whole.image_sizes)


def rest_of(whole, out):
    """Of a whole pass, what another pass has captured too."""
    return BackboneOutput({name: whole[name] for name in out}, whole.image_sizes, whole.pred1, whole.pred2)


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
    [(config, sizes, layer) for config, sizes in ((TINY, "mixed"), (DPT, "equal")) for layer in config.layer_ids],
)
def test_a_pass_from_any_layer_on_is_the_rest_of_the_whole_pass(config, sizes, layer):
    whole, edited = whole_passes(config, sizes)
    out = backbone(config)(start=given(whole, layer, config), capture=later(layer, config), head=True, edits=LAST)
    assert_same(out, rest_of(edited, out))


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
        r"decoder\.0\.mlp lies before the start, decoder\.1\.mlp, and is not captured there; captured are: decoder\.1\.mlp",
    ),
    (["decoder.1.mlp"], {"capture": "decoder.1.mlp.update"}, r"decoder\.1\.mlp\.update lies before the start"),
    (["decoder.1.mlp"], {"capture": "decoder.1.self_attn.weights:0"}, r"decoder\.1\.self_attn\.weights:0 lies before the start"),
    (
        [],
        {"edits": u3d.skip("decoder.1.mlp")},
        "expected a start with a captured layer of this model to begin at; captured are: none",
    ),
    ([], {}, r"expected a start with a captured layer of this model to begin at; captured are: none"),
]


@pytest.mark.parametrize(("layers", "options", "message"), MISSING)
def test_a_start_without_what_is_needed_is_refused_with_what_to_capture(layers, options, message):
    with pytest.raises(u3d.LayerError, match=message):
        model()(start=only(*layers), **options)


def test_a_start_without_the_layers_that_the_head_reads_is_refused():
    grids = [np.zeros((1, 6, DPT.dec_embed_dim), np.float32)] * 2
    start = BackboneOutput({"decoder.3.mlp": tuple(grids)}, SIZES["equal"])
    with pytest.raises(
        u3d.LayerError, match=r"(encoder\.norm|decoder\.[12]\.mlp) lies before the start, decoder\.3\.mlp, and is not captured"
    ):
        backbone(DPT)(start=start, head=True)
    with pytest.raises(u3d.LayerError, match=r"no layer matches 'decoder\.9\.mlp'"):
        u3d.start_layers("decoder.9.mlp", TINY)


@pytest.mark.parametrize("site", ["encoder.norm", "decoder.0.cross_attn.heads", "decoder.1.self_attn.update", "decoder.1.self_attn.scores"])
def test_an_edit_before_the_start_is_refused(site):
    with pytest.raises(u3d.EditError, match=rf"an edit of {site} lies before the start, decoder\.1\.self_attn, and would change nothing"):
        model()(start=only("decoder.0.mlp", "decoder.1.self_attn"), edits=Edits((Edit(site, scale=0.5),)))


@pytest.mark.parametrize("edits", [None, u3d.skip("decoder.2.mlp")], ids=["unedited", "edited"])
def test_images_and_a_start_exclude_each_other_and_one_of_them_is_needed(edits):
    go, start = model(), only("decoder.1.mlp")
    for images in (views(), (None, views()[1])):
        with pytest.raises(u3d.OptionError, match="takes no images"):
            go(*images, start=start, edits=edits)
    for images in ((), views()[:1]):
        with pytest.raises(u3d.OptionError, match="both views' images, or start="):
            go(*images, edits=edits)


@pytest.mark.usefixtures("unchecked")
def test_a_start_of_another_shape_is_refused():
    tokens = plain()["decoder.1.mlp"]
    for wrong in (tokens[0], tokens[1][..., :16], tokens[1][:1]):
        start = BackboneOutput({"decoder.1.mlp": (tokens[0], wrong)}, SIZES["mixed"])
        with pytest.raises(
            u3d.EditError, match=r"start: expected tokens of decoder\.1\.mlp, view 2, of shape \(2, 8, 32\); found \(\d, \d, \d+\)"
        ):
            model()(start=start)


# What is refused

MANY_KEYS = list(range(8))
REFUSED = [
    (
        "decoder.1.crossattn.heads",
        {},
        u3d.LayerError,
        r"no head output matches 'decoder\.1\.crossattn\.heads'; the nearest are decoder\.1\.cross_attn\.heads",
    ),
    ("decoder.7.mlp", {}, u3d.LayerError, r"no layer matches 'decoder\.7\.mlp'; the nearest are decoder\.\d\.mlp"),
    ("decoder.0.mlp.scores", {}, u3d.LayerError, r"no attention score matches 'decoder\.0\.mlp\.scores'"),
    (
        "encoder.0.cross_attn.update",
        {},
        u3d.LayerError,
        r"no update matches .*the nearest are encoder\.0\.self_attn\.update|the nearest are .*cross_attn",
    ),
    (
        "decoder.1.cross_attn.heads",
        {"heads": [1, 4]},
        u3d.EditError,
        r"edit 0, 'decoder\.1\.cross_attn\.heads': there are 4 heads, 0 to 3; found \[4\]",
    ),
    ("decoder.1.cross_attn.heads:3-5", {}, u3d.EditError, r"there are 4 heads, 0 to 3; found \[4, 5\]"),
    ("encoder.*.self_attn.heads", {"heads": [3]}, u3d.EditError, "there are 3 heads, 0 to 2"),
    ("decoder.1.mlp", {"tokens": [6], "view": 1}, u3d.EditError, r"there are 6 tokens, 0 to 5; found \[6\]"),
    ("decoder.1.mlp", {"tokens": [7]}, u3d.EditError, "there are 6 tokens"),  # view 2 has 8
    ("decoder.1.cross_attn.scores", {"keys": [8], "view": 1}, u3d.EditError, "there are 8 keys, 0 to 7"),
    ("decoder.1.cross_attn.scores", {"queries": [6], "view": 1}, u3d.EditError, "there are 6 queries, 0 to 5"),
    ("decoder.1.cross_attn.scores", {"pairs": [(1, 6)], "view": 2}, u3d.EditError, r"there are 6 keys, 0 to 5; found \[6\]"),
    ("decoder.1.cross_attn.scores", {"pairs": [(8, 1)], "view": 2}, u3d.EditError, "there are 8 queries, 0 to 7"),
    (
        "decoder.1.mlp",
        {"shift": numbers(31)},
        u3d.EditError,
        r"expected shift to be a number or to broadcast to \(2, 6, 32\); found shape \(1, 1, 31\)",
    ),
    ("decoder.1.mlp", {"scale": numbers(5, 1)}, u3d.EditError, r"expected scale to be .*\(2, 6, 32\); found shape \(1, 5, 1\)"),
    ("decoder.1.mlp", {"shift": numbers(3, 1, 1)}, u3d.EditError, r"broadcast to \(2, 6, 32\); found shape \(3, 1, 1\)"),
    ("decoder.1.mlp", {"shift": numbers(1, 1, 1, 1)}, u3d.EditError, r"broadcast to \(2, 6, 32\); found shape \(1, 1, 1, 1\)"),
    ("decoder.1.mlp", {"shift": numbers(3, 32), "tokens": [0, 1], "view": 2}, u3d.EditError, r"\(2, 2, 32\); found shape \(1, 3, 32\)"),
    ("decoder.1.cross_attn.heads:1", {"shift": numbers(4, 8)}, u3d.EditError, r"\(2, 6, 1, 8\); found shape \(1, 1, 4, 8\)"),
    (
        "decoder.1.cross_attn.scores",
        {"pairs": [(0, 1)], "shift": numbers(2)},
        u3d.EditError,
        r"with pairs, shift must be a number; found an array of shape \(2,\)",
    ),
    ("decoder.1.mlp", {"shift": math.nan}, u3d.EditError, "shift must be finite; found nan"),
    ("decoder.1.mlp", {"shift": np.array([0] * 31 + [math.inf])}, u3d.EditError, "shift must be finite; found inf"),
    ("decoder.1.mlp", {"shift": 1e39}, u3d.EditError, "shift must be finite; found inf"),
    ("decoder.1.mlp", {"scale": math.inf}, u3d.EditError, "scale must be finite; found inf"),
    ("decoder.1.cross_attn.scores", {"scale": math.nan}, u3d.EditError, "scale must be finite; found nan"),
    ("decoder.1.cross_attn.scores", {"scale": BLOCKED, "keys": [1]}, u3d.EditError, "scale must be finite; found -inf"),
    ("decoder.1.cross_attn.scores", {"shift": math.nan, "keys": [1]}, u3d.EditError, "a shift of scores is finite or −∞; found NaN"),
    ("decoder.1.cross_attn.scores", {"shift": math.inf, "keys": [1]}, u3d.EditError, r"a shift of scores is finite or −∞; found \+∞"),
    (
        "decoder.1.cross_attn.heads",
        {"shift": BLOCKED, "heads": [1]},
        u3d.EditError,
        r"shift must be finite; found -inf; −∞ knocks out attention, at \.scores",
    ),
    ("decoder.1.mlp", {"shift": "a lot"}, u3d.EditError, "shift must be a number or an array of numbers; found str"),
    ("decoder.1.mlp", {"scale": None}, u3d.EditError, "scale must be a number or an array of numbers; found NoneType"),
    ("decoder.1.mlp", {"scale": 1j}, u3d.EditError, "scale must be a number or an array of numbers; found complex"),
    (
        "decoder.1.cross_attn.scores",
        {"shift": BLOCKED},
        u3d.EditError,
        r"decoder\.1\.cross_attn\.scores, view 1: every key of every query is blocked",
    ),
    (
        "decoder.1.cross_attn.scores",
        {"shift": BLOCKED, "view": 1, "keys": MANY_KEYS},
        u3d.EditError,
        "view 1: every key of every query is blocked",
    ),
    (
        "decoder.1.cross_attn.scores",
        {"shift": BLOCKED, "heads": [2], "queries": [1, 3]},
        u3d.EditError,
        r"view 1: every key of queries \[1, 3\] is blocked",
    ),
    (
        "decoder.1.cross_attn.scores",
        {"shift": BLOCKED, "view": 1, "pairs": [(4, key) for key in MANY_KEYS]},
        u3d.EditError,
        r"every key of queries \[4\] is blocked",
    ),
]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("site", "fields", "error", "message"), REFUSED)
def test_an_edit_that_does_not_fit_the_model_is_refused_with_what_would(site, fields, error, message):
    edits = Edits((Edit(site, **fields),))
    with pytest.raises(error, match=message):
        model()(*views(), capture="decoder.2.mlp", head=False, edits=edits)
    with pytest.raises(error, match=message):  # not by the bound model alone
        DUSt3R(TINY).apply({"params": params()}, *views(), capture="decoder.0.mlp", head=False, edits=edits)


BLOCK = "decoder.1.self_attn"
TOGETHER = {
    "keys": (
        u3d.block_attention(BLOCK, 1, keys=[0, 1, 2]) + u3d.block_attention(BLOCK, keys=[3, 4, 5]),
        "view 1: every key of every query",
    ),
    "rows": (
        u3d.block_attention(BLOCK, 1, keys=[0, 1, 2, 4, 5]) + u3d.block_attention(BLOCK, 1, pairs=[(2, 3), (5, 3)]),
        r"every key of queries \[2, 5\] is blocked, so that no weights are left; leave one open, or knock out \.heads",
    ),
    "heads": (
        u3d.block_attention(BLOCK, heads=[0, 1], keys=[0, 1, 2]) + u3d.block_attention(f"{BLOCK}:1@1", keys=[3, 4, 5]),
        "view 1: every key of ",
    ),
    "jax": (u3d.block_attention(BLOCK, 1) + u3d.steer(f"{BLOCK}.scores", jnp.ones((6, 6)), 1), "view 1: every key of "),
    "scaled": (
        u3d.block_attention(BLOCK, keys=[1]) + Edits((Edit(f"{BLOCK}.scores", scale=0),)),
        r"edit 1, 'decoder\.1\.self_attn\.scores', view 1: an earlier edit blocks a place with −∞, which this one scales by 0 or less",
    ),
    "turned": (u3d.block_attention(BLOCK, keys=[1]) + Edits((Edit(f"{BLOCK}.scores", keys=[0, 1], scale=-1),)), "scales by 0 or less"),
    "scaled_by_jax": (
        u3d.block_attention(BLOCK, 1, keys=[1]) + Edits((Edit(f"{BLOCK}.scores", 1, scale=jnp.zeros((6, 1))),)),
        "scales by 0 or less",
    ),
}


@pytest.mark.parametrize("case", TOGETHER)
def test_edits_that_together_leave_no_key_or_no_number_are_refused(case):
    edits, message = TOGETHER[case]
    with pytest.raises(u3d.EditError, match=message):
        model()(*views(), capture="decoder.2.mlp", head=False, edits=edits)


def test_a_blocked_place_may_be_edited_once_more():
    edits = u3d.block_attention(FIRST, 1, keys=[1]) + Edits((Edit(f"{FIRST}.scores", 1, scale=0.5, shift=2),))
    edits += Edits((Edit(f"{FIRST}.scores", 1, keys=[0, 2], scale=0),)) + u3d.block_attention(FIRST, 1, keys=[1, 3])
    weights = run(edits, f"{FIRST}.weights")[f"{FIRST}.weights"][0]
    assert (weights[..., [1, 3]] == 0).all()
    np.testing.assert_allclose(weights[..., 0], weights[..., 2], rtol=1e-6)  # both have no score of their own
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-6)


MISPLACED = [
    ("decoder.1.mlp.update", {"heads": [0]}, r"'decoder\.1\.mlp\.update' has no heads to choose; places there are chosen by tokens"),
    ("decoder.1.mlp", {"heads": [0]}, "has no heads to choose"),
    ("decoder.1.cross_attn.scores", {"tokens": [0]}, "has no tokens to choose; places there are chosen by heads, queries, keys, pairs"),
    ("decoder.1.cross_attn.heads", {"keys": [0]}, "has no keys to choose; places there are chosen by heads, tokens"),
    ("decoder.1.cross_attn.heads", {"pairs": [(0, 1)]}, "has no pairs to choose"),
    ("decoder.1.cross_attn.scores", {"pairs": [(0, 1)], "queries": [0]}, "by pairs, or by queries and keys, not by both"),
    ("decoder.1.cross_attn.scores", {"pairs": [(0, 1)], "keys": [0]}, "by pairs, or by queries and keys, not by both"),
    ("decoder.1.cross_attn.scores", {"pairs": [(0, 1, 2)]}, r"pairs are \(query, key\); found \[\(0, 1, 2\)\]"),
    ("decoder.1.cross_attn.scores", {"pairs": [(0, 1), (0, 1)]}, "pairs must name at least one place, and none twice"),
    ("decoder.1.cross_attn.scores", {"pairs": [(0, -1)]}, "pairs are counted from 0 in whole numbers; found -1"),
    ("decoder.1.mlp@3", {}, r"'decoder\.1\.mlp@3': the view behind @ is 1 or 2"),
    ("decoder.1.mlp@", {}, "the view behind @ is 1 or 2"),
    ("decoder.1.mlp@both", {}, "the view behind @ is 1 or 2"),
    ("decoder.1.mlp@1", {"view": 2}, "not another one than view=2"),
    ("decoder.1.mlp", {"view": 3}, 'view must be 1, 2 or "both"; found 3'),
    ("decoder.1.mlp", {"view": "1"}, 'view must be 1, 2 or "both"'),
    ("decoder.1.mlp", {"tokens": [2, 0, 2]}, r"tokens must name at least one place, and none twice; found \[2, 0, 2\]"),
    ("decoder.1.mlp", {"tokens": []}, r"tokens must name at least one place, and none twice; found \[\]"),
    ("decoder.1.cross_attn.heads", {"heads": [-1]}, "heads are counted from 0 in whole numbers; found -1"),
    ("decoder.1.mlp", {"tokens": [1.0]}, r"tokens are counted from 0 in whole numbers; found 1\.0"),
    ("decoder.1.mlp", {"tokens": [True]}, "tokens are counted from 0 in whole numbers; found True"),
    ("", {}, "'' names no site"),
    (" @2", {}, "' @2' names no site"),
    ("decoder.1.cross_attn.heads", {"heads": 0}, r"heads are a list, such as \[0\]; found 0"),
    ("decoder.1.mlp", {"tokens": ["1"]}, "tokens are counted from 0 in whole numbers; found '1'"),
    ("decoder.1.cross_attn.heads:1", {"heads": [0]}, r"names heads, and heads=\[0\] are given too; leave one of them out"),
    (
        "decoder.1.cross_attn.weights",
        {},
        r"weights are not edited, which would leave rows that do not sum to 1; edit decoder\.1\.cross_attn\.scores",
    ),
]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("site", "fields", "message"), MISPLACED)
def test_places_that_a_site_does_not_have_are_refused_before_any_model_is_there(site, fields, message):
    with pytest.raises(u3d.EditError, match=message):
        Edit(site, **fields)


@pytest.mark.parametrize(
    ("site", "message"),
    [("decoder.1.mlp.update:0", "an update is the sum over all heads"), ("decoder.1.cross_attn.heads:2-1", "found ':2-1'")],
)
def test_heads_that_are_not_written_as_heads_are_refused(site, message):
    with pytest.raises(u3d.LayerError, match=message):
        Edit(site)


@pytest.mark.usefixtures("unchecked")
def test_places_may_be_any_whole_numbers():
    edit = Edit("decoder.1.mlp", tokens=np.array([2, 0]))
    assert edit.tokens == (2, 0) and Edit("decoder.1.mlp", tokens=range(2)).tokens == (0, 1)
    pairs = Edit("decoder.1.cross_attn.scores", pairs=[np.array([0, 1]).tolist(), tuple(np.array([2, 2]))]).pairs
    assert pairs == ((0, 1), (2, 2)) and {type(place) for pair in pairs for place in pair} == {int}


# Edits as JSON

SPEC = [
    {"site": "decoder.*.cross_attn.heads:0-1", "view": 2, "scale": 0},
    {"site": "decoder.1.mlp", "tokens": [5, 2], "shift": "direction"},
    {"site": "decoder.1.cross_attn.scores", "heads": [0], "keys": [0, 1], "queries": [3], "shift": BLOCKED},
    {"site": "decoder.0.self_attn.scores@1", "pairs": [[0, 3], [2, 1]], "scale": 0.5, "shift": "-inf"},
]
ARRAYS = {"direction": numbers(32)}
READ = [
    ("decoder.*.cross_attn.heads", 2, (0, 1), None, None, None, None, 0, 0),
    ("decoder.1.mlp", "both", None, (5, 2), None, None, None, 1, ARRAYS["direction"].tolist()),
    ("decoder.1.cross_attn.scores", "both", (0,), None, (3,), (0, 1), None, 1, BLOCKED),
    ("decoder.0.self_attn.scores", 1, None, None, None, None, ((0, 3), (2, 1)), 0.5, BLOCKED),
]


def plainly(edits):
    fields = [field.name for field in dataclasses.fields(Edit)]
    return [
        tuple(value.tolist() if isinstance(value, np.ndarray) else value for value in (getattr(edit, name) for name in fields))
        for edit in edits
    ]


def saved(folder, content, arrays=None, name="edits"):
    (folder / f"{name}.json").write_text(content if isinstance(content, str) else json.dumps(content))
    if arrays is not None:
        np.savez(folder / f"{name}.npz", **arrays)
    return folder / f"{name}.json"


def test_edits_are_read_from_a_list_an_object_and_a_file_with_its_arrays_beside_it(tmp_path):
    file = saved(tmp_path, {"edits": SPEC, "what": "other keys are left alone"}, ARRAYS)
    assert "-Infinity" in file.read_text()
    elsewhere = saved(tmp_path, SPEC, name="alone")
    readings = [
        u3d.read_edits(SPEC, ARRAYS),
        u3d.read_edits({"edits": SPEC, "what": 1}, ARRAYS),
        u3d.read_edits(file),
        u3d.read_edits(str(file)),
    ]
    readings += [u3d.read_edits(elsewhere, file.with_suffix(".npz")), u3d.read_edits(elsewhere, ARRAYS)]
    assert [plainly(edits) for edits in readings] == [READ] * len(readings)
    assert plainly(u3d.read_edits([{"site": "decoder.norm"}])) == [("decoder.norm", "both", *(None,) * 5, 1, 0)]


def test_edits_survive_the_way_to_json_and_back(tmp_path):
    edits = u3d.read_edits(SPEC, ARRAYS) + Edits(
        (Edit("encoder.norm", 2, tokens=[1], scale=jnp.asarray(ARRAYS["direction"][:1]), shift=np.float32(0.1)),)
    )
    spec, arrays = edits_to_json(edits)
    assert sorted(arrays) == ["edits/1/shift", "edits/4/scale"]
    back = u3d.read_edits(saved(tmp_path, spec, arrays))
    assert plainly(back)[:4] == READ
    assert plainly(back)[4] == ("encoder.norm", 2, None, (1,), None, None, None, ARRAYS["direction"][:1].tolist(), float(np.float32(0.1)))
    again = edits_to_json(back)
    assert again[0] == spec and all(np.array_equal(again[1][name], arrays[name]) for name in arrays)
    json.dumps(spec, allow_nan=False)  # any reader of JSON reads it
    assert edits_to_json(Edits()) == ([], {})


UNREADABLE = [
    ([{"site": "decoder.1.mlp", "token": [1]}], r"token: extra inputs are not permitted"),
    ([{"view": 1}], r"site: field required"),
    ([{"site": "decoder.1.mlp", "view": 3}], "view: input should be 1, 2 or 'both'"),
    ([{"site": "decoder.1.mlp", "view": "1"}], "view: input should be 1, 2 or 'both'"),
    ([{"site": "decoder.1.mlp", "tokens": 1}], "tokens: input should be a valid (list|array)"),
    ([{"site": "decoder.1.mlp", "tokens": [1.5]}], r"tokens\[0\]: input should be a valid integer"),
    ([{"site": "decoder.1.mlp", "tokens": [True]}], r"tokens\[0\]: input should be a valid integer"),
    ([{"site": "decoder.1.mlp.scores", "pairs": [[1]]}], r"pairs\[0\]"),
    ([{"site": "decoder.1.mlp", "scale": True}], "scale"),
    ([{"site": "decoder.1.mlp", "scale": [1, 2]}], "scale"),
    ([{"site": "decoder.1.mlp", "scale": None}], "scale"),
    (
        [{"site": "decoder.1.mlp", "shift": "missing"}],
        r"edit 0, 'decoder\.1\.mlp': shift 'missing' is no array given; given are: direction",
    ),
    ([{"site": "decoder.norm"}, {"site": "decoder.1.mlp", "scale": "gone"}], r"edit 1, 'decoder\.1\.mlp': scale 'gone' is no array given"),
    ([{"site": "decoder.1.mlp", "tokens": [-1]}], "tokens are counted from 0"),
    ([{"site": "decoder.1.mlp@3"}], "the view behind @"),
    ({"edit": []}, "edits"),
    ({"edits": {}}, "edits"),
    ([[]], r"\[0\]"),
]


@pytest.mark.parametrize(("spec", "message"), UNREADABLE)
def test_edits_that_are_not_edits_are_refused_from_values_and_from_a_file(spec, message, tmp_path):
    with pytest.raises(u3d.EditError, match=message):
        u3d.read_edits(spec, ARRAYS)
    with pytest.raises(u3d.EditError, match=message):
        u3d.read_edits(saved(tmp_path, spec, ARRAYS))


def test_files_that_cannot_be_read_are_refused_with_their_name(tmp_path):
    with pytest.raises(u3d.EditError, match=r"none\.json cannot be read: no such file"):
        u3d.read_edits(tmp_path / "none.json")
    with pytest.raises(u3d.EditError, match=r"edits\.json is not what is expected: invalid JSON"):
        u3d.read_edits(saved(tmp_path, "[{'site'"))
    good = saved(tmp_path, SPEC, ARRAYS)
    whole_npz = good.with_suffix(".npz").read_bytes()
    np.save(tmp_path / "one.npy", ARRAYS["direction"])
    np.savez(tmp_path / "objects.npz", direction=np.array([{"run": "me"}], object))
    damaged = {
        "text": b"no arrays",
        "nothing": b"",
        "one_array": (tmp_path / "one.npy").read_bytes(),
        "objects": (tmp_path / "objects.npz").read_bytes(),
        "truncated": whole_npz[: len(whole_npz) // 2],
        "flipped": whole_npz.replace(ARRAYS["direction"].tobytes()[:8], b"\0" * 8),
    }
    for name, content in damaged.items():
        (tmp_path / f"{name}.npz").write_bytes(content)
        with pytest.raises(u3d.EditError, match=rf"{name}\.npz cannot be read as an npz of arrays: "):
            u3d.read_edits(good, tmp_path / f"{name}.npz")
    with pytest.raises(u3d.EditError, match=r"gone\.npz cannot be read as an npz of arrays"):
        u3d.read_edits(good, tmp_path / "gone.npz")
