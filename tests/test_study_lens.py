"""The lens reads tokens as the model would without its later steps; its scale, controls and rotation are what they are said to be."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import und3rstand_jax as u3d
from tests.test_ablations import scene_pairs
from tests.test_model_properties import DPT, LINEAR, assert_same, backbone, views
from tests.walls import wall_sets
from und3rstand_jax.analysis.own_head import lens_layers, lens_start
from und3rstand_jax.analysis.pair_measures import ROTATION, HeadFinish, HeadMeasure, PairTruth
from und3rstand_jax.analysis.studies.lens.measures import FACTORS, fit_scales, fitted_pairs, measure
from und3rstand_jax.analysis.studies.lens.study import cost, lens, meaning_of
from und3rstand_jax.analysis.studies.study import Setting, Study, other_pair
from und3rstand_jax.geometry.loss import Target, normalised_truth
from und3rstand_jax.geometry.metrics import normalised_errors
from und3rstand_jax.model.backbone import Backbone, random_backbone
from und3rstand_jax.model.head_choice import head_layers
from und3rstand_jax.model.layer_ids import network_order
from und3rstand_jax.probes.config import probe_config
from und3rstand_jax.probes.probes import PointmapProbes, Probes, init_probes
from und3rstand_jax.support.errors import CheckpointError, OptionError
from und3rstand_jax.support.pieces import Pieces

pytestmark = pytest.mark.quick

SMALL = dataclasses.replace(LINEAR, enc_depth=1, dec_depth=2)

STILL_FROM = "decoder.0.mlp"
"""Behind it, no step of `still` adds anything."""


def later(layer, config):
    return [step for step in lens_layers(config) if network_order(step) > network_order(layer)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "layer"),
    [
        (SMALL, "decoder.0.cross_attn"),
        pytest.param(LINEAR, "decoder.embed", marks=pytest.mark.slow),
        pytest.param(DPT, "decoder.1.cross_attn", marks=pytest.mark.slow),
    ],
)
def test_the_lens_with_norm_is_the_model_without_its_later_updates(config, layer):
    model, images = backbone(config), views()
    output = model(*images, capture=(layer, *head_layers(config)), head=False)
    skipped = sum((u3d.skip(step) for step in later(layer, config)), u3d.Edits())
    expected = model(*images, capture=(), head=True, edits=skipped)
    assert_same(model(start=lens_start(output, layer, config, norm=True), capture=(), head=True), expected, 1e-5)
    # Without norm, what the head reads last is the stream itself.
    replaced = skipped + sum((u3d.replace("decoder.norm", output[layer][view - 1], view=view) for view in (1, 2)), u3d.Edits())
    bare = model(start=lens_start(output, layer, config, norm=False), capture=(), head=True)
    assert_same(bare, model(*images, capture=(), head=True, edits=replaced), 1e-5)


@functools.cache
def still():
    """A model whose decoder does nothing behind block 0."""
    model = backbone(SMALL)

    def cleared(blocks):
        return jax.tree.map(lambda leaf: np.concatenate([leaf[:1], np.zeros_like(leaf[1:])]), blocks)

    decoder = {name: cleared(part) if name.startswith("blocks") else part for name, part in model.params["decoder"].items()}
    return Backbone(model.module, dict(model.params) | {"decoder": decoder})


@functools.cache
def setting():
    config = probe_config(SMALL, ("decoder.0.mlp", "decoder.1.mlp"), depth=1)
    probes = Probes(PointmapProbes(config), init_probes(config, 0))
    return Setting(still(), probes, scene_pairs(4, (48, 48))[1], batch_size=3)


@functools.cache
def found():
    return lens(setting())


@pytest.mark.slow
def test_behind_the_last_step_that_adds_anything_the_lens_is_the_models_own_output():
    pairs, layers = setting().pairs, lens_layers(SMALL)
    output = still()(*pairs.views, capture=(), head=True)
    own = HeadMeasure()(output, pairs.truth, ())
    at = layers.index(STILL_FROM)
    for view in (1, 2):
        errors = found().by_pair[f"normed/view{view}"]
        np.testing.assert_array_equal(errors[:, at:], np.repeat(errors[:, -1:], len(layers) - at, axis=1))
        np.testing.assert_allclose(errors[:, -1], own[f"view{view}"], rtol=1e-5)
        assert (np.abs(errors[:, at - 1] - errors[:, at]) > 1e-4).any()
    finished = HeadFinish(pairs.truths)({name: np.asarray(values) for name, values in own.items()}, range(4))
    np.testing.assert_allclose(found().by_pair["normed/rotation"][:, -1], finished[ROTATION], atol=0.1)


@pytest.mark.slow
def test_the_control_is_another_pairs_reading_against_this_pairs_truth():
    pairs = setting().pairs
    output = still()(*pairs.views, capture=(), head=True)
    others = [other_pair(number, len(pairs.truths)) for number in range(len(pairs.truths))]
    preds = [jax.tree.map(lambda leaf: leaf[np.array(others)], pred) for pred in output.pointmaps]
    expected = normalised_errors(preds, pairs.truth.truth)
    for view in (1, 2):
        np.testing.assert_allclose(found().by_pair[f"normed/other{view}"][:, -1], expected[view - 1], rtol=1e-5)
    # Probes as well: each pair's own and the control differ.
    assert (found().by_pair["probe/other1"][:, -1] != found().by_pair["probe/view1"][:, -1]).all()


def test_the_scale_that_made_the_points_is_found():
    """Points that the head reads from a layer's tokens times a factor are the truth here: that factor has no error."""
    here, layer, index = setting(), "decoder.0.cross_attn", lens_layers(SMALL).index("decoder.0.cross_attn")
    fitted = fitted_pairs(here)
    assert len(fitted) == 2
    output = still()(*here.pairs.views, capture=(layer, "decoder.norm"), head=False)
    size = [np.mean(np.square([view[fitted] for view in np.asarray(output[site])])) for site in (layer, "decoder.norm")]
    factor = np.float32(np.sqrt(size[1] / size[0]) * FACTORS[4])
    start = lens_start(output, layer, SMALL, norm=False)
    start.activations["decoder.norm"] = tuple(factor * view for view in start["decoder.norm"])
    points = still()(start=start, capture=(), head=True)
    cameras, valid = jnp.tile(jnp.eye(4), (4, 1, 1)), jnp.ones((4, 48, 48), bool)
    targets = tuple(Target(pred["pts3d"], cameras, valid) for pred in points.pointmaps)
    truth = jax.tree.map(np.asarray, PairTruth(normalised_truth(targets), np.ones(4, np.float32)))
    here = dataclasses.replace(here, pairs=here.pairs._replace(truth=truth), probes=None)
    scales = fit_scales(here, "scale")
    assert scales.factors[index] == pytest.approx(factor, rel=1e-5) and not scales.at_edge[index]
    np.testing.assert_array_equal(scales.pairs, fitted)
    errors = measure(here, scales.factors, "scale")
    assert errors["scaled/view1"][:, index].max() < 1e-4 < errors["bare/view1"][:, index].min()
    assert np.isnan(errors["probe/view1"]).all()


