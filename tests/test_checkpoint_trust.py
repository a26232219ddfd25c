"""What a converted checkpoint may do to whoever loads, copies or exports it: nothing. Damage, links, sizes, other configs."""

import json
import math
import os
import resource
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

import und3rstand_jax as u3d
from tests.conversion import converted, flip_a_bit
from tests.tiny import CONFIG, DPT_CONFIG, backbone_tensors, save_backbone, save_probes
from und3rstand_jax.checkpoint.format import checkpoint_files, sealed
from und3rstand_jax.commands.convert import main
from und3rstand_jax.model.dust3r.config import BackboneConfig
from und3rstand_jax.model.dust3r.module import DUSt3R
from und3rstand_jax.model.families import backbone_shapes
from und3rstand_jax.probes.config import probe_config
from und3rstand_jax.support.documents import parse_yaml
from und3rstand_jax.support.errors import ConfigError
from und3rstand_jax.support.results import files_in
from und3rstand_jax.train.trained import write_trained_probes


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trust")
    return converted(save_probes(folder / "probes", save_backbone(folder / "m")), folder / "jax")


@pytest.fixture
def checkpoint(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "jax")


def edit(file: Path, change) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(sealed(json.dumps(content)))


def to_version_1(folder: Path) -> Path:
    edit(folder / "config.json", lambda content: (content.update(version=1), content.pop("digests"), content.pop("files")))
    return folder


