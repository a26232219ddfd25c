"""`und3rstand_jax.convert.sources.source` on local folders and files: what it reads, and one clear line for everything it cannot."""

import hashlib
import json
import math
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from tests.with_torch import needs_torch
from und3rstand_jax.convert.options import HubAccess
from und3rstand_jax.convert.sources.safetensors_files import write_safetensors
from und3rstand_jax.convert.sources.source import Source, open_source
from und3rstand_jax.convert.sources.tensor_files import TensorInfo
from und3rstand_jax.support.errors import CheckpointError, UserError

RNG = np.random.default_rng(0)
TENSORS = {
    "enc.weight": RNG.standard_normal((3, 4)).astype(np.float32),
    "enc.half": RNG.standard_normal(5).astype(np.float16),
    "dec.brain": RNG.standard_normal((2, 3)).astype(ml_dtypes.bfloat16),
    "scalar": np.array(3.5, np.float32),
    "steps": np.arange(4, dtype=np.int64),
    "none": np.zeros((0, 2), np.float32),
}
SHARD = "model-0000{}-of-00002.safetensors"
INDEX = "model.safetensors.index.json"


def write_folder(folder: Path, config: str | None = None, metadata: dict[str, str] | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(TENSORS, folder / "model.safetensors", metadata=metadata)
    if config is not None:
        (folder / "config.json").write_text(config)
    return folder


def write_sharded(folder: Path, weight_map: dict[str, str] | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    names = list(TENSORS)
    homes = {name: SHARD.format(1 if position < 3 else 2) for position, name in enumerate(names)}
    for shard in sorted(set(homes.values())):
        save_file({name: TENSORS[name] for name in names if homes[name] == shard}, folder / shard, metadata={shard: "seen"})
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map or homes}))
    return folder


def assert_holds_tensors(source: Source) -> None:
    with source.tensors as table:
        assert dict(table) == {name: TensorInfo(value.shape, value.dtype.name) for name, value in TENSORS.items()}
        for name, value in TENSORS.items():
            read = table.read(name)
            assert read.dtype == value.dtype and read.shape == value.shape and read.tobytes() == value.tobytes()
            read[...] = 0  # memory of its own: writing changes nothing in the file
            assert table.read(name).tobytes() == value.tobytes()


def refusal(spec: Path | str, **options: str) -> str:
    with pytest.raises(UserError) as caught:
        open_source(str(spec), HubAccess(**options))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_folder(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, '{"conf_mode": ["exp", 1, Infinity], "depth_mode": ["exp", -Infinity, Infinity]}')
    source = open_source(str(folder))
    assert (source.spec, source.kind, source.revision, source.base_model) == (str(folder), "folder", None, None)
    assert source.config == {"conf_mode": ["exp", 1, math.inf], "depth_mode": ["exp", -math.inf, math.inf]}
    assert source.tensors.files == (folder / "model.safetensors",)
    assert source.tensors.args is None
    digests = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in ("model.safetensors", "config.json")}
    assert source.sha256() == digests
    assert_holds_tensors(source)


def test_single_file_reads_the_config_beside_it(tmp_path: Path) -> None:
    write_folder(tmp_path, '{"enc_depth": 2}')
    source = open_source(str(tmp_path / "model.safetensors"))
    assert (source.kind, source.config) == ("file", {"enc_depth": 2})
    assert set(source.sha256()) == {"model.safetensors", "config.json"}
    assert_holds_tensors(source)


def test_single_file_without_config(tmp_path: Path) -> None:
    source = open_source(str(write_folder(tmp_path) / "model.safetensors"))
    assert source.config is None
    assert set(source.sha256()) == {"model.safetensors"}
    source.tensors.close()


