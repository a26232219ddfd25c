"""Trained probes as a converted checkpoint: loaded, exported and converted back, they are the same probes."""

import contextlib
import io
import json
import math
import os
import shutil

import jax
import numpy as np
import pytest

from tests import tiny
from tests.conversion import converted
from tests.orbax_tree import read_tree
from und3rstand_jax import load_backbone_and_probe
from und3rstand_jax.checkpoint.format import read_checkpoint_info
from und3rstand_jax.checkpoint.trees import flatten
from und3rstand_jax.commands.convert import main
from und3rstand_jax.probes.config import ProbeConfig, ProbeGroup
from und3rstand_jax.probes.probes import PointmapProbes, Probes, probe_shapes
from und3rstand_jax.support.errors import UserError
from und3rstand_jax.train.trained import torch_leaves, write_trained_probes

TRAINING = {"steps": 7, "final_loss": math.nan, "options": {"bound": math.inf, "layers": ("all",)}}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """A converted backbone whose source holds tensors that the model never reads."""
    folder = tmp_path_factory.mktemp("trained")
    unused = {"mask_token": np.ones((1, 1, 16), np.float32)}
    return converted(tiny.save_backbone(folder / "source", tiny.backbone_tensors() | unused), folder / "backbone")


def probe_config(layers=tiny.LAYERS, views="shared", norm=True, hidden=8, depth=3, norm_kind="layernorm", **fields):
    """Probes as they are trained: a norm first, then linear layers with activations between them."""
    steps = (("norm",) if norm else ()) + ("linear", "activation") * (depth - 1) + ("linear",)
    widths = {layer: 32 if layer.startswith("encoder") else 16 for layer in layers}
    groups = tuple(
        ProbeGroup(
            tuple(layer for layer in layers if widths[layer] == width),
            (width, *[hidden] * (depth - 1), 1024),
            steps,
            (True,) * depth,
            (True,) * steps.count("norm"),
        )
        for width in dict.fromkeys(widths.values())
    )
    return ProbeConfig(groups, views=views, norm=norm_kind, **fields)


def random_params(config, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(0, 0.2, leaf.shape).astype(np.float32), probe_shapes(config))


