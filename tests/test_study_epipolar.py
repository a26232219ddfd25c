"""Epipolar probes: what they read, how they are trained and resumed, and the study on cameras whose F is known."""

import dataclasses
import functools
import json
import os
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from tests.conversion import converted
from tests.data_sets import make_views, write_pairs
from tests.test_model_properties import LINEAR, backbone
from und3rstand_jax.analysis.held_out import pairs_of
from und3rstand_jax.analysis.studies.epipolar.measures import CONTROL, EXACT, TRAINED, UNTRAINED, exact_matrix
from und3rstand_jax.analysis.studies.epipolar.study import cost
from und3rstand_jax.analysis.studies.epipolar.study import epipolar as study_of_epipolar
from und3rstand_jax.analysis.studies.study import EpipolarSet, Setting
from und3rstand_jax.data.example import to_example
from und3rstand_jax.data.records import View
from und3rstand_jax.model.backbone import random_backbone
from und3rstand_jax.probes.epipolar import (
    CONSTANT,
    EpipolarConfig,
    EpipolarGroup,
    EpipolarProbes,
    averages,
    epipolar_config,
    init_epipolar,
    read_fundamental,
    standardised,
)
from und3rstand_jax.support.errors import CheckpointError, ConfigError, LayerError, OptionError, OutputError
from und3rstand_jax.train.kept_options import EpipolarOptions
from und3rstand_jax.train.run.epipolar import train_epipolar

pytestmark = pytest.mark.quick


def epipolar(setting, *of):
    return study_of_epipolar(dataclasses.replace(setting, epipolar=EpipolarSet(*of)))


SIDEWAYS = np.array([[0.0, 0, 0], [0, 0, -1], [0, 1, 0]], np.float32)
LAYERS = ("decoder.embed", "decoder.1.mlp", "decoder.norm")
HEIGHT, WIDTH, FOCAL, DEPTH, SHIFT = 32, 48, 40.0, 2.0, (0.2, 0.1)


def test_a_probe_whose_tokens_hold_the_matrix_reads_it_exactly():
    """GELU(x) − GELU(−x) = x."""
    matrices = np.random.default_rng(0).normal(size=(5, 3, 3)).astype(np.float32)
    both = np.concatenate([np.eye(9), -np.eye(9)], axis=1, dtype=np.float32)
    params = {
        "norm": {"mean": jnp.ones(9), "scale": jnp.full(9, 0.5)},
        "linear0": {"kernel": jnp.asarray(both), "bias": jnp.zeros(18)},
        "linear1": {"kernel": jnp.asarray(both.T), "bias": jnp.zeros(9)},
    }
    found = read_fundamental(params, jnp.asarray(2 * matrices.reshape(5, 9) + 1))
    np.testing.assert_allclose(found, matrices / np.linalg.norm(matrices, axis=(1, 2), keepdims=True), atol=1e-5)


@pytest.mark.slow
def test_probes_read_the_means_of_both_views_and_constant_reads_zeros():
    model, config = backbone(LINEAR), epipolar_config(LINEAR, ("encoder.norm", *LAYERS), 8)
    assert config.layer_ids == ("encoder.norm", *LAYERS)
    assert config.rows == {"group0": ("encoder.norm", CONSTANT), "group1": LAYERS}
    views = [np.random.default_rng(view).uniform(-1, 1, (2, HEIGHT, WIDTH, 3)).astype(np.float32) for view in (0, 1)]
    features = model(*views, capture=config.layer_ids, head=False)
    found = averages(features, config)
    one, two = (np.asarray(tokens).mean(axis=1) for tokens in features["decoder.1.mlp"])
    np.testing.assert_allclose(found["group1"][1], np.concatenate([one, two], axis=1), atol=1e-6)
    assert found["group0"].shape == (2, 2, 64) and not np.asarray(found["group0"][1]).any()
    matrices = EpipolarProbes(config, standardised(init_epipolar(config, 0), found))(features)
    assert list(matrices) == ["encoder.norm", *LAYERS, CONSTANT]
    assert all(np.linalg.norm(matrix, axis=(1, 2)) == pytest.approx(1) for matrix in matrices.values())
    np.testing.assert_allclose(matrices[CONSTANT], np.tile(SIDEWAYS / np.sqrt(2), (2, 1, 1)), atol=1e-6)
    with pytest.raises(LayerError, match="not captured: decoder.2.mlp"):
        averages(features, epipolar_config(LINEAR, (*LAYERS, "decoder.2.mlp")))


