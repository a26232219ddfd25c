"""What must hold of edited runs whatever the weights are: what is captured, and what edits mean."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

import und3rstand_jax as u3d
from tests.edit_cases import BLOCKED, INSIDE, SMALL, apart, model, neutral, numbers, plain, run, small_params
from tests.golden_cases import relative_error
from tests.test_attention_weights import SIZES, TINY, defined, dense, double, params, softmax, stream_before, views
from tests.test_model_properties import assert_same
from und3rstand_jax.model.backbone import Backbone
from und3rstand_jax.model.dust3r.module import DUSt3R
from und3rstand_jax.model.edits import Edit, Edits
from und3rstand_jax.model.output import BackboneOutput

pytestmark = pytest.mark.quick

# What is captured

EVERYWHERE = (
    u3d.block_attention("decoder.1.cross_attn", keys=[1, 2])
    + Edits((Edit("encoder.1.self_attn.scores", scale=0.5, shift=numbers(3, 1, 1)),))
    + Edits((Edit("decoder.1.self_attn.scores", 2, queries=[3], scale=2),))
    + Edits((Edit("decoder.*.cross_attn.heads:0-2", scale=-0.5, shift=0.1),))
    + Edits((Edit("*.mlp.update", tokens=[0, 4], shift=numbers(2, 1)), Edit("decoder.0.self_attn", 1, scale=0.5)))
)


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
    assert_same(BackboneOutput({layer: ours[layer] for layer in expected}, ours.image_sizes, ours.pointmaps), expected)
    assert max(apart(ours, plain()).values()) > 0.01


def test_a_block_whose_sublayers_are_skipped_is_a_block_less():
    fewer = Backbone(DUSt3R(SMALL), small_params((0, 1)))(*views(), capture="*", head=True)
    skipped = run(u3d.skip("encoder.0.*") + u3d.skip("decoder.1.*"), head=True)
    here = {"encoder.0": "encoder.1", "decoder.1": "decoder.2"}
    layers = {layer: layer.replace(block, here.get(block, block)) for layer in fewer for block in [layer.rpartition(".")[0]]}
    renamed = BackboneOutput({layer: skipped[ours] for layer, ours in layers.items()}, skipped.image_sizes, skipped.pointmaps)
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
    return out.image_sizes, out.pointmaps


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
    with pytest.raises(KeyError, match=r"decoder\.2\.mlp\.update was not captured; captured: encoder\.0\.mlp, "):
        u3d.patch_from(other, "decoder.2.mlp.update")
    with pytest.raises(u3d.EditError, match=r"'encoder\.0\.mlp', view 1: there are 6 tokens.*; found \[6, 7\]"):
        u3d.patch_from(other, "encoder.0.mlp", tokens=[0, 6, 7])  # view 2 has 8
    with pytest.raises(u3d.EditError, match="agree with view=1"):
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
