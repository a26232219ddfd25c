"""VGGT's checkpoints: how they are known, what their tensors show, that nothing is lost on the way in and back, and what is refused."""

import dataclasses
import functools
import json
import math
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import und3rstand_jax as u3d
from tests.conversion import converted
from tests.golden_cases import GOLDEN
from tests.hub_server import Repo, serve
from tests.make_checkpoint import backbone_state_dict, case_of, save_hub_folder, vggt_config
from tests.test_convert import ROOT, assert_equal_tensors, exported, findings
from tests.test_hub import environment
from tests.tiny import CONFIG, backbone_tensors
from tests.with_torch import needs_torch
from und3rstand_jax.commands.convert import main
from und3rstand_jax.convert.mapping import mismatches
from und3rstand_jax.convert.probes.plan import find_probe_tensors
from und3rstand_jax.convert.sources.tensor_files import TensorInfo
from und3rstand_jax.model.families import backbone_leaves, backbone_shapes, config_of_options, find_backbone, published_config
from und3rstand_jax.model.vggt.checkpoint import VGGTForm
from und3rstand_jax.model.vggt.config import VGGTConfig
from und3rstand_jax.support.errors import UserError

HUB = {"embed_dim": 1024, "img_size": 518, "patch_size": 14}
HUB_OF_SMALL = {"embed_dim": 64, "img_size": 84, "patch_size": 14}
SMALL = vggt_config(json.loads((GOLDEN / "tiny_vggt.json").read_text())["config"])
TRACK_HEAD = {
    "track_head.tracker.updateformer.virual_tracks": (1, 3, 1, 8),
    "track_head.tracker.ffeat_norm.weight": (8,),
    "track_head.feature_extractor.projects.0.weight": (4, 8, 1, 1),
}


@functools.cache
def tensors() -> Mapping[str, np.ndarray]:
    """A small VGGT with what the published checkpoint holds and the model never reads."""
    case = case_of("tiny_vggt")
    more = {**TRACK_HEAD, "aggregator.patch_embed.mask_token": (1, 64)}
    return backbone_state_dict(case | {"state_dict": case["state_dict"] | more})


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    return save_hub_folder(
        tmp_path_factory.mktemp("vggt") / "VGGT-1B", tensors(), HUB_OF_SMALL | {"enc_num_heads": 4, "camera_num_heads": 4}
    )


@pytest.fixture(scope="module")
def checkpoint(original: Path) -> Path:
    return converted(original, original.parent / "jax", "--verify")


