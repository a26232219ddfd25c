"""The study of heads on attention that is made to look somewhere: at the true place, at its own place, at a sink, nowhere."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from tests.test_model_properties import LINEAR, backbone
from tests.walls import GRID, wall, wall_pairs
from und3rstand_jax.analysis.studies.heads import study
from und3rstand_jax.analysis.studies.heads.measures import attention_statistics, match_statistics, measure_heads
from und3rstand_jax.analysis.studies.heads.study import head_record, heads, label_of
from und3rstand_jax.analysis.studies.study import Setting
from und3rstand_jax.analysis.true_place_attention import attention_on, both_true_places
from und3rstand_jax.analysis.view_set import Attention

CROSS, SELF = "cross_attn", "self_attn"
TOKENS = GRID[0] * GRID[1]


def made_attention(places):
    """Of view 1: a head that copies its match, one that looks at its own place, one with a sink at token 1, and an even one."""
    weights = np.zeros((1, 4, TOKENS, TOKENS), np.float32)
    weights[0, 0, np.arange(TOKENS), np.maximum(places.token, 0)] = 1
    weights[0, 1] = np.eye(TOKENS)
    weights[0, 2, :, 1] = 1
    weights[0, 3] = 1 / TOKENS
    return weights


def test_heads_made_to_look_somewhere_are_told_apart():
    places, others = both_true_places(wall(16.0), (GRID, GRID))[0], both_true_places(wall(-16.0), (GRID, GRID))[0]
    weights = jnp.asarray(made_attention(places))
    stacked, control = (type(place)(*(jnp.asarray(leaf)[None] for leaf in place)) for place in (places, others))
    found = {name: np.asarray(values)[0] for name, values in match_statistics(weights, stacked, control).items()}
    found |= {name: np.asarray(values)[0] for name, values in attention_statistics(weights, GRID, GRID, stacked.seen).items()}
    assert found["match"][0] == found["near"][0] == found["mass"][0] == 1
    # All is one token further right; what lies one token to the left of a query's place is no match, and near its own place.
    assert found["match"][1] == 0 and found["near"][1] == 1
    # The other scene's places are two tokens from the match, one from the query's own.
    assert found["mass_other"][0] == found["near_other"][0] == 0 and found["mass_other"][1] == 1
    assert found["mass"][3] == pytest.approx(places.uniform_share) and found["mass_other"][3] == pytest.approx(others.uniform_share)
    assert found["entropy"].tolist() == pytest.approx([0, 0, 0, 1], abs=1e-6)
    # The four tokens without a match were made to look at token 0.
    distance = (12 + sum(np.hypot(3, row) for row in range(4))) / 16
    assert found["distance"][:2].tolist() == pytest.approx([distance, 0]) and found["own"][1] == 1
    assert found["sink"].tolist() == pytest.approx([4 / 16, 1 / 16, 1, 1 / 16]) and found["sink_token"][2] == 1
    labels = [label_of({name: float(values[head]) for name, values in found.items()}) for head in range(4)]
    assert labels == ["correspondence", "position", "sink", "other"]


def test_queries_that_are_seen_and_those_that_are_not_are_told_apart():
    seen = both_true_places(wall(16.0), (GRID, GRID))[0].seen
    assert seen.sum() == 12
    weights = np.where(seen[:, None], np.eye(TOKENS), 1 / TOKENS).astype(np.float32)[None, None]
    found = {
        name: float(np.asarray(values)[0, 0])
        for name, values in attention_statistics(jnp.asarray(weights), GRID, GRID, jnp.asarray(seen[None])).items()
    }
    assert (found["entropy_seen"], found["entropy_unseen"]) == pytest.approx((0, 1), abs=1e-6)
    assert found["entropy"] == pytest.approx(0.25) and found["own_seen"] == pytest.approx(1)
    nothing = attention_statistics(jnp.asarray(weights), GRID, GRID, jnp.zeros((1, TOKENS), bool))
    assert np.isnan(nothing["entropy_seen"]).all() and np.isfinite(nothing["entropy_unseen"]).all()


def test_grids_of_two_sizes_are_laid_over_one_another():
    weights = np.zeros((1, 1, 4, 16), np.float32)
    weights[0, 0, [0, 1, 2, 3], [0, 3, 12, 15]] = 1  # corners to corners, of a 2×2 and a 4×4 grid
    found = attention_statistics(jnp.asarray(weights), (2, 2), (4, 4), jnp.ones((1, 4), bool))
    assert float(found["distance"][0, 0]) == pytest.approx(np.hypot(0.5, 0.5))


@pytest.fixture(scope="module")
def setting():
    return Setting(backbone(LINEAR), None, wall_pairs(0.0, 16.0, -9.0), batch_size=2)


@pytest.fixture(scope="module")
def found(setting):
    return heads(setting)


def test_masses_are_those_of_the_attention_that_the_model_gives(setting, found):
    model = setting.backbone
    names = [f"decoder.{block}.cross_attn.weights" for block in range(LINEAR.dec_depth)]
    for number, truth in enumerate(setting.pairs.truths):
        output = model(*(view[number : number + 1] for view in setting.pairs.views), capture=names, head=False)
        attention = [Attention.to_others(block, [np.asarray(view)[0] for view in output[name]]) for block, name in enumerate(names)]
        places, others = (both_true_places(of, setting.grids) for of in (truth, setting.pairs.truths[(number + 1) % 3]))
        assert found.by_pair["cross_attn/mass"][number] == pytest.approx(attention_on(attention, places), abs=1e-6)
        assert found.by_pair["cross_attn/mass_other"][number] == pytest.approx(attention_on(attention, others), abs=1e-6)


def test_there_is_a_record_of_every_head_block_and_view_and_every_name_is_explained(found):
    assert len(found.records) == 2 * 2 * LINEAR.dec_depth * LINEAR.dec_num_heads
    places = {(record["attention"], record["view"], record["block"], record["head"]) for record in found.records}
    assert places == {(a, v, b, h) for a in (CROSS, SELF) for v in (1, 2) for b in range(4) for h in (0, 1)}
    for record in found.records:
        assert set(record) <= set(found.meaning)
    one = found.records[5]
    values = found.by_pair["cross_attn/sink"][:, 0, 2, 1]
    assert (one["block"], one["head"]) == (2, 1) and one["sink"] == pytest.approx((values.mean(), values.std(ddof=1) / np.sqrt(3)))


def test_figures_and_tables_hold_every_block(found):
    assert [len(table.rows) for table in found.tables] == [4, 4, 4]
    assert found.tables[2].rows[0][:2] == ("cross_attn", "1")
    assert len(found.figures) == 1 and len(found.findings) == 3


def test_batches_change_nothing(setting, found):
    again = measure_heads(dataclasses.replace(setting, batch_size=1))
    for name, values in found.by_pair.items():
        assert again[name] == pytest.approx(values, abs=1e-6, nan_ok=True), name


def test_a_label_needs_both_more_than_a_threshold_and_its_control():
    base = {"mass": 0.9, "mass_other": 0.8, "sink": 0.1, "own": 0.2}
    assert label_of(base) == study.OTHER
    assert label_of(base | {"mass_other": 0.7}) == study.CORRESPONDENCE
    assert label_of(base | {"sink": 0.2, "own": 0.9}) == study.SINK
    assert head_record({"self_attn/sink": np.ones((2, 2, 1, 1)), "self_attn/own": np.ones((2, 2, 1, 1))}, SELF, 2, 0, 0)["label"] == "sink"
