"""Ablation studies: what is taken away and put in its place, the controls, the effects, and the files."""

import csv
import dataclasses
import io
import json

import jax
import numpy as np
import pytest

import und3rstand_jax as u3d
from tests.golden_cases import relative_error
from tests.test_model_properties import LINEAR, backbone
from tests.walls import GRID, wall, wall_sets
from und3rstand_jax.analysis import ablation_files as files
from und3rstand_jax.analysis.ablation_study import AblationStudy, Estimate, Question, Row, ablation_study, effect_of
from und3rstand_jax.analysis.ablations import (
    Ablation,
    Place,
    check_by,
    controls,
    edits_of,
    heads_of_same_blocks,
    places_of,
    replacements,
)
from und3rstand_jax.analysis.analyse import analyse_views
from und3rstand_jax.analysis.constant_pointmap import constant_errors
from und3rstand_jax.analysis.held_out import pairs_of
from und3rstand_jax.analysis.inputs import scene_inputs
from und3rstand_jax.analysis.pair_measures import DIRECTION, MATCHES, ROTATION, VIEW1, VIEW2
from und3rstand_jax.analysis.true_place_attention import both_true_places
from und3rstand_jax.analysis.true_place_heads import places_in_others
from und3rstand_jax.data.example import Example
from und3rstand_jax.geometry.loss import Target
from und3rstand_jax.geometry.metrics import normalised_errors
from und3rstand_jax.model.backbone import random_backbone
from und3rstand_jax.support.errors import CheckpointError, EditError, OptionError, UserError
from und3rstand_jax.support.progress import Stopwatch
from und3rstand_jax.support.text import to_json

pytestmark = pytest.mark.quick


def test_places_are_heads_updates_and_layers_of_the_views_asked_for():
    assert [
        str(place) for place in places_of("decoder.1.cross_attn.heads@2, decoder.[01].mlp.update, decoder.1.cross_attn.heads:0", LINEAR)
    ] == [
        *("decoder.1.cross_attn.heads:0@2", "decoder.1.cross_attn.heads:1@2"),
        *(f"decoder.{block}.mlp.update@{view}" for block in (0, 1) for view in (1, 2)),
        "decoder.1.cross_attn.heads:0@1",
    ]
    assert [str(place) for place in places_of("decoder.1.mlp.update,decoder.0.mlp@3", LINEAR, 3)] == [
        *(f"decoder.1.mlp.update@{view}" for view in (1, 2, 3)),
        "decoder.0.mlp@3",
    ]
    with pytest.raises(EditError, match="there are 2 views, 1 to 2; found view 3"):
        places_of("decoder.0.mlp@3", LINEAR)
    with pytest.raises(EditError, match="to block scores, use an edit"):
        places_of("decoder.1.cross_attn.scores", LINEAR)
    with pytest.raises(UserError, match="no head output matches 'decoder.1.mlp.heads'"):
        places_of("decoder.1.mlp.heads", LINEAR)


def test_controls_are_other_heads_of_the_same_blocks_and_the_seed_decides_which():
    of = Ablation("the set", "set", places_of("decoder.1.cross_attn.heads:0@2,decoder.2.cross_attn.heads:1@2", LINEAR))
    pool = heads_of_same_blocks(of.places, LINEAR)
    assert [str(place) for place in pool] == [f"decoder.{block}.cross_attn.heads:{head}@2" for block in (1, 2) for head in (0, 1)]
    drawn = controls(of, pool, 4, seed=0)
    assert [control.of for control in drawn] == ["the set"] * 4
    assert all(set(control.places) == set(pool) - set(of.places) for control in drawn)
    wide = places_of("decoder.*.cross_attn.heads", LINEAR)
    draws = [[control.places for control in controls(of, wide, 5, seed)] for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2] and len(set(draws[0])) > 1
    assert not any(set(places) & set(of.places) for places in draws[0])
    with pytest.raises(OptionError, match="needs 2 other heads, and there are 0 to draw from; give a larger --like"):
        controls(of, of.places, 1, 0)


@pytest.fixture(scope="module")
def images():
    random = np.random.default_rng(5)
    return tuple(random.uniform(-1, 1, (3, 32, 48, 3)).astype(np.float32) for _ in range(2))


SITES = (("decoder.1.cross_attn.heads", 2), ("decoder.2.mlp.update", 1))


