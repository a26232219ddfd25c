"""The study of knock-outs, on a decoder of which one cross-attention head alone does anything."""

import dataclasses

import jax
import numpy as np
import pytest

import und3rstand_jax as u3d
from tests.test_ablations import scene_pairs
from tests.test_model_properties import LINEAR, backbone
from und3rstand_jax.analysis.ablations import Place, heads_of_same_blocks
from und3rstand_jax.analysis.pair_measures import DIRECTION, MATCHES, ROTATION, VIEW1, VIEW2
from und3rstand_jax.analysis.studies.knock_out import study as study_module
from und3rstand_jax.analysis.studies.knock_out import sweeps
from und3rstand_jax.analysis.studies.knock_out.curves import curve_of
from und3rstand_jax.analysis.studies.knock_out.sets import (
    BETWEEN,
    BLOCK,
    BOTTOM,
    MATCH,
    RANDOM,
    SINK,
    SUBLAYER,
    Rankings,
    Taken,
    counts_of,
    head_sets,
    layer_sets,
    rankings,
    ways_of,
)
from und3rstand_jax.analysis.studies.knock_out.study import CONSTANT, UNEDITED, cost, halves, knock_out, leave_one_out_errors
from und3rstand_jax.analysis.studies.knock_out.sweeps import METRICS, SomePoses, measure, posed
from und3rstand_jax.analysis.studies.study import Setting, mean_of, other_pair
from und3rstand_jax.geometry.metrics import normalised_errors
from und3rstand_jax.model.backbone import Backbone
from und3rstand_jax.model.dust3r.module import DUSt3R
from und3rstand_jax.support.errors import CheckpointError

pytestmark = pytest.mark.quick

TINY = dataclasses.replace(LINEAR, dec_depth=2)
LIVE = Place("decoder.1.cross_attn.heads", 2, 1)
PAIRS = 3


def one_live_head():
    """All cross-attention heads dead but one, and no bias: what the live one adds is all that cross-attention adds."""
    model, width = backbone(TINY), TINY.dec_embed_dim // TINY.dec_num_heads
    decoder = dict(model.params["decoder"])
    for view, blocks in ((1, "blocks1"), (2, "blocks2")):
        projection = decoder[blocks]["cross_attn"]["proj"]
        alive = np.zeros_like(projection["kernel"])
        if view == LIVE.view:
            alive[1, LIVE.head * width : (LIVE.head + 1) * width] = 1
        dead = {"kernel": 20 * projection["kernel"] * alive, "bias": np.zeros_like(projection["bias"])}
        decoder[blocks] = decoder[blocks] | {"cross_attn": decoder[blocks]["cross_attn"] | {"proj": dead}}
    return Backbone(model.module, model.params | {"decoder": decoder})


def statistics(best=LIVE, pairs=PAIRS, seed=0, config=TINY):
    """What `measure_heads` might have found: one head copies its match, and one of self-attention has a sink."""
    random = np.random.default_rng(seed)
    shape = (pairs, 2, config.dec_depth, config.dec_num_heads)
    found = {f"{kind}/{name}": random.uniform(0.1, 0.2, shape) for kind, name in SEEN}
    found["cross_attn/mass"][:, best.view - 1, 1, best.head] = 0.9
    found["self_attn/sink"][:, 0, 0, 1] = 0.8
    return found


errors_of = jax.jit(normalised_errors)

SEEN = (("cross_attn", "mass"), ("cross_attn", "mass_other"), ("cross_attn", "sink"), ("self_attn", "sink"))


@pytest.fixture(scope="module")
def setting():
    return Setting(one_live_head(), None, scene_pairs(PAIRS, (32, 32))[1], seed=1)


@pytest.fixture(scope="module")
def study(setting):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study_module, "measure_heads", lambda setting: statistics())
        return knock_out(setting)


def values_of(study, record, metric):
    return study.by_pair[metric][:, study.records.index(record)]


