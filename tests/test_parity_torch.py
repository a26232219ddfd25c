"""All variants at tiny size against the PyTorch reference, through real files."""

import dataclasses
import itertools
import math

import numpy as np
import pytest

import und3rstand_jax as u3d
from tests.conversion import converted, save_pth
from tests.golden import weights
from tests.golden_cases import relative_error
from tests.make_checkpoint import save_hub_folder
from tests.original_names import original_shapes
from tests.with_torch import HAS_TORCH, needs_torch
from und3rstand_jax.probes.config import ProbeConfig, ProbeGroup

if HAS_TORCH:
    import torch

    from tests.torch_reference import ProbeReference, load_reference

pytestmark = needs_torch

SEED = 5
TINY = {
    "output_mode": "pts3d",
    "depth_mode": ["exp", -math.inf, math.inf],
    "conf_mode": ["exp", 1, math.inf],
    "pos_embed": "RoPE100",
    "enc_embed_dim": 32,
    "enc_depth": 2,
    "enc_num_heads": 2,
    "dec_embed_dim": 16,
    "dec_depth": 4,
    "dec_num_heads": 2,
}
VARIANTS = {
    "224_linear": TINY | {"head_type": "linear", "img_size": [32, 32], "patch_embed_cls": "PatchEmbedDust3R"},
    "512_linear": TINY | {"head_type": "linear", "img_size": [64, 64], "patch_embed_cls": "ManyAR_PatchEmbed", "landscape_only": True},
    "512_dpt": TINY | {"head_type": "dpt", "img_size": [64, 64], "patch_embed_cls": "PatchEmbedDust3R", "landscape_only": False},
    "square_sigmoid": TINY
    | {"head_type": "linear", "img_size": [64, 64], "depth_mode": ["square", -math.inf, math.inf], "conf_mode": ["sigmoid", 0, 2]},
    "linear_bounded": TINY
    | {"head_type": "linear", "img_size": [64, 64], "depth_mode": ["linear", -math.inf, math.inf], "conf_mode": ["exp", 1, 1.5]},
}
DESCRIPTORS = TINY | {"head_type": "catmlp+dpt", "img_size": [64, 64], "desc_mode": "norm"}
MAST3R = {
    "mast3r_bounded": DESCRIPTORS | {"output_mode": "pts3d+desc24", "two_confs": True, "desc_conf_mode": ["sigmoid", 0.5, 3]},
    "mast3r_one_confidence": DESCRIPTORS | {"output_mode": "pts3d+desc7", "two_confs": False},
}
SHAPES = {"square": ((48, 48), (48, 48)), "odd_mixed": ((48, 80), (112, 16))}


def random_state_dict(config):
    return {name: weights.tensor(name, shape, SEED) for name, shape in original_shapes(config).items()}


def images(sizes, batch=2):
    return [np.random.default_rng(i).uniform(-1, 1, (batch, 3, *size)).astype(np.float32) for i, size in enumerate(sizes)]


def run_reference(config, state_dict, views, dtype):
    model = load_reference(config, {name: torch.from_numpy(np.array(tensor)) for name, tensor in state_dict.items()}).to(dtype)
    with torch.no_grad():
        return model(*(torch.from_numpy(view).to(dtype) for view in views))


def assert_close(ours, exact, single, what):
    """Within three times the float32 error of PyTorch itself, or of rounding where that happens to be smaller still."""
    bar = max(3 * relative_error(single, exact), 2e-6)
    assert relative_error(ours, exact) <= bar, f"{what}: {relative_error(ours, exact):.2e} against {bar:.2e}"


@pytest.mark.parametrize(
    ("variant", "shape"), [*itertools.product(VARIANTS, SHAPES), ("mast3r_bounded", "odd_mixed"), ("mast3r_one_confidence", "square")]
)
def test_variant_equals_pytorch_layer_by_layer(variant, shape, tmp_path):
    config = (VARIANTS | MAST3R)[variant]
    state_dict, views = random_state_dict(config), images(SHAPES[shape])
    exact, single = (run_reference(config, state_dict, views, dtype) for dtype in (torch.float64, torch.float32))
    source = (
        save_pth(tmp_path / "m.pth", state_dict, config)
        if variant == "512_linear"
        else save_hub_folder(tmp_path / "m", hub_names(state_dict), config)
    )
    backbone = u3d.load_backbone(converted(source, tmp_path / "jax"))
    ours = backbone(*views, capture="*", head=True)
    assert tuple(ours) == backbone.config.layer_ids
    for layer in ours:
        for view in (0, 1):
            assert_close(ours[layer][view], exact.activations[layer][view], single.activations[layer][view], (layer, view))
    for view, (pred, pred64, pred32) in enumerate(
        zip((ours.pred1, ours.pred2), (exact.pred1, exact.pred2), (single.pred1, single.pred2), strict=True)
    ):
        assert pred.keys() == pred64.keys()
        for key in pred:
            assert_close(pred[key], pred64[key], pred32[key], (key, view))


def hub_names(state_dict):
    return {name: tensor for name, tensor in state_dict.items() if ".layer_rn." not in name}


