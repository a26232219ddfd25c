"""Where the other view sees what a token shows, and how much attention lies there, on walls whose answer is known."""

import numpy as np
import pytest

from tests.walls import GRID, PATCH, wall
from und3rstand_jax.analysis.true_place_attention import attention_on, both_true_places
from und3rstand_jax.analysis.view_set import Attention


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
    block = Attention.to_others(0, (np.stack([right, even]), np.stack([even, left])))
    shares = attention_on([block], places)
    assert shares.shape == (2, 1, 2)
    assert shares[:, 0] == pytest.approx(np.array([[1, places[0].uniform_share], [places[1].uniform_share, 1]]))
    unseen = tuple(place._replace(seen=np.zeros_like(place.seen)) for place in places)
    assert np.isnan(attention_on([block], unseen)).all()
