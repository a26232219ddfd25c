"""Edits that cannot be made are refused with what there is, before anything runs."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

import und3rstand_jax as u3d
from tests.edit_cases import BLOCKED, FIRST, model, numbers, run
from tests.test_attention_weights import TINY, params, views
from und3rstand_jax.model.dust3r.module import DUSt3R
from und3rstand_jax.model.edits import Edit, Edits

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
    ("decoder.1.cross_attn.scores", {"shift": math.nan, "keys": [1]}, u3d.EditError, "a shift of scores must be finite or −∞; found NaN"),
    ("decoder.1.cross_attn.scores", {"shift": math.inf, "keys": [1]}, u3d.EditError, r"a shift of scores must be finite or −∞; found \+∞"),
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
    ("decoder.1.cross_attn.scores", {"pairs": [(0, 1, 2)]}, r"pairs must be \(query, key\); found \[\(0, 1, 2\)\]"),
    ("decoder.1.cross_attn.scores", {"pairs": [(0, 1), (0, 1)]}, "pairs must name at least one place, and none twice"),
    ("decoder.1.cross_attn.scores", {"pairs": [(0, -1)]}, "pairs must be whole numbers, counted from 0; found -1"),
    ("decoder.1.mlp@0", {}, r"'decoder\.1\.mlp@0': the view after @ must be 1, 2, …, and agree with view='all'"),
    ("decoder.1.mlp@", {}, "the view after @ must be 1, 2, …"),
    ("decoder.1.mlp@all", {}, "the view after @ must be 1, 2, …"),
    ("decoder.1.mlp@1", {"view": 2}, "agree with view=2"),
    ("decoder.1.mlp", {"view": 0}, 'view must be 1, 2, … or "all"; found 0'),
    ("decoder.1.mlp", {"view": "1"}, 'view must be 1, 2, … or "all"'),
    ("decoder.1.mlp", {"tokens": [2, 0, 2]}, r"tokens must name at least one place, and none twice; found \[2, 0, 2\]"),
    ("decoder.1.mlp", {"tokens": []}, r"tokens must name at least one place, and none twice; found \[\]"),
    ("decoder.1.cross_attn.heads", {"heads": [-1]}, "heads must be whole numbers, counted from 0; found -1"),
    ("decoder.1.mlp", {"tokens": [1.0]}, r"tokens must be whole numbers, counted from 0; found 1\.0"),
    ("decoder.1.mlp", {"tokens": [True]}, "tokens must be whole numbers, counted from 0; found True"),
    ("", {}, "'' names no site"),
    (" @2", {}, "' @2' names no site"),
    ("decoder.1.cross_attn.heads", {"heads": 0}, r"heads must be a list, such as \[0\]; found 0"),
    ("decoder.1.mlp", {"tokens": ["1"]}, "tokens must be whole numbers, counted from 0; found '1'"),
    ("decoder.1.cross_attn.heads:1", {"heads": [0]}, r"names heads, and heads=\[0\] are given too; leave one of them out"),
    (
        "decoder.1.cross_attn.weights",
        {},
        r"weights are read-only, since edited rows would not sum to 1; edit decoder\.1\.cross_attn\.scores",
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


@pytest.mark.usefixtures("unchecked")
def test_a_view_is_a_number_and_no_bool():
    assert type(Edit("decoder.1.mlp", np.int64(2)).view) is int
    with pytest.raises(u3d.EditError, match='view must be 1, 2, … or "all"; found True'):
        Edit("decoder.1.mlp", True)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("wrong", [[Edit("decoder.1.mlp", shift=np.nan)], Edit("decoder.1.mlp"), "decoder.1.mlp"])
def test_what_is_no_edits_is_refused(wrong):
    # A list would be a pytree of its numbers, traced and so not looked at.
    with pytest.raises(u3d.EditError, match=f"edits must be an Edits.*; found {type(wrong).__name__}"):
        model()(*views(), capture="decoder.0.mlp", head=False, edits=wrong)


@pytest.mark.filterwarnings("error")
def test_numbers_too_large_for_float32_are_refused_alone_and_together():
    with pytest.raises(u3d.EditError, match="shift must be finite; found inf"):
        run(u3d.steer("decoder.1.mlp", 1e39), "decoder.1.mlp")
    large = Edits((Edit("decoder.1.mlp", scale=1e30),))
    with pytest.raises(u3d.EditError, match="edit 1, .*together with an earlier edit of this site its numbers are too large"):
        run(large + large, "decoder.1.mlp")
    down = u3d.steer("decoder.1.self_attn.scores", -3e38)
    with pytest.raises(u3d.EditError, match="too large for float32"):
        run(down + down, "decoder.1.mlp")
