"""Options: command line, config file, and a run's record of them."""

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import pytest
import yaml

from und3rstand_jax.commands.command_line import parse_command
from und3rstand_jax.commands.train import COMMANDS, main, with_config
from und3rstand_jax.model.dust3r.config import BackboneConfig
from und3rstand_jax.model.families import DUST3R, MAST3R, VGGT_FAMILY
from und3rstand_jax.support.errors import UserError
from und3rstand_jax.train.architecture import backbone_config
from und3rstand_jax.train.config_file import option_values, read_config, write_config
from und3rstand_jax.train.options import BackboneOptions, TrainOptions
from und3rstand_jax.train.probes_task import ProbesTask

TINY = BackboneConfig(
    img_size=(32, 48), enc_embed_dim=32, enc_depth=2, enc_num_heads=2, dec_embed_dim=16, dec_depth=2, dec_num_heads=2, head_type="linear"
)


def file(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return path


def parse(*argv):
    return with_config(parse_command(argv, COMMANDS, "probes", "python -m train"), argv)


def test_the_command_line_goes_before_the_file_and_the_file_before_defaults(tmp_path):
    path = file(tmp_path, "steps: 7\nlearning-rate: 2e-4\ndata: [synthetic]\nhidden: 64\n")
    options = parse("--config", str(path), "--steps", "9", "--data", "co3d:a", "--data", "2*pairs:b")
    assert (options.steps, options.learning_rate, options.hidden, options.seed) == (9, 2e-4, 64, 0)
    assert options.data == ("co3d:a", "2*pairs:b")
    assert parse("--config", str(path)).data == ("synthetic",)
    assert parse("--config", str(path), "--steps", "10000").steps == 10_000  # given, though it is the default


def test_every_command_that_trains_or_plans_takes_a_file_of_its_own_options(tmp_path):
    path = file(tmp_path, "steps: 7\nout: elsewhere\ndata: [co3d:a]\n")
    backbone = parse("backbone", "--config", str(path), "--enc-depth", "2")
    assert isinstance(backbone, BackboneOptions) and (backbone.steps, backbone.enc_depth, backbone.out) == (7, 2, Path("elsewhere"))
    plan = parse("plan", "--topology", "v5e:2x4", "--config", str(path), "--quick")
    assert (plan.topology, plan.quick, plan.steps, plan.data) == ("v5e:2x4", True, 7, ("co3d:a",))
    path.write_text("enc_depth: 3\n")
    assert parse("backbone", "--config", str(path)).enc_depth == 3
    for command in ([], ["plan", "--topology", "cpu"]):
        with pytest.raises(UserError, match="there is no option 'enc_depth'"):
            parse(*command, "--config", str(path))


def test_a_file_of_an_earlier_version_means_what_it_meant(tmp_path):
    assert read_config(file(tmp_path, "views: separate\nsteps: 3\n")) == {"mlps": "separate", "steps": 3}
    assert read_config(file(tmp_path, "views: 4\nmlps: shared\n")) == {"views": 4, "mlps": "shared"}
    with pytest.raises(UserError, match="views is 'some'"):
        read_config(file(tmp_path, "views: some\n"))


def test_a_number_without_a_point_is_a_number(tmp_path):
    assert read_config(file(tmp_path, "learning_rate: 1e-4\nbeta1: 1\n")) == {"learning_rate": 1e-4, "beta1": 1.0}


def test_json_is_taken_too(tmp_path):
    assert read_config(file(tmp_path, '{"steps": 5, "augment": false, "data": "synthetic"}')) == {
        "steps": 5,
        "augment": False,
        "data": ("synthetic",),
    }


def test_what_a_run_writes_reads_back_the_same(tmp_path):
    options = dataclasses.replace(TrainOptions(), data=("0.5*synthetic", "co3d:a b"), hidden=3, out=Path("x y"), learning_rate=1e-7)
    write_config(tmp_path / "c.yaml", option_values(options))
    assert dataclasses.replace(TrainOptions(), **read_config(tmp_path / "c.yaml")) == options


def test_everything_wrong_with_a_file_is_said_at_once(tmp_path):
    path = file(tmp_path, "step: 5\nsteps: many\naugment: 1\nhidden: 2.5\nnorm: batch\ndata: {a: 1}\n")
    with pytest.raises(UserError) as caught:
        read_config(path)
    told = str(caught.value)
    assert "no option 'step'; did you mean steps?" in told
    assert "norm is 'batch': input should be 'layernorm', 'rmsnorm' or 'none'" in told
    assert all(f"{name} is" in told for name in ("steps", "augment", "hidden", "data"))


@pytest.mark.parametrize(("text", "told"), [("[1, 2]", "found list"), ("a: [", "neither YAML nor JSON"), ("", "found NoneType")])
def test_a_file_that_is_no_config_is_refused(tmp_path, text, told):
    with pytest.raises(UserError, match=told):
        read_config(file(tmp_path, text))


def test_a_missing_config_file_is_one_line_and_status_2(tmp_path, capsys):
    assert main(["--config", str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml does not exist" in capsys.readouterr().err


def test_what_is_left_open_is_decided_by_backbone_and_devices():
    task = ProbesTask.create(TrainOptions(steps=200), TINY, devices=8)
    options = task.options
    assert (options.batch_size, options.warmup_steps, options.resolution, options.data) == (32, 20, ("48x32",), ("synthetic",))
    assert options.val_data == ("synthetic",) and task.feed.shapes == ((32, 48),)
    assert task.probes.layer_ids == tuple(f"decoder.{i}.{step}" for i in (0, 1) for step in ("self_attn", "cross_attn", "mlp"))
    assert task.probes.groups[0].widths == (16, 16, 16, 16, 16, 1024)
    assert task.val_feed.crop_jitter is False and task.feed.crop_jitter is True


def test_layers_of_other_widths_get_groups_of_their_own():
    task = ProbesTask.create(TrainOptions(layers="encoder.norm,decoder.*.mlp", hidden=8, norm="none", depth=2), TINY, devices=1)
    assert [group.layer_ids for group in task.probes.groups] == [("encoder.norm",), ("decoder.0.mlp", "decoder.1.mlp")]
    assert [group.widths for group in task.probes.groups] == [(32, 8, 1024), (16, 8, 1024)]
    assert task.probes.groups[0].steps == ("linear", "activation", "linear")
    assert task.probes.layer_ids == ("encoder.norm", "decoder.0.mlp", "decoder.1.mlp")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"batch_size": 6}, "give a multiple of 4"),
        ({"batch_size": 0}, "give a multiple of 4"),
        ({"accumulate": 0}, "--accumulate must be at least 1"),
        ({"steps": 0}, "--steps must be at least 1"),
        ({"warmup_steps": 11, "steps": 10}, "between 0 and steps"),
        ({"resolution": ("500x512",)}, "multiples of 16"),
        ({"resolution": ("big",)}, "neither a side nor WIDTHxHEIGHT"),
        ({"layers": "decoder.9.mlp"}, "no layer matches"),
        ({"layers": ","}, "no layers to probe"),
        ({"learning_rate": float("nan")}, "must be finite"),
        ({"beta2": 1.0}, "below 1"),
        ({"activation": "swish"}, "swish"),
        ({"depth": 0}, "at least one linear layer"),
        ({"val_data": ("nothing",)}, "--val-data 'nothing'"),
        ({"workers": -1}, "--workers"),
    ],
)
def test_an_option_that_cannot_be_met_is_named(changes, told):
    with pytest.raises(UserError, match=told):
        ProbesTask.create(dataclasses.replace(TrainOptions(), **changes), TINY, devices=4)