@pytest.fixture
def refused(tmp_path: Path, capsys):
    def message(held: Mapping[str, np.ndarray], config: Mapping | None = HUB_OF_SMALL) -> str:
        save_file(dict(held), tmp_path / "model.safetensors")
        if config is not None:
            (tmp_path / "config.json").write_text(json.dumps(config))
        assert main(["--repo", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
        assert not (tmp_path / "out").exists()
        return capsys.readouterr().err.removeprefix("error: ").rstrip("\n")

    return message


# The published model, by its names and shapes


def listed_shapes() -> dict[str, tuple[int, ...]]:
    rows = [line.split("\t") for line in (GOLDEN / "vggt_1b.keys.tsv").read_text().splitlines()[1:]]
    return {name: tuple(map(int, shape.split("x"))) for name, shape in rows}


def test_every_tensor_of_the_published_model_has_its_place():
    shapes = listed_shapes()
    form, config = VGGTForm(), VGGTConfig()
    uses = form.uses(config, shapes)
    unused = {name for name in shapes if name.startswith("track_head.")} | {"aggregator.patch_embed.mask_token"}
    assert len(unused) == 394 + 1
    infos = {name: TensorInfo(shape, "float32") for name, shape in shapes.items()}
    leaves = backbone_leaves(config)
    assert mismatches(leaves, backbone_shapes(config), infos, unused) == []
    names = [name for leaf in leaves.values() for name in leaf.names]
    assert len(names) == len(set(names)) == 1797 - len(unused)
    assert uses.second_names == {} and uses.is_whole
    used = sum(math.prod(shape) for shape in backbone_shapes(config).values())
    assert used == 1_190_596_120 - 1024  # without the track head and the mask
    assert find_probe_tensors(shapes) == ()


@pytest.mark.parametrize("options", [HUB, HUB | {f"enable_{head}": True for head in ("camera", "point", "depth", "track")}, None])
def test_the_published_model_is_known_with_and_without_its_config(options):
    shapes, form = listed_shapes(), VGGTForm()
    found = form.of_shapes(shapes) if options is None else form.of_options(options, "config.json", shapes)
    assert found.config == VGGTConfig() == published_config("facebook/VGGT-1B") == published_config("VGGT-1B-Commercial")
    assert found.guesses == ()  # at these sizes nothing is one
    hows = {field: how for field, (how, _) in found.evidence.items()}
    unseen = {field for field, how in hows.items() if how == "default"}
    assert unseen == {"enc_num_heads", "camera_num_heads", "camera_iterations", "dpt_layers", "rope_base"}
    assert hows["depth"] == hows["num_heads"] == hows["dpt_channels"] == "inferred"
    assert hows["embed_dim"] == ("inferred" if options is None else "read")
    assert found.config.to_hub_config() == HUB


def test_a_vggt_is_known_whatever_stands_before_its_names_and_a_dust3r_as_ever():
    ours = list(tensors())
    for prefix in ("", "model.", "a.patch_embed."):
        found = find_backbone([f"{prefix}{name}" for name in ours])
        assert found.prefix == prefix and [family.name for family in found.families] == ["vggt"]
        assert find_probe_tensors([*(f"{prefix}module.{name}" for name in ours), "probes.0.mlp.0.weight"]) == ("probes.0.mlp.0.weight",)
    found = find_backbone(f"dust3r.{name}" for name in backbone_tensors())
    assert found.prefix == "dust3r." and [family.name for family in found.families] == ["mast3r", "dust3r"]
    assert find_backbone(["pos_patch_embed.proj.weight"]) is None
    with pytest.raises(u3d.CheckpointError, match="found 2 backbones in one checkpoint, under the prefixes 'dust3r.', 'vggt.'"):
        find_backbone([*(f"vggt.{name}" for name in ours), *(f"dust3r.{name}" for name in backbone_tensors())])
    # Beside another backbone a module of such a name is a probe.
    assert find_probe_tensors([*backbone_tensors(), "point_head.0.weight"]) == ("point_head.0.weight",)


# Options


@pytest.mark.parametrize(
    "config",
    [
        VGGTConfig(),
        SMALL,
        dataclasses.replace(SMALL, head_names=("depth",), dpt_layers=(0, 0, 1, 3), rope_base=50.0, camera_iterations=2),
        dataclasses.replace(SMALL, img_size=(70, 98), enc_num_heads=2, mlp_ratio=2, num_registers=1, head_names=()),
    ],
)
def test_options_rebuild_the_config(config):
    options = json.loads(json.dumps(config.to_hub_config()))
    assert config_of_options(options) == VGGTConfig.from_hub_config(options) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embed_dim": 0}, "embed_dim must be a positive integer; found 0"),
        ({"img_size": [518]}, "img_size must be one or two positive integers"),
        ({"enable_depth": 1}, "enable_depth must be true or false; found 1"),
        ({"dpt_layers": [0, 1, 2]}, "dpt_layers must be the numbers of four pairs, from 0; found \\[0, 1, 2\\]"),
        ({"dpt_channels": [0, 1, 2, 3]}, "dpt_channels must be four positive integers"),
        ({"rope_base": "100"}, "rope_base must be a number; found '100'"),
        ({"num_registers": 0}, "num_registers must be a positive integer; found 0"),
        ({"dpt_layers": [False, 1, 2, 3]}, "dpt_layers must be the numbers of four pairs, from 0; found \\[False, 1, 2, 3\\]"),
        ({"aa_order": ["global", "frame"]}, "option 'aa_order' .* is not known to this implementation"),
        ({"depth": 4, "dpt_layers": [4, 11, 17, 23]}, "dpt_layers must be four pairs from 0 to 3 in ascending order"),
        ({"patch_size": 16}, "the sides of img_size must be multiples of 16"),
    ],
)
def test_options_that_are_not_supported(change, message):
    with pytest.raises(u3d.ConfigError, match=message):
        config_of_options(HUB | change)


