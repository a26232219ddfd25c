"""The converter's command: every kind of source, `--verify`, the way back to PyTorch, `--inspect`."""

import argparse
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import und3rstand_jax as u3d
from tests.conversion import args_string, converted, save_pth
from tests.make_checkpoint import save_hub_folder
from tests.orbax_tree import read_tree
from tests.strict import one_document
from tests.test_hub import environment
from tests.tiny import (
    CONFIG,
    CROCO_CONFIG,
    DPT_CONFIG,
    LAYERS,
    MAST3R_CONFIG,
    backbone_tensors,
    croco_tensors,
    probe_tensors,
    save_backbone,
    save_probes,
)
from tests.with_torch import needs_torch
from und3rstand_jax.commands.convert import main
from und3rstand_jax.model.families import config_of_options

ROOT = Path(__file__).parent.parent


def exported(checkpoint: Path, out: Path) -> Path:
    assert main(["--repo", str(checkpoint), "--to-torch", str(out)]) == 0
    return out


def assert_equal_tensors(found, expected) -> None:
    """Same names, dtypes, shapes and bytes."""
    assert {n: (t.dtype, t.shape) for n, t in found.items()} == {n: (t.dtype, t.shape) for n, t in expected.items()}
    assert [name for name in expected if found[name].tobytes() != np.ascontiguousarray(expected[name]).tobytes()] == []


def read_config(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


def findings(checkpoint: Path, part: str) -> dict[str, str]:
    return {finding["field"]: finding["how"] for finding in read_config(checkpoint)["provenance"][part]["findings"]}


# Sources


def assert_is_the_backbone(checkpoint: Path, tensors=None) -> None:
    """A few leaves of every kind, against the tensors they come from."""
    tensors = backbone_tensors() if tensors is None else tensors
    tree = read_tree(checkpoint / "backbone")
    np.testing.assert_array_equal(tree["encoder"]["patch_embed"]["kernel"], tensors["patch_embed.proj.weight"].transpose(2, 3, 1, 0))
    np.testing.assert_array_equal(tree["encoder"]["norm"]["scale"], tensors["enc_norm.weight"])
    for block in (0, 1):
        qkv = tensors[f"dec_blocks2.{block}.attn.qkv.weight"]
        np.testing.assert_array_equal(tree["decoder"]["blocks2"]["attn"]["qkv"]["kernel"][block], qkv.T)
    np.testing.assert_array_equal(tree["head2"]["proj"]["kernel"], tensors["downstream_head2.proj.weight"].T)


def sharded(folder: Path) -> Path:
    tensors, names = backbone_tensors(), sorted(backbone_tensors())
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    folder.mkdir()
    for file, held in shards.items():
        save_file({name: tensors[name] for name in held}, folder / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, held in shards.items() for name in held}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


def bin_file(file: Path) -> Path:
    import torch

    torch.save({name: torch.from_numpy(tensor) for name, tensor in backbone_tensors().items()}, file)
    return file


SOURCES = {
    "hub folder": lambda tmp: save_backbone(tmp / "m"),
    "shards": lambda tmp: sharded(tmp / "m"),
    "file with a config beside it": lambda tmp: save_backbone(tmp / "m") / "model.safetensors",
    "pth": lambda tmp: save_pth(tmp / "m.pth", backbone_tensors(), CONFIG),
}


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=needs_torch) if kind == "pth" else kind for kind in SOURCES])
def test_a_source_of_every_kind_is_converted_and_verified(kind: str, tmp_path: Path, capsys) -> None:
    source = SOURCES[kind](tmp_path)
    checkpoint = tmp_path / "jax"
    assert main(["--repo", str(source), "--out", str(checkpoint), "--verify"]) == 0
    out, err = capsys.readouterr()
    assert out == f"{checkpoint}\n"
    note = f"note: {source}: using model; left out: epoch (int); choose other weights with --key\n" if kind == "pth" else ""
    assert err == f"{note}writing backbone (0 MiB)\nverified: {len(backbone_tensors())} tensors equal the source's, bit for bit\n"
    assert_is_the_backbone(checkpoint)
    info = u3d.read_checkpoint_info(checkpoint)
    assert info.backbone == u3d.BackboneConfig.from_hub_config(CONFIG)
    assert set(findings(checkpoint, "backbone").values()) == {"read", "default"}
    provenance = info.provenance["backbone"]
    assert provenance["source"] == source.name
    assert all(re.fullmatch(r"[0-9a-f]{64}", digest) for digest in provenance["sha256"].values())
    assert sorted(path.name for path in checkpoint.iterdir()) == ["backbone", "backbone_unused.safetensors", "config.json"]