def test_heads_are_ranked_by_what_they_put_on_the_true_place_and_by_their_sink():
    found = statistics(pairs=4)
    found["cross_attn/mass"][2:, 0, 0, 0] = 1.0  # in the other half of the pairs
    found["cross_attn/mass"][:2, 0, 1, 0] = np.nan
    ranking = rankings(found, range(2), TINY)
    assert ranking.match[0] == LIVE and len(set(ranking.match)) == 8
    assert ranking.match[-1] == Place("decoder.1.cross_attn.heads", 1, 0)  # of which nothing is known
    assert ranking.sink[0] == Place("decoder.0.self_attn.heads", 1, 1) and len(set(ranking.sink)) == 16
    assert rankings(found, range(2, 4), TINY).match[0] == Place("decoder.0.cross_attn.heads", 1, 0)


def test_sets_grow_by_powers_of_two_and_their_controls_are_other_heads_of_the_same_blocks():
    assert counts_of(TINY) == (1, 2)  # of 2 blocks x 2 views x 2 heads a quarter
    assert counts_of(dataclasses.replace(LINEAR, dec_depth=3, dec_num_heads=4)) == (1, 2, 4)  # of 24 not 8
    config = dataclasses.replace(LINEAR, dec_num_heads=4)
    ranking = rankings(statistics(config=config), range(PAIRS), config)
    found = head_sets(ranking, config, seed=3)
    first = {(one.kind, one.k): one for one in found if one.kind != RANDOM}
    assert first[MATCH, 4].places == ranking.match[:4] and first[SINK, 2].places == ranking.sink[:2]
    assert first[BOTTOM, 2].places == ranking.match[-2:]
    for control in (one for one in found if one.kind == RANDOM):
        of = first[control.of, control.k]
        assert len(set(control.places)) == control.k and not set(control.places) & set(of.places)
        pool = heads_of_same_blocks(of.places, config)
        assert (set(control.places) <= set(pool)) == (control.pool == "same blocks")
    draws = [one.places for one in found if one.kind == RANDOM and (one.of, one.k) == (SINK, 4)]
    assert len(set(draws)) == len(draws) > 1
    assert found == head_sets(ranking, config, seed=3) != head_sets(ranking, config, seed=4)


def test_controls_come_from_all_blocks_where_their_own_have_too_few_heads():
    whole = heads_of_same_blocks([LIVE], TINY)  # both heads of one attention
    others = [place for place in rankings(statistics(), range(PAIRS), TINY).match if place not in whole]
    found = head_sets(Rankings((*whole, *others), (*whole, *others)), TINY, 0)
    control = next(one for one in found if one.kind == RANDOM and one.k == 2)
    assert control.pool == "all blocks" and set(control.places) <= set(others)


def test_layers_are_left_out_one_by_one_block_by_block_and_between_the_views():
    found = {one.name: one for one in layer_sets(TINY)}
    assert [str(place) for place in found["decoder.1.mlp"].places] == ["decoder.1.mlp.update@1", "decoder.1.mlp.update@2"]
    assert len(found["decoder.0"].places) == 6 and found["decoder.0"].kind == BLOCK
    assert found["all cross-attention"].places == tuple(
        Place(f"decoder.{block}.cross_attn.update", view, None) for block in (0, 1) for view in (1, 2)
    )
    assert found["cross-attention of view 2"].view == "2" and found["all cross-attention"].view == "both"
    assert {place.site for place in found["cross-attention from block 1 on"].places} == {"decoder.1.cross_attn.update"}
    assert {place.site for place in found["cross-attention before block 1"].places} == {"decoder.0.cross_attn.update"}
    assert sum(one.kind == SUBLAYER for one in found.values()) == 6


def test_ways_and_pairs():
    control = Taken(RANDOM, "random", (LIVE,), 1, MATCH, 2)
    assert ways_of(control, True) == ("mean",) and ways_of(dataclasses.replace(control, draw=1), False) == ("zero", "mean")
    assert ways_of(Taken(MATCH, "match", (LIVE,), 1), True) == ("zero", "mean", "resample")
    assert ways_of(layer_sets(TINY)[0], True) == ("zero",)
    assert halves(15) == (range(15), range(15)) and halves(17) == (range(8), range(8, 17))
    assert [other_pair(number, 4) for number in range(4)] == [2, 3, 0, 1]
    assert (posed(8), posed(32), posed(90)) == (8, 12, 30)


