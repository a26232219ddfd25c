"""The measurements of docs/pocket.md on cases whose answer is known."""

import json

import numpy as np
import pytest

from tests.walls import GRID, PATCH, wall
from und3rstand_jax.analysis.layer_study import AttentionShares, LayerStudy, Mean, SceneMetrics, by_distance, falls, mean_of, means
from und3rstand_jax.analysis.layer_study_files import as_json, from_json, tables
from und3rstand_jax.analysis.pair import Attention
from und3rstand_jax.analysis.true_place_attention import attention_on, both_true_places
from und3rstand_jax.support.text import to_json


def test_what_both_cameras_see_alike_lies_within_a_token_of_its_own_place():
    places = both_true_places(wall(), (GRID, GRID))
    rows, columns = np.divmod(np.arange(16), 4)
    expected = (abs(rows[:, None] - rows) <= 1) & (abs(columns[:, None] - columns) <= 1)
    for place in places:
        assert place.seen.all()
        assert np.array_equal(place.near, expected)
        assert place.uniform_share == pytest.approx(expected.mean())


@pytest.mark.parametrize("shift", [7.0, 9.0, 16.0])
def test_a_place_moves_with_the_camera_and_is_not_seen_beyond_the_image(shift):
    middles, token = np.array([8, 24, 40, 56]), 4 + 1  # row 1, column 1
    for place, moved in zip(both_true_places(wall(shift), (GRID, GRID)), (middles + shift, middles - shift), strict=True):
        # A token ends half a pixel behind its last.
        columns = np.floor((moved + 0.5) / PATCH)
        assert np.array_equal(place.seen.reshape(GRID), np.broadcast_to((moved < 63.5) & (moved > -0.5), GRID))
        near = (abs(np.arange(4)[:, None] - 1) <= 1) & (abs(np.arange(4) - columns[1]) <= 1)
        assert np.array_equal(place.near[token].reshape(GRID), near)


def test_attention_counts_where_it_lies_and_only_of_tokens_that_the_other_view_sees():
    places = both_true_places(wall(16.0), (GRID, GRID))
    right, left = (np.eye(16, k=step) + np.diag(np.arange(16) == edge) for step, edge in ((1, 15), (-1, 0)))
    even = np.full((16, 16), 1 / 16)
    block = Attention(0, from_view1=np.stack([right, even]), from_view2=np.stack([even, left]))
    shares = attention_on([block], places)
    assert shares.shape == (2, 1, 2)
    assert shares[:, 0] == pytest.approx(np.array([[1, places[0].uniform_share], [places[1].uniform_share, 1]]))
    unseen = tuple(place._replace(seen=np.zeros_like(place.seen)) for place in places)
    assert np.isnan(attention_on([block], unseen)).all()


def scene(layer_id, view1, view2=1.0, rotation=1.0):
    return SceneMetrics(layer_id, view1, view2, accuracy=0.5, known=0.25, rotation=rotation)


def test_means_leave_out_scenes_without_a_value_and_tell_their_standard_error():
    assert mean_of([1.0, np.nan, 3.0, 5.0]) == pytest.approx((3, 2 / np.sqrt(3)))
    assert np.isnan(mean_of([np.nan])).all() and np.isnan(mean_of([2.0]).error)
    found = means([scene("head", 1.0, rotation=1.0), scene("head", 2.0, rotation=180.0), scene("head", 6.0, rotation=3.0)])
    assert found.layer_id == "head" and found.view1.mean == 3 and found.rotation == 3


def test_scenes_are_grouped_by_how_far_their_cameras_are_apart():
    found = [scene("head", error, 2 * error, rotation) for error, rotation in ((6, 1), (1, 2), (3, 3), (4, 4), (2, 5), (5, 6))]
    groups = by_distance(found, [6.0, 1.0, 3.0, 4.0, 2.0, 5.0])
    assert [(group.nearest, group.farthest) for group in groups] == [(1, 2), (3, 4), (5, 6)]
    assert [group.means.view1.mean for group in groups] == [1.5, 3.5, 5.5]
    assert [group.means.view2.mean for group in groups] == [3, 7, 11]
    assert [group.means.rotation for group in groups] == [3.5, 3.5, 3.5]


STEPS = [f"decoder.{block}.{step}" for block in range(3) for step in ("self_attn", "cross_attn", "mlp")]


def test_falls_are_summed_by_kind_of_step_from_a_block_on():
    one = [scene(layer, error, 2 * error) for layer, error in zip(STEPS, (9, 8, 7, 5, 4, 4, 3, 1, 1), strict=True)]
    other = [scene(layer, 5.0, 5.0) for layer in STEPS]
    found = falls([one, other], 1)
    assert {kind: (fall.mean, double.mean) for kind, (fall, double) in found.items()} == {
        "self_attn": (1.5, 3),
        "cross_attn": (1.5, 3),
        "mlp": (0, 0),
    }
    assert found["self_attn"][0].error == pytest.approx(1.5)
    assert falls([one, other], 2)["self_attn"][0].mean == 0.5


def test_a_study_survives_json_and_tables_show_it():
    scenes = [[scene(layer, 0.25, 0.5), scene("head", 0.125, 0.25)] for layer in ("decoder.0.mlp",) * 3]
    shares = np.arange(8.0).reshape(2, 1, 4) / 10
    found = LayerStudy(
        [means(layer) for layer in zip(*scenes, strict=True)],
        AttentionShares(shares, shares / 2, shares / 100, np.array([0.1, 0.2])),
        by_distance([layers[-1] for layers in scenes], [3.0, 1.0, 2.0]),
        {1: {"mlp": (Mean(0.1, 0.01), Mean(0.2, 0.02))}},
        12.34,
    )
    written = json.loads(to_json(as_json(found)))
    assert tables(from_json(written)) == tables(found)
    lines = tables(found).splitlines()
    assert "| decoder.0.mlp | 0.250 ± 0.000 | 0.500 ± 0.000 | 50 ± 0 % | 25% | 1.0 |" in lines
    assert "Median angle between the cameras, the error of no rotation at all: 12.3°" in lines
    assert "| mlp | 0.100 ± 0.010 | 0.200 ± 0.020 |" in lines
    assert "| 1.00 to 1.00 | 0.125 ± nan | 0.250 ± nan | 50 ± nan % | 25% | 1.0 |" in lines
    assert "| 0 | 0.40 / 0.20 | 0.50 / 0.25 | 0.60 / 0.30 | 0.70 / 0.35 |" in lines
    assert lines[-1] == "Evenly spread: 0.100 and 0.200; largest standard error of a difference: 0.007"