def test_published_backbones_are_known_without_their_weights():
    assert backbone_config("naver/DUSt3R_ViTLarge_BaseDecoder_512_dpt") == BackboneConfig.dust3r_512_dpt()
    assert backbone_config("naver/DUSt3R_ViTLarge_BaseDecoder_224_linear").img_size == (224, 224)


def test_help_names_every_option_with_its_default():
    done = subprocess.run([sys.executable, "-m", "train", "--help"], capture_output=True, text=True, check=True)
    text = " ".join(done.stdout.replace("│", " ").split())
    for field in dataclasses.fields(TrainOptions):
        assert f"--{field.name.replace('_', '-')}" in text
    assert "(default: 0.0001)" in text and "(default: 10000)" in text and "inspect | evaluate | plan" in text


def test_help_gives_the_defaults_of_every_family():
    hints = get_type_hints(BackboneOptions, include_extras=True)
    for name, default in DUST3R.config.FROM_SCRATCH.items():
        text = str(default)
        for family in (MAST3R, VGGT_FAMILY):
            own = family.config.FROM_SCRATCH.get(name)
            if own != default:
                text += f", no option for a {family.name}" if own is None else f", for a {family.name} {own}"
        assert hints[name].__metadata__[-1].help_behavior_hint == f"(default: {text}; not with --start)"


def test_config_files_hold_options_only_by_names_that_exist():
    assert set(yaml.safe_load(yaml.safe_dump(option_values(TrainOptions())))) < {field.name for field in dataclasses.fields(TrainOptions)}
