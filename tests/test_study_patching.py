"""The study of patches, on a decoder whose view 2 is decided in one layer: what a patch brings is known."""

import copy
import dataclasses
import functools

import jax
import numpy as np
import pytest

from tests.made_pairs import wall_pairs
from tests.test_model_properties import LINEAR, backbone
from und3rstand_jax.analysis.studies.patching.runs import Runs, patches_of
from und3rstand_jax.analysis.studies.patching.study import chosen, cost, decided, patching, share_towards
from und3rstand_jax.analysis.studies.study import Mean, Setting
from und3rstand_jax.model.backbone import Backbone
from und3rstand_jax.support.errors import CheckpointError, OptionError
from und3rstand_jax.support.pieces import Pieces

pytestmark = pytest.mark.quick

READS, DECIDES = 0, 2
"""View 1's decoder reads view 2 in this block, and view 2's reads view 1 in that; nothing else changes a stream."""


def decided_in_one_layer() -> Backbone:
    model = backbone(LINEAR)
    params = copy.deepcopy(jax.tree.map(np.array, model.params))
    for blocks, alive in (("blocks1", READS), ("blocks2", DECIDES)):
        of_view = params["decoder"][blocks]
        for step, last in (("attn", "proj"), ("cross_attn", "proj"), ("mlp", "fc2")):
            for leaf in of_view[step][last].values():
                keep = 3 * leaf[alive]
                leaf[:] = 0
                if step == "cross_attn":
                    leaf[alive] = keep
    return Backbone(model.module, params)


@functools.cache
def setting() -> Setting:
    pairs = wall_pairs(4)
    return Setting(decided_in_one_layer(), None, pairs, wall_pairs(4, 1, (-0.5, -0.3), pairs.views[0]), batch_size=2)


@functools.cache
def study():
    return patching(setting())


def shares(kind, view=2, name="points2", source="twin"):
    return {record["site"]: record[f"share_{name}"].mean for record in chosen(study().records, kind, view, source)}


STEPS = ("self_attn", "cross_attn", "mlp")
LAYERS = ["decoder.embed", *(f"decoder.{block}.{step}" for block in range(4) for step in STEPS)]


@pytest.mark.slow
def test_view_2s_stream_brings_all_of_b_from_the_layer_that_decides_on_and_before_that_not_what_view_1_has_read():
    found = shares("layer")
    assert list(found) == LAYERS
    since = LAYERS.index(f"decoder.{DECIDES}.cross_attn")
    assert [found[layer] for layer in LAYERS[since:]] == pytest.approx([1] * len(LAYERS[since:]), abs=1e-4)
    # Before view 1 has read anything, view 2's stream is all that differs.
    assert found["decoder.embed"] == pytest.approx(1, abs=1e-4)
    between = [found[layer] for layer in LAYERS[1:since]]
    assert max(between) < 0.99 and between == pytest.approx([between[0]] * len(between), abs=1e-4)
    assert set(shares("layer", name="points1").values()) - {shares("layer", name="points1")["decoder.embed"]} == {0.0}


@pytest.mark.slow
def test_view_1s_stream_brings_something_between_the_layer_that_reads_and_the_one_that_decides():
    found = shares("layer", view=1)
    before, after = (LAYERS.index(layer) for layer in (f"decoder.{READS}.cross_attn", f"decoder.{DECIDES}.self_attn"))
    nothing = [found[layer] for layer in (*LAYERS[:before], *LAYERS[after:])]
    assert nothing == pytest.approx([0] * len(nothing), abs=1e-4)
    # What the two streams bring there is not the same, but neither is nothing.
    assert all(abs(found[layer]) > 0.002 for layer in LAYERS[before:after])
    of_view1 = shares("layer", view=1, name="points1")
    assert [of_view1[layer] for layer in LAYERS] == pytest.approx([0] * before + [1] * (len(LAYERS) - before), abs=1e-4)


@pytest.mark.slow
def test_of_updates_and_heads_those_of_the_layer_that_decides_alone_matter():
    for kind, part in (("update", "update"), ("head", "heads")):
        for record in chosen(study().records, kind):
            moved = record["moved"].mean
            if record["site"] == f"decoder.{DECIDES}.cross_attn.{part}":
                assert moved > 0.01
            else:
                assert moved == pytest.approx(0, abs=1e-4), record["site"]
    assert len(chosen(study().records, "head")) == 8