@pytest.mark.slow
def test_what_takes_the_place_of_values_is_what_it_is_called(images):
    model = backbone(LINEAR)
    plain = jax.device_get(model(*images, capture=[site for site, _ in SITES], head=False))
    heads, update = plain[SITES[0][0]][1], plain[SITES[1][0]][0]
    found = {
        by: replacements(model, images, SITES, by, batch_size=2, noise=0.5, seed=3, progress=False)
        for by in ("zero", "mean", "resample", "noise")
    }
    assert found["zero"] == {}
    np.testing.assert_allclose(found["mean"][SITES[0]], heads.mean(axis=(0, 1), keepdims=True), atol=1e-5)
    np.testing.assert_allclose(found["mean"][SITES[1]], update.mean(axis=(0, 1), keepdims=True), atol=1e-5)
    np.testing.assert_allclose(found["resample"][SITES[0]], heads[[1, 2, 0]], atol=1e-5)
    noise = found["noise"][SITES[1]] / (0.5 * update.std(axis=(0, 1), keepdims=True))
    assert noise.shape == update.shape and abs(noise.mean()) < 0.15 and abs(noise.std() - 1) < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("by", ["zero", "mean", "resample", "noise"])
def test_the_edits_change_the_places_and_nothing_else(images, by):
    model = backbone(LINEAR)
    values = replacements(model, images, SITES, by, batch_size=3, noise=0.5, seed=3, progress=False)
    ablation = Ablation("one head", "place", (Place(*SITES[0], 1),))
    edits = edits_of(ablation, SITES, by, values, LINEAR)  # mentions the update, and leaves it alone
    edited, plain = (
        jax.device_get(model(*images, capture=[site for site, _ in SITES], head=False, edits=some)) for some in (edits, u3d.Edits())
    )
    site = SITES[0][0]
    np.testing.assert_array_equal(edited[site][0], plain[site][0])
    np.testing.assert_array_equal(edited[site][1][:, :, 0], plain[site][1][:, :, 0])
    head = plain[site][1][:, :, 1]
    expected = {
        "zero": lambda: np.zeros_like(head),
        "mean": lambda: np.broadcast_to(head.mean(axis=(0, 1)), head.shape),
        "resample": lambda: head[[1, 2, 0]],
        "noise": lambda: head + values[SITES[0]][:, :, 1],
    }[by]()
    np.testing.assert_allclose(edited[site][1][:, :, 1], expected, atol=1e-5)


def test_too_many_values_for_the_memory_are_refused_before_they_are_computed(images, monkeypatch):
    monkeypatch.setattr("und3rstand_jax.analysis.ablations.free_memory", lambda: 8_000)
    with pytest.raises(EditError, match="the values of 4 sites in 3 pairs take 4.5 KiB.*give fewer pairs or sites, or take the mean"):
        replacements(backbone(LINEAR), images, SITES * 2, "resample", 3, 1.0, 0, False)


def test_the_ways_of_an_option_are_checked():
    assert check_by(["zero", "mean", "zero"], 1) == ("zero", "mean")
    with pytest.raises(OptionError, match="expected one or more of zero, mean, resample, noise"):
        check_by(["none"], 4)
    with pytest.raises(OptionError, match="expected one or more of zero"):
        check_by([], 4)
    with pytest.raises(OptionError, match="takes values from another pair; give --pairs 2"):
        check_by(["resample"], 1)


def test_an_effect_is_of_the_differences_pair_by_pair():
    effect = effect_of(np.array([1.0, 2.0, np.nan, 4.0]), np.array([2.0, 2.0, 1.0, 7.0]))
    assert (effect.unedited, effect.edited, effect.effect, effect.pairs) == pytest.approx((7 / 3, 11 / 3, 4 / 3, 3))
    assert effect.error == pytest.approx(np.std([1, 0, 3], ddof=1) / np.sqrt(3))
    assert np.isnan(effect_of(np.array([np.nan]), np.array([1.0])).effect)


def scene_pairs(count, size=(64, 64)):
    """Held-out scenes as a sweep takes them, and as `analyse_views` does."""
    inputs = [scene_inputs(number, "synthetic", size) for number in range(count)]
    examples = []
    for scene in inputs:
        targets = [Target(view.points[None], np.eye(4, dtype=np.float32)[None], view.valid[None]) for view in scene.truth.views]
        # Targets are in view 1's frame; cameras say where each view's stands in it.
        targets[1] = targets[1]._replace(cam2world=scene.truth.pose[None].astype(np.float32))
        intrinsics = tuple(camera[None].astype(np.float32) for camera in scene.truth.intrinsics)
        examples.append(Example(scene.views, (targets[0], targets[1]), intrinsics))
    return inputs, pairs_of(examples, count)


@pytest.fixture(scope="module")
def study():
    """All heads of one attention of a model with random weights, one set of two with controls, with attribution."""
    model = backbone(LINEAR)
    inputs, pairs = scene_pairs(2)
    question = Question(
        sites="decoder.1.cross_attn.heads,decoder.2.mlp.update@2", by=("zero", "mean"), top=1, random_sets=1, attribute=True, seed=4
    )
    return model, inputs, pairs, ablation_study(model, None, pairs, question, batch_size=4)


