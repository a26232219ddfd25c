"""Everything that can be wrong with what the converter is given: one clear line on stderr, status 2, nothing written."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.conversion import args_string, converted, save_pth
from tests.make_checkpoint import save_hub_folder
from tests.test_hub import environment
from tests.tiny import CONFIG, DPT_CONFIG, backbone_tensors, probe_tensors, save_backbone, save_probes
from tests.with_torch import needs_torch
from und3rstand_jax.checkpoint.format import sealed
from und3rstand_jax.commands.convert import main

ROOT = Path(__file__).parent.parent


@pytest.fixture
def refused(tmp_path: Path, capsys):
    """Runs the command, which must fail as it should, and gives its one line without `error: `."""

    def run(source: Path | str, *options: str, out: Path | None = None) -> str:
        place = out or tmp_path / "out"
        existed = place.exists()
        capsys.readouterr()
        assert main(["--repo", str(source), "--out", str(place), *options]) == 2
        stdout, stderr = capsys.readouterr()
        *notes, last = stderr.splitlines()
        assert stdout == "" and all(line.startswith(("note: ", "writing ")) for line in notes), stderr
        assert last.startswith("error: ")
        assert place.exists() == existed
        assert list(tmp_path.glob(".*")) == []
        return last.removeprefix("error: ")

    return run


def changed(pattern: str, change) -> dict[str, np.ndarray]:
    """The backbone with `change` made to every tensor whose name matches; those it makes None are left out."""
    made = {name: change(tensor) if re.search(pattern, name) else tensor for name, tensor in backbone_tensors().items()}
    return {name: tensor for name, tensor in made.items() if tensor is not None}


def put(index: tuple[int, ...], value: float):
    def change(tensor: np.ndarray) -> np.ndarray:
        tensor = tensor.copy()
        tensor[index] = value
        return tensor

    return change


# Tensors


TENSORS = {
    "a missing tensor of every block": (
        changed(r"dec_blocks2.*attn\.qkv\.weight", lambda t: None),
        "the backbone's tensors do not fit: 2 problems: dec_blocks2.{0…1}.attn.qkv.weight: missing, expected shape 48×16",
    ),
    "a missing tensor of one block": (
        changed(r"enc_blocks\.1\.norm2", lambda t: None),
        "the backbone's tensors do not fit: 2 problems: "
        "enc_blocks.1.norm2.bias: missing, expected shape 32; enc_blocks.1.norm2.weight: missing, expected shape 32",
    ),
    "a missing head": (
        changed("downstream_head2", lambda t: None),
        "the backbone's tensors do not fit: 2 problems: "
        "downstream_head2.proj.bias: missing, expected shape 1024; downstream_head2.proj.weight: missing, expected shape 1024×16",
    ),
    "wrong shapes": (
        changed(r"fc1\.weight", lambda t: t[:-1]),
        "the backbone's tensors do not fit: 6 problems: dec_blocks.{0…1}.mlp.fc1.weight: found shape 63×16, expected 64×16; "
        "dec_blocks2.{0…1}.mlp.fc1.weight: found shape 63×16, expected 64×16; "
        "enc_blocks.{0…1}.mlp.fc1.weight: found shape 127×32, expected 128×32",
    ),
    "a scalar": (
        changed("enc_norm.weight", lambda t: np.array(1, np.float32)),
        "the backbone's tensors do not fit: 1 problem: enc_norm.weight: found shape scalar, expected 32",
    ),
    "a surplus block": (
        backbone_tensors() | {"enc_blocks.7.norm1.bias": np.ones(32, np.float32)},
        "the backbone's tensors do not fit: 1 problem: enc_blocks.7.norm1.bias: found shape 32, surplus: nothing expects it",
    ),
    "a stray": (
        backbone_tensors() | {"ema_decay": np.ones(3, np.float32)},
        "the backbone's tensors do not fit: 1 problem: ema_decay: found shape 3, surplus: nothing expects it",
    ),
    "integers": (
        changed("enc_norm", lambda t: t.astype(np.int64)),
        "the backbone's tensors do not fit: 2 problems: enc_norm.bias: found dtype int64, expected one of float32, float16, bfloat16; "
        "enc_norm.weight: found dtype int64, expected one of float32, float16, bfloat16",
    ),
    "doubles": (
        changed("dec_norm.bias", lambda t: t.astype(np.float64)),
        "the backbone's tensors do not fit: 1 problem: dec_norm.bias: found dtype float64, expected one of float32, float16, bfloat16",
    ),
    "two dtypes in one stack": (
        changed(r"dec_blocks\.1\.norm3.weight", lambda t: t.astype(np.float16)),
        "the backbone's tensors do not fit: 2 problems: "
        "dec_blocks.0.norm3.weight: found dtype float32, and float16 in other blocks; expected one dtype in all; "
        "dec_blocks.1.norm3.weight: found dtype float16, and float32 in other blocks; expected one dtype in all",
    ),
    "NaN and infinity": (
        changed("downstream_head2.proj.weight", put((3, 5), np.nan)) | {"enc_norm.bias": np.full(32, np.inf, np.float32)},
        "found NaN or infinite values, expected finite ones: 2 problems: "
        "downstream_head2.proj.weight: 1 of 16384 values; enc_norm.bias: 32 of 32 values",
    ),
    "NaN in every block": (
        changed(r"enc_blocks.*norm1\.bias", put((0,), np.nan)),
        "found NaN or infinite values, expected finite ones: 2 problems: enc_blocks.{0…1}.norm1.bias: 1 of 32 values",
    ),
    "no backbone's anchor": (
        changed("patch_embed|enc_|dec|mask|head", lambda t: None) | {"foo.weight": np.ones((3, 3), np.float32)},
        "probes but no backbone, and neither its config nor its model card names a base model; "
        "convert it with one: python -m convert --repo {source} --backbone BACKBONE --out DIR (BACKBONE: a hub id, folder or file)",
    ),
    "two backbones": (
        backbone_tensors() | {f"teacher.{name}": tensor for name, tensor in backbone_tensors().items()},
        "found 2 backbones in one checkpoint, under the prefixes '', 'teacher.'; expected one: choose it with --key PREFIX",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", TENSORS)
def test_tensors_that_do_not_fit(case: str, refused, tmp_path: Path) -> None:
    tensors, message = TENSORS[case]
    found = refused(save_backbone(tmp_path / "m", tensors))
    message = message.replace("{source}", str(tmp_path / "m"))
    assert found.endswith(message) if case == "no backbone's anchor" else found == message


def test_large_finite_values_are_no_infinities(tmp_path: Path) -> None:
    tensors = changed("enc_norm", lambda t: np.full_like(t, 3e38))  # whose sum is infinite
    converted(save_backbone(tmp_path / "m", tensors), tmp_path / "jax", "--verify")


def test_all_faults_are_told_at_once_in_one_line(refused, tmp_path: Path) -> None:
    tensors = changed(r"dec_blocks2?\..*projk\.weight", lambda t: None)
    tensors["enc_blocks.1.mlp.fc2.bias"] = np.ones(31, np.float64)
    tensors["dec_blocks.5.norm1.weight"] = np.ones(16, np.float32)
    assert refused(save_backbone(tmp_path / "m", tensors)) == (
        "the backbone's tensors do not fit: 7 problems: dec_blocks.{0…1}.cross_attn.projk.weight: missing, expected shape 16×16; "
        "dec_blocks.5.norm1.weight: found shape 16, surplus: nothing expects it; "
        "dec_blocks2.{0…1}.cross_attn.projk.weight: missing, expected shape 16×16; "
        "enc_blocks.1.mlp.fc2.bias: found dtype float64, expected one of float32, float16, bfloat16; "
        "enc_blocks.1.mlp.fc2.bias: found shape 31, expected 32"
    )


def test_what_is_said_of_very_many_tensors_is_short(refused, tmp_path: Path, capsys) -> None:
    strays = {f"stray{'x' * 100}{chr(97 + i % 26)}{i}.{i}": np.zeros(1, np.float32) for i in range(5000)}
    message = refused(save_backbone(tmp_path / "m", backbone_tensors() | strays))
    assert message.startswith("the backbone's tensors do not fit: 5,000 problems: ") and message.endswith("and 4,980 more")
    assert len(message) < 10_000
    unknown = {f"option{i}": "x" * 1000 for i in range(1000)}
    assert len(refused(save_backbone(tmp_path / "m", None, CONFIG | unknown))) < 10_000
    matrices = {f"{name}.weight": np.zeros((2, 2), np.float32) for name in strays}
    probes = save_probes(tmp_path / "probes", save_backbone(tmp_path / "b"), probe_tensors() | matrices)
    assert main(["--repo", str(probes), "--out", str(tmp_path / "out")]) == 2
    assert len(capsys.readouterr().err) < 60_000


def test_equal_complaints_of_many_blocks_are_told_as_ranges() -> None:
    from und3rstand_jax.convert.findings import Complaint, grouped_by_block

    missing = [Complaint(f"enc_blocks.{block}.norm1.bias", "missing") for block in (10, 2, 0, 1, 5, 11)]
    others = [Complaint(f"probes.3.mlp.{step}.weight", "missing") for step in (4, 2)]
    assert grouped_by_block([*missing, *others, Complaint("enc_blocks.3.norm1.bias", "odd"), Complaint("mask_token", "odd")]) == [
        "enc_blocks.{0…2,5,10…11}.norm1.bias: missing",
        "enc_blocks.3.norm1.bias: odd",
        "mask_token: odd",
        "probes.3.mlp.2.weight: missing",
        "probes.3.mlp.4.weight: missing",
    ]


@pytest.mark.parametrize("equal", [True, False])
def test_second_names_must_hold_what_the_first_hold(equal: bool, refused, tmp_path: Path) -> None:
    tensors = backbone_tensors(DPT_CONFIG)
    second = "downstream_head1.dpt.scratch.layer_rn.2.weight"
    first = "downstream_head1.dpt.scratch.layer3_rn.weight"
    tensors[second] = tensors[first] + 1 if equal else tensors[first].astype(np.float16)
    message = refused(save_backbone(tmp_path / "m", tensors, DPT_CONFIG))
    shape = "×".join(map(str, tensors[first].shape))
    expected = f"values differ from those of {first}" if equal else f"found {shape} float16, expected {shape} float32 like {first}"
    assert message == f"the backbone's tensors do not fit: 1 problem: {second}: {expected}, whose second name it is"


# Configs


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pos_embed": "cosine"}, "pos_embed 'cosine' is not supported; expected RoPE followed by its base (RoPE100)"),
        (
            {"qk_norm": True, "layers": 3},
            "option 'qk_norm' (= True) is not known to this implementation; option 'layers' (= 3) is not known",
        ),
        ({"patch_embed_cls": "Conv"}, "patch_embed_cls 'Conv' is not supported; expected one of PatchEmbedDust3R, ManyAR_PatchEmbed"),
        ({"conf_mode": ["exp", 1, 10**400]}, "is not supported; expected (name, lower bound, upper bound)"),
        ({"output_mode": "pts2d"}, "output_mode 'pts2d' is not supported; expected pts3d"),
        ({"enc_num_heads": 3}, "enc_embed_dim 32 must be a multiple of 4·enc_num_heads = 12"),
        ({"enc_depth": "2"}, "enc_depth must be a positive integer; found '2'"),
        ({"dec_depth": 10**9}, "backbone config: dec_depth must be at most 1000; found 1000000000"),
        ({"enc_embed_dim": 10**12}, "backbone config: enc_embed_dim must be at most 65536; found 1e+12"),
        ({"enc_depth": 3}, "12 problems: enc_blocks.2.attn.proj.bias: missing, expected shape 32; "),
        ({"enc_depth": 1}, "12 problems: enc_blocks.1.attn.proj.bias: found shape 32, surplus: nothing expects it; "),
        ({"head_type": "dpt"}, "dec_depth 2 must be a multiple of 4 for the DPT head"),
    ],
)
def test_configs_that_do_not_fit(options: dict, message: str, refused, tmp_path: Path) -> None:
    assert message in refused(save_backbone(tmp_path / "m", backbone_tensors(), CONFIG | options))


# Files


@pytest.mark.parametrize("keep", [0, 5, 1000, 100_000])
@pytest.mark.parametrize("kind", ["safetensors", pytest.param("pth", marks=needs_torch)])
def test_truncated_files(kind: str, keep: int, refused, tmp_path: Path) -> None:
    file = tmp_path / f"m.{kind}"
    if kind == "pth":
        save_pth(file, backbone_tensors(), CONFIG)
    else:
        save_file(backbone_tensors(), file)
    os.truncate(file, keep)
    expected = "is empty (0 bytes)" if keep == 0 else "is not a complete"
    assert f"{file} {expected}" in refused(file)


@needs_torch
def test_a_pickle_that_would_run_code_runs_nothing(refused, tmp_path: Path) -> None:
    import torch

    mark = tmp_path / "executed"

    class Attack:
        def __reduce__(self):
            return os.system, (f"touch {mark}",)

    model = {name: torch.from_numpy(tensor) for name, tensor in backbone_tensors().items()}
    torch.save({"model": model, "args": Attack()}, tmp_path / "m.pth")
    assert "was refused and nothing in it was run: its pickle refers to posix.system" in refused(tmp_path / "m.pth")
    assert not mark.exists()


@needs_torch
@pytest.mark.parametrize("value", ["__import__('os').system('touch {mark}')", "open('{mark}', 'w')", "[c for c in open('{mark}', 'w')]"])
def test_an_args_string_that_would_run_code_runs_nothing(value: str, refused, tmp_path: Path, monkeypatch) -> None:
    mark = tmp_path / "executed"
    hostile = args_string(CONFIG)[:-1] + f", mlp_ratio={value.format(mark=mark)})"
    monkeypatch.setattr("tests.conversion.args_string", lambda *_: hostile)
    message = refused(save_pth(tmp_path / "m.pth", backbone_tensors(), CONFIG))
    assert "gives mlp_ratio as code, not as a literal" in message and "nothing was evaluated" in message
    assert not mark.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not as expected: invalid JSON"),
        ("[" * 100_000, "is not as expected: invalid JSON: recursion limit exceeded"),
        ("[]", "is not as expected: input should be an object; correct the --mapping file"),
    ],
)
def test_broken_mapping_files(content: str, message: str, refused, tmp_path: Path) -> None:
    (tmp_path / "map.json").write_text(content)
    probes = save_probes(tmp_path / "probes", save_backbone(tmp_path / "m"))
    assert message in refused(probes, "--mapping", str(tmp_path / "map.json"))
    assert refused(probes, "--mapping", str(tmp_path / "none.json")) == (
        f"{tmp_path / 'none.json'} cannot be read: no such file or directory; correct the --mapping file"
    )


def test_a_probe_checkpoint_that_cannot_be_told_shows_the_table_it_saw(tmp_path: Path, capsys) -> None:
    probes = save_probes(tmp_path / "probes", save_backbone(tmp_path / "m"), probe_tensors(layers=5))
    assert main(["--repo", str(probes), "--out", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: probe checkpoint: ")
    assert re.search(r"^5 +probes\.\{0…4\}\.mlp +\? +all +16→8→8→8→8→1024 +none$", err, re.MULTILINE)


# What the command line says


def test_options_that_do_not_go_together(refused, tmp_path: Path) -> None:
    backbone = save_backbone(tmp_path / "m")
    probes = save_probes(tmp_path / "probes", backbone)
    assert "--backbone was given, but" in refused(backbone, "--backbone", str(backbone))
    assert "--activation, --norm-epsilon was given, but" in refused(backbone, "--activation", "relu", "--norm-epsilon", "0.1")
    assert refused(probes, "--backbone", str(probes)) == (
        f"the backbone {probes} of {probes} holds no DUSt3R, CroCo, MASt3R or VGGT backbone; give another with --backbone"
    )
    assert f"{tmp_path / 'none'} does not exist" in refused(probes, "--backbone", str(tmp_path / "none"))
    assert "--revision main was given" in refused(backbone, "--revision", "main")
    assert "--probe-layers ',' names no layer" in refused(probes, "--probe-layers", ",")
    for option, value, expected in (
        ("--conf-mode", "exp,1", "(name, lower bound, upper bound)"),
        ("--conf-mode", "exp,nan,inf", "a lower bound below the upper one"),
        ("--depth-mode", "exp,a,b", "(name, lower bound, upper bound)"),
        ("--depth-mode", "cube", "(one of exp, square, linear; lower bound; upper bound)"),
    ):
        message = f"{option} {value!r} is not supported; expected {expected}, as NAME or NAME,LOW,HIGH: exp,1,inf"
        assert refused(probes, option, value) == message
    checkpoint = converted(backbone, tmp_path / "jax")
    assert refused(checkpoint) == f"{checkpoint} is converted already; use it as --checkpoint, or export it with --to-torch DIR"


def test_sources_that_are_not_there(refused, tmp_path: Path) -> None:
    assert refused(tmp_path / "none.safetensors").startswith(f"{tmp_path / 'none.safetensors'} does not exist; expected a hub id")
    assert "file name too long; check that it exists" in refused("a" * 5000)
    assert refused(tmp_path).startswith(f"folder {tmp_path} holds no tensor file")


@pytest.mark.parametrize(
    ("url", "options", "message"),
    [
        ("http://127.0.0.1:9", [], "cannot reach http://127.0.0.1:9 (ConnectError: "),
        ("http://127.0.0.1:9", ["--offline"], "offline mode is on and naver/tiny is neither a file or folder here, nor in the cache"),
        (None, [], "error: there is no file or folder naver/tiny, and http://127.0.0.1:"),
    ],
    ids=["no network", "offline", "no such repository"],
)
def test_a_hub_that_does_not_help(url: str | None, options: list[str], message: str, tmp_path: Path) -> None:
    from tests.hub_server import serve

    with serve({}) as hub:
        run = "from und3rstand_jax.commands.convert import main; sys.exit(main(sys.argv[1:]))"
        script = f"import sys, time; time.sleep = lambda seconds: None; {run}"
        command = [sys.executable, "-c", script, "--repo", "naver/tiny", *options]
        env = environment(url or hub.url, tmp_path / "home") | {"PYTHONPATH": str(ROOT)}
        run = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 2
    assert run.stdout == ""
    assert run.stderr.startswith("error: ") and run.stderr.count("\n") == 1, run.stderr
    assert message in run.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) in ([], ["home"])


def test_a_traceback_is_shown_with_debug_only(tmp_path: Path, capsys) -> None:
    source = save_backbone(tmp_path / "m", changed("enc_norm", lambda t: None))
    for debug in (False, True):
        assert main(["--repo", str(source), "--out", str(tmp_path / "out"), *(["--debug"] if debug else [])]) == 2
        err = capsys.readouterr().err
        assert ("Traceback (most recent call last)" in err) == debug
        assert err.splitlines()[-1].startswith("error: the backbone's tensors do not fit")


# Converted checkpoints that are damaged


def unlink(*names: str):
    def damage(folder: Path) -> None:
        for name in names:
            folder.joinpath(name).unlink()

    return damage


def truncate_data(folder: Path) -> None:
    chunks = [file for file in folder.glob("backbone/encoder.norm.*/*") if not file.name.startswith(".")]
    assert chunks
    for file in chunks:
        os.truncate(file, file.stat().st_size // 2)


def edit(**changes):
    def damage(folder: Path) -> None:
        content = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(sealed(json.dumps(content | changes)))

    return damage


def flip_in_config(folder: Path) -> None:
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"rope_base": 100.0', '"rope_base": 101.0'))


DAMAGES = {
    "metadata": (
        unlink("backbone/_METADATA"),
        "backbone is not what was written: _METADATA is missing; convert it again, or",
    ),
    "data": (truncate_data, "cannot be read: "),
    "a part of the data": (unlink("backbone/decoder.norm.bias/0"), "decoder/norm/bias: 1 of its 1 chunks are missing"),
    "a leaf": (lambda folder: shutil.rmtree(folder / "backbone" / "decoder.norm.bias"), "decoder/norm/bias: missing"),
    "version": (edit(version=99), "has format version 99; this program reads 1 and 2: update it, or convert again"),
    "config": (edit(backbone={"foo": 3}), "config.json is not as expected: backbone.img_size: field required; "),
    "provenance": (edit(provenance={}), "config.json has no provenance for its backbone; "),
    "its own digest": (flip_in_config, "config.json differs from the digest in it; convert it again, or restore it from a copy"),
    "digests": (edit(digests={}), "config.json has no digests for its backbone; "),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_converted_checkpoints(damage: str, tmp_path: Path, capfd) -> None:
    do, message = DAMAGES[damage]
    checkpoint = converted(save_backbone(tmp_path / "m"), tmp_path / "jax")
    do(checkpoint)
    capfd.readouterr()
    assert main(["--repo", str(checkpoint), "--to-torch", str(tmp_path / "out"), "--quiet"]) == 2
    err = capfd.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and message in err, err
    assert not (tmp_path / "out").exists()


def test_no_message_says_what_a_hidden_folder_is_called(refused, tmp_path: Path) -> None:
    source = save_hub_folder(tmp_path / "m", changed("enc_norm.weight", put((0,), np.nan)), CONFIG)
    assert ".partial" not in refused(source)