@pytest.mark.slow
def test_the_controls_are_what_they_must_be():
    assert list(shares("layer", source="itself").values()) == pytest.approx([0, 0, 0], abs=1e-5)
    unrelated = shares("layer", source="unrelated")
    assert list(unrelated) == [layer for layer in LAYERS if layer.endswith(("embed", "mlp"))]
    assert max(unrelated.values()) < 0.5
    assert study().by_pair["to_b/points2_of_b"] == pytest.approx([0] * 4, abs=1e-6)
    assert (study().by_pair["to_b/points2_of_a"] > 0.01).all()


@pytest.mark.slow
def test_poses_and_errors_are_bs_where_the_points_are():
    own, last = study().by_pair, LAYERS.index("decoder.3.mlp")
    for name in ("rotation_a", "rotation_b", "direction_b", "to_b/rotation"):
        np.testing.assert_allclose(own[name][:, last], own[f"{name}_of_b"], atol=0.5, err_msg=name)
    first = chosen(study().records, "layer", source="itself")[0]
    assert first["error_a"].mean == pytest.approx(float(np.mean(own["error_a_of_a"])), rel=1e-4)
    assert first["error_b"].mean == pytest.approx(float(np.mean(own["error_b_of_a"])), rel=1e-4)


@pytest.mark.slow
def test_every_name_has_a_meaning_and_the_findings_hold_the_numbers():
    found = study()
    assert all(set(record) == set(found.meaning) for record in found.records)
    assert len(found.records) == len(patches_of(LINEAR)) and found.figures[""].axes
    assert any(f"updates of view 2 decoder.{DECIDES}.cross_attn.update brings most" in finding for finding in found.findings)
    assert found.findings[0].startswith("View 2's stream from B brings 100 ± 0 % of B's points of view 2 at decoder.embed")
    assert cost(setting()).passes > 3 * len(LAYERS)


@pytest.mark.slow
def test_an_interrupted_study_goes_on_and_gives_the_same(tmp_path, monkeypatch):
    ran = []

    class Interrupted(Runs):
        def __init__(self, setting, patches, some):
            if ran:
                raise KeyboardInterrupt
            ran.append(some)
            super().__init__(setting, patches, some)

    parts = dataclasses.replace(setting(), pieces=Pieces(tmp_path / "pieces", {}))
    monkeypatch.setattr("und3rstand_jax.analysis.studies.patching.study.Runs", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        patching(parts)
    ran.clear()
    again = patching(parts).by_pair
    assert ran == [range(2, 4)]
    assert all(np.array_equal(again[name], values, equal_nan=True) for name, values in study().by_pair.items())


def test_a_share_is_a_ratio_of_sums_and_leaves_unknown_pairs_out():
    share = share_towards(np.array([1.0, 1.0, np.nan]), np.array([2.0, 6.0, 1.0]))
    assert share.mean == pytest.approx(1 - 2 / 8)
    # Residuals are 0.5 and -0.5; the mean distance apart is 4.
    assert share.error == pytest.approx(np.std([0.5, -0.5], ddof=1) / (4 * np.sqrt(2)))
    assert np.isnan(share_towards(np.zeros(2), np.zeros(2)).mean)


def test_the_layer_from_which_on_the_output_is_bs():
    def curve(*means):
        return [{"site": f"decoder.{block}.mlp", "share_points2": Mean(mean, 0.0)} for block, mean in enumerate(means)]

    assert decided(curve(0.9, 0.4, 0.6, 0.8)) == "decoder.2.mlp"
    assert decided(curve(0.9, 0.6)) == "decoder.0.mlp"
    assert decided(curve(0.9, 0.5)) is None


def test_what_cannot_be_patched_is_refused():
    with pytest.raises(OptionError, match="patching needs pairs that share view 1"):
        patching(dataclasses.replace(setting(), twins=None))
    one = dataclasses.replace(setting(), pairs=setting().pairs.some([0]), twins=setting().twins.some([0]))
    with pytest.raises(OptionError, match="expected two pairs or more, found 1"):
        patching(one)
    headless = dataclasses.replace(LINEAR, head_type=None)
    model = setting().backbone
    trunk = {name: leaf for name, leaf in model.params.items() if not name.startswith("head")}
    with pytest.raises(CheckpointError, match="this backbone has no head"):
        patching(dataclasses.replace(setting(), backbone=Backbone(model.module.clone(config=headless), trunk)))
