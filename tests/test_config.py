"""Backbone configs: what published checkpoints say, and what is refused by name."""

import json
import math

import pytest

from tests.conversion import args_string
from tests.golden_cases import GOLDEN
from und3rstand_jax.model.dust3r.config import BackboneConfig
from und3rstand_jax.model.families import config_of_options
from und3rstand_jax.support.errors import UserError

HUB = {
    "conf_mode": ["exp", 1, math.inf],
    "dec_depth": 12,
    "dec_embed_dim": 768,
    "dec_num_heads": 12,
    "depth_mode": ["exp", -math.inf, math.inf],
    "enc_depth": 24,
    "enc_embed_dim": 1024,
    "enc_num_heads": 16,
    "freeze": "none",
    "head_type": "dpt",
    "img_size": [512, 512],
    "landscape_only": False,
    "output_mode": "pts3d",
    "patch_embed_cls": "PatchEmbedDust3R",
    "pos_embed": "RoPE100",
}
PUBLISHED = {
    "224_linear": (BackboneConfig.dust3r_224_linear(), {"head_type": "linear", "img_size": [224, 224]}),
    "512_linear": (BackboneConfig.dust3r_512_linear(), {"head_type": "linear"}),
    "512_dpt": (BackboneConfig.dust3r_512_dpt(), {}),
}


@pytest.mark.parametrize("variant", PUBLISHED)
def test_the_published_variants_from_hub_config_args_string_and_constructor(variant):
    named, options = PUBLISHED[variant]
    stated = HUB | options
    assert BackboneConfig.from_hub_config(json.loads(json.dumps(stated))) == named
    assert config_of_options(args_string(stated)) == named
    assert config_of_options(args_string(stated | {"patch_embed_cls": "ManyAR_PatchEmbed", "landscape_only": True})) == named
    assert named.to_hub_config() == stated


def test_the_golden_full_size_case_is_the_published_model_at_another_image_size():
    config = BackboneConfig.from_hub_config(json.loads((GOLDEN / "full_512_dpt.json").read_text())["config"])
    assert len(config.layer_ids) == 2 * 24 + 1 + 1 + 36 + 1
    assert (config.layer_width("encoder.norm"), config.layer_width("decoder.embed")) == (1024, 768)


@pytest.mark.parametrize(
    "change", [{"mlp_ratio": 2}, {"patch_size": 8}, {"rope_base": 1e6}, {"rope_base": 12.5}, {"conf_mode": ("sigmoid", 0.0, 1.0)}]
)
def test_the_hub_config_says_all_that_rebuilds_a_config(change):
    config = BackboneConfig(**{"head_type": "linear"} | change)
    assert BackboneConfig.from_hub_config(config.to_hub_config()) == config
    assert config_of_options(args_string(config.to_hub_config())) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pos_embed": "cosine"}, "pos_embed 'cosine' is not supported; expected RoPE"),
        ({"pos_embed": "RoPE0"}, "RoPE's base must be a finite number above 1; found 0"),
        ({"patch_embed_cls": "Other"}, "patch_embed_cls 'Other' is not supported"),
        ({"output_mode": "pts3d+desc24"}, "output_mode 'pts3d\\+desc24' is not supported"),
        ({"norm_im2_in_dec": False}, "norm_im2_in_dec False is not supported"),
        ({"enc_dept": 24}, "option 'enc_dept' \\(= 24\\) is not known"),
        ({"enc_depth": 0}, "enc_depth must be a positive integer; found 0"),
        ({"enc_depth": math.nan}, "enc_depth must be a positive integer; found nan"),
        ({"enc_depth": True}, "enc_depth must be a positive integer; found True"),
        ({"img_size": None}, "img_size must be one or two positive integers; found None"),
        ({"img_size": "512"}, "img_size must be one or two positive integers; found '512'"),
        ({"conf_mode": "exp"}, "conf_mode 'exp' is not supported; expected \\(name, lower bound, upper bound\\)"),
        ({"depth_mode": None}, "depth_mode None is not supported; expected \\(name"),
        ({"depth_mode": ["cube", 0, 1]}, "depth_mode \\['cube', 0, 1\\] is not supported; expected \\(one of exp, square, linear"),
        ({"depth_mode": ["exp", 0, 1]}, "bounds on the depth are not supported"),
        ({"conf_mode": ["exp", 5, 1]}, "a lower bound below the upper one"),
        ({"conf_mode": ["sigmoid", 1, math.inf]}, "two finite bounds for a sigmoid"),
        ({"enc_num_heads": 5}, "enc_embed_dim 1024 must be a multiple of 4·enc_num_heads = 20"),
        ({"dec_depth": 6}, "dec_depth 6 must be a multiple of 4 for the DPT head"),
        ({"patch_size": 8}, "patch_size 8 is not supported with the DPT head"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(change, message):
    with pytest.raises(UserError, match=message):
        BackboneConfig.from_hub_config(HUB | change)


def test_all_complaints_come_together():
    with pytest.raises(UserError, match="pos_embed 'sine'.*option 'x'"):
        BackboneConfig.from_hub_config(HUB | {"pos_embed": "sine", "x": 1})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("AsymmetricCroCo3DStereo(enc_depth=24", "is not a Python call"),
        ("24", "must read Name\\(option=literal"),
        ("a.b(enc_depth=1)", "must read Name\\(option=literal"),
        ("M(24)", "must read Name\\(option=literal"),
        ("M(**{'enc_depth': 1})", "unpacks a mapping"),
        ("M(enc_depth=1, enc_depth=2)", "is not a Python call|gives enc_depth twice"),
        ("M(enc_depth=__import__('os').getpid())", "gives enc_depth as code, not as a literal.*nothing was evaluated"),
        ("M(enc_depth=2*12)", "gives enc_depth as code"),
        ("M(enc_depth=nan)", "gives enc_depth as code"),
        ("M(enc_depth=" + "-" * 3000 + "1)", "nested too deeply|is not a Python call"),
        ("M(enc_depth=0x" + "f" * 10_000 + ")", "contains a value that JSON cannot express"),
        ("M(enc_depth=(1j, b'x'))", "contains a value that JSON cannot express"),
        ("M(enc_depth=" + "1" * 100_000 + ")", "has 100,013 characters, expected a Python call of 20,000 at most"),
    ],
)
def test_an_args_string_is_parsed_and_never_evaluated(call, message):
    with pytest.raises(UserError, match=message):
        config_of_options(call)


def test_an_unknown_head_leaves_the_trunk():
    config = config_of_options(HUB | {"head_type": "gaussians+dpt", "output_mode": "pts3d+gaussians"})
    assert (type(config), config.head_type, config.heads) == (BackboneConfig, None, ())