def test_sharded_folder(tmp_path: Path) -> None:
    source = open_source(str(write_sharded(tmp_path)))
    assert [file.name for file in source.tensors.files] == [SHARD.format(1), SHARD.format(2)]
    assert source.tensors.metadata == {SHARD.format(1): "seen", SHARD.format(2): "seen"}
    assert set(source.sha256()) == {SHARD.format(1), SHARD.format(2)}
    assert_holds_tensors(source)


def test_several_files_without_index_are_one_table(tmp_path: Path) -> None:
    (write_sharded(tmp_path) / INDEX).unlink()
    assert_holds_tensors(open_source(str(tmp_path)))


def test_metadata_is_kept_with_the_second_names_in_it(tmp_path: Path) -> None:
    metadata = {"format": "pt", "enc.second": "enc.weight", "enc.half": "enc.weight", "lost": "nowhere"}
    with open_source(str(write_folder(tmp_path, metadata=metadata))).tensors as table:
        assert table.metadata == metadata


@pytest.mark.parametrize(
    ("config", "card", "expected"),
    [
        ({"base_model": "naver/dust3r"}, "base_model: other/model", "naver/dust3r"),
        ({"backbone": "dust3r", "backbone_repo": "naver/dust3r"}, None, "naver/dust3r"),
        ({"backbone": "models/dust3r.pth"}, None, "models/dust3r.pth"),
        ({"backbone": "dust3r"}, "base_model: naver/dust3r", "naver/dust3r"),
        ({"head": "some/thing"}, "base_model:\n- naver/dust3r\n- other/model", "naver/dust3r"),
        ({}, "license: mit", None),
        ({}, "base_model: [unclosed", None),
    ],
)
def test_base_model(tmp_path: Path, config: dict, card: str | None, expected: str | None) -> None:
    folder = write_folder(tmp_path, json.dumps(config))
    if card is not None:
        (folder / "README.md").write_text(f"---\n{card}\n---\n# A model\n")
    source = open_source(str(folder))
    source.tensors.close()
    assert source.base_model == expected


def test_unreadable_dtype_is_listed_and_refused_when_read(tmp_path: Path) -> None:
    save_file({"w": np.ones(2, ml_dtypes.float8_e4m3fn).view(np.uint8)}, tmp_path / "a.safetensors")
    content = (tmp_path / "a.safetensors").read_bytes().replace(b'"U8"', b'"F8_E4M3"')
    header = int.from_bytes(content[:8], "little") + len(b"F8_E4M3") - len(b"U8")
    (tmp_path / "a.safetensors").write_bytes(header.to_bytes(8, "little") + content[8:])
    with open_source(str(tmp_path)).tensors as table:
        assert table["w"] == TensorInfo((2,), "float8_e4m3fn")
        with pytest.raises(UserError, match="w has dtype float8_e4m3fn, which cannot be read here"):
            table.read("w")