@pytest.mark.parametrize(
    "save",
    [
        pytest.param(bin_file, marks=needs_torch, id="bin"),
        pytest.param(lambda file: save_backbone(file.parent) / "model.safetensors", id="safetensors"),
    ],
)
def test_without_a_config_shapes_are_read_and_the_rest_is_said_to_be_guessed(save, tmp_path: Path, capsys) -> None:
    source = save(tmp_path / "m.bin")
    (tmp_path / "config.json").unlink(missing_ok=True)
    checkpoint = converted(source, tmp_path / "jax", "--verify")
    assert_is_the_backbone(checkpoint)
    config = u3d.read_checkpoint_info(checkpoint).backbone
    assert (config.enc_embed_dim, config.enc_depth, config.dec_embed_dim, config.dec_depth, config.head_type) == (32, 2, 16, 2, "linear")
    assert (config.enc_num_heads, config.dec_num_heads) == (1, 1)
    found = findings(checkpoint, "backbone")
    assert {field for field, how in found.items() if how == "inferred"} == {
        *("patch_size", "enc_embed_dim", "enc_depth", "dec_embed_dim", "dec_depth", "mlp_ratio", "head_type")
    }
    assert found["enc_num_heads"] == found["rope_base"] == "default"
    assert (
        "note: backbone enc_num_heads = 1 (default: no config; 64 channels a head, as in every published model)\n"
        in capsys.readouterr().err
    )


def test_the_users_command_finds_the_backbone_of_a_probe_repository_through_its_model_card(tmp_path: Path) -> None:
    from tests.hub_server import Repo, serve

    card = b"---\nlicense: mit\nbase_model:\n- naver/tiny\n---\n# Probes\n"
    probes = Repo.of_folder(save_hub_folder(tmp_path / "probes", probe_tensors(), {"activation": "gelu"}))
    probes.files |= {"README.md": card, "figure.png": b"not needed", "train.log": b"not needed"}
    backbone = Repo.of_folder(save_backbone(tmp_path / "backbone"))
    backbone.files["pytorch_model.bin"] = b"not needed"
    with serve({"jgaubil/und3rstand-dust3r-512-dpt": probes, "naver/tiny": backbone}) as hub:
        command = [sys.executable, "-m", "convert", "--repo", "jgaubil/und3rstand-dust3r-512-dpt", "--verify"]
        env = environment(hub.url, tmp_path / "home") | {"PYTHONPATH": str(ROOT)}
        run = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        assert sorted(hub.downloads("jgaubil/und3rstand-dust3r-512-dpt")) == ["README.md", "config.json", "model.safetensors"]
        assert sorted(hub.downloads("naver/tiny")) == ["config.json", "model.safetensors"]
    assert run.stdout == "und3rstand-dust3r-512-dpt-jax\n"
    # Notes, stages and the verification: nothing of what the libraries underneath have to say.
    assert [line for line in run.stderr.splitlines() if not line.startswith(("note: ", "writing ", "verified: "))] == []
    checkpoint = tmp_path / "und3rstand-dust3r-512-dpt-jax"
    provenance = read_config(checkpoint)["provenance"]
    assert (provenance["probes"]["source"], provenance["backbone"]["source"]) == ("jgaubil/und3rstand-dust3r-512-dpt", "naver/tiny")
    assert provenance["probes"]["revision"] == provenance["backbone"]["revision"] == probes.commit
    assert read_config(checkpoint)["layers"] == list(LAYERS)
    assert_is_the_backbone(checkpoint)