def test_tokens_are_standardised_over_pairs_and_constant_channels_become_0():
    config = EpipolarConfig((EpipolarGroup(("decoder.embed",), 2),), 4)
    tokens = np.random.default_rng(0).normal(3, 0.01, (1, 50, 4)).astype(np.float32)
    tokens[..., 3] = 7
    norm = standardised(init_epipolar(config, 0), {"group0": jnp.asarray(tokens)})["group0"]["norm"]
    scaled = (tokens - norm["mean"][:, None]) * norm["scale"][:, None]
    np.testing.assert_allclose(scaled.mean(axis=1), 0, atol=1e-2)
    np.testing.assert_allclose(scaled.std(axis=1), [[1, 1, 1, 0]], atol=1e-2)


def test_a_row_starts_as_its_layer_and_the_seed_say():
    one, two = (init_epipolar(epipolar_config(LINEAR, layers, 4), 5) for layers in (LAYERS, LAYERS[1:]))
    for path, leaf in jax.tree_util.tree_leaves_with_path(two):
        whole = dict(jax.tree_util.tree_leaves_with_path(one))[path]
        np.testing.assert_array_equal(leaf, whole[1:])
    with pytest.raises(LayerError, match="no layers to probe"):
        epipolar_config(LINEAR, ())
    with pytest.raises(ConfigError, match="hidden width of at least 1"):
        epipolar_config(LINEAR, LAYERS, 0)


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    """Of a short run on a tiny backbone, with pairs from files."""
    folder = tmp_path_factory.mktemp("epipolar")
    model = converted(tiny.save_backbone(folder / "source"), folder / "backbone")
    views = make_views(5, (48, 64))
    write_pairs(folder / "data", views, [(i, j) for i in range(5) for j in range(5) if i != j])
    return EpipolarOptions(
        backbone=str(model),
        data=(f"pairs:{folder / 'data'}",),
        out=folder / "out",
        layers="decoder.embed,decoder.1.mlp",
        hidden=8,
        pairs=16,
        correspondences=32,
        at_once=8,
        steps=40,
        batch_size=8,
        val_pairs=4,
        workers=0,
        learning_rate=1e-2,
        log_every=10,
        validate_every=20,
        save_every=20,
    )


@pytest.fixture(scope="module")
def finished(options):
    """The probes of a run that went through."""
    return train_epipolar(options)


def same(one, other, tolerance=0.0):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), one.params, other.params)


@pytest.mark.slow
def test_training_lowers_the_loss_of_every_row_that_reads_tokens(options, finished):
    lines = [json.loads(line) for line in (options.out / "metrics.jsonl").read_text().splitlines()]
    losses = [line["layers"] for line in lines if "layers" in line]
    assert list(losses[0]) == ["decoder.embed", "decoder.1.mlp", CONSTANT] == [*finished.layer_ids, CONSTANT]
    assert set(losses[0][CONSTANT]) == {"total", "root", "singular"}
    for layer in finished.layer_ids:
        assert losses[-1][layer]["total"] < 0.5 * losses[0][layer]["total"], layer
    assert losses[-1][CONSTANT]["total"] <= losses[0][CONSTANT]["total"]
    assert [line["step"] for line in lines if "validation" in line] == [20, 40]
    assert not (options.out / "tokens").exists()