@pytest.mark.parametrize("kept", [4, 40, -1])
def test_truncated_safetensors(tmp_path: Path, kept: int) -> None:
    file = write_folder(tmp_path) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    error = refusal(tmp_path)
    assert error.startswith(f"{file} is not a complete safetensors file: ") and f"({file.stat().st_size} bytes)" in error


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".bin", ".pt"])
def test_files_without_a_checkpoint(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"model{suffix}"
    file.touch()
    assert refusal(file) == f"{file} is empty (0 bytes), expected a checkpoint; copy or download it again"
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n")
    assert "is a Git LFS pointer" in refusal(file)


@pytest.mark.parametrize("suffix", [".safetensors", *(pytest.param(name, marks=needs_torch) for name in (".pth", ".bin", ".pt"))])
def test_files_that_are_no_checkpoints(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"model{suffix}"
    file.write_text("Dear reader,\nthis is a letter and no checkpoint at all.\n")
    assert f"{file} is not a complete " in refusal(file)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("letter.txt", "Dear reader")
    assert f"{file} is not a complete " in refusal(file)


def test_a_missing_shard(tmp_path: Path) -> None:
    (write_sharded(tmp_path) / SHARD.format(2)).unlink()
    assert refusal(tmp_path) == (
        f"folder {tmp_path}: its index names {SHARD.format(2)}, which is missing: add it, or give another folder or file"
    )


def test_a_surplus_shard(tmp_path: Path) -> None:
    save_file(TENSORS, write_sharded(tmp_path) / "model.safetensors")
    assert "its index does not name model.safetensors, which is present" in refusal(tmp_path)


def test_index_and_shards_that_disagree_are_reported_together(tmp_path: Path) -> None:
    homes = {name: SHARD.format(1) for name in [*TENSORS, "ghost"] if name != "steps"} | {"scalar": SHARD.format(2)}
    error = refusal(write_sharded(tmp_path, homes))
    assert f"ghost should be in {SHARD.format(1)} and is in no shard" in error
    assert f"none should be in {SHARD.format(1)} and is in {SHARD.format(2)}" in error
    assert f"steps is in {SHARD.format(2)} and not in the index" in error
    assert "scalar" not in error and "enc.weight" not in error


def test_a_name_in_two_files(tmp_path: Path) -> None:
    save_file(TENSORS, write_folder(tmp_path) / "again.safetensors")
    error = refusal(tmp_path)
    assert "scalar in again.safetensors and model.safetensors" in error and "steps in" in error


@pytest.mark.parametrize(
    "index", ["{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"w": "../../secret"}}', '{"weight_map": {"w": 1}}']
)
def test_an_index_that_is_none(tmp_path: Path, index: str) -> None:
    (write_folder(tmp_path) / INDEX).write_text(index)
    assert f"{tmp_path / INDEX} is not as expected: " in refusal(tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (b"{", "is not as expected: invalid JSON"),
        (b"\xff\xfe", "is not UTF-8 text: byte 0 is 0xff"),
        (b"[1]", "is not as expected: input should be an object"),
        (b'{"a":' * 100_000, "is not as expected: invalid JSON: recursion limit exceeded"),
        (b'{"enc_depth": ' + b"9" * 5000 + b"}", "is not as expected: invalid JSON: number out of range"),
    ],
)
def test_a_faulty_config(tmp_path: Path, config: bytes, message: str) -> None:
    (write_folder(tmp_path) / "config.json").write_bytes(config)
    assert f"{tmp_path / 'config.json'} {message}" in refusal(tmp_path)


def test_paths_that_are_not_there(tmp_path: Path) -> None:
    for spec in (tmp_path / "nothing", "nothing", "./some/model", "some/model.pth", "~/a/b"):
        assert (
            f"{spec} does not exist; expected a hub id (owner/name), a folder, or a .safetensors, .pth, .pt, .ckpt, .bin file"
            == refusal(spec)
        )
    assert "too long" in refusal("x" * 5000)


def test_a_revision_of_a_local_path(tmp_path: Path) -> None:
    assert "revisions belong to hub ids" in refusal(write_folder(tmp_path), revision="main")


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"x")
    assert f"{tmp_path / 'model.onnx'} is not a checkpoint by its name; expected a hub id, a folder, or a .safetensors" in refusal(
        tmp_path / "model.onnx"
    )


def test_folders_without_tensor_files(tmp_path: Path) -> None:
    assert "holds no tensor file" in refusal(tmp_path) and "found no files" in refusal(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").mkdir()  # a directory named like a file is no file
    assert "found config.json" in refusal(tmp_path)
    assert "found no files" in refusal(tmp_path / "model.safetensors")


def test_a_choice_of_pickles_is_not_guessed(tmp_path: Path) -> None:
    for name in ("a.pth", "b.pth"):
        (tmp_path / name).write_bytes(b"x")
    assert "holds several pickles: a.pth, b.pth; expected one" in refusal(tmp_path)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_no_permission(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"model{suffix}"
    file.write_bytes(b"x" * 100)
    file.chmod(0)
    root = os.geteuid() == 0
    if root:  # permissions do not bind root
        os.seteuid(65534)
    try:
        assert "permission denied; check that it exists and that you may read it" in refusal(file)
    finally:
        if root:
            os.seteuid(0)


def test_importing_loads_nothing_heavy() -> None:
    heavy = ("torch", "jax", "huggingface_hub", "orbax", "flax")
    code = f"import sys, und3rstand_jax.convert.sources.source; print([name for name in {heavy} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent.parent, capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"


def test_equal_tensors_and_metadata_give_equal_bytes_that_safetensors_reads(tmp_path: Path) -> None:
    tensors = {"b": np.ones((2, 3), np.float32), "a": np.arange(3, dtype=np.int64), "half": np.ones(4, ml_dtypes.bfloat16)}
    tensors |= {"scalar": np.array(2.5, np.float16), "none": np.ones((0, 3), np.float32), "turned": np.arange(6.0).reshape(2, 3).T}
    metadata = {f"key{i}": str(i) for i in range(20)}
    for name in ("one", "two"):
        write_safetensors(tmp_path / name, tensors, metadata)
        tensors, metadata = (dict(reversed(held.items())) for held in (tensors, metadata))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    read = load_file(tmp_path / "one")
    assert {name: (tensor.dtype, tensor.shape) for name, tensor in read.items()} == {
        name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()
    }
    assert all(read[name].tobytes() == tensor.tobytes() for name, tensor in tensors.items())
    with safe_open(tmp_path / "one", framework="numpy") as file:
        assert file.metadata() == metadata
    tensors["turned"] = tensors["turned"].copy()  # which the library's own writer does not lay out
    save_file(tensors, tmp_path / "theirs")
    write_safetensors(tmp_path / "ours", tensors)
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_a_key_chooses_tensors_by_the_beginning_of_their_names(tmp_path: Path) -> None:
    tensors = {"teacher.w": np.zeros(2, np.float32), "student.w": np.ones(2, np.float32), "student.b": np.ones(1, np.float32)}
    save_file(tensors, tmp_path / "a.safetensors")
    with open_source(str(tmp_path), key="student").tensors as table:
        assert sorted(table) == ["b", "w"] and table.read("w").tolist() == [1, 1]
        assert (table.chosen, table.ignored) == ("student", {"teacher": "1 tensor"})
    with pytest.raises(UserError, match="--key stud is neither an entry of a.safetensors nor .*; found student .2 tensors., teacher"):
        open_source(str(tmp_path), key="stud")


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.pth")
    assert refusal(tmp_path / "a.pth").startswith(f"cannot read {tmp_path / 'a.pth'}: it is a pipe, expected a file")


def test_what_is_listed_does_not_grow_with_the_files(tmp_path: Path) -> None:
    homes = {f"{'deep.' * 60}{i}": SHARD.format(1) for i in range(50_000)} | {"b": SHARD.format(2)}
    error = refusal(write_sharded(tmp_path, homes))
    assert len(error) < 5000 and "more; copy or download index and shards again together" in error
    for i in range(100):
        (tmp_path / f"extra{i}.safetensors").touch()
    assert len(refusal(tmp_path)) < 1000 and "and 90 more" in refusal(tmp_path)


def test_a_name_as_long_as_no_module_has_is_refused(tmp_path: Path) -> None:
    save_file({f"enc_blocks.{'9' * 5000}.weight": np.zeros(1, np.float32)}, tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match=r"m\.safetensors names a tensor with 5,018 characters \(enc_blocks\.9+…\); .* rename it"):
        open_source(str(tmp_path / "m.safetensors"))


def test_an_index_that_names_a_file_elsewhere_is_told_so(tmp_path: Path) -> None:
    (write_folder(tmp_path) / INDEX).write_text('{"weight_map": {"w": "../secret"}}')
    assert "weight_map.w: value error, expected the name of a file beside the index, without a folder" in refusal(tmp_path)