@pytest.mark.slow
def test_the_unedited_run_has_the_numbers_of_the_analysis(study):
    model, inputs, _, found = study
    for number, scene in enumerate(inputs):
        (head,) = analyse_views(model, None, (), scene, {}, Stopwatch()).layers
        assert [found.unedited[view][number] for view in (VIEW1, VIEW2)] == pytest.approx(head.errors, rel=1e-4)
        assert found.unedited[MATCHES][number] == pytest.approx(np.nan if head.accuracy is None else head.accuracy, nan_ok=True, abs=0.02)
        rotation = 180.0 if head.rotation_degrees is None else head.rotation_degrees
        assert found.unedited[ROTATION][number] == pytest.approx(rotation, abs=0.5)


@pytest.mark.slow
def test_rows_are_what_edited_passes_give(study):
    model, _, pairs, found = study
    assert [row.ablation.kind for row in found.rows] == [*["place"] * 5, "set", "control"] * 2
    row = found.rows[3]
    assert (row.ablation.name, row.by) == ("decoder.1.cross_attn.heads:1@2", "zero")
    output = model(*pairs.views, capture=(), head=True, edits=u3d.knock_out("decoder.1.cross_attn.heads:1@2"))
    expected = normalised_errors(output.pointmaps, pairs.truth.truth)
    for view, errors in zip((VIEW1, VIEW2), expected, strict=True):
        assert relative_error(row.values[view], errors) < 1e-5
    assert found.effect(row, VIEW2).effect == pytest.approx(float(np.mean(expected[1] - found.unedited[VIEW2])), rel=1e-3)
    hardest = max((name for name in found.on_true_place if ".1." in name), key=found.on_true_place.__getitem__)
    assert [str(place) for place in found.rows[5].ablation.places] == [hardest]
    assert found.rows[6].ablation.places != found.rows[5].ablation.places
    assert len(found.estimates) == 2 and all(-1 <= estimate.spearman <= 1 for estimate in found.estimates)


def test_the_text_says_where_attribution_ranks_what_costs_most():
    estimate = Estimate(VIEW2, {"a": 0.1, "b": 0.3, "c": 0.2}, 0.5)
    text = files.attribution_text(estimate, {"a": 3.0, "b": 1.0, "c": 2.0})
    assert text.startswith("attribution of view 2's error: Spearman correlation with the sweep by zero 0.50 over 3 places;")
    assert text.endswith("a (3), c (2), b (1)")


@pytest.mark.slow
def test_the_files_hold_all_of_it(study):
    *_, found = study
    content = json.loads(to_json(files.as_json(found)))
    assert content["question"]["by"] == ["zero", "mean"] and len(content["ablations"]) == 14
    first = content["ablations"][0]
    assert first["effects"][VIEW2] == pytest.approx(found.effect(found.rows[0], VIEW2)._asdict())
    assert first["pairs"][VIEW1] == pytest.approx(found.rows[0].values[VIEW1].tolist())
    lines = list(csv.DictReader(io.StringIO(files.as_csv(found))))
    assert len(lines) == 14 * 5 and float(lines[0]["effect"]) == pytest.approx(found.effect(found.rows[0], VIEW1).effect)
    table = files.format_table(found, (0.5, 0.75))
    assert "the best constant instead of the model" in table and "0.750" in table and "Spearman" in table
    figure = files.effects_figure(found, "mean")
    assert figure is not None and [axes.get_title() for axes in figure.axes[:2]] == [
        "decoder cross_attn heads of view 1\n→ error of view 1",
        "decoder cross_attn heads of view 1\n→ error of view 2",
    ]


def test_the_figure_shows_the_views_that_were_edited_and_a_table_lists_the_strongest_first():
    errors = np.array([0.1, 0.3])
    unedited = {VIEW1: errors, VIEW2: errors}
    places = places_of("decoder.1.cross_attn.heads@2", LINEAR)
    rows = tuple(
        Row(Ablation(str(place), "place", (place,)), "zero", {VIEW1: errors, VIEW2: errors + change})
        for place, change in zip(places, (0.01, 0.2), strict=True)
    )
    found = AblationStudy(Question(), unedited, rows, {}, ())
    figure = files.effects_figure(found, "zero")
    assert figure is not None and len(figure.axes) == 3  # two panels and the colours' bar
    np.testing.assert_allclose(figure.axes[1].images[0].get_array(), [[0.01, 0.2]])
    lines = files.format_table(found).splitlines()
    assert lines[:2] == ["What is taken away is set to zero.", ""]
    assert [line.split()[0] for line in lines[3:6]] == ["(nothing)", str(places[1]), str(places[0])]
    assert "0.400 (+0.200 ± 0.000)" in lines[4]