def test_a_base_model_in_the_config_and_a_converted_backbone_give_the_same_checkpoint(tmp_path: Path) -> None:
    source = save_backbone(tmp_path / "backbone")
    backbone = converted(source, tmp_path / "backbone-jax")
    named = converted(save_probes(tmp_path / "probes", source), tmp_path / "named", "--verify")
    elsewhere = save_probes(tmp_path / "elsewhere", "nobody/nothing")
    copied = converted(elsewhere, tmp_path / "copied", "--backbone", str(backbone), "--verify")
    assert_is_the_backbone(copied)
    for part in ("backbone", "probes"):
        assert_equal_tensors(load_file(exported(copied, tmp_path / f"c{part}") / part / "model.safetensors"),
                             load_file(exported(named, tmp_path / f"n{part}") / part / "model.safetensors"))  # fmt: skip
    assert read_config(copied)["provenance"]["backbone"] == read_config(named)["provenance"]["backbone"]


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_is_kept_on_disk_and_loaded_as_float32(dtype, tmp_path: Path) -> None:
    tensors = {name: tensor.astype(dtype) for name, tensor in backbone_tensors().items()}
    checkpoint = converted(save_backbone(tmp_path / "m", tensors), tmp_path / "jax", "--verify")
    assert read_tree(checkpoint / "backbone")["decoder"]["blocks1"]["mlp"]["fc1"]["kernel"].dtype == dtype
    assert_equal_tensors(load_file(exported(checkpoint, tmp_path / "back") / "model.safetensors"), tensors)
    kernel = u3d.load_backbone(checkpoint).params["decoder"]["blocks1"]["mlp"]["fc1"]["kernel"]
    assert kernel.dtype == np.float32
    np.testing.assert_array_equal(kernel[1], tensors["dec_blocks.1.mlp.fc1.weight"].T.astype(np.float32))


def test_a_prefix_before_every_name(tmp_path: Path) -> None:
    tensors = {f"module.{name}": tensor for name, tensor in backbone_tensors().items()}
    checkpoint = converted(save_backbone(tmp_path / "m", tensors), tmp_path / "jax", "--verify")
    assert_is_the_backbone(checkpoint)
    assert_equal_tensors(load_file(exported(checkpoint, tmp_path / "back") / "model.safetensors"), tensors)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda name: f"_orig_mod.{name}",
        lambda name: f"net._orig_mod.module.{name}",
        lambda name: re.sub(r"(blocks2?\.\d+)\.", r"\1._orig_mod.", name).replace("patch_embed.", "patch_embed._orig_mod."),
    ],
)
def test_wrappers_anywhere_in_a_name(wrap, tmp_path: Path) -> None:
    tensors = {wrap(name): tensor for name, tensor in backbone_tensors().items()}
    checkpoint = converted(save_backbone(tmp_path / "m", tensors), tmp_path / "jax", "--verify")
    assert_is_the_backbone(checkpoint)
    assert_equal_tensors(load_file(exported(checkpoint, tmp_path / "back") / "model.safetensors"), tensors)
    both = {wrap(f"backbone.{name}"): tensor for name, tensor in backbone_tensors().items()}
    both |= {wrap(name).replace(".mlp.", "._orig_mod.mlp."): tensor for name, tensor in probe_tensors().items()}
    both_config = {"backbone": CONFIG, "activation": "relu", "layer_ids": list(LAYERS)}
    checkpoint = converted(save_backbone(tmp_path / "both", both, both_config), tmp_path / "jax2", "--verify")
    assert u3d.read_checkpoint_info(checkpoint).probes is not None


def test_a_name_that_merely_ends_like_a_backbones_is_none(tmp_path: Path, capsys) -> None:
    spann3r = {f"dust3r.{name}": tensor for name, tensor in backbone_tensors().items()}
    spann3r |= {"pos_patch_embed.proj.weight": np.zeros((32, 3, 16, 16), np.float32), "norm_q.weight": np.ones(16, np.float32)}
    spann3r["value_encoder.0.attn.qkv.weight"] = np.zeros((48, 16), np.float32)
    source = save_backbone(tmp_path / "m", spann3r)
    assert main(["--repo", str(source), "--out", str(tmp_path / "out")]) == 2
    assert "; if that is not a probe, --key dust3r converts the backbone alone" in capsys.readouterr().err
    checkpoint = converted(source, tmp_path / "jax", "--verify", "--key", "dust3r")
    assert_is_the_backbone(checkpoint)
    found = u3d.read_checkpoint_info(checkpoint).provenance["backbone"]["findings"][-1]
    left_out = "left out: norm_q (1 tensor), pos_patch_embed (1 tensor), value_encoder (1 tensor)"
    assert found == {"field": "weights", "value": "dust3r", "how": "option", "why": left_out}


