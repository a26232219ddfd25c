"""The study of layers: its numbers are those of the analysis of one pair, and what steps take off an error adds up."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from tests.test_model_properties import LINEAR, backbone
from tests.walls import wall_pairs, wall_sets
from und3rstand_jax.analysis.analyse import analyse_views
from und3rstand_jax.analysis.inputs import Inputs
from und3rstand_jax.analysis.pair_measures import KNOWN, MATCHES, ROTATION, VIEW1, VIEW2, HeadFinish, HeadMeasure
from und3rstand_jax.analysis.studies.layers.study import layers, step_falls
from und3rstand_jax.analysis.studies.study import Control, Mean, Setting
from und3rstand_jax.geometry.alignment import aligned_errors
from und3rstand_jax.model.backbone import random_backbone
from und3rstand_jax.model.layer_ids import HEAD
from und3rstand_jax.probes.config import probe_config
from und3rstand_jax.probes.probes import PointmapProbes, Probes, init_probes
from und3rstand_jax.support.errors import CheckpointError
from und3rstand_jax.support.progress import Stopwatch

pytestmark = pytest.mark.quick

DEEP = dataclasses.replace(LINEAR, dec_depth=11)
PROBED = ("decoder.2.mlp", "decoder.10.self_attn", "decoder.10.cross_attn", "decoder.10.mlp")  # which sort otherwise as text


def probes_on(config, seed):
    of = probe_config(config, PROBED, 16, 2, "gelu", "layernorm", "shared")
    return Probes(PointmapProbes(of), init_probes(of, seed))


@pytest.fixture(scope="module")
def setting():
    model, own = backbone(DEEP), probes_on(DEEP, 0)
    control = Control(random_backbone(DEEP, 5), probes_on(DEEP, 1), own, "not at all")
    return Setting(model, own, wall_pairs(0.0, 12.0, 5.0), control=control, batch_size=2)


@pytest.fixture(scope="module")
def study(setting):
    return layers(setting)


@pytest.mark.slow
def test_the_numbers_are_those_of_the_analysis_of_a_pair(setting, study):
    for number in range(setting.count):
        pair = setting.pairs.some([number])
        analysis = analyse_views(setting.backbone, setting.probes, PROBED, Inputs("", pair.views, pair.truths[0], {}), {}, Stopwatch())
        for layer in analysis.layers:
            found = {name: study.by_pair[f"{layer.layer_id}/{name}"][number] for name in (VIEW1, VIEW2, MATCHES, KNOWN, ROTATION)}
            assert (found[VIEW1], found[VIEW2]) == pytest.approx(layer.errors, rel=1e-4)
            assert found[MATCHES] == pytest.approx(0.0 if layer.accuracy is None else layer.accuracy, abs=0.02)
            offsets = layer.correspondences[0].offsets
            assert found[KNOWN] == pytest.approx(np.mean(~np.isnan(offsets)), abs=0.02)
            rotation = layer.rotation_degrees
            assert found[ROTATION] == pytest.approx(180.0 if rotation is None else rotation, abs=0.5)


@pytest.mark.slow
def test_records_are_in_network_order_the_head_last_and_every_name_is_explained(study):
    assert [record["layer"] for record in study.records] == [*PROBED, HEAD]
    for record in study.records:
        assert set(record) <= set(study.meaning)
    assert ["adds1" in record for record in study.records] == [False, False, True, True, False]  # the layer before has a probe
    difference = study.by_pair["decoder.10.self_attn/view2"] - study.by_pair["decoder.10.cross_attn/view2"]
    assert study.records[2]["adds2"] == pytest.approx((difference.mean(), difference.std(ddof=1) / np.sqrt(3)), rel=1e-5)


@pytest.mark.slow
def test_the_control_reads_random_weights_and_the_same_training_the_model(study):
    for record in study.records[:-1]:
        # The control's probes on the model are, here, the study's own.
        assert record["same1"] == pytest.approx(record[VIEW1], rel=1e-5)
        assert record["random2"].mean > 0 and record["random2"] != record["same2"]
    assert study.facts["control"] == "not at all" and set(study.figures) == {"", "control"}
    assert any("random weights" in finding for finding in study.findings)


@pytest.mark.slow
def test_an_alignment_is_chosen(setting):
    aligned = layers(dataclasses.replace(setting, alignment="similarity", control=None))
    assert aligned.facts["alignment"] == "similarity" and aligned.facts["control"] is None
    usual = layers(dataclasses.replace(setting, control=None))
    assert usual.facts["alignment"] == "scale"
    assert aligned.records[0][VIEW1].mean < usual.records[0][VIEW1].mean


def test_falls_of_the_steps_of_a_kind_add_up():
    names = [f"decoder.{block}.{step}" for block in (0, 1, 2) for step in ("self_attn", "cross_attn", "mlp")]
    errors = {f"{name}/{view}": np.array([9.0 - number, 3.0]) for number, name in enumerate(names) for view in (VIEW1, VIEW2)}
    found = step_falls(errors, names, 1, LINEAR)
    assert {kind: one.mean for kind, (one, _) in found.items()} == {"self_attn": 1.0, "cross_attn": 1.0, "mlp": 1.0}
    assert found["mlp"][0] == Mean(1.0, 1.0)  # two in the first pair, none in the second
    assert step_falls(errors, names, 2, LINEAR)["mlp"][1].mean == 0.5


@pytest.mark.slow
def test_without_probes_there_is_nothing_to_read(setting):
    with pytest.raises(CheckpointError, match="train them with --layers all"):
        layers(dataclasses.replace(setting, probes=None))


@pytest.mark.slow
def test_sets_of_three_views_have_what_is_read_of_every_view():
    config = dataclasses.replace(LINEAR, enc_depth=1, dec_depth=1, max_views=None)
    of = probe_config(config, ("decoder.0.cross_attn", "decoder.0.mlp"), 16, 1)
    probes = Probes(PointmapProbes(of), init_probes(of, 0))
    sets = wall_sets((4.0, 12.0), (8.0, -8.0), (2.0, 20.0))
    model = random_backbone(config, 0)
    study = layers(Setting(model, probes, sets, batch_size=3))
    output = model(*sets.views, capture=of.layer_ids, head=True)
    errors = aligned_errors(probes.read_layer("decoder.0.mlp", output), sets.truth.truth, jnp.asarray(sets.truth.unit))
    for number, error in enumerate(errors, start=1):
        np.testing.assert_allclose(study.by_pair[f"decoder.0.mlp/view{number}"], error, rtol=1e-5)
    finished = HeadFinish(sets.truths)({name: np.asarray(of) for name, of in HeadMeasure()(output, sets.truth, ()).items()}, range(3))
    for metric in (MATCHES, ROTATION):
        np.testing.assert_allclose(study.by_pair[f"{HEAD}/{metric}"], finished[metric], atol=0.5)
    assert {"view3", "adds3"} <= set(study.records[1]) <= set(study.meaning)
    assert study.tables[0].columns[:4] == ("layer", "view 1", "view 2", "view 3") and "view 3's" in study.findings[0]
    np.testing.assert_allclose(study.by_pair["baseline"], np.array([8.0, 8.0, 11.0]) * 2 / 64, rtol=1e-5)
    assert [len(axes.get_legend().get_texts()) for axes in study.figures[""].axes[:1]] == [3]
