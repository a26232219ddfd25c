"""MASt3R: what its config says, what its heads make and cost, and that training leaves its descriptors alone."""

import dataclasses
import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

import und3rstand_jax as u3d
from tests.conversion import args_string, converted
from tests.golden_cases import GOLDEN
from tests.make_checkpoint import save_hub_folder
from tests.test_model_properties import DPT, assert_same, backbone, views
from tests.tiny import CONFIG, MAST3R_CONFIG, backbone_tensors, probe_tensors
from und3rstand_jax.checkpoint.format import sealed
from und3rstand_jax.commands.convert import main as convert
from und3rstand_jax.convert.mapping import mismatches
from und3rstand_jax.convert.sources.tensor_files import TensorInfo
from und3rstand_jax.model import families
from und3rstand_jax.model.dust3r.names import UNUSED_PATTERNS, second_names
from und3rstand_jax.model.families import backbone_leaves, backbone_shapes, config_of_options
from und3rstand_jax.support.errors import UserError
from und3rstand_jax.train.backbone_task import BackboneTask
from und3rstand_jax.train.options import BackboneOptions

PUBLISHED = "MASt3R_ViTLarge_BaseDecoder_512_catmlpdpt_metric"
HUB = {
    "conf_mode": ["exp", 1, math.inf],
    "dec_depth": 12,
    "dec_embed_dim": 768,
    "dec_num_heads": 12,
    "depth_mode": ["exp", -math.inf, math.inf],
    "desc_conf_mode": ["exp", 0, math.inf],
    "desc_mode": "norm",
    "enc_depth": 24,
    "enc_embed_dim": 1024,
    "enc_num_heads": 16,
    "head_type": "catmlp+dpt",
    "img_size": [512, 512],
    "landscape_only": False,
    "output_mode": "pts3d+desc24",
    "patch_embed_cls": "PatchEmbedDust3R",
    "pos_embed": "RoPE100",
    "two_confs": True,
}
SMALL = u3d.MASt3RConfig(**{**dataclasses.asdict(DPT), "head_type": "catmlp+dpt", "desc_dim": 6})


def test_the_published_model_from_hub_config_args_string_and_constructor():
    named = u3d.MASt3RConfig.mast3r_512_metric()
    assert config_of_options(json.loads(json.dumps(HUB))) == named
    # As the training command's --model states it.
    trained = HUB | {"patch_embed_cls": "ManyAR_PatchEmbed", "landscape_only": True}
    trained = {option: value for option, value in trained.items() if option != "desc_mode"}
    assert config_of_options(args_string(trained, "AsymmetricMASt3R")) == named
    assert named.to_hub_config() == HUB
    assert [head.name for head in named.heads] == ["pointmap", "features"]