@needs_torch
def test_an_average_of_the_weights_is_named_and_can_be_chosen(tmp_path: Path, capsys) -> None:
    import torch

    weights = {name: torch.from_numpy(tensor) for name, tensor in backbone_tensors().items()}
    args = argparse.Namespace(model=args_string(CONFIG))
    torch.save({"model": {k: v + 1 for k, v in weights.items()}, "model_ema": weights, "args": args, "epoch": 3}, tmp_path / "m.ckpt")
    assert main(["--repo", str(tmp_path / "m.ckpt"), "--inspect"]) == 0
    assert re.search(r"weights +model +read +left out: model_ema \(133 tensors\), epoch \(int\)", capsys.readouterr().out)
    converted(tmp_path / "m.ckpt", tmp_path / "jax")
    expected = f"note: {tmp_path / 'm.ckpt'}: using model; left out: model_ema (133 tensors), epoch (int); choose other weights with --key"
    assert expected in capsys.readouterr().err
    assert_is_the_backbone(converted(tmp_path / "m.ckpt", tmp_path / "ema", "--key", "model_ema", "--verify"))


def test_two_exports_are_equal_byte_for_byte(tmp_path: Path) -> None:
    config = DPT_CONFIG
    checkpoint = converted(save_backbone(tmp_path / "m", backbone_tensors(config), config), tmp_path / "jax")
    one, two = (exported(checkpoint, tmp_path / name) for name in ("one", "two"))
    for name in ("model.safetensors", "config.json"):
        assert (one / name).read_bytes() == (two / name).read_bytes()


# There and back


def both_in_one() -> dict[str, np.ndarray]:
    return {f"backbone.{name}": tensor for name, tensor in backbone_tensors().items()} | probe_tensors()


def unknown_head() -> tuple[dict[str, np.ndarray], dict]:
    trunk = {name: tensor for name, tensor in backbone_tensors().items() if not name.startswith("downstream_head")}
    heads = {f"downstream_head{view}.gaussians.weight": np.full((3, 5), view, np.float64) for view in (1, 2)}
    return trunk | heads, CONFIG | {"head_type": "gaussians+dpt", "output_mode": "pts3d+gaussians"}


THERE_AND_BACK = {
    "linear": (backbone_tensors(), CONFIG),
    "dpt, first names": ({name: t for name, t in backbone_tensors(DPT_CONFIG).items() if ".layer_rn." not in name}, DPT_CONFIG),
    "dpt, second names": ({name: t for name, t in backbone_tensors(DPT_CONFIG).items() if not re.search(r"layer\d_rn", name)}, DPT_CONFIG),
    "dpt, both names": (backbone_tensors(DPT_CONFIG), DPT_CONFIG),
    "croco": (croco_tensors(), CROCO_CONFIG),
    "unknown head": unknown_head(),
    "mast3r": (backbone_tensors(MAST3R_CONFIG), MAST3R_CONFIG),
    "backbone and probes": (both_in_one(), {"backbone": CONFIG, "activation": "relu", "norm_epsilon": 1e-3}),
}