@pytest.mark.slow
def test_a_finished_run_is_read_and_not_trained_again(options, finished, monkeypatch):
    monkeypatch.setattr("und3rstand_jax.train.run.epipolar.train", None)
    same(train_epipolar(options), finished)
    with pytest.raises(OutputError, match="other options"):
        train_epipolar(dataclasses.replace(options, learning_rate=1e-3))


@pytest.mark.slow
def test_an_interrupted_run_goes_on_to_the_same_result(options, finished, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(options.out, out)
    shutil.rmtree(out / "checkpoints" / "40")
    shutil.rmtree(out / "epipolar")
    same(train_epipolar(dataclasses.replace(options, out=out)), finished)
    shutil.rmtree(out / "epipolar")
    with pytest.raises(OutputError, match="--learning-rate"):
        train_epipolar(dataclasses.replace(options, out=out, learning_rate=1e-3))


@pytest.mark.slow
def test_the_seed_decides_and_the_control_is_another_backbone(options, finished, tmp_path):
    same(train_epipolar(dataclasses.replace(options, out=tmp_path / "again")), finished)
    control = train_epipolar(dataclasses.replace(options, out=tmp_path / "control", fresh=3))
    assert control.config == finished.config
    kernels = [probes.params["group0"]["linear0"]["kernel"] for probes in (finished, control)]
    assert np.abs(kernels[0] - kernels[1]).max() > 1e-3
    # What reads no tokens is the same on both: they saw the same pairs.
    biases = [probes.params["group0"]["linear1"]["bias"][-1] for probes in (finished, control)]
    np.testing.assert_allclose(*biases, atol=1e-5)


@pytest.mark.slow
def test_two_devices_give_what_one_gives(options, finished, tmp_path):
    values = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
    values |= {"out": str(tmp_path / "two"), "at_once": 4}
    code = f"""
import jax
from pathlib import Path
from und3rstand_jax.train.kept_options import EpipolarOptions
from und3rstand_jax.train.run.epipolar import train_epipolar
assert jax.device_count() == 2
train_epipolar(EpipolarOptions(**{values!r} | {{"out": Path({values["out"]!r})}}))
"""
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=300)
    same(train_epipolar(dataclasses.replace(options, out=tmp_path / "two", at_once=4)), finished, 2e-3)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"pairs": 0}, "pairs must be at least 1"),
        ({"resolution": ("32x32", "48x32")}, "one resolution"),
        ({"accumulate": 2}, "without micro-batches"),
    ],
)
def test_options_that_cannot_be_met_are_refused(options, wrong, message):
    with pytest.raises(OptionError, match=message):
        train_epipolar(dataclasses.replace(options, **wrong))


@pytest.fixture(scope="module")
def setting():
    """Pairs of a wall, seen by a camera and by one moved along it: each pixel moves by the same known amount."""
    random, count = np.random.default_rng(0), 3
    intrinsics = np.tile(np.array([[FOCAL, 0, 23.5], [0, FOCAL, 15.5], [0, 0, 1]], np.float32), (count, 1, 1))

    def view(shift):
        pose = np.tile(np.eye(4, dtype=np.float32), (count, 1, 1))
        pose[:, :2, 3] = shift
        image = random.integers(0, 256, (count, HEIGHT, WIDTH, 3)).astype(np.uint8)
        return View(image, np.full((count, HEIGHT, WIDTH), DEPTH, np.float32), intrinsics, pose)

    return Setting(backbone(LINEAR), None, pairs_of([to_example((view((0, 0)), view(SHIFT)))], count))


def constant_probes(matrices):
    """Probes of LAYERS and CONSTANT that say these, whatever they read."""
    config = epipolar_config(LINEAR, LAYERS, 4)
    params = jax.tree.map(jnp.zeros_like, init_epipolar(config, 0))
    bias = jnp.asarray(np.stack([np.asarray(matrix, np.float32).ravel() for matrix in matrices]))
    params["group0"]["norm"]["scale"] = jnp.ones_like(params["group0"]["norm"]["scale"])
    params["group0"]["linear1"]["bias"] = bias
    return EpipolarProbes(config, params)