def test_matches_and_pose_are_found_of_some_pairs_and_errors_of_all():
    def finish(measured, pairs):
        assert list(pairs) == [1, 0]
        return {VIEW1: measured[VIEW1], VIEW2: measured[VIEW2], MATCHES: np.array([0.5, 0.25])}

    measured = {VIEW1: np.arange(4.0), VIEW2: np.arange(4.0) + 1, "points1": np.zeros((4, 1, 1, 3))}
    measured |= {"shape1": np.arange(4.0) / 2, "shape2": np.arange(4.0) / 4}
    found = SomePoses(finish, range(2))(measured, [1, 2, 0, 3])
    np.testing.assert_array_equal(found[VIEW2], [1, 2, 3, 4])
    np.testing.assert_array_equal(found[MATCHES], [0.5, np.nan, 0.25, np.nan])
    np.testing.assert_array_equal(found["shape1"], [0, 0.5, 1, 1.5])


@pytest.mark.slow
def test_a_dead_head_costs_exactly_nothing_and_the_only_live_one_all_of_cross_attention(study):
    gone = next(record for record in study.records if record["name"] == "all cross-attention")
    unedited = study.records[0]
    assert abs(gone[f"{VIEW2}_effect"].mean) > 0.005
    cross_only = [
        record for record in study.records if record.get("k") and all(".cross_attn." in place for place in record["places"].split())
    ]
    dead = [record for record in cross_only if str(LIVE) not in record["places"].split()]
    alive = [record for record in cross_only if str(LIVE) in record["places"].split() and record["by"] == "zero"]
    assert {record["kind"] for record in dead} >= {RANDOM, BOTTOM} and {record["by"] for record in dead} == {"zero", "mean", "resample"}
    assert {record["kind"] for record in alive} == {MATCH}
    for record in dead:
        assert [record[f"{metric}_effect"].mean for metric in (VIEW1, VIEW2)] == [0, 0], record["name"]
    for metric in METRICS:
        for record in alive:
            np.testing.assert_allclose(values_of(study, record, metric), values_of(study, gone, metric), rtol=1e-5)
    # View 1 hears nothing in its own pass, so that leaving its attention out changes nothing.
    one = next(record for record in study.records if record["name"] == "cross-attention of view 1")
    np.testing.assert_array_equal(values_of(study, one, VIEW2), values_of(study, unedited, VIEW2))


@pytest.mark.slow
def test_what_is_resampled_comes_from_another_pair(study, setting):
    record = next(record for record in study.records if record["name"] == "match 1" and record["by"] == "resample")
    assert record["places"] == str(LIVE)
    views, truth = setting.pairs.views, setting.pairs.truth.truth
    others = [other_pair(number, PAIRS) for number in range(PAIRS)]
    model = setting.backbone
    other = model(*(view[others] for view in views), capture=LIVE.site, head=False)
    value = np.asarray(other[LIVE.site][LIVE.view - 1])[:, :, LIVE.head : LIVE.head + 1]
    output = model(*views, capture=(), head=True, edits=u3d.replace(LIVE.site, value, LIVE.view, heads=[LIVE.head]))
    expected = errors_of(output.pointmaps, truth)
    for metric, errors in zip((VIEW1, VIEW2), expected, strict=True):
        np.testing.assert_allclose(values_of(study, record, metric), errors, rtol=1e-4)


@pytest.mark.slow
def test_a_block_costs_what_skipping_it_costs(study, setting):
    views, truth = setting.pairs.views, setting.pairs.truth.truth
    record = next(record for record in study.records if record["name"] == "decoder.0")
    output = setting.backbone(*views, capture=(), head=True, edits=u3d.skip("decoder.0.*"))
    errors = errors_of(output.pointmaps, truth)
    np.testing.assert_allclose(values_of(study, record, VIEW2), errors[1], rtol=1e-4)
    effect = float(np.mean(errors[1])) - study.records[0][VIEW2].mean
    assert record[f"{VIEW2}_effect"].mean == pytest.approx(effect, rel=1e-2, abs=1e-5)


@pytest.mark.slow
def test_every_name_has_a_meaning_and_the_parts_are_there(study):
    assert all(set(record) <= set(study.meaning) for record in study.records)
    assert {record["kind"] for record in study.records} == {UNEDITED, CONSTANT, MATCH, SINK, RANDOM, BOTTOM, SUBLAYER, BLOCK, BETWEEN}
    assert set(study.by_pair) == set(METRICS) and study.by_pair[VIEW2].shape == (PAIRS, len(study.records))
    assert all(len(row) == len(table.columns) for table in study.tables for row in table.rows)
    assert set(study.figures) == {"", "layers"}
    assert study.findings[0].startswith("Without the 2 heads that look hardest at the true place, replaced by their mean, view 2's error ")
    assert study.facts["halves"]["why"].startswith("with fewer than 16 pairs")
    for metric in (MATCHES, ROTATION, DIRECTION):
        assert f"{metric}_effect" in study.records[-1]