def export(folder: Path, out: Path, capsys) -> str:
    """The message of an export that must fail and leave nothing."""
    capsys.readouterr()
    assert main(["--repo", str(folder), "--to-torch", str(out), "--quiet"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and message.count("\n") == 1 and not out.exists()
    return message


def train(folder: Path, out: Path) -> None:
    from und3rstand_jax.probes.probes import init_probes

    backbone = u3d.read_checkpoint_info(folder).backbone
    config = probe_config(backbone, ["decoder.1.mlp"], hidden=8, depth=2)
    write_trained_probes(out, folder, config, init_probes(config, 0), {})


# What config.json says of its files and of itself


def test_no_bit_of_the_config_can_flip_unseen(checkpoint: Path) -> None:
    file = checkpoint / "config.json"
    whole = file.read_bytes()
    for place in (*range(0, 400), *range(400, len(whole), 199)):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        with pytest.raises(u3d.CheckpointError):
            u3d.read_checkpoint_info(checkpoint)
    file.write_bytes(whole)
    u3d.read_checkpoint_info(checkpoint)


def test_every_leaf_has_a_digest_and_every_file_a_name(made: Path) -> None:
    info = u3d.read_checkpoint_info(made)
    assert set(info.digests["backbone"]) == {*backbone_shapes(info.backbone), "backbone_unused.safetensors"}
    assert info.files == tuple(sorted(path.relative_to(made).as_posix() for path in made.rglob("*") if path.is_file()))
    again = converted(made.parent / "m", made.parent / "again")
    assert u3d.read_checkpoint_info(again).digests["backbone"] == info.digests["backbone"]


@pytest.mark.parametrize("place", ["backbone/decoder.norm.bias/0", "probes/group0.linear0.bias/0.0", "backbone_unused.safetensors"])
def test_a_flipped_bit_is_never_loaded_exported_or_copied(place: str, checkpoint: Path, tmp_path: Path, capsys) -> None:
    flip_a_bit(checkpoint / place)
    leaf = Path(place).name if place.endswith("safetensors") else Path(place).parent.name.replace(".", "/")
    expected = f"{leaf}: values differ from the digest in config.json"
    assert expected in export(checkpoint, tmp_path / "torch", capsys)
    if "unused" not in place:
        with pytest.raises(u3d.CheckpointError, match=expected):
            u3d.load_backbone_and_probe(checkpoint)
    if "backbone" in place:
        with pytest.raises(u3d.CheckpointError, match=expected):
            train(checkpoint, tmp_path / "trained")
        probes = save_probes(tmp_path / "p", "nobody/nothing")
        assert main(["--repo", str(probes), "--backbone", str(checkpoint), "--out", str(tmp_path / "copied")]) == 2
        assert expected in capsys.readouterr().err
    assert not (tmp_path / "trained").exists() and not (tmp_path / "copied").exists()


def test_check_names_what_is_damaged_missing_and_too_much(checkpoint: Path, capsys) -> None:
    def check() -> tuple[int, str, str]:
        capsys.readouterr()
        return (main(["--check", str(checkpoint), "--quiet"]), *capsys.readouterr())

    count = len(backbone_shapes(u3d.read_checkpoint_info(checkpoint).backbone))
    probes = "probes: 10 leaves equal to their digests\n"
    assert check() == (0, f"backbone: {count} leaves equal to their digests\n{probes}", "")
    (checkpoint / "notes.txt").write_text("mine")
    assert check()[:2] == (
        0,
        f"backbone: {count} leaves equal to their digests\n{probes}notes.txt: not part of the checkpoint, ignored\n",
    )
    flip_a_bit(checkpoint / "backbone" / "decoder.norm.bias" / "0")
    shutil.rmtree(checkpoint / "backbone" / "encoder.norm.bias")
    shutil.copytree(checkpoint / "backbone" / "encoder.norm.scale", checkpoint / "backbone" / "encoder.norm.other")
    (checkpoint / "backbone_unused.safetensors").unlink()
    status, out, err = check()
    assert (status, out.splitlines()[0]) == (2, f"backbone: {count - 2} leaves equal to their digests")
    assert err.startswith(f"error: {checkpoint} is damaged or incomplete: ")
    for fault in (
        "backbone/decoder/norm/bias: values differ from the digest in config.json",
        "backbone/encoder/norm/bias: missing",
        "backbone/encoder.norm.other: not a leaf of the model that the config describes",
        "backbone_unused.safetensors: missing",
    ):
        assert fault in err


def test_version_1_is_read_as_before_and_what_cannot_be_known_is_said(checkpoint: Path, tmp_path: Path, capsys) -> None:
    to_version_1(checkpoint)
    scale = u3d.load_backbone(checkpoint).params["encoder"]["norm"]["scale"]
    np.testing.assert_array_equal(scale, backbone_tensors()["enc_norm.weight"])
    assert main(["--check", str(checkpoint)]) == 0
    assert "probes: 10 leaves readable; format version 1 has no digests to compare them with" in capsys.readouterr().out
    train(checkpoint, tmp_path / "trained")  # what is made of it has digests
    assert main(["--check", str(tmp_path / "trained")]) == 0
    assert "leaves equal to their digests" in capsys.readouterr().out


# Links


@pytest.mark.parametrize("place", ["backbone/key", "backbone/decoder.norm.bias/0", "backbone/_sharding", "backbone/decoder.norm.bias",
                                   "backbone_unused.safetensors", "config.json"])  # fmt: skip
def test_a_link_out_of_the_checkpoint_is_refused_by_name(place: str, checkpoint: Path, tmp_path: Path, capsys) -> None:
    file = checkpoint / place
    private = tmp_path / "private"
    if file.exists():
        file.rename(private)
    else:
        private.write_text("secret")
    file.symlink_to(private)
    message = f"{place} is a link that leads out of the checkpoint"
    assert message in export(checkpoint, tmp_path / "torch", capsys)
    with pytest.raises(u3d.CheckpointError, match=message):
        train(checkpoint, tmp_path / "trained")
    probes = save_probes(tmp_path / "p", "nobody/nothing")
    assert main(["--repo", str(probes), "--backbone", str(checkpoint), "--out", str(tmp_path / "copied")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "trained").exists() and not (tmp_path / "copied").exists()


def test_only_the_files_of_the_tree_travel(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "backbone" / "key").write_text("planted")
    (checkpoint / "backbone" / "decoder.norm.bias" / "key").write_text("planted")
    train(checkpoint, tmp_path / "trained")
    assert [path for path in (tmp_path / "trained").rglob("key*")] == []
    assert u3d.load_backbone_and_probe(tmp_path / "trained")[1].layer_ids == ("decoder.1.mlp",)


def test_a_pipe_in_the_tree_is_refused(checkpoint: Path, tmp_path: Path, capsys) -> None:
    os.mkfifo(checkpoint / "backbone" / "pipe")
    assert "pipe is neither a regular file nor a real folder" in export(checkpoint, tmp_path / "torch", capsys)


# Sizes and configs


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": [10**15]}, "shape\\[0\\]"),
        ({"shape": [10**8], "chunks": [10**8]}, "its shape is 100000000, but the config says 16"),
        ({"chunks": [10**9]}, "its chunks of 1000000000 are not parts of 16"),
        ({"chunks": [0]}, "chunks\\[0\\]"),
        ({"dtype": "<f8"}, "dtype"),
        ({"compressor": {"id": "blosc", "cname": "lz4"}}, "compressor"),
    ],
)
def test_a_leaf_of_another_size_is_refused_before_it_is_read(change: dict, message: str, checkpoint: Path) -> None:
    edit(checkpoint / "backbone" / "decoder.norm.bias" / ".zarray", lambda array: array.update(change))
    with pytest.raises(u3d.CheckpointError, match=message):
        u3d.load_backbone(checkpoint)


def test_a_chunk_that_unpacks_beyond_its_size_takes_no_memory(checkpoint: Path, tmp_path: Path) -> None:
    import tensorstore as ts

    count = 50_000_000
    metadata = json.loads((checkpoint / "backbone" / "decoder.norm.bias" / ".zarray").read_text()) | {"shape": [count], "chunks": [count]}
    bomb = ts.open(
        {"driver": "zarr", "kvstore": {"driver": "file", "path": str(tmp_path / "bomb")}, "metadata": metadata}, create=True
    ).result()
    bomb.write(np.ones(count, np.float32)).result()
    shutil.copy(tmp_path / "bomb" / "0", checkpoint / "backbone" / "decoder.norm.bias" / "0")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(u3d.CheckpointError, match="decoder.norm.bias cannot be read"):
        u3d.load_backbone(checkpoint)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**10 * 100


def test_a_tree_that_hardly_has_bytes_for_its_size_is_refused(checkpoint: Path, monkeypatch) -> None:
    monkeypatch.setattr("und3rstand_jax.checkpoint.orbax_tree._UNPACKED_WITHOUT_QUESTION", 0)
    monkeypatch.setattr("und3rstand_jax.checkpoint.orbax_tree._LARGEST_RATIO", 0.5)
    with pytest.raises(u3d.CheckpointError, match="no real weights compress so well"):
        u3d.load_backbone(checkpoint)


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("backbone", {"enc_embed_dim": 64}, "decoder/embed/kernel: its shape is 32×16, but the config says 64×16"),
        ("backbone", {"enc_depth": 3}, "but the config says 3×32"),
        ("backbone", {"enc_depth": 10**7}, "enc_depth must be at most 1000; found 10000000"),
        ("backbone", {"dec_depth": 10**9}, "dec_depth must be at most 1000"),
        ("backbone", {"dec_depth": "2"}, "backbone.dec_depth: input should be a valid integer"),
        ("backbone", {"head_type": "dpt", "dec_depth": 4}, "decoder/blocks1/attn/proj/bias: its shape is 2×16, but the config says 4×16"),
        ("backbone", {"img_size": [32, 10**9]}, "the sides of img_size must be 1 to 65536 pixels"),
        ("probes", {"patch_size": 10**6}, "patch_size must be 1 to 128"),
        ("probes", {"norm_epsilon": math.nan}, "probes.norm_epsilon"),
        ("probes", {"groups": [{}]}, "probes.groups\\[0\\].layer_ids: field required"),
    ],
)
def test_a_config_other_than_its_tree_or_beyond_all_bounds_is_refused(part: str, change: dict, message: str, checkpoint: Path) -> None:
    edit(checkpoint / "config.json", lambda content: content[part].update(change))
    with pytest.raises(u3d.CheckpointError, match=message) as caught:
        u3d.load_backbone_and_probe(checkpoint)
    assert "\n" not in str(caught.value)


