"""The measurements of docs/pocket.md on cases whose answer is known."""

import types

import numpy as np
import pytest

from benchmarks.layers import LayerMeans, by_distance
from benchmarks.true_place import attention_on, true_place
from und3rstand_jax.report.content import ViewTruth
from und3rstand_jax.report.inputs import Inputs

SIZE, PATCH = 64, 16
GRID = (SIZE // PATCH, SIZE // PATCH)
INTRINSICS = np.array([[64.0, 0, 31.5], [0, 64, 31.5], [0, 0, 1]])


def wall(shift_pixels: float = 0.0) -> Inputs:
    """Both cameras look straight at a wall 2 m away; the second stands so far to the left that all is `shift_pixels` further right."""
    pose = np.eye(4)
    pose[0, 3] = -shift_pixels * 2 / 64
    columns, rows = np.meshgrid(np.arange(SIZE), np.arange(SIZE))
    points = np.stack([(columns - 31.5) * 2 / 64, (rows - 31.5) * 2 / 64, np.full((SIZE, SIZE), 2.0)], axis=-1)
    valid = np.ones((SIZE, SIZE), bool)
    views = (np.zeros((1, SIZE, SIZE, 3), np.float32),) * 2
    truth = (ViewTruth(points, valid), ViewTruth(points + pose[:3, 3], valid))
    return Inputs("a wall", views, truth, pose, (INTRINSICS, INTRINSICS), {})


def test_what_both_cameras_see_alike_lies_within_a_token_of_its_own_place():
    place = true_place(wall(), (GRID, GRID))
    rows, columns = np.divmod(np.arange(16), 4)
    expected = (abs(rows[:, None] - rows) <= 1) & (abs(columns[:, None] - columns) <= 1)
    assert place.seen.all()
    assert np.array_equal(place.near, expected)
    assert place.even == pytest.approx(expected.mean())


@pytest.mark.parametrize("shift", [7.0, 9.0, 16.0])
def test_a_place_moves_with_the_camera_and_is_not_seen_beyond_the_image(shift):
    place = true_place(wall(shift), (GRID, GRID))
    # Middles are pixels 8, 24, 40 and 56, and a token ends half a pixel behind its last.
    columns = np.floor((np.array([8, 24, 40, 56]) + shift + 0.5) / PATCH)
    assert np.array_equal(place.seen.reshape(GRID), np.broadcast_to(np.array([8, 24, 40, 56]) + shift < 63.5, GRID))
    token = 4 + 1  # row 1, column 1
    assert np.array_equal(place.near[token].reshape(GRID), (abs(np.arange(4)[:, None] - 1) <= 1) & (abs(np.arange(4) - columns[1]) <= 1))


def test_attention_counts_where_it_lies_and_only_of_tokens_that_the_other_view_sees():
    place = true_place(wall(16.0), (GRID, GRID))
    on_it = np.zeros((16, 16))
    on_it[np.arange(16), np.minimum(np.arange(16) + 1, 15)] = 1
    block = types.SimpleNamespace(from_view1=np.stack([on_it, np.full((16, 16), 1 / 16)]))
    shares = attention_on(types.SimpleNamespace(attention=(block,)), place)
    assert shares.shape == (1, 2)
    assert shares[0, 0] == pytest.approx(1)
    assert shares[0, 1] == pytest.approx(place.even)


def test_scenes_are_grouped_by_how_far_their_cameras_are_apart():
    found = [LayerMeans("head", error, 2 * error, 0.5, rotation) for error, rotation in ((6, 1), (1, 2), (3, 3), (4, 4), (2, 5), (5, 6))]
    groups = by_distance(found, [6.0, 1.0, 3.0, 4.0, 2.0, 5.0])
    assert [(group.nearest, group.farthest) for group in groups] == [(1, 2), (3, 4), (5, 6)]
    assert [group.means.view1 for group in groups] == [1.5, 3.5, 5.5]
    assert [group.means.view2 for group in groups] == [3, 7, 11]
    assert [group.means.rotation for group in groups] == [3.5, 3.5, 3.5]
