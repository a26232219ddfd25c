"""The study of inputs, on models in which the views do not meet, or do in a known way."""

import copy
import dataclasses
import functools

import jax
import numpy as np
import pytest

from tests.made_pairs import SIZE, wall_pairs
from tests.test_model_properties import LINEAR, backbone
from und3rstand_jax.analysis.pair_measures import DIRECTION, ROTATION, VIEW1, VIEW2
from und3rstand_jax.analysis.studies.inputs.conditions import conditions_of
from und3rstand_jax.analysis.studies.inputs.covered import covered, drawn_queries, measured_covers
from und3rstand_jax.analysis.studies.inputs.study import MEANING, cost, inputs, overlap_groups
from und3rstand_jax.analysis.studies.study import Setting
from und3rstand_jax.model.backbone import Backbone
from und3rstand_jax.support.errors import CheckpointError, OptionError

pytestmark = pytest.mark.quick


def apart() -> Backbone:
    """Views never meet: no cross-attention. Both views' decoders and heads are the same."""
    model = backbone(LINEAR)
    params = copy.deepcopy(jax.tree.map(np.array, model.params))
    for leaf in params["decoder"]["blocks1"]["cross_attn"]["proj"].values():
        leaf[:] = 0
    params["decoder"]["blocks2"], params["head2"] = params["decoder"]["blocks1"], params["head1"]
    return Backbone(model.module, params)


@functools.cache
def setting() -> Setting:
    return Setting(apart(), None, wall_pairs(4, shifts=(0.4, 2.0), size=(64, 96)), seed=5)


@functools.cache
def study():
    return inputs(setting())


@pytest.mark.slow
def test_where_the_views_never_meet_an_unrelated_view_changes_no_shape_and_swapping_swaps():
    found = study().by_pair
    np.testing.assert_allclose(found["unrelated/shape1"], found["straight/shape1"], rtol=1e-3)
    np.testing.assert_allclose(found["unrelated/shape2"], np.roll(found["straight/shape2"], -1), rtol=1e-3)
    for one, two in ((1, 2), (2, 1)):
        np.testing.assert_allclose(found[f"swapped/shape{one}"], found[f"straight/shape{two}"], rtol=1e-3)
        np.testing.assert_allclose(found[f"swapped/confidence{one}"], found[f"straight/confidence{two}"], rtol=1e-4)
    # One decoder, one image: one output.
    np.testing.assert_allclose(found["doubled/view2"], found["doubled/view1"], rtol=1e-4)
    assert np.isnan(found["unrelated/view2"]).all() and np.isnan(found["doubled/direction"]).all()


def test_where_the_views_never_meet_covering_view_1_moves_no_point_of_view_2_but_for_the_common_unit():
    found = study().by_pair
    for cover in ("match", "control"):
        # Points are over both views' mean distance, which view 1 has a part in.
        moved = found[f"{cover}/token_moved"]
        assert np.isfinite(moved).all() and (moved < 0.5).all()


def test_a_model_that_copies_its_match_loses_it_with_the_match_and_not_with_other_patches():
    pairs = wall_pairs(3, shifts=(0.8, 0.8))  # 16 pixels, one token: view 2's token (r, c) is view 1's (r, c + 1)
    true = tuple(np.stack([plane for plane in view], axis=-1) for view in pairs.truth.truth.points)

    def run(view1, view2):
        gone = (view1 == 0).all(axis=-1)  # noise is never mid-grey
        moved = np.roll(gone, -16, axis=2)
        return true[0], true[1] + np.where(moved, 1.0, 0.0)[..., None].astype(np.float32)

    grids = ((8, 12), (8, 12))  # patches of 4 pixels
    found = measured_covers(pairs, grids, [0, 1, 2], run, run(*pairs.views), count=3)
    assert found["straight/token_error"] == pytest.approx([0, 0, 0], abs=1e-5)
    assert (found["match/token_error"] > 0.5).all()
    assert (found["control/token_error"] < 0.2).all()
    assert (found["match/token_moved"] > found["match/elsewhere_moved"]).all()


@pytest.mark.slow
def test_queries_are_seen_and_their_controls_do_not_touch_the_match():
    truth = wall_pairs(1, shifts=(0.8, 0.8)).truths[0]
    grids = ((8, 12), (8, 12))
    queries = drawn_queries(truth, grids, 5, 3)
    assert len(queries) == len({query.place for query in queries}) == 5
    assert queries == drawn_queries(truth, grids, 5, 3) != drawn_queries(truth, grids, 5, 4)
    for query in queries:
        row, column = query.place
        assert column + 4 < 12  # 0.8 m at 2 m are 16 pixels, four patches
        assert query.match == (slice(max(row - 1, 0), min(row + 2, 8)), slice(max(column + 3, 0), min(column + 6, 12)))
        masks = np.zeros((2, 8, 12), bool)
        masks[0][query.match], masks[1][query.control] = True, True
        assert masks[0].sum() == masks[1].sum() and not (masks[0] & masks[1]).any()
    assert drawn_queries(truth, ((1, 1), (1, 1)), 5, 3) == []


