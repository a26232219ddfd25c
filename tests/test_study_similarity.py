"""CKA, effective rank and cosine have their known values; the study has them on models and pairs for which they are known."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.test_ablations import scene_pairs
from tests.test_model_properties import LINEAR
from und3rstand_jax.analysis.inputs import GroundTruth
from und3rstand_jax.analysis.studies.similarity.measures import measure
from und3rstand_jax.analysis.studies.similarity.study import MEANING, cost, similarity
from und3rstand_jax.analysis.studies.similarity.token_colours import colours_figure, colours_of, principal_colours, shown_layers
from und3rstand_jax.analysis.studies.study import Setting
from und3rstand_jax.analysis.token_similarity import effective_rank, gram, inner, linear_cka, mean_cosine, ratio_of_means, u_centred
from und3rstand_jax.model.backbone import Backbone, random_backbone
from und3rstand_jax.support.errors import OptionError

pytestmark = pytest.mark.quick

SMALL = dataclasses.replace(LINEAR, enc_depth=1, dec_depth=2)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.slow
def test_cka_is_1_for_a_rotated_scaled_and_shifted_copy_and_about_0_for_noise():
    tokens = normal(200, 12)
    rotation = np.linalg.qr(normal(12, 12, seed=1))[0]
    assert float(linear_cka(tokens, 3.5 * tokens @ rotation + 2)) == pytest.approx(1.0, abs=1e-5)
    assert float(linear_cka(tokens, np.pad(tokens, ((0, 0), (0, 5))))) == pytest.approx(1.0, abs=1e-5)  # widths may differ
    noise = [float(linear_cka(tokens, normal(200, 30, seed=seed))) for seed in range(2, 42)]
    assert abs(np.mean(noise)) < 0.01 and max(map(abs, noise)) < 0.1
    assert min(noise) < 0  # without bias
    half = float(linear_cka(tokens, np.concatenate([tokens, normal(200, 12, seed=50)], axis=1)))
    assert half == pytest.approx(0.5**0.5, abs=0.05)
    assert np.isnan(linear_cka(tokens, np.ones((200, 3), np.float32))) and np.isnan(linear_cka(tokens[:3], tokens[:3]))


def test_hsic_is_that_of_song_and_leaves_samples_out():
    one, two = (np.asarray(gram(jnp.asarray(normal(9, 4, seed=seed))), np.float64) for seed in (1, 2))
    kept = np.array([True] * 7 + [False] * 2)

    def song(k, other):
        n = len(k)
        k, other = (matrix - np.diag(np.diag(matrix)) for matrix in (k, other))
        product = k @ other
        return (np.trace(product) + k.sum() * other.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * product.sum()) / (n * (n - 3))

    both = [u_centred(jnp.asarray(matrix, jnp.float32)) for matrix in (one, two)]
    assert float(inner(*both, 9)) == pytest.approx(song(one, two), rel=1e-3)
    some = [u_centred(jnp.asarray(matrix, jnp.float32), jnp.asarray(kept)) for matrix in (one, two)]
    assert float(inner(*some, 7)) == pytest.approx(song(one[:7, :7], two[:7, :7]), rel=1e-3)


@pytest.mark.slow
def test_effective_rank_counts_dimensions_and_cosine_sees_a_collapse():
    for rank in (1, 3, 7):
        axes = np.linalg.qr(normal(20, rank, seed=rank) - normal(20, rank, seed=rank).mean(axis=0))[0]  # even, and centred
        tokens = (axes @ np.linalg.qr(normal(16, rank, seed=9))[0].T).astype(np.float32)
        assert effective_rank(tokens[None])[0] == pytest.approx(rank, rel=1e-3)
    assert np.isnan(effective_rank(np.ones((5, 4), np.float32)))
    uneven = np.diag([3.0, 1.0]).astype(np.float32)
    uneven = np.concatenate([uneven, -uneven])
    assert effective_rank(uneven) == pytest.approx(np.exp(-0.9 * np.log(0.9) - 0.1 * np.log(0.1)), rel=1e-5)
    assert float(mean_cosine(jnp.ones((6, 3)) * 2)) == pytest.approx(1.0)
    assert float(mean_cosine(jnp.eye(4))) == pytest.approx(0.0, abs=1e-6)
    assert float(mean_cosine(jnp.array([[2.0, 0.0], [-3.0, 0.0]]))) == pytest.approx(-1.0)


def test_the_error_of_a_ratio_is_the_jackknifes_and_unknown_pairs_do_not_count():
    cross = np.array([0.2, 0.5, np.nan, 0.9, 0.4])
    ones = np.ones(5)
    mean, error = ratio_of_means(cross, ones, ones)
    known = cross[~np.isnan(cross)]
    assert (float(mean), float(error)) == pytest.approx((known.mean(), known.std(ddof=1) / 2))
    mean, _ = ratio_of_means(np.array([1.0, 3.0]), np.array([1.0, 4.0]), np.array([2.0, 3.0]))
    assert float(mean) == pytest.approx(2 / np.sqrt(2.5 * 2.5))
    assert np.isnan(ratio_of_means(ones, 0 * ones, ones)[0])


@functools.cache
def setting():
    """Both views are one image, seen by one camera; the decoder's blocks do nothing; other weights are those of the control."""
    model = random_backbone(SMALL, 3)
    decoder = {
        name: jax.tree.map(np.zeros_like, part) if name.startswith("blocks") else part for name, part in model.params["decoder"].items()
    }
    _, pairs = scene_pairs(4, (64, 64))
    truths = tuple(GroundTruth((t.views[0],) * 2, (np.eye(4), np.eye(4)), (t.intrinsics[0],) * 2) for t in pairs.truths)
    pairs = pairs._replace(views=(pairs.views[0],) * 2, truths=truths)
    return Setting(Backbone(model.module, dict(model.params) | {"decoder": decoder}), None, pairs, seed=3, batch_size=4)