@pytest.mark.parametrize("case", THERE_AND_BACK)
def test_export_gives_back_every_tensor_and_the_config(case: str, tmp_path: Path) -> None:
    tensors, config = THERE_AND_BACK[case]
    source = save_hub_folder(tmp_path / "m", tensors, config)
    checkpoint = converted(source, tmp_path / "jax", "--verify")
    back = exported(checkpoint, tmp_path / "back")
    assert sorted(path.name for path in back.iterdir()) == ["config.json", "model.safetensors"]
    assert_equal_tensors(with_second_names(back), tensors)
    if case == "dpt, both names":  # each stored once
        assert not [name for name in load_file(back / "model.safetensors") if ".layer_rn." in name]
    assert read_config(back) == config
    with safe_open(back / "model.safetensors", "numpy") as file:
        assert file.metadata()["format"] == "pt"
    if case in ("dpt, first names", "dpt, second names"):
        return  # DPT heads take their time, and the case with both names goes the whole way
    again = converted(back, tmp_path / "again")
    assert_equal_tensors(with_second_names(exported(again, tmp_path / "back2")), tensors)
    assert (read_config(again)["backbone"], read_config(again)["probes"]) == (
        read_config(checkpoint)["backbone"],
        read_config(checkpoint)["probes"],
    )


def with_second_names(folder: Path) -> dict[str, np.ndarray]:
    """What PyTorch sees of a file: stored tensors, and those that the header calls second names of stored ones."""
    tensors = load_file(folder / "model.safetensors")
    with safe_open(folder / "model.safetensors", "numpy") as file:
        return tensors | {second: tensors[first] for second, first in file.metadata().items() if first in tensors}


@needs_torch
@pytest.mark.parametrize("config", [CONFIG, DPT_CONFIG, MAST3R_CONFIG], ids=["linear", "dpt, from a pickle", "mast3r, from a pickle"])
def test_an_export_loads_strictly_into_pytorch(config: dict, tmp_path: Path) -> None:
    from safetensors.torch import load_model

    from tests.torch_reference import DUSt3RReference

    tensors = backbone_tensors(config)
    source = save_backbone(tmp_path / "m") if config is CONFIG else save_pth(tmp_path / "m.pth", tensors, config)
    back = exported(converted(source, tmp_path / "jax"), tmp_path / "back")
    model = DUSt3RReference(read_config(back))
    # Strict: it raises on any missing or unexpected name.
    assert load_model(model, back / "model.safetensors", strict=True) == (set(), [])
    loaded = model.state_dict()
    assert [name for name, tensor in tensors.items() if not np.array_equal(loaded[name].numpy(), tensor)] == []


@needs_torch
def test_a_pickle_comes_back_with_a_config_in_the_hubs_terms(tmp_path: Path) -> None:
    checkpoint = converted(save_pth(tmp_path / "m.pth", backbone_tensors(), CONFIG), tmp_path / "jax")
    back = exported(checkpoint, tmp_path / "back")
    assert_equal_tensors(load_file(back / "model.safetensors"), backbone_tensors())
    config = read_config(back)
    assert {key: config[key] for key in CONFIG} == CONFIG
    assert u3d.BackboneConfig.from_hub_config(config) == config_of_options(args_string(CONFIG))


def test_backbone_and_probes_of_two_sources_go_to_two_folders(tmp_path: Path, capsys) -> None:
    source = save_backbone(tmp_path / "m")
    checkpoint = converted(save_probes(tmp_path / "probes", source), tmp_path / "jax", "--verify")
    capsys.readouterr()
    back = exported(checkpoint, tmp_path / "back")
    assert capsys.readouterr().out == f"{back / 'backbone'}\n{back / 'probes'}\n"
    for part, original in (("backbone", source), ("probes", tmp_path / "probes")):
        assert_equal_tensors(load_file(back / part / "model.safetensors"), load_file(original / "model.safetensors"))
        assert read_config(back / part) == read_config(original)
    again = converted(back / "probes", tmp_path / "again", "--backbone", str(back / "backbone"))
    assert (read_config(again)["backbone"], read_config(again)["probes"]) == (
        read_config(checkpoint)["backbone"],
        read_config(checkpoint)["probes"],
    )