def test_of_three_views_the_files_have_every_views_error_and_the_figure_the_mean_of_the_later_ones():
    errors = np.array([0.1, 0.3])
    unedited = dict.fromkeys(("view1", "view2", "view3", MATCHES, ROTATION, DIRECTION), errors)
    places = places_of("decoder.1.cross_attn.heads@3", LINEAR, 3)
    rows = tuple(
        Row(Ablation(str(place), "place", (place,)), "zero", unedited | {"view2": errors + change, "view3": errors + 3 * change})
        for place, change in zip(places, (0.01, 0.2), strict=True)
    )
    found = AblationStudy(Question(), unedited, rows, {}, (Estimate("view3", {str(place): 0.1 for place in places}, 0.5),))
    assert found.views == 3
    figure = files.effects_figure(found, "zero")
    assert figure is not None and [axes.get_title().splitlines() for axes in figure.axes[:2]] == [
        ["decoder cross_attn heads of view 3", "→ error of view 1"],
        ["decoder cross_attn heads of view 3", "→ mean error of views 2–3"],
    ]
    np.testing.assert_allclose(figure.axes[1].images[0].get_array(), [[0.02, 0.4]])
    table = files.format_table(found, (0.5, 0.6, 0.7))
    assert "view 3's error" in table and "2 sets of 3 views; in brackets" in table and "0.700" in table
    assert "attribution of view 3's error" in table and table.splitlines()[5].startswith(str(places[1]))
    content = files.as_json(found)
    assert list(content["meaning"])[2:] == ["view1", "view2", "view3", MATCHES, ROTATION, DIRECTION]
    assert len(list(csv.DictReader(io.StringIO(files.as_csv(found))))) == 2 * 6
    assert list(files.record_head({}, (0.5, 0.6, 0.7))["best_constant"]) == ["view1", "view2", "view3"]


@pytest.mark.slow
def test_an_ablation_study_of_sets_of_three_views():
    config = dataclasses.replace(LINEAR, enc_depth=1, dec_depth=2, max_views=None)
    model, sets = random_backbone(config, 0), wall_sets((4.0, 12.0), (8.0, -8.0))
    question = Question(sites="decoder.1.cross_attn.heads@3", top=1, random_sets=1, attribute=True)
    found = ablation_study(model, None, sets, question, batch_size=4)
    assert found.views == 3 and [estimate.metric for estimate in found.estimates] == ["view1", "view2", "view3"]
    row = found.rows[1]
    assert row.ablation.name == "decoder.1.cross_attn.heads:1@3"
    output = model(*sets.views, capture=(), head=True, edits=u3d.knock_out("decoder.1.cross_attn.heads:1@3"))
    for view, errors in enumerate(normalised_errors(output.pointmaps, sets.truth.truth), start=1):
        assert relative_error(row.values[f"view{view}"], errors) < 1e-5
    assert len(found.on_true_place) == 2 * 3 * 2 and all(0 <= share <= 1 for share in found.on_true_place.values())


def test_the_true_places_of_a_view_are_those_in_all_others_and_of_a_pair_the_usual_ones():
    grids = (GRID, GRID, GRID)
    near, seen = places_in_others(wall(0.0, 100.0), grids)[0]  # the third view sees nothing of the first
    usual, usual_seen = places_in_others(wall(0.0), grids[:2])[0]
    np.testing.assert_array_equal(near, np.concatenate([usual, np.zeros_like(usual)], axis=1))
    np.testing.assert_array_equal(seen, usual_seen)
    one, two = both_true_places(wall(20.0), grids[:2])
    for view, expected in enumerate((one, two)):
        near, seen = places_in_others(wall(20.0), grids[:2])[view]
        np.testing.assert_array_equal(seen, expected.seen)
        np.testing.assert_array_equal(near, expected.near & expected.seen[:, None])


@pytest.mark.slow
def test_a_constant_is_measured_as_it_is_pair_by_pair():
    _, pairs = scene_pairs(2)
    constant = tuple(np.stack([plane[0] for plane in view], axis=-1) for view in pairs.truth.truth.points)
    _, first = scene_pairs(1)
    assert constant_errors(constant, first.truth.truth) == pytest.approx((0, 0), abs=1e-6)
    assert min(constant_errors(constant, pairs.truth.truth)) > 0.05


@pytest.mark.slow
def test_what_there_is_nothing_to_measure_by_is_refused(images):
    model = backbone(LINEAR)
    _, pairs = scene_pairs(1)
    with pytest.raises(CheckpointError, match="no probes to measure with"):
        ablation_study(model, None, pairs, Question(measure="probes"))
    with pytest.raises(OptionError, match="nothing to take away"):
        ablation_study(model, None, pairs, Question(sites=""))
