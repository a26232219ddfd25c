"""What heads are used for on a pair: numbers that edited forward passes give, heads that do nothing, and the lens."""

import dataclasses
import functools
import math

import jax
import numpy as np
import pytest

from tests.test_model_properties import DPT, LINEAR, backbone
from und3rstand_jax.analysis.analyse import analyse_views
from und3rstand_jax.analysis.head_use import CROSS, DISPLACEMENT, ERROR, SELF, use_of_heads
from und3rstand_jax.analysis.inputs import GroundTruth, Inputs
from und3rstand_jax.analysis.own_head import lens_of_set
from und3rstand_jax.analysis.true_place_attention import TruePlaces, attention_elsewhere, attention_on
from und3rstand_jax.analysis.view_set import Attention
from und3rstand_jax.geometry.cameras import ViewGeometry, ViewTruth
from und3rstand_jax.geometry.metrics import mean_displacements, point_errors
from und3rstand_jax.model.backbone import Backbone
from und3rstand_jax.model.dust3r.module import DUSt3R
from und3rstand_jax.model.edits import Edits, knock_out, skip
from und3rstand_jax.model.layer_ids import paper_layer_ids
from und3rstand_jax.support.errors import CheckpointError
from und3rstand_jax.support.progress import Stopwatch

pytestmark = pytest.mark.quick

SMALL = dataclasses.replace(LINEAR, dec_depth=2)
SIZES = ((48, 32), (32, 64))


def inputs(has_truth, sizes=SIZES):
    """Noise in front of a plane; view 2's camera is view 1's, so that tokens see their own place."""
    rng = np.random.default_rng(0)
    views = tuple(rng.uniform(-1, 1, (1, *size, 3)).astype(np.float32) for size in sizes)
    if not has_truth:
        return Inputs("two photos", views, None, {})
    lens = np.array([[40.0, 0, 16], [0, 40, 16], [0, 0, 1]])

    def plane(height, width):
        rows, columns = np.mgrid[:height, :width]
        points = np.stack([columns, rows, np.ones((height, width))], -1) @ np.linalg.inv(lens).T * 2
        return ViewTruth(points.astype(np.float32), np.ones((height, width), bool))

    return Inputs("a plane", views, GroundTruth(tuple(plane(*size) for size in sizes), (np.eye(4), np.eye(4)), (lens, lens)), {})


@functools.cache
def used(has_truth):
    model, given = backbone(SMALL), inputs(has_truth)
    analysis = analyse_views(model, None, (), given, {}, Stopwatch())
    return model, given, analysis, use_of_heads(model, given, analysis, kept=3)


def passed(model, given, edits=None):
    """Both views' points of a plain pass with edits."""
    output = model(*given.views, capture=(), head=True, edits=edits)
    return ViewGeometry.of(output.pred1), ViewGeometry.of(output.pred2)


@pytest.mark.slow
@pytest.mark.parametrize("has_truth", [True, False], ids=["truth", "photos"])
def test_costs_and_kept_points_are_those_of_edited_passes(has_truth):
    model, given, _, use = used(has_truth)
    before = passed(model, given)
    assert use.measure == (ERROR if has_truth else DISPLACEMENT) and len(use.heads) == 4 * 2 * 2
    means = np.concatenate([use.cost[attention].mean(axis=-1).ravel() for attention in (CROSS, SELF)])
    kept = [use.cost[one.head.attention][one.head.view - 1, one.head.block, one.head.head].mean() for one in use.without]
    np.testing.assert_allclose(kept, np.sort(means)[::-1][:3])
    one = use.without[0]
    attention, view, block, head = one.head
    views = passed(model, given, knock_out(f"decoder.{block}.{attention}.heads:{head}@{view}"))
    expected = np.array(point_errors(views, given.truth.views)) - use.unedited if has_truth else mean_displacements(views, before)
    np.testing.assert_allclose(use.cost[attention][view - 1, block, head], expected, rtol=1e-3, atol=1e-6)
    for found, other in zip(one.views, views, strict=True):
        np.testing.assert_allclose(found.points, other.points, rtol=1e-4, atol=1e-5)