def assert_same_bits(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape and np.asarray(a).tobytes() == np.asarray(b).tobytes()


def run_convert(*arguments):
    told = io.StringIO()
    with contextlib.redirect_stderr(told), contextlib.redirect_stdout(io.StringIO()):
        assert main([str(argument) for argument in arguments]) == 0, told.getvalue()


def test_loaded_probes_give_the_pointmaps_of_those_in_memory_bit_for_bit(backbone, tmp_path):
    config = probe_config(("encoder.norm", *tiny.LAYERS[3:5]), views="separate", activation="relu", norm_epsilon=1e-4)
    params = jax.tree.map(jax.numpy.asarray, random_params(config))
    write_trained_probes(tmp_path / "out", backbone, config, params, TRAINING)
    model, probes = load_backbone_and_probe(tmp_path / "out")
    assert model.probed_layers.layer_ids == probes.layer_ids == ("encoder.norm", *tiny.LAYERS[3:5])
    rng = np.random.default_rng(1)
    features = model(*rng.uniform(-1, 1, (2, 1, 32, 32, 3)).astype(np.float32))
    expected = Probes(PointmapProbes(config), params)(features)
    assert_same_bits(probes(features), expected)
    assert len(expected) == 3 and np.isfinite(expected[0][0]["pts3d"]).all()


@pytest.mark.parametrize(
    "config",
    [
        probe_config(),
        probe_config(depth=5, norm=False),
        probe_config(views="separate", activation="silu", norm_epsilon=1e-3, conf_mode=("sigmoid", 0.0, 1.0)),
        probe_config(norm_kind="rmsnorm", norm_epsilon=1e-6, depth=1),
        probe_config(tiny.LAYERS[2:3], views="separate", hidden=16, residual=True),
        probe_config(views="separate", view_count=3),
        probe_config(tiny.LAYERS[1:3], output_layout="channels_last", depth_mode=("square", -math.inf, math.inf)),
        probe_config(("encoder.0.mlp", "encoder.norm", "decoder.embed", *tiny.LAYERS, "decoder.norm"), activation="gelu_tanh"),
    ],
    ids=["norm first", "no norm", "separate views", "one linear layer", "one layer", "three views", "two layers", "encoder and decoder"],
)
def test_an_export_converts_back_to_the_same_probes(backbone, tmp_path, config):
    params = random_params(config)
    write_trained_probes(tmp_path / "out", backbone, config, params, TRAINING)
    run_convert("--repo", tmp_path / "out", "--to-torch", tmp_path / "torch")
    run_convert(
        "--repo", tmp_path / "torch" / "probes", "--backbone", tmp_path / "torch" / "backbone", "--out", tmp_path / "back", "--verify"
    )
    assert read_checkpoint_info(tmp_path / "back").probes == config
    assert_same_bits(read_tree(tmp_path / "back" / "probes"), params)
    assert_same_bits(read_tree(tmp_path / "back" / "backbone"), read_tree(backbone / "backbone"))


def test_probes_are_numbered_in_network_order_and_steps_as_in_a_sequential():
    config = probe_config(("decoder.1.mlp", "encoder.norm", "decoder.0.mlp"), views="separate", depth=2)
    leaves = torch_leaves(config)
    assert leaves.keys() == flatten(probe_shapes(config)).keys()
    decoder = next(i for i, group in enumerate(config.groups) if "decoder.0.mlp" in group.layer_ids)
    assert config.groups[decoder].layer_ids == ("decoder.1.mlp", "decoder.0.mlp")
    assert leaves[f"group{decoder}/norm0/scale"].names[0] == "probes.2.view1.mlp.0.weight"
    assert leaves[f"group{decoder}/linear0/bias"].names == tuple(f"probes.{n}.view{v}.mlp.1.bias" for n in (2, 1) for v in (1, 2))
    assert leaves[f"group{1 - decoder}/linear1/kernel"].names == ("probes.0.view1.mlp.3.weight", "probes.0.view2.mlp.3.weight")
    assert leaves[f"group{decoder}/linear1/kernel"].stack == (2, 2)


def test_only_the_backbone_of_a_probed_checkpoint_is_taken_and_training_is_told(backbone, tmp_path):
    first, second = probe_config(), probe_config(tiny.LAYERS[:1], hidden=4)
    write_trained_probes(tmp_path / "first", backbone, first, random_params(first), {})
    write_trained_probes(tmp_path / "second", tmp_path / "first", second, random_params(second), TRAINING)
    info, original = read_checkpoint_info(tmp_path / "second"), read_checkpoint_info(backbone)
    assert info.probes == second and info.backbone == original.backbone
    assert info.provenance["backbone"] == original.provenance["backbone"]
    assert info.provenance["probes"]["training"] == {"steps": 7, "final_loss": None, "options": {"bound": "inf", "layers": ["all"]}}
    assert_same_bits(read_tree(tmp_path / "second" / "probes"), random_params(second))
    digests = [read_checkpoint_info(tmp_path / name).provenance["probes"]["sha256"] for name in ("first", "second")]
    assert digests[0] != digests[1] and original.provenance["backbone"]["sha256"] not in digests
    assert sorted(path.name for path in (tmp_path / "second").iterdir()) == sorted(
        ["backbone", "backbone_unused.safetensors", "config.json", "probes"]
    )


@pytest.mark.parametrize("linked", [True, False])
def test_the_backbone_is_linked_to_where_that_can_be_done_and_else_copied(backbone, tmp_path, monkeypatch, linked):
    def refuse(*_, **__):
        raise OSError("no links here")

    if not linked:
        monkeypatch.setattr(os, "link", refuse)
    config = probe_config(tiny.LAYERS[:1])
    write_trained_probes(tmp_path / "out", backbone, config, random_params(config), {})
    files = [path for path in [*(backbone / "backbone").rglob("*"), backbone / "backbone_unused.safetensors"] if path.is_file()]
    assert len(files) > 10
    for file in files:
        own = tmp_path / "out" / file.relative_to(backbone)
        assert own.samefile(file) == linked and own.read_bytes() == file.read_bytes()


def test_a_backbone_of_the_hubs_links_is_taken_itself(backbone, tmp_path):
    blobs = tmp_path / "models--owner--name" / "blobs"
    blobs.mkdir(parents=True)
    linked = shutil.copytree(backbone, tmp_path / "models--owner--name" / "snapshots" / "c0ffee")
    for number, file in enumerate([path for path in linked.rglob("*") if path.is_file()]):
        file.symlink_to(os.path.relpath(file.rename(blobs / str(number)), file.parent))
    config = probe_config(tiny.LAYERS[:1])
    write_trained_probes(tmp_path / "out", linked, config, random_params(config), {})
    shutil.rmtree(tmp_path / "models--owner--name")
    assert_same_bits(read_tree(tmp_path / "out" / "backbone"), read_tree(backbone / "backbone"))


def test_an_earlier_result_is_replaced_only_when_asked(backbone, tmp_path):
    first, second = probe_config(tiny.LAYERS[:1]), probe_config(tiny.LAYERS[:2])
    write_trained_probes(tmp_path / "out", backbone, first, random_params(first), {})
    with pytest.raises(UserError, match="is not empty"):
        write_trained_probes(tmp_path / "out", backbone, second, random_params(second), {})
    assert read_checkpoint_info(tmp_path / "out").probes == first
    write_trained_probes(tmp_path / "out", backbone, second, random_params(second), {}, overwrite=True)
    assert read_checkpoint_info(tmp_path / "out").probes == second
    assert_same_bits(read_tree(tmp_path / "out" / "probes"), random_params(second))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_cannot_be_written_leaves_nothing_behind(backbone, tmp_path):
    config = probe_config(tiny.LAYERS[:2])
    params = random_params(config)
    out = tmp_path / "out"
    with pytest.raises(UserError, match="group0/linear0/bias.*expected \\(1, 8\\), found \\(2, 8\\)"):
        write_trained_probes(out, backbone, probe_config(tiny.LAYERS[:1]), {"group0": {"linear0": params["group0"]["linear0"]}}, {})
    with pytest.raises(UserError, match="is not a converted checkpoint"):
        write_trained_probes(out, backbone / "backbone", config, params, {})
    with pytest.raises(UserError, match="is, or is in, the source"):
        write_trained_probes(backbone, backbone, config, params, {}, overwrite=True)
    with pytest.raises(TypeError):
        write_trained_probes(out, backbone, config, params, {"when": object()})
    assert not list(tmp_path.iterdir())
    assert read_checkpoint_info(backbone).probes is None
    json.loads((backbone / "config.json").read_text())