@pytest.mark.slow
def test_the_same_seed_gives_the_same_numbers(setting):
    taken = [Taken(MATCH, "match 1", (LIVE,), 1)]
    (unedited, rows), (again, others) = (measure(setting, range(PAIRS), taken) for _ in range(2))
    assert [(row.taken.name, row.by) for row in rows] == [("match 1", by) for by in ("zero", "mean", "resample")]
    for one, other in ((unedited, again), *((row.values, same.values) for row, same in zip(rows, others, strict=True))):
        for metric in METRICS:
            np.testing.assert_array_equal(one[metric], other[metric])


@pytest.mark.slow
def test_few_pairs_at_a_time_give_the_same(setting, monkeypatch):
    taken = [Taken(MATCH, "match 1", (LIVE,), 1)]
    _, together = measure(setting, range(PAIRS), taken)
    monkeypatch.setattr(sweeps, "_AT_ONCE", 1)
    assert sweeps.resampled_at_once(setting) == 1
    _, apart = measure(setting, range(PAIRS), taken)
    for one, other in zip(together, apart, strict=True):
        np.testing.assert_allclose(one.values[VIEW2], other.values[VIEW2], rtol=1e-4)


def test_a_curve_of_random_sets_is_their_mean_pair_by_pair_between_the_least_and_the_greatest(setting):
    rows = [
        sweeps.Row(Taken(RANDOM, f"draw {draw}", (LIVE,), 2, MATCH, draw), "mean", {VIEW2: values}, {VIEW2: values - 1})
        for draw, values in ((1, np.array([1.0, 3.0])), (2, np.array([3.0, 5.0])))
    ]
    curve = curve_of(rows, RANDOM, "mean", VIEW2, MATCH)
    assert (curve.ks, curve.lowest, curve.highest, curve.draws) == ((2,), (2.0,), (4.0,), (2,))
    assert curve.values[0] == mean_of([2.0, 4.0]) and curve.effects[0].mean == 2.0
    assert curve_of(rows, RANDOM, "mean", VIEW2, SINK).ks == ()


def test_the_constant_is_the_mean_of_the_other_pairs(setting):
    pairs = setting.pairs
    twice = dataclasses.replace(setting, pairs=pairs.some([0, 0]))
    assert [float(np.max(errors)) for errors in leave_one_out_errors(twice, range(2)).values()] == pytest.approx([0, 0], abs=1e-5)
    found = leave_one_out_errors(dataclasses.replace(setting, pairs=pairs.some([0, 1])), range(1))
    one, other = (jax.tree.map(lambda leaf, n=number: leaf[n : n + 1], pairs.truth.truth) for number in (0, 1))
    points = [
        np.where(np.asarray(mask)[..., None], np.stack(view, axis=-1), np.nan) for view, mask in zip(other.points, other.valid, strict=True)
    ]
    filled = [np.where(np.isnan(view), np.nanmean(view, axis=(1, 2), keepdims=True), view).astype(np.float32) for view in points]
    expected = errors_of([{"pts3d": view} for view in filled], one)
    assert [errors[0] for errors in found.values()] == pytest.approx([float(error[0]) for error in expected], rel=1e-3)
    alone = leave_one_out_errors(dataclasses.replace(setting, pairs=pairs.some([0])), range(1))
    assert np.isnan(alone[VIEW2]).all()


def test_a_backbone_without_a_head_is_refused(setting):
    config = dataclasses.replace(TINY, head_type=None)
    with pytest.raises(CheckpointError, match="expected a backbone with a head, found one without"):
        knock_out(dataclasses.replace(setting, backbone=Backbone(DUSt3R(config), {})))


@pytest.mark.slow
def test_the_cost_counts_the_passes(setting, study):
    found = cost(setting)
    assert len(study.records) * PAIRS <= found.passes <= 1.5 * len(study.records) * PAIRS
    assert found.memory > 0 and found.disk > 0