def test_covering_is_mid_grey_in_the_window_alone():
    image = np.ones((*SIZE, 3), np.float32)
    after = covered(image, (slice(0, 1), slice(1, 3)), 16)
    assert (after[:16, 16:48] == 0).all() and after.sum() == 3 * (32 * 48 - 16 * 32) and image.all()


def test_the_truth_of_swapped_and_doubled_pairs():
    pairs = wall_pairs(3)
    conditions = conditions_of(pairs, pairs.some([1, 2, 0]))
    swapped = conditions["swapped"].pairs.truths[1]
    np.testing.assert_allclose(swapped.pose[:3, 3], [-0.4, 0, 0], atol=1e-6)
    # View 2's own camera sees the wall as view 1's sees it.
    np.testing.assert_allclose(swapped.views[0].points, pairs.truths[1].views[0].points, atol=1e-5)
    np.testing.assert_allclose(swapped.views[1].points, pairs.truths[1].views[0].points - np.array([0.4, 0, 0]), atol=1e-5)
    back = conditions_of(conditions["swapped"].pairs, conditions["swapped"].pairs)["swapped"].pairs
    for one, other in zip(jax.tree.leaves((back.views, back.truth)), jax.tree.leaves((pairs.views, pairs.truth)), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    doubled = conditions["doubled"].pairs
    np.testing.assert_array_equal(*doubled.views)
    np.testing.assert_array_equal(doubled.truths[0].pose, np.eye(4))
    assert not conditions["unrelated"].related
    np.testing.assert_array_equal(conditions["unrelated"].pairs.views[1], pairs.views[1][[1, 2, 0]])
    # From its own camera, each view is as far from the wall.
    np.testing.assert_allclose(conditions["straight"].own_units[:, 0], conditions["straight"].own_units[:, 1], rtol=1e-5)


def test_groups_are_by_overlap():
    assert [group.tolist() for group in overlap_groups(np.array([0.9, 0.1, 0.5, 0.3]))] == [[1, 3], [2, 0]]
    assert [len(group) for group in overlap_groups(np.arange(9.0))] == [3, 2, 2, 2]
    assert [group.tolist() for group in overlap_groups(np.array([0.5]))] == [[0]]


def test_every_name_has_a_meaning_and_records_hold_the_means():
    found = study()
    assert all(set(record) <= set(MEANING) for record in found.records) and found.figures[""].axes
    assert [record["condition"] for record in found.records] == [
        *("straight", "swapped", "doubled", "unrelated", "match covered", "other covered", "overlap", "overlap")
    ]
    straight = found.records[0]
    for name in (VIEW1, VIEW2, ROTATION, DIRECTION):
        assert straight[name].mean == pytest.approx(found.by_pair[f"straight/{name}"].mean(), nan_ok=True)
    assert len(found.findings) == 6 and cost(setting()).passes == 4 * 12
    # The further apart the cameras, the less of view 2 is seen.
    assert (np.diff(found.by_pair["overlap"]) <= 0).all() and found.by_pair["overlap"][0] > found.by_pair["overlap"][-1]


@pytest.mark.slow
def test_the_seed_decides_what_is_covered():
    again, other = inputs(dataclasses.replace(setting(), batch_size=2)).by_pair, inputs(dataclasses.replace(setting(), seed=6)).by_pair
    for name, values in study().by_pair.items():
        if not name.endswith((ROTATION, DIRECTION, "matches")):
            np.testing.assert_allclose(again[name], values, rtol=2e-3, atol=1e-5, err_msg=name)
    assert not np.allclose(other["match/token_error"], study().by_pair["match/token_error"], equal_nan=True)


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(OptionError, match="expected two pairs or more, found 1"):
        inputs(dataclasses.replace(setting(), pairs=setting().pairs.some([0])))
    model = setting().backbone
    headless = model.module.clone(config=dataclasses.replace(LINEAR, head_type=None))
    trunk = {name: leaf for name, leaf in model.params.items() if not name.startswith("head")}
    with pytest.raises(CheckpointError, match="this backbone has no head"):
        inputs(dataclasses.replace(setting(), backbone=Backbone(headless, trunk)))