def test_probes_of_other_widths_than_their_tree_are_refused(checkpoint: Path) -> None:
    edit(checkpoint / "config.json", lambda content: content["probes"]["groups"][0].update(widths=[16, 8, 8, 8, 9, 1024]))
    with pytest.raises(u3d.CheckpointError, match="group0/linear"):
        u3d.load_backbone_and_probe(checkpoint)
    edit(checkpoint / "config.json", lambda content: content["probes"]["groups"][0].update(widths=[17, 8, 8, 8, 8, 1024]))
    with pytest.raises(u3d.CheckpointError, match="reads 17 channels, which no layer of that name in the backbone has"):
        u3d.load_backbone_and_probe(checkpoint)


def test_names_that_do_not_fit_their_leaf_are_damage(checkpoint: Path, tmp_path: Path, capsys) -> None:
    def change(content: dict) -> None:
        content["provenance"]["backbone"]["leaves"]["decoder/blocks1/norm1/bias"]["names"].pop()

    edit(checkpoint / "config.json", change)
    assert "the names it records for backbone/decoder/blocks1/norm1/bias do not fit its shape" in export(checkpoint, tmp_path / "t", capsys)


@pytest.mark.parametrize("config", [CONFIG, DPT_CONFIG, CONFIG | {"mlp_ratio": 3, "patch_size": 8, "enc_depth": 3}])
def test_the_shapes_of_a_config_are_those_of_the_model(config: dict) -> None:
    import jax
    from flax.traverse_util import flatten_dict

    architecture = BackboneConfig.from_hub_config(config)
    view = jax.ShapeDtypeStruct((1, architecture.patch_size, architecture.patch_size, 3), np.float32)
    traced = jax.eval_shape(lambda key, a, b: DUSt3R(architecture).init(key, a, b), jax.random.key(0), view, view)["params"]
    assert backbone_shapes(architecture) == {path: leaf.shape for path, leaf in flatten_dict(traced, sep="/").items()}


def test_files_of_the_users_in_a_tree_of_version_1_are_not_overwritten(checkpoint: Path) -> None:
    own = set(checkpoint_files(to_version_1(checkpoint)) or ())
    assert own == set(files_in(checkpoint))
    (checkpoint / "backbone" / "thesis.txt").write_text("mine")
    assert checkpoint_files(checkpoint) == own


def test_nested_yaml_is_refused_at_once() -> None:
    before = time.process_time()
    with pytest.raises(ConfigError, match="nested more than 100 deep"):
        parse_yaml("[" * 100_000, "c.yaml", ConfigError)
    assert time.process_time() - before < 2
    assert parse_yaml("[" * 99 + "]" * 99, "c.yaml", ConfigError)