def test_croco_trunk_decodes_the_second_view_with_a_copy_of_the_one_decoder(tmp_path):
    config = {key: value for key, value in TINY.items() if not key.endswith("_mode")}
    full = random_state_dict(TINY | {"head_type": "linear", "img_size": [64, 64]})
    croco = {name: tensor for name, tensor in full.items() if not name.startswith(("dec_blocks2.", "downstream_head"))}
    croco["prediction_head.weight"] = np.zeros((768, 16), np.float32)
    views = images(SHAPES["square"])
    source = save_pth(tmp_path / "CroCo.pth", croco, config, name="CroCoNet")
    ours = u3d.load_backbone(converted(source, tmp_path / "jax"))(*views, capture="*", head=False)
    copied = croco | {
        name.replace("dec_blocks.", "dec_blocks2."): tensor for name, tensor in croco.items() if name.startswith("dec_blocks.")
    }
    copied.pop("prediction_head.weight")
    exact, single = (run_reference(config, copied, views, dtype) for dtype in (torch.float64, torch.float32))
    for layer in ours:
        for view in (0, 1):
            assert_close(ours[layer][view], exact.activations[layer][view], single.activations[layer][view], (layer, view))
    assert ours.pred1 is None


def test_an_unknown_head_gives_the_trunk_and_says_so(tmp_path, capsys):
    config = TINY | {"head_type": "gaussians+dpt", "output_mode": "pts3d+gaussians", "img_size": [64, 64]}
    trunk = {
        k: v
        for k, v in random_state_dict(TINY | {"head_type": "linear", "img_size": [64, 64]}).items()
        if not k.startswith("downstream_head")
    }
    heads = {f"downstream_head{v}.gaussians.weight": np.ones((8, 8), np.float32) for v in (1, 2)}
    source = save_pth(tmp_path / "unknown.pth", trunk | heads, config, name="Gaussians")
    backbone = u3d.load_backbone(converted(source, tmp_path / "jax", "--verify"))
    assert "heads are of a type not implemented" in capsys.readouterr().err
    views = images(SHAPES["square"])
    exact, single = (run_reference({k: v for k, v in TINY.items()}, trunk, views, dtype) for dtype in (torch.float64, torch.float32))
    ours = backbone(*views, capture="decoder.3.mlp")
    assert_close(ours["decoder.3.mlp"][1], exact.activations["decoder.3.mlp"][1], single.activations["decoder.3.mlp"][1], "decoder.3.mlp")
    with pytest.raises(u3d.UserError, match="has no head"):
        backbone(*views, head=True)


PROBES = {
    "plain": ProbeConfig(
        (
            ProbeGroup(
                ("decoder.0.mlp", "decoder.3.cross_attn"),
                (16, 24, 24, 24, 24, 1024),
                ("linear", "activation") * 4 + ("linear",),
                (True,) * 5,
            ),
        )
    ),
    "separate_views_norms": ProbeConfig(
        (
            ProbeGroup(
                ("decoder.0.self_attn", "decoder.2.mlp"),
                (16, 16, 24, 1024),
                ("norm", "linear", "norm", "activation", "linear", "activation", "norm", "linear"),
                (True, False, True),
                (True, True, True),
            ),
        ),
        views="separate",
        activation="relu",
    ),
    "residual_rms_two_widths": ProbeConfig(
        (
            ProbeGroup(
                ("encoder.1.mlp", "encoder.norm"),
                (32, 32, 32, 1024),
                ("linear", "norm", "activation") * 2 + ("linear",),
                (True,) * 3,
                (False,) * 2,
            ),
            ProbeGroup(("decoder.1.mlp",), (16, 16, 768), ("linear", "activation", "linear"), (True, True)),
        ),
        norm="rmsnorm",
        activation="silu",
        residual=True,
        output_layout="channels_last",
        norm_epsilon=1e-4,
    ),
}


@pytest.mark.parametrize("name", PROBES)
def test_probes_equal_pytorch(name, tmp_path):
    probe_config, views = PROBES[name], images(SHAPES["odd_mixed"])
    backbone_weights = random_state_dict(VARIANTS["512_linear"])
    reference = ProbeReference(probe_config).double()
    tensors = {k: weights.tensor(k, tuple(v.shape), SEED) for k, v in reference.state_dict().items()}
    reference.load_state_dict({k: torch.from_numpy(v).double() for k, v in tensors.items()})
    save_hub_folder(tmp_path / "backbone", hub_names(backbone_weights), VARIANTS["512_linear"])
    fields = dataclasses.asdict(probe_config)
    has_norm = any("norm" in group.steps for group in probe_config.groups)
    stated = ["activation", "residual", "output_layout", *(["norm", "norm_epsilon"] if has_norm else [])]
    config = {"layer_ids": list(probe_config.layer_ids), **{key: fields[key] for key in stated}}
    source = save_hub_folder(tmp_path / "probes", tensors, config)
    checkpoint = converted(source, tmp_path / "jax", "--backbone", str(tmp_path / "backbone"), "--verify")

    model, probes = u3d.load_backbone_and_probe(checkpoint)
    assert model.probed_layers.layer_ids == probes.layer_ids == probe_config.layer_ids
    # Both sides read the same tokens, so that the distance is the probes' own.
    features = u3d.BackboneOutput({layer: model(*views)[layer] for layer in probes.layer_ids}, SHAPES["odd_mixed"])
    tokens = {layer: tuple(torch.from_numpy(np.array(view)) for view in features[layer]) for layer in features}
    with torch.no_grad():
        exact = reference({layer: tuple(view.double() for view in both) for layer, both in tokens.items()}, SHAPES["odd_mixed"])
        single = reference.float()(tokens, SHAPES["odd_mixed"])
    for layer, ours, exact_preds, single_preds in zip(probes.layer_ids, probes(features), exact, single, strict=True):
        alone = probes.read_layer(layer, features)
        for view in (0, 1):
            assert ours[view].keys() == exact_preds[view].keys()
            for key in ours[view]:
                assert_close(ours[view][key], exact_preds[view][key], single_preds[view][key], (layer, view, key))
                assert_close(alone[view][key], exact_preds[view][key], single_preds[view][key], (layer, view, key))