def test_match_scores_and_sinks_are_those_of_the_captured_attention():
    model, given, analysis, use = used(True)
    names = [f"decoder.1.{attention}.weights" for attention in (CROSS, SELF)]
    output = model(*given.views, capture=names, head=False)
    for name, attention in zip(names, (CROSS, SELF), strict=True):
        for view in (0, 1):
            weights = np.asarray(output[name][view])[0]
            np.testing.assert_allclose(use.sink[attention][view, 1], weights.mean(axis=1).max(axis=-1), rtol=1e-5)
    np.testing.assert_allclose(use.self_attention[1].weights[1], np.asarray(output[names[1]][1])[0], rtol=1e-5)
    # Both cameras are one: of view 1's 3×2 tokens, those of the upper two rows are in view 2's 2×4 at the same row and column.
    near = [[abs(q // 2 - k // 4) <= 1 and abs(q % 2 - k % 4) <= 1 for k in range(8)] for q in range(4)]
    expected = (analysis.attention[1].weights[0][:, :4] * np.array(near)).sum(axis=-1).mean(axis=-1)
    np.testing.assert_allclose(use.mass[0, 1], expected, rtol=1e-5)
    assert use.even[0] == pytest.approx(np.mean(near))


def test_without_ground_truth_there_is_no_match_score():
    use = used(False)[3]
    assert use.mass is None and use.elsewhere is None and use.even is None and use.unedited is None


def test_a_dead_head_costs_exactly_nothing():
    model, given, analysis, _ = used(True)
    params = jax.tree.map(lambda leaf: leaf, model.params)
    kernel = params["decoder"]["blocks1"]["cross_attn"]["proj"]["kernel"]
    # Nothing of what head 1 of view 1's cross-attention in block 0 finds is written.
    params["decoder"]["blocks1"]["cross_attn"]["proj"]["kernel"] = np.array(kernel)
    params["decoder"]["blocks1"]["cross_attn"]["proj"]["kernel"][0, SMALL.dec_embed_dim // SMALL.dec_num_heads :] = 0
    cost = use_of_heads(Backbone(model.module, params), given, analysis, kept=1).cost
    assert (cost[CROSS][0, 0, 1] == 0).all()
    assert (np.abs(cost[CROSS]).max(axis=-1) > 0).sum() == 7 and (cost[SELF] != 0).any()


def test_attention_elsewhere_is_the_mean_over_all_other_queries_places():
    rng = np.random.default_rng(0)
    weights = rng.dirichlet(np.ones(5), (2, 4)).astype(np.float64)
    near, seen = rng.random((4, 5)) < 0.4, np.array([True, False, True, True])
    place = TruePlaces(near, seen, np.zeros(4, np.int32))
    unseen = TruePlaces(near.T, np.zeros(5, bool), np.zeros(5, np.int32))
    attention = [Attention.to_others(0, (weights, np.swapaxes(weights, 1, 2)))]
    found = attention_elsewhere(attention, (place, unseen))
    pairs = [(query, other) for query in (0, 2, 3) for other in (0, 2, 3) if query != other]
    expected = np.mean([weights[:, query] @ near[other] for query, other in pairs], axis=0)
    np.testing.assert_allclose(found[0, 0], expected)
    assert np.isnan(found[1]).all() and np.isnan(attention_on(attention, (place, unseen))[1]).all()


@pytest.mark.parametrize("config", [SMALL, pytest.param(DPT, marks=pytest.mark.slow)], ids=["linear", "dpt"])
def test_the_lens_is_the_head_behind_a_decoder_that_adds_nothing_more(config):
    model, given = backbone(config), inputs(True)
    layers = ("encoder.norm", "decoder.0.cross_attn", f"decoder.{config.dec_depth - 1}.mlp", "head")
    found = lens_of_set(model, given, layers, given.truth.views)
    assert list(found) == list(layers[1:3])
    steps = paper_layer_ids(config.dec_depth)
    skips = sum(map(skip, steps[steps.index(layers[1]) + 1 :]), Edits())
    np.testing.assert_allclose(found[layers[1]], point_errors(passed(model, given, skips), given.truth.views), rtol=1e-4)
    np.testing.assert_allclose(found[layers[2]], point_errors(passed(model, given), given.truth.views), rtol=1e-4)
    assert not math.isclose(found[layers[1]][0], found[layers[2]][0], rel_tol=1e-3)


def test_a_backbone_without_a_head_is_refused():
    _, given, analysis, _ = used(False)
    headless = Backbone(DUSt3R(dataclasses.replace(SMALL, head_type=None)), {})
    with pytest.raises(CheckpointError, match="model's own head"):
        use_of_heads(headless, given, analysis)