@pytest.mark.parametrize("in_one_file", [False, True], ids=["own file", "with the backbone"])
def test_probes_without_a_config_come_back_with_all_that_was_stated_of_them(in_one_file: bool, tmp_path: Path) -> None:
    backbone = save_backbone(tmp_path / "m")
    file = tmp_path / "probes.safetensors"
    save_file(probe_tensors() | (backbone_tensors() if in_one_file else {}), file)
    order = ["decoder.1.mlp", "decoder.0.self_attn", *LAYERS[1:5]]  # not the network's
    stated = ["--probe-layers", ",".join(order), "--activation", "silu", "--output-layout", "channels_last", "--residual", "True"]
    given = [] if in_one_file else ["--backbone", str(backbone)]
    checkpoint = converted(file, tmp_path / "jax", "--verify", *given, *stated, "--conf-mode", "exp,1,9", "--depth-mode", "linear")
    probes = read_config(checkpoint)["probes"]
    assert probes["conf_mode"] == ["exp", 1.0, 9.0]
    back = exported(checkpoint, tmp_path / "back") / ("" if in_one_file else "probes")
    again = converted(back, tmp_path / "again", *given)
    assert read_config(again)["probes"] == probes
    for checkpoint_ in (checkpoint, again):
        first = read_tree(checkpoint_ / "probes")["group0"]["linear0"]["kernel"]
        for place, layer in enumerate(probes["groups"][0]["layer_ids"]):
            np.testing.assert_array_equal(first[place], probe_tensors()[f"probes.{order.index(layer)}.mlp.0.weight"].T)


def test_an_export_is_replaced_only_where_it_is_one(tmp_path: Path, capsys) -> None:
    source = save_backbone(tmp_path / "m")
    checkpoint = converted(source, tmp_path / "jax")
    back = exported(checkpoint, tmp_path / "back")
    command = ["--repo", str(checkpoint), "--to-torch"]
    assert main([*command, str(back)]) == 2
    assert main([*command, str(back), "--overwrite"]) == 0
    capsys.readouterr()
    before = (source / "model.safetensors").read_bytes()
    assert main([*command, str(source), "--overwrite"]) == 2
    refused = f"error: {source} does not hold an earlier result of this command and is not replaced; choose another --out\n"
    assert capsys.readouterr().err == refused
    assert (source / "model.safetensors").read_bytes() == before
    assert main([*command, str(checkpoint / "torch")]) == 2
    assert main(["--repo", str(source), "--to-torch", str(tmp_path / "x")]) == 2
    assert "is not a converted checkpoint" in capsys.readouterr().err


# --verify, --inspect, --help


