"""What a pass is measured by: of a pair as ever, and of sets of more views pooled over view 1 and each later view."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.walls import wall, wall_sets
from und3rstand_jax.analysis.pair_measures import (
    DIRECTION,
    KNOWN,
    MATCHES,
    ROTATION,
    HeadFinish,
    HeadMeasure,
    ProbesMeasure,
    meaning_of,
    points_of,
    view_names,
)
from und3rstand_jax.geometry.alignment import ALIGNMENTS, aligned_errors
from und3rstand_jax.model.dust3r.config import BackboneConfig
from und3rstand_jax.model.output import BackboneOutput
from und3rstand_jax.probes.config import probe_config
from und3rstand_jax.probes.probes import PointmapProbes, Probes, init_probes

SHIFTS = (4.0, 12.0, 28.0)
LAYERS = ("decoder.0.mlp", "decoder.1.mlp")


def turned(points, degrees):
    """Points turned about view 1's camera and its vertical axis."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return points @ np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]]).T


def told(truth, *turns):
    """What a model says that knows the truth, but for a turn of each later view: as `HeadMeasure` measures it, of one set."""
    points = [truth.views[0].points, *(turned(view.points, turn) for view, turn in zip(truth.views[1:], turns, strict=True))]
    return {f"points{number}": view[None] for number, view in enumerate(points, start=1)} | dict.fromkeys(
        view_names(len(points)), np.zeros(1)
    )


def test_of_a_set_matches_are_pooled_and_poses_are_means_over_the_later_views():
    truth = wall(*SHIFTS)
    turns = (0.0, 10.0, 25.0)
    found = HeadFinish((truth,), with_known=True)(told(truth, *turns), [0])
    pairs = [HeadFinish((wall(shift),), with_known=True)(told(wall(shift), turn), [0]) for shift, turn in zip(SHIFTS, turns, strict=True)]
    assert set(found) == set(meaning_of(4))
    assert found[ROTATION] == pytest.approx(np.mean(turns), abs=0.05)
    for metric in (ROTATION, DIRECTION):
        assert found[metric][0] == pytest.approx(np.mean([pair[metric][0] for pair in pairs]), rel=1e-6)
    right, known = (np.array([pair[metric][0] for pair in pairs]) for metric in (MATCHES, KNOWN))
    assert right[0] == 1 and right.min() < found[MATCHES][0] < right.max() and known.min() <= found[KNOWN][0] <= known.max()


def test_matches_count_as_often_as_there_are_and_places_that_no_view_sees_do_not():
    # Of these views one sees all that it matches, the other nothing: its matches are neither right nor wrong.
    truth = wall(0.0, 100.0)
    found = HeadFinish((truth,), with_known=True)(told(truth, 0.0, 0.0), [0])
    alone = HeadFinish((wall(0.0),))(told(wall(0.0), 0.0), [0])
    assert found[MATCHES] == alone[MATCHES] == 1 and 0 < found[KNOWN][0] < 1
    nothing = HeadFinish((wall(100.0, 200.0),))(told(wall(100.0, 200.0), 0.0, 0.0), [0])
    assert np.isnan(nothing[MATCHES][0]) and KNOWN not in nothing


def test_a_direction_is_the_mean_over_the_views_that_have_one():
    truth = wall(0.0, 16.0)
    found = HeadFinish((truth,))(told(truth, 0.0, 10.0), [0])
    alone = HeadFinish((wall(16.0),))(told(wall(16.0), 10.0), [0])
    assert found[DIRECTION] == pytest.approx(alone[DIRECTION], rel=1e-6) and found[ROTATION] == pytest.approx(alone[ROTATION] / 2, abs=0.02)
    together = HeadFinish((wall(0.0, 0.0),))(told(wall(0.0, 0.0), 0.0, 0.0), [0])
    assert np.isnan(together[DIRECTION][0])


@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_errors_have_the_names_of_their_views(alignment):
    sets = wall_sets((4.0, 12.0), (8.0, 20.0))
    random = np.random.default_rng(0)
    preds = tuple({"pts3d": jnp.asarray(random.normal(size=(2, 64, 64, 3)), jnp.float32), "conf": jnp.ones((2, 64, 64))} for _ in range(3))
    output = BackboneOutput({}, ((64, 64),) * 3, preds)
    found = HeadMeasure(alignment)(output, sets.truth, ())
    expected = aligned_errors(preds, sets.truth.truth, jnp.asarray(sets.truth.unit), alignment)
    assert list(found) == ["view1", "view2", "view3", "points1", "points2", "points3", "confidence2", "confidence3"]
    for name, error in zip(view_names(3), expected, strict=True):
        np.testing.assert_array_equal(found[name], error)
    assert list(points_of([{"pts3d": preds[0]["pts3d"]}] * 3)) == ["points1", "points2", "points3"]


def test_probes_measure_every_view_of_the_layers_that_were_captured():
    config = probe_config(
        BackboneConfig(img_size=(64, 64), enc_embed_dim=32, enc_num_heads=2, dec_embed_dim=16, dec_num_heads=2), LAYERS, depth=1
    )
    probes = Probes(PointmapProbes(config), init_probes(config, 0))
    sets, random = wall_sets((4.0, 12.0)), np.random.default_rng(0)
    tokens = tuple(jnp.asarray(random.normal(size=(1, 16, 16)), jnp.float32) for _ in range(3))
    output = BackboneOutput({LAYERS[1]: tokens}, ((64, 64),) * 3)
    found = ProbesMeasure(config)(output, sets.truth, probes.params)
    assert list(found) == [f"{LAYERS[1]}/{name}" for name in view_names(3)]
    expected = aligned_errors(probes.read_layer(LAYERS[1], output), sets.truth.truth, jnp.asarray(sets.truth.unit))
    np.testing.assert_allclose([*found.values()], expected, rtol=1e-5)


def test_the_words_for_a_pair_are_the_same_as_ever_and_sets_have_their_own():
    assert meaning_of(2)["view2"] == "the same of view 2" and meaning_of(2)[KNOWN].endswith("whose true place view 2 sees")
    of_four = meaning_of(4)
    assert list(of_four) == ["view1", "view2", "view3", "view4", MATCHES, ROTATION, DIRECTION, KNOWN]
    assert of_four["view4"] == "the same of view 4" and "pooled" in of_four[MATCHES] and "mean over these views" in of_four[ROTATION]