@functools.cache
def found():
    return similarity(setting())


@pytest.mark.slow
def test_what_is_known_of_the_model_and_its_pairs_is_found():
    records = found().records
    of_layers = [record for record in records if record["what"] == "layers"]
    for record in of_layers:
        streams = [layer.startswith("decoder.") and layer != "decoder.norm" for layer in (record["layer"], record["and"])]
        if all(streams):
            assert record["cka"].mean == pytest.approx(1.0, abs=1e-4)  # blocks that add nothing
        elif record["layer"] == "encoder.0.self_attn":
            assert record["cka"].mean < 0.9999
    for record in (record for record in records if record["what"] == "layer"):
        if record["layer"].startswith("encoder.") or record["layer"] == "decoder.embed":
            assert record["cka_to_random"].mean == pytest.approx(1.0, abs=1e-4)  # the same weights
            assert record["rank"].mean == pytest.approx(record["rank_random"].mean, rel=1e-4)
        else:
            assert record["cka_to_random"].mean < 0.9999
        assert record["cka_next"].mean < 0.99 and abs(record["cka_shuffled"].mean) < 0.3
        assert 1 <= record["rank"].mean <= 15 and -1 <= record["cosine"].mean <= 1
    for record in (record for record in records if record["what"] == "views"):
        assert record["cka"].mean == pytest.approx(1.0, abs=1e-4)  # a token's match is the token itself
        assert abs(record["cka_shuffled"].mean) < 0.4


def test_a_study_says_what_its_names_mean_and_what_it_found():
    study, count = found(), len(SMALL.layer_ids)
    assert len(study.records) == count * (count - 1) + 2 * count + count
    assert all(set(record) <= set(study.meaning) == set(MEANING) for record in study.records)
    assert all(sentence.endswith(".") for sentence in study.findings) and len(study.findings) == 5
    assert set(study.figures) == {"", "curves", "colours"} and len(study.tables) == 3
    assert study.by_pair["view1/layers"].shape == (4, count, count)
    assert study.facts["most_rank"] == {"encoder": 15, "decoder": 15}
    assert cost(setting()).passes == 9 and cost(setting()).memory > 0


@pytest.mark.slow
def test_numbers_do_not_depend_on_the_batch_and_the_seed_decides_controls():
    one_by_one = measure(dataclasses.replace(setting(), batch_size=2))
    for name, values in found().by_pair.items():
        np.testing.assert_allclose(one_by_one[name], values, rtol=2e-3, atol=2e-4 * np.nanmax(np.abs(values)), err_msg=name)
    other = measure(dataclasses.replace(setting(), seed=4))
    np.testing.assert_array_equal(other["view1/layers"], found().by_pair["view1/layers"])
    for name in ("view1/random", "view1/shuffled", "shuffled/cross"):
        assert not np.allclose(other[name], found().by_pair[name], rtol=1e-3), name
    with pytest.raises(OptionError, match="at least 2 pairs.*found 1"):
        similarity(dataclasses.replace(setting(), pairs=setting().pairs.some(range(1))))


@pytest.mark.slow
def test_colours_are_components_with_a_fixed_sign():
    tokens = normal(30, 6).astype(np.float64) * [9, 5, 3, 1, 1, 1]
    colours = principal_colours(tokens)
    assert colours.shape == (30, 3) and colours.min() == 0 and colours.max() == 1
    np.testing.assert_allclose(principal_colours(-tokens), colours, atol=1e-9)
    np.testing.assert_allclose(principal_colours(2 * tokens + 1), colours, atol=1e-9)
    assert abs(np.corrcoef(colours[:, 0], tokens[:, 0])[0, 1]) > 0.9
    line = principal_colours(np.arange(8.0)[:, None] * np.ones((1, 4)))
    assert (np.diff(np.sign(np.diff(line[1:-1, 0]))) == 0).all() and (line[:, 1:] == 0.5).all()
    images, of_layers = colours_of(setting())
    assert len(images) == 3 and list(of_layers) == list(shown_layers(SMALL))
    np.testing.assert_allclose(*of_layers["encoder.norm"][0], atol=1e-9)  # both views are one image
    assert len(colours_figure(images, of_layers).axes) == 6 * (1 + len(of_layers))