@pytest.mark.slow
def test_a_study_says_what_its_names_mean_and_what_it_found():
    study, layers = found(), lens_layers(SMALL)
    assert isinstance(study, Study) and len(study.records) == 2 * len(layers) == 2 * 7
    for record in study.records:
        assert set(record) <= set(study.meaning) == set(meaning_of(SMALL))
        assert ("probe" in record) == ("excess" in record) == (record["layer"] in setting().probes.layer_ids)
        assert ("normed_rotation" in record) == (record["view"] == 2)
    held = np.isnan(study.by_pair["scaled/view1"]).all(axis=1)
    np.testing.assert_array_equal(np.flatnonzero(held), study.facts["scale"]["fitted_on"])
    assert all(sentence.endswith(".") and "nan" not in sentence for sentence in study.findings)
    assert "decoder.1.mlp" in " ".join(study.findings)
    assert len(study.figures[""].axes) == 3 and len(study.tables) == 2
    assert cost(setting()).passes >= 4 and cost(setting()).memory > 0


@pytest.mark.slow
def test_an_interrupted_study_goes_on_and_the_seed_decides(tmp_path, monkeypatch):
    here = dataclasses.replace(setting(), probes=None)
    kept = lens(dataclasses.replace(here, pieces=Pieces(tmp_path / "lens", {"study": "lens"})))
    monkeypatch.setattr("und3rstand_jax.analysis.studies.lens.measures.lens_start", None)  # nothing is computed again
    again = lens(dataclasses.replace(here, pieces=Pieces(tmp_path / "lens", {"study": "lens"})))
    for name, values in kept.by_pair.items():
        np.testing.assert_array_equal(values, again.by_pair[name])
        if not name.startswith(("probe", "scaled")):
            np.testing.assert_array_equal(values, found().by_pair[name])
    assert kept.findings == again.findings and not any("probe" in record for record in kept.records)
    draws = {tuple(fitted_pairs(dataclasses.replace(here, seed=seed))) for seed in range(8)}
    assert len(draws) > 1


def test_without_a_head_or_a_second_pair_there_is_no_lens():
    trunk = Backbone(type(still().module)(dataclasses.replace(SMALL, head_type=None)), still().params)
    with pytest.raises(CheckpointError, match="expected a backbone with a head, found one without"):
        lens(dataclasses.replace(setting(), backbone=trunk))
    with pytest.raises(OptionError, match="at least 2 pairs.*found 1"):
        lens(dataclasses.replace(setting(), pairs=setting().pairs.some(range(1))))


@pytest.mark.slow
def test_the_lens_reads_every_view_of_sets_of_three():
    config = dataclasses.replace(LINEAR, enc_depth=1, dec_depth=1, max_views=None)
    model, sets = random_backbone(config, 0), wall_sets((4.0, 12.0), (8.0, -8.0))
    study = lens(Setting(model, None, sets, batch_size=2))
    own = HeadMeasure()(model(*sets.views, capture=(), head=True), sets.truth, ())
    for view in (1, 2, 3):
        np.testing.assert_allclose(study.by_pair[f"normed/view{view}"][:, -1], own[f"view{view}"], rtol=1e-5)
    finished = HeadFinish(sets.truths)({name: np.asarray(values) for name, values in own.items()}, range(2))
    np.testing.assert_allclose(study.by_pair["normed/rotation"][:, -1], finished[ROTATION], atol=0.5)
    assert [record["view"] for record in study.records] == [1] * 4 + [2] * 4 + [3] * 4
    assert ["normed_rotation" in record for record in study.records] == [False] * 4 + [True] * 4 + [False] * 4
    assert (
        len(study.tables) == 3
        and len(study.figures[""].axes) == 4
        and "later views" in study.meaning["normed_rotation"] + study.findings[-1]
    )