def test_options_that_are_left_out_have_the_originals_defaults():
    left_out = {option: value for option, value in HUB.items() if option not in ("two_confs", "desc_conf_mode", "desc_mode")}
    for unsaid in ({}, {"desc_conf_mode": None}):
        config = config_of_options(left_out | {"output_mode": "pts3d+desc16", "conf_mode": ["sigmoid", 0, 1]} | unsaid)
        assert (config.desc_dim, config.two_confs, config.desc_conf_mode) == (16, False, ("sigmoid", 0.0, 1.0))
    assert config_of_options(config.to_hub_config()) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head_type": "catconv"}, "head_type 'catconv' is not supported; expected catmlp\\+dpt"),
        ({"encoder": "dune_vitbase_14"}, "MASt3R with a DUNE encoder is not supported"),
        ({"output_mode": "pts3d"}, "output_mode 'pts3d' is not supported; expected pts3d\\+desc and the length"),
        ({"output_mode": "pts3d+desc0"}, "desc_dim must be 1 to 4096; found 0"),
        ({"output_mode": "pts3d+desc99999"}, "desc_dim must be 1 to 4096; found 99999"),
        ({"desc_mode": "square"}, "desc_mode 'square' is not supported; expected norm"),
        ({"desc_conf_mode": ["exp", 1, 0]}, "desc_conf_mode .* is not supported; expected a lower bound below"),
        ({"two_confs": 1}, "two_confs must be true or false; found 1"),
        ({"dec_depth": 10}, "dec_depth 10 must be a multiple of 4 for the DPT head"),
        ({"pos_embed": "cosine", "x": 1}, "pos_embed 'cosine'.*option 'x'"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(change, message):
    with pytest.raises(UserError, match=message):
        config_of_options(HUB | change)


def test_what_is_not_supported_is_refused_in_the_args_of_a_pth_too():
    with pytest.raises(UserError, match="MASt3R with a DUNE encoder is not supported"):
        config_of_options(args_string(HUB, "AsymmetricMASt3RwithDUNE"))
    with pytest.raises(UserError, match="head_type 'catconv' is not supported; expected catmlp"):
        config_of_options(args_string(HUB | {"head_type": "catconv"}, "AsymmetricMASt3R"))
    silent = {option: value for option, value in HUB.items() if option != "output_mode"}
    with pytest.raises(UserError, match="output_mode must say how long its descriptors are"):
        config_of_options(silent)


def renamed(tensors, before, after):
    return {name.replace(before, after): tensor for name, tensor in tensors.items()}


REFUSED = {
    # Whole models beside an encoder that has no names of ours, one with a flat config that says so, and a head of convolutions.
    "dune": (renamed(backbone_tensors(), "enc_blocks", "dune_backbone.blocks"), {}, "MASt3R with a DUNE encoder is not supported"),
    "dune alone": ({"dune_backbone.norm.weight": np.ones(4, np.float32)}, {}, "MASt3R with a DUNE encoder is not supported"),
    "dune in a config": (backbone_tensors() | probe_tensors(), MAST3R_CONFIG | {"dune_backbone": "small"}, "MASt3R with a DUNE encoder"),
    "catconv": (
        renamed(backbone_tensors(MAST3R_CONFIG), ".dpt.", ".convs."),
        {},
        "MASt3R with catconv heads \\(convolutions in place of DPT\\) is not supported; expected catmlp\\+dpt",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_names_of_tensors_and_options_are_enough_to_be_refused(case, tmp_path, capsys):
    tensors, config, message = REFUSED[case]
    source = tmp_path / "model.safetensors"
    if config:
        source = save_hub_folder(tmp_path / "m", tensors, config)
    else:
        save_file(dict(tensors), source)
    assert convert(["--repo", str(source), "--out", str(tmp_path / "jax")]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "jax").exists()


def test_a_bias_without_an_axis_is_no_traceback(tmp_path, capsys):
    tensors = backbone_tensors(MAST3R_CONFIG) | {"downstream_head1.head_local_features.fc2.bias": np.float32(0)}
    save_file({name: np.asarray(tensor) for name, tensor in tensors.items()}, tmp_path / "model.safetensors")
    assert convert(["--repo", str(tmp_path / "model.safetensors"), "--out", str(tmp_path / "jax")]) == 2
    assert "downstream_head1.head_local_features.fc2.bias" in capsys.readouterr().err


def test_a_trunk_that_an_earlier_version_left_in_the_cache_is_converted_again(tmp_path, monkeypatch):
    source = save_hub_folder(tmp_path / "m", backbone_tensors(MAST3R_CONFIG), MAST3R_CONFIG)
    with monkeypatch.context() as earlier:
        earlier.setattr(families, "FAMILIES", (families.DUST3R,))
        trunk = u3d.converted_checkpoint(source, cache=tmp_path / "cache", progress=False)
        assert u3d.read_checkpoint_info(trunk).backbone.heads == ()
    assert type(u3d.load_backbone(source, cache=tmp_path / "cache", progress=False).module) is u3d.MASt3R


def test_the_published_tensors_are_exactly_those_of_the_name_table():
    config = u3d.MASt3RConfig.mast3r_512_metric()
    rows = [line.split("\t") for line in (GOLDEN / f"{PUBLISHED}.keys.tsv").read_text().splitlines()[1:]]
    tensors = {name: TensorInfo(tuple(map(int, shape.split("x"))), "float32") for name, shape in rows}
    seconds = second_names()
    unused = {name for name in tensors for pattern in UNUSED_PATTERNS if re.fullmatch(pattern, name)}
    assert mismatches(backbone_leaves(config), backbone_shapes(config), tensors, {*unused, *seconds}) == []
    sizes = [math.prod(info.shape) for name, info in tensors.items() if name not in seconds]
    assert sum(sizes) == 688_638_856
    used = sum(math.prod(shape) for shape in backbone_shapes(config).values())
    assert used == sum(sizes) - sum(math.prod(tensors[name].shape) for name in unused)


def test_shapes_are_those_of_the_modules():
    assert backbone_shapes(SMALL) == {
        "/".join(key.key for key in path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(backbone(SMALL).params)
    }


def test_without_a_config_names_and_shapes_tell_and_what_they_leave_open_is_said(tmp_path, capsys):
    tensors = backbone_tensors(MAST3R_CONFIG | {"enc_embed_dim": 64, "dec_embed_dim": 64})
    save_file(tensors, tmp_path / "model.safetensors")
    folder = converted(tmp_path / "model.safetensors", tmp_path / "jax")
    config = u3d.read_checkpoint_info(folder).backbone
    assert isinstance(config, u3d.MASt3RConfig) and (config.desc_dim, config.two_confs) == (24, True)
    assert "backbone two_confs = True (default: no config" in capsys.readouterr().err


def test_a_mast3r_without_a_head_is_refused():
    with pytest.raises(u3d.ConfigError, match="a MASt3R has a head; without one the trunk is that of a DUSt3R"):
        dataclasses.replace(SMALL, head_type=None)


def test_the_checkpoint_names_its_family_and_a_dust3rs_none(tmp_path):
    dust3r = converted(save_hub_folder(tmp_path / "d", backbone_tensors(), CONFIG), tmp_path / "dust3r")
    assert "family" not in json.loads((dust3r / "config.json").read_text())["backbone"]
    folder = converted(save_hub_folder(tmp_path / "m", backbone_tensors(MAST3R_CONFIG), MAST3R_CONFIG), tmp_path / "jax")
    content = json.loads((folder / "config.json").read_text())
    assert (content["backbone"]["family"], content["backbone"]["desc_dim"]) == ("mast3r", 24)
    assert type(u3d.load_backbone(folder).module) is u3d.MASt3R
    for change, message in (
        ({"family": "pi3"}, "of the family 'pi3', which this program does not know"),
        ({"desc_dim": "24"}, "backbone.desc_dim: input should be a valid integer"),
    ):
        (folder / "config.json").write_text(sealed(json.dumps(content | {"backbone": content["backbone"] | change}, indent=1)))
        with pytest.raises(u3d.CheckpointError, match=message):
            u3d.read_checkpoint_info(folder)


def test_descriptors_have_unit_length_and_a_confidence_of_their_own():
    output = backbone(SMALL)(*views())
    for pred, (height, width) in zip(output.pointmaps, output.image_sizes, strict=True):
        assert {name: leaf.shape[1:] for name, leaf in pred.items()} == {
            "pts3d": (height, width, 3),
            "conf": (height, width),
            "desc": (height, width, 6),
            "desc_conf": (height, width),
        }
        np.testing.assert_allclose(np.linalg.norm(pred["desc"], axis=-1), 1, rtol=1e-5)
        assert (np.asarray(pred["desc_conf"]) > 0).all() and not np.allclose(pred["desc_conf"], pred["conf"])


def test_without_two_confs_the_confidence_is_that_of_the_points():
    model = backbone(dataclasses.replace(SMALL, two_confs=False))
    both = model(*views())
    np.testing.assert_array_equal(both.pred2["desc_conf"], both.pred2["conf"])
    assert set(model(*views(), head="features").pred1) == {"desc"}


def test_a_head_that_is_left_out_costs_nothing():
    mast3r, dust3r = backbone(SMALL), backbone(DPT)
    images = views()

    def flops(model, head):
        lowered = jax.jit(lambda params: model.module.apply({"params": params}, *images, head=head)).lower(model.params)
        return lowered.compile().cost_analysis().get("flops", 0.0)

    assert flops(mast3r, "pointmap") == flops(dust3r, True)
    assert flops(mast3r, ()) == flops(dust3r, False)
    trunk, features = flops(mast3r, ()), flops(mast3r, "features")
    assert trunk < features < flops(mast3r, "pointmap")


def test_the_trunk_and_the_pointmaps_are_dust3rs():
    mast3r = backbone(SMALL)
    dust3r = u3d.Backbone(u3d.DUSt3R(DPT), {name: part for name, part in mast3r.params.items() if not name.startswith("features")})
    edits = u3d.knock_out("decoder.1.cross_attn.heads:0@2")
    for some in (None, edits):
        ours = mast3r(*views(), capture="*", head="pointmap", edits=some)
        assert_same(ours, dust3r(*views(), capture="*", head=True, edits=some), 0)


def test_a_pass_from_a_layer_on_has_the_same_descriptors():
    model = backbone(SMALL)
    whole = model(*views(), capture=u3d.start_layers("decoder.2.mlp", SMALL, head="features"), head="features")
    assert set(whole) == {"encoder.norm", "decoder.2.mlp"}
    again = model(start=whole, head="features", capture=())
    np.testing.assert_allclose(again.pred2["desc"], whole.pred2["desc"], atol=2e-6)


def test_a_head_that_is_not_there_is_refused_by_name():
    with pytest.raises(u3d.OptionError, match="no head 'descriptors'; its heads are: pointmap, features"):
        backbone(SMALL)(*views(), head="descriptors")
    with pytest.raises(u3d.OptionError, match="no head 'features'; its heads are: pointmap"):
        backbone(DPT)(*views(), head="features")
    with pytest.raises(u3d.OptionError, match="no head 'pointmap'; its heads are: none"):
        u3d.Backbone(u3d.DUSt3R(dataclasses.replace(DPT, head_type=None)), {})(*views(), head="pointmap")


def test_a_descriptor_of_nothing_is_not_a_number():
    model = backbone(SMALL)
    silent = model.params | {f"features{view}": jax.tree.map(jnp.zeros_like, model.params[f"features{view}"]) for view in (1, 2)}
    output = u3d.Backbone(model.module, silent)(*views(), head="features")
    assert np.isnan(output.pred1["desc"]).all()
    np.testing.assert_array_equal(output.pred1["desc_conf"], 1)  # exp(0)


def test_training_the_backbone_leaves_the_descriptors_heads_as_they_are(tmp_path):
    folder = converted(save_hub_folder(tmp_path / "m", backbone_tensors(MAST3R_CONFIG), MAST3R_CONFIG), tmp_path / "jax")
    options = BackboneOptions(out=tmp_path / "out", start=str(folder), data=("synthetic",), val_pairs=1, batch_size=1, steps=1)
    config = u3d.read_checkpoint_info(folder).backbone
    task = BackboneTask.create(dataclasses.replace(options, fresh_confidence=True), config, devices=1, source=folder)
    assert not np.asarray(task.initial_state().params["head1"]["out"]["bias"])[3]
    task = BackboneTask.create(options, config, devices=1, source=folder)
    assert "its heads for features stay unchanged: the loss has no term for them" in task.description()
    state = task.initial_state()
    # Weight decay would shrink what gets no gradient: it must not be in the state at all.
    assert set(state.params) == {"encoder", "decoder", "head1", "head2"}
    trained = state._replace(model=state.model._replace(params=jax.tree.map(lambda leaf: leaf + 1, state.params)))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "metrics.jsonl").write_text("")
    task.finish(trained, 1, ())
    before, after = (u3d.load_backbone(of).params for of in (folder, tmp_path / "out" / "backbone"))
    for name, part in before.items():
        expected = part if name.startswith("features") else jax.tree.map(lambda leaf: leaf + 1, part)
        jax.tree.map(np.testing.assert_array_equal, after[name], expected)