@pytest.mark.parametrize("earlier", [False, True])
def test_verify_finds_one_flipped_bit_and_leaves_no_such_checkpoint(earlier: bool, tmp_path: Path, capsys, monkeypatch) -> None:
    import und3rstand_jax.convert.writing

    out = tmp_path / "jax"
    source = save_backbone(tmp_path / "m")
    if earlier:
        converted(source, out)
    write_tree = und3rstand_jax.convert.writing.write_tree

    def write_with_a_flipped_bit(path, tree):
        kernel = np.array(tree["decoder"]["blocks2"]["attn"]["qkv"]["kernel"])
        kernel.view(np.uint32)[1, 0, 0] ^= 1
        tree["decoder"]["blocks2"]["attn"]["qkv"]["kernel"] = kernel
        return write_tree(path, tree)

    monkeypatch.setattr(und3rstand_jax.convert.writing, "write_tree", write_with_a_flipped_bit)
    capsys.readouterr()
    assert main(["--repo", str(source), "--out", str(out), "--verify", "--overwrite"]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: what was written differs from the source")
    assert last.endswith(": 1 problem: dec_blocks2.1.attn.qkv.weight: bits differ")
    assert out.exists() == earlier
    if earlier:
        assert_is_the_backbone(out)


def test_inspect_shows_everything_and_writes_nothing(tmp_path: Path, capsys, monkeypatch) -> None:
    probes = save_probes(tmp_path / "probes", save_backbone(tmp_path / "m"))
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert main(["--repo", str(probes), "--inspect"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert sorted(tmp_path.rglob("*")) == before
    rows = [re.split(r"  +", line.strip()) for line in out.splitlines()]
    assert "Backbone: DUSt3R with a linear head, of no published size" in out
    for row in (
        ["enc_embed_dim", "32", "read", "config.json"],
        ["mlp_ratio", "4", "default", "config.json does not say"],
        ["2 × dec_blocks2.*.attn.qkv", "weight, bias", "decoder/blocks2/attn/qkv: kernel, bias", "2×16×48, 2×48"],
        ["mask_token", "used in CroCo's pre-training only"],
        ["activation", "gelu", "read", "the config's activation"],
        ["residual", "False", "default", "no tensor shows it; a plain MLP has none"],
        ["6", "probes.{0…5}.mlp", "decoder.0.self_attn … decoder.1.mlp", "all", "16→8→8→8→8→1024", "none"],
        ["6 × probes.*.mlp.8", "weight, bias", "group0/linear4: kernel, bias", "6×8×1024, 6×1024"],
    ):
        assert row in rows, row


def test_json_is_the_whole_plan_what_was_written_and_what_was_found(tmp_path: Path, capsys) -> None:
    probes = save_probes(tmp_path / "probes", save_backbone(tmp_path / "m"))
    assert main(["--repo", str(probes), "--inspect", "--json"]) == 0
    backbone, plan = one_document(capsys.readouterr().out)["parts"]
    assert (backbone["part"], backbone["source"], backbone["kind"]) == ("backbone", str(tmp_path / "m"), "folder")
    assert {"field": "enc_embed_dim", "value": "32", "how": "read", "why": "config.json"} in backbone["findings"]
    assert backbone["leaves"]["decoder/blocks2/attn/qkv/kernel"] == {
        "names": [f"dec_blocks2.{number}.attn.qkv.weight" for number in (0, 1)],
        "shape": [2, 16, 48],
    }
    assert backbone["unused"]["mask_token"] == "used in CroCo's pre-training only" and plan["part"] == "probes"
    assert sum(len(leaf["names"]) for leaf in backbone["leaves"].values()) + len(backbone["unused"]) == backbone["tensors"]

    out = tmp_path / "jax"
    assert main(["--repo", str(probes), "--out", str(out), "--json", "--quiet"]) == 0
    shown = capsys.readouterr()
    assert one_document(shown.out) == {"written": [str(out)]} and shown.err == ""
    assert main(["--check", str(out), "--json", "--quiet"]) == 0
    checked = one_document(capsys.readouterr().out)
    assert checked["checkpoint"] == str(out) and checked["faults"] == [] and "backbone: " in checked["whole"][0]
    shutil.rmtree(out / "probes")
    assert main(["--check", str(out), "--json"]) == 2
    shown = capsys.readouterr()
    assert one_document(shown.out)["faults"] and "is damaged or incomplete" in shown.err


def test_croco_is_inspected_as_what_it_is(tmp_path: Path, capsys) -> None:
    assert main(["--repo", str(save_hub_folder(tmp_path / "m", croco_tensors(), CROCO_CONFIG)), "--inspect"]) == 0
    out = capsys.readouterr().out
    assert "Backbone: CroCo v2 trunk (one decoder, copied for the second view; no head)" in out
    assert re.search(r"second decoder +copy of the first +inferred", out)
    assert re.search(r"prediction_head\.weight +CroCo's pixel reconstruction", out)


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    script = """
import sys, time
start = time.perf_counter()
from und3rstand_jax.commands.convert import main
try:
    main(["--help"])
except SystemExit as end:
    heavy = [name for name in ("jax", "numpy", "torch", "flax", "orbax", "huggingface_hub", "safetensors") if name in sys.modules]
    print(f"status {end.code}, heavy {heavy}, below a second {time.perf_counter() - start < 1}", file=sys.stderr)
"""
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert run.stderr == "status 0, heavy [], below a second True\n"
    for option in (
        "--repo",
        "--out",
        "--backbone",
        "--inspect",
        "--verify",
        "--to-torch",
        "--overwrite",
        "--revision",
        "--token",
        "--offline",
    ):
        assert option in run.stdout


def test_exported_weights_may_be_read_by_whom_a_new_file_may(tmp_path: Path) -> None:
    out = exported(converted(save_backbone(tmp_path / "m"), tmp_path / "jax"), tmp_path / "out")
    (tmp_path / "new").touch()
    files = (tmp_path / "new", out / "config.json", out / "model.safetensors")
    assert len({file.stat().st_mode for file in files}) == 1