# Sources


def test_a_small_checkpoint_and_the_way_back(checkpoint: Path, original: Path, tmp_path: Path):
    info = u3d.read_checkpoint_info(checkpoint)
    assert info.backbone == SMALL
    how = findings(checkpoint, "backbone")
    assert (how["embed_dim"], how["depth"], how["enc_num_heads"], how["dpt_layers"]) == ("read", "inferred", "read", "default")
    content = json.loads((checkpoint / "config.json").read_text())
    assert (content["backbone"]["family"], content["provenance"]["backbone"]["variant"]) == ("vggt", "VGGT of no published size")
    unused = content["provenance"]["backbone"]["unused"]
    assert unused["track_head.tracker.ffeat_norm.weight"] == "tracking of points is not implemented"
    assert set(unused) == {*TRACK_HEAD, "aggregator.patch_embed.mask_token"}
    back = exported(checkpoint, tmp_path / "back")
    assert_equal_tensors(load_file(back / "model.safetensors"), tensors())
    assert json.loads((back / "config.json").read_text()) == json.loads((original / "config.json").read_text())


def test_leaves_have_the_layouts_of_the_module(checkpoint: Path):
    backbone = u3d.load_backbone(checkpoint)
    views = [jnp.zeros((1, 28, 28, 3))] * 2
    made = jax.eval_shape(lambda key: backbone.module.init(key, *views), jax.random.key(0))["params"]
    of = {"/".join(key.key for key in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(backbone.params)}
    assert {path: leaf.shape for path, leaf in of.items()} == backbone_shapes(SMALL)
    assert jax.tree.map(lambda leaf: leaf.shape, made) == jax.tree.map(lambda leaf: leaf.shape, backbone.params)
    source = tensors()
    for path, expected in {
        "encoder/patch_embed/kernel": source["aggregator.patch_embed.patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "encoder/tokens/class_token": source["aggregator.patch_embed.cls_token"][0, 0],
        "encoder/tokens/positions": source["aggregator.patch_embed.pos_embed"][0],
        "aggregator/tokens/camera": source["aggregator.camera_token"][0],
        "aggregator/tokens/registers": source["aggregator.register_token"][0],
        "aggregator/global/scale2/gamma": np.stack([source[f"aggregator.global_blocks.{i}.ls2.gamma"] for i in range(4)]),
        "aggregator/frame/attn/k_norm/scale": np.stack([source[f"aggregator.frame_blocks.{i}.attn.k_norm.weight"] for i in range(4)]),
        "camera_head/modulation/kernel": source["camera_head.poseLN_modulation.1.weight"].T,
        "camera_head/empty_pose": source["camera_head.empty_pose_tokens"][0, 0],
        "depth_head/project3/kernel": source["depth_head.projects.2.weight"][:, :, 0, 0].T,
        "point_head/resample1/kernel": source["point_head.resize_layers.0.weight"].transpose(0, 2, 3, 1),
        "point_head/out/bias": source["point_head.scratch.output_conv2.2.bias"],
    }.items():
        np.testing.assert_array_equal(of[path], expected, path)


def test_in_bfloat16_the_kernels_of_the_trunk_are_kept_in_it(checkpoint: Path):
    backbone = u3d.load_backbone(checkpoint, dtype=jnp.bfloat16)
    kept = jax.tree_util.tree_leaves_with_path(backbone.params)
    in_bfloat16 = {"/".join(key.key for key in path) for path, leaf in kept if leaf.dtype == jnp.bfloat16}
    assert in_bfloat16 == {
        path for path in backbone_shapes(SMALL) if path.startswith(("encoder/", "aggregator/")) and path.endswith("/kernel")
    }


@pytest.mark.slow
def test_from_the_hub_the_safetensors_are_taken_and_the_pickle_is_not_downloaded(original: Path, tmp_path: Path):
    repo = Repo.of_folder(original)
    card = b"---\nlicense: cc-by-nc-4.0\ntags:\n- model_hub_mixin\n---\n# VGGT\n"
    repo.files |= {"model.pt": b"not needed", "README.md": card}
    with serve({"facebook/VGGT-1B": repo}) as hub:
        command = [sys.executable, "-m", "convert", "--repo", "facebook/VGGT-1B", "--verify"]
        env = environment(hub.url, tmp_path / "home") | {"PYTHONPATH": str(ROOT)}
        run = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        assert sorted(hub.downloads("facebook/VGGT-1B")) == ["README.md", "config.json", "model.safetensors"]
    assert run.stdout == "VGGT-1B-jax\n"
    assert "note: backbone camera_iterations = 4 (default: config.json does not say, and no shape shows it; as in VGGT-1B)" in run.stderr
    assert f"verified: {len(tensors())} tensors equal the source's" in run.stderr
    assert u3d.read_checkpoint_info(tmp_path / "VGGT-1B-jax").backbone == SMALL


@needs_torch
def test_a_plain_state_dict_of_a_wrapped_model(tmp_path: Path):
    import torch

    name = "vggt_1B_commercial.pt"

    held = {f"module.{key}": torch.from_numpy(tensor) for key, tensor in tensors().items()}
    torch.save(held, tmp_path / name)
    folder = converted(tmp_path / name, tmp_path / "jax", "--verify")
    # DINOv2's and the camera's heads would have 64 and 128 channels.
    expected = dataclasses.replace(SMALL, enc_num_heads=1, camera_num_heads=1)
    assert u3d.read_checkpoint_info(folder).backbone == expected
    back = exported(folder, tmp_path / "back")
    assert_equal_tensors(load_file(back / "model.safetensors"), {f"module.{key}": tensor for key, tensor in tensors().items()})
    assert json.loads((back / "config.json").read_text()) == expected.to_hub_config()


def test_without_a_head_and_with_one_that_the_config_does_not_enable(tmp_path: Path, capsys):
    held = {name: tensor for name, tensor in tensors().items() if not name.startswith("camera_head.")}
    source = save_hub_folder(tmp_path / "m", held, HUB_OF_SMALL | {"enable_camera": False, "enable_depth": False, "enable_track": True})
    assert main(["--repo", str(source), "--inspect"]) == 0
    shown = capsys.readouterr().out
    assert "the config does not enable this head" in shown and "config.json does not enable the others" in shown
    folder = converted(source, tmp_path / "jax")
    config = u3d.read_checkpoint_info(folder).backbone
    assert config.head_names == ("points",) and [head.name for head in config.heads] == ["points"]
    assert_equal_tensors(load_file(exported(folder, tmp_path / "back") / "model.safetensors"), held)
    capsys.readouterr()
    held = {name: tensor for name, tensor in held.items() if "_head." not in name}
    save_file(held, tmp_path / "trunk.safetensors")
    assert main(["--repo", str(tmp_path / "trunk.safetensors"), "--inspect"]) == 0
    assert capsys.readouterr().out.startswith("Backbone: trunk alone: no heads\n")


def test_very_many_unused_tensors_are_shown_as_one(tmp_path: Path, capsys):
    many = {f"track_head.tracker.{i}.weight": np.ones(2, np.float32) for i in range(250)}
    source = save_hub_folder(tmp_path / "m", {**tensors(), **many}, HUB_OF_SMALL)
    assert main(["--repo", str(source), "--inspect"]) == 0
    shown = capsys.readouterr().out
    rows = [line.split() for line in shown[shown.index("unused, kept for the export") :].splitlines()[1:]]
    assert sorted(" ".join(row) for row in rows) == [
        "aggregator.patch_embed.mask_token used in DINOv2's pre-training only",
        "track_head.* (253 tensors) tracking of points is not implemented",
    ]


# What is refused


def test_everything_that_does_not_fit_is_said_at_once(refused):
    held = dict(tensors())
    del held["aggregator.frame_blocks.0.attn.q_norm.weight"], held["aggregator.patch_embed.pos_embed"], held["camera_head.embed_pose.bias"]
    held["aggregator.patch_embed.cls_token"] = np.ones((1, 64), np.float32)
    held["depth_head.scratch.output_conv2.2.bias"] = np.ones(4, np.float32)
    held["decoder.weight"] = np.ones((2, 2, 2), np.float32)
    message = refused(held)
    assert message.startswith("the backbone's tensors do not fit: 6 problems: ")
    for part in (
        "aggregator.frame_blocks.0.attn.q_norm.weight: missing, expected shape 16",
        "aggregator.patch_embed.pos_embed: missing, expected shape 1×37×64",
        "aggregator.patch_embed.cls_token: found shape 1×64, expected 1×1×64",
        "camera_head.embed_pose.bias: missing, expected shape 128",
        "depth_head.scratch.output_conv2.2.bias: found shape 4, expected 2",
        "decoder.weight: found shape 2×2×2, surplus: nothing expects it",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"embed_dim": 128, "depth": 5, "enable_depth": True},
            "config.json says embed_dim 128 (the tensors show 64), depth 5 (the tensors show 4); "
            "use the config that belongs to the tensors",
        ),
        ({"img_size": 518}, "config.json says img_size (518, 518) (the tensors show (84, 84)); use the config that belongs to the tensors"),
        ({"patch_size": True}, "backbone config: patch_size must be a positive integer; found True"),
        ({"enc_num_heads": 3}, "backbone config: a width of 64 must be a multiple of 3: all heads have equally many channels"),
        ({"enc_depth": 10**9}, "config.json says enc_depth 1000000000 (the tensors show 2); use the config that belongs to the tensors"),
        ({"camera_iterations": 10**9}, "backbone config: camera_iterations must be at most 100; found 1000000000"),
    ],
)
def test_configs_that_do_not_belong_to_the_tensors(change, message, refused):
    assert refused(tensors(), HUB_OF_SMALL | change) == message


