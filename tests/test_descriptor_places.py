"""What descriptors say of a pair, on made descriptors whose matches are known, and in the studies of a small MASt3R."""

import dataclasses

import jax
import numpy as np
import pytest

from tests.made_pairs import wall_pairs
from tests.test_mast3r import SMALL as MAST3R
from tests.test_model_properties import backbone
from und3rstand_jax.analysis.descriptor_places import places_by_descriptors, right_by_descriptors
from und3rstand_jax.analysis.studies.heads.by_descriptors import RIGHT
from und3rstand_jax.analysis.studies.heads.study import heads
from und3rstand_jax.analysis.studies.layers.study import layers
from und3rstand_jax.analysis.studies.lens.study import lens
from und3rstand_jax.analysis.studies.study import Setting
from und3rstand_jax.analysis.true_place_attention import both_true_places
from und3rstand_jax.geometry.matching import true_places
from und3rstand_jax.model.layer_ids import HEAD
from und3rstand_jax.model.output import BackboneOutput
from und3rstand_jax.probes.config import probe_config
from und3rstand_jax.probes.probes import PointmapProbes, Probes, init_probes

pytestmark = pytest.mark.quick

SMALL = dataclasses.replace(MAST3R, enc_depth=1)


def described(size1, size2, partner):
    """An output whose view 2 has, at each (x, y), the descriptor of the pixel of view 1 that `partner` names, or one of its own."""
    rng = np.random.default_rng(0)

    def drawn(size):
        values = rng.standard_normal((*size, 32)).astype(np.float32)
        return values / np.linalg.norm(values, axis=-1, keepdims=True)

    one, two = drawn(size1), drawn(size2)
    for y, x in np.ndindex(*size2):
        if (of := partner(x, y)) is not None and 0 <= of[0] < size1[1] and 0 <= of[1] < size1[0]:
            two[y, x] = one[of[1], of[0]]
    return BackboneOutput({}, (size1, size2), ({"desc": one[None]}, {"desc": two[None]}))


def test_tokens_are_placed_where_their_middle_pixels_descriptors_are():
    # View 2 is view 1 moved right by one token and down by none, and its last row of tokens shows something else.
    output = described((48, 64), (48, 64), lambda x, y: (x - 16, y) if y < 32 else None)
    one, two = places_by_descriptors(output, 0, ((3, 4), (3, 4)))
    expected = np.array([[1, 2, 3, -1], [5, 6, 7, -1], [-1] * 4]).ravel()
    seen = expected >= 0
    np.testing.assert_array_equal(one.token[seen], expected[seen])
    assert one.seen[seen].all() and two.token.reshape(3, 4)[:2, 1:].tolist() == [[0, 1, 2], [4, 5, 6]]


def test_views_of_two_sizes_are_placed_in_each_others_tokens():
    output = described((32, 64), (64, 32), lambda x, y: (y, x) if y < 32 else None)
    one, two = places_by_descriptors(output, 0, ((2, 4), (4, 2)))
    # Transposed: (x, y) of view 1 is (y, x) of view 2.
    assert one.token.reshape(2, 4)[:, :2].tolist() == [[0, 2], [1, 3]]
    assert two.token.reshape(4, 2)[:2].tolist() == [[0, 4], [1, 5]]
    assert one.near.shape == (8, 8)


def test_matches_are_right_within_the_threshold():
    pairs = wall_pairs(2)
    size = pairs.views[0].shape[1:3]
    truths = pairs.truths

    def moved(number, by):
        places = true_places(truths[number].views, truths[number].pose, truths[number].intrinsics[1])
        partner = {}
        for y, x in np.ndindex(*size):
            if np.isfinite(places[y, x]).all():
                column, row = np.rint(places[y, x]).astype(int)
                partner[column + by, row] = (x, y)
        return described(size, size, lambda x, y: partner.get((x, y)))

    for number in range(2):
        # 3 % of the width are 1.4 pixels.
        assert right_by_descriptors(moved(number, 0), [truths[number]])[0] > 0.9
        assert right_by_descriptors(moved(number, 6), [truths[number]])[0] < 0.1


@pytest.fixture(scope="module")
def setting():
    model = backbone(SMALL)
    of = probe_config(SMALL, ("decoder.1.mlp", "decoder.3.mlp"), 16, 2, "gelu", "layernorm", "shared")
    return Setting(model, Probes(PointmapProbes(of), init_probes(of, 0)), wall_pairs(2, size=(48, 64)), batch_size=2)


@pytest.fixture(scope="module")
def output(setting):
    return setting.backbone(*setting.pairs.views, capture=(), head="features")


@pytest.mark.slow
def test_the_study_of_layers_has_them_of_the_head_alone(setting, output):
    study = layers(setting)
    expected = right_by_descriptors(output, setting.pairs.truths)
    assert [("descriptor_matches" in record) for record in study.records] == [False, False, True]
    assert study.records[-1]["layer"] == HEAD
    assert study.records[-1]["descriptor_matches"].mean == pytest.approx(np.nanmean(expected))
    assert any("descriptors match" in finding for finding in study.findings)


@pytest.mark.slow
def test_the_lens_reads_them_from_every_layer_and_from_the_last_as_the_model_does(setting, output):
    study = lens(setting)
    assert {name for record in study.records for name in record} <= study.meaning.keys()
    last = study.records[-1]
    assert last["layer"] == "decoder.3.mlp"
    assert last["normed_descriptors"].mean == pytest.approx(np.nanmean(right_by_descriptors(output, setting.pairs.truths)))
    assert all("normed_descriptors" in record for record in study.records if record["view"] == 2)


@pytest.mark.slow
def test_the_study_of_heads_says_which_look_where_descriptors_match(setting, output):
    study = heads(setting)
    assert {name for record in study.records for name in record} <= study.meaning.keys()
    names = [f"decoder.{block}.cross_attn.weights" for block in range(SMALL.dec_depth)]
    captured = jax.device_get(setting.backbone(*setting.pairs.views, capture=names, head=False))
    for number, truth in enumerate(setting.pairs.truths):
        placed, true = places_by_descriptors(output, number, setting.grids), both_true_places(truth, setting.grids)
        for view in (0, 1):
            both = placed[view].seen & true[view].seen
            right = true[view].near[both, placed[view].token[both]]
            found = study.by_pair[RIGHT][number, view]
            assert found == pytest.approx(right.mean()) if both.any() else np.isnan(found)
            for block, name in enumerate(names):
                strongest = captured[name][view][number].argmax(axis=-1)  # (heads, queries)
                near = np.take_along_axis(placed[view].near[None], strongest[..., None], axis=-1)[..., 0]
                agree = near[:, placed[view].seen].mean(axis=-1)
                np.testing.assert_allclose(study.by_pair["cross_attn/near_descriptor"][number, view, block], agree, atol=1e-6)