CONTROL_BACKBONE = functools.cache(lambda: random_backbone(LINEAR, 1))


def found_in(study):
    return {(record["probe"], record["layer"]): record for record in study.records}


@pytest.mark.slow
def test_errors_are_those_of_matrices_that_are_known(setting):
    exact = exact_matrix(setting.pairs.truths[0])
    turned = np.linalg.qr(np.random.default_rng(2).normal(size=(3, 3)))[0]
    trained, control = constant_probes([SIDEWAYS, 3 * exact, turned, SIDEWAYS]), constant_probes([SIDEWAYS] * 4)
    study = epipolar(setting, trained, control, CONTROL_BACKBONE())
    found = found_in(study)
    assert len(study.records) == len(found) == 3 * len(LAYERS) + 2
    # Along rows, each place is off by view 2's shift down the columns; both views' rows share it.
    off = FOCAL * SHIFT[1] / DEPTH / np.sqrt(2)
    for probe, layer in ((TRAINED, LAYERS[0]), *((CONTROL, layer) for layer in LAYERS), (CONSTANT, "")):
        for name in ("error", "median"):
            assert found[probe, layer][name].mean == pytest.approx(off, abs=1e-4)
        assert found[probe, layer]["error"].error == pytest.approx(0, abs=1e-5)
        assert found[probe, layer]["singular"].mean == pytest.approx(0, abs=1e-6)
    best = found[TRAINED, LAYERS[1]]
    assert best["error"].mean == pytest.approx(0, abs=1e-3) and found[EXACT, ""]["error"].mean == pytest.approx(0, abs=1e-3)
    assert best["below_constant"].mean == pytest.approx(off, abs=1e-3) and best["below_control"].mean == pytest.approx(off, abs=1e-3)
    assert found[TRAINED, LAYERS[2]]["singular"].mean == pytest.approx(1 / np.sqrt(3), abs=1e-5)
    assert f"is read at {LAYERS[1]}: 0.00 ± 0.00 pixels. One constant F for all pairs has {off:.2f}" in study.findings[0]
    assert all(set(record) <= set(study.meaning) for record in study.records)
    # Seen are the pixels whose place lies in view 2.
    dx, dy = (FOCAL * shift / DEPTH for shift in SHIFT)
    assert study.facts["mean_correspondences"] == (WIDTH - round(dx)) * (HEIGHT - round(dy))
    assert study.tables[0].rows[1][0] == LAYERS[1] and set(study.figures) == {""}
    assert cost(setting).passes == 6


@pytest.mark.slow
def test_the_study_is_the_same_again_and_the_seed_draws_the_untrained_probes(setting):
    probes, control = constant_probes([SIDEWAYS] * 4), CONTROL_BACKBONE()
    one, two, other = (
        found_in(epipolar(dataclasses.replace(setting, seed=seed), probes, probes, control))[UNTRAINED, LAYERS[0]]["error"]
        for seed in (0, 0, 1)
    )
    assert one == two != other


@pytest.mark.slow
def test_what_does_not_belong_together_is_refused(setting):
    probes, control = constant_probes([SIDEWAYS] * 4), CONTROL_BACKBONE()
    with pytest.raises(CheckpointError, match="a different architecture"):
        epipolar(setting, probes, probes, backbone(dataclasses.replace(LINEAR, dec_depth=2)))
    other = EpipolarProbes(epipolar_config(LINEAR, LAYERS[:2], 4), init_epipolar(epipolar_config(LINEAR, LAYERS[:2], 4), 0))
    with pytest.raises(CheckpointError, match="differ in shape"):
        epipolar(setting, probes, other, control)
    config = EpipolarConfig((EpipolarGroup(("decoder.9.mlp", CONSTANT), 16),), 4)
    deep = EpipolarProbes(config, init_epipolar(config, 0))
    with pytest.raises(CheckpointError, match="found decoder.9.mlp"):
        epipolar(setting, deep, deep, control)