def test_a_dust3rs_config_beside_a_vggt_and_a_head_that_is_not_there(refused):
    message = refused(tensors(), CONFIG)
    assert message.startswith("backbone config: option 'output_mode' (= 'pts3d') is not known to this implementation")
    held = {name: tensor for name, tensor in tensors().items() if not name.startswith("depth_head.")}
    assert refused(held, HUB_OF_SMALL | {"enable_depth": True}) == (
        "config.json says enable_depth (there are no tensors depth_head.*); use the config that belongs to the tensors"
    )


@pytest.mark.parametrize("shape", [(64, 3, 14), (0, 3, 14, 14), (64, 3, 14, 0)])
def test_an_anchor_of_another_shape(shape, refused):
    held = dict(tensors()) | {VGGTForm.anchor: np.ones(shape, np.float32)}
    assert f"aggregator.patch_embed.patch_embed.proj.weight has the shape {shape}; expected (channels, 3, " in refused(held, None)


def test_shapes_that_no_model_has_end_in_an_error_of_ours():
    form, shapes = VGGTForm(), {name: tensor.shape for name, tensor in tensors().items()}
    chosen = ("register", "pos_embed", "0.attn.q_norm.weight", "frame_blocks.0.mlp.fc1.weight", "projects.0.weight", "layer1_rn")
    for name in (name for name in shapes if any(part in name for part in chosen)):
        for shape in ((), (1,), (7, 3), (2, 1, 5, 1)):
            others = shapes | {name: shape}
            try:
                config = form.of_options(HUB_OF_SMALL, "config.json", others).config
            except UserError:
                continue
            infos = {held: TensorInfo(of, "float32") for held, of in others.items()}
            assert mismatches(backbone_leaves(config), backbone_shapes(config), infos, form.uses(config, infos).unused) != []
