"""PyTorch pickles: what is read from them, and that a hostile one executes nothing."""

import argparse
import json
import os
import pickle
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from tests.with_torch import HAS_TORCH, needs_torch
from und3rstand_jax.convert.sources.source import open_source
from und3rstand_jax.convert.sources.tensor_files import TensorInfo
from und3rstand_jax.model.args_string import parse_args_string
from und3rstand_jax.model.families import config_of_options
from und3rstand_jax.support.errors import UserError

if HAS_TORCH:
    import torch

CALL = "AsymmetricCroCo3DStereo(enc_depth=2, depth_mode=('exp', -inf, inf))"


def state_dict() -> OrderedDict:
    torch.manual_seed(0)
    shared = torch.randn(4)
    return OrderedDict(
        weight=torch.nn.Parameter(torch.randn(3, 4)),
        transposed=torch.randn(2, 5).T,
        half=torch.randn(3).half(),
        brain=torch.randn(2, 2).bfloat16(),
        scalar=torch.tensor(2.5),
        count=torch.tensor([1, 2]),
        one=shared,
        other=shared,
    )


def refusal(file: Path) -> str:
    with pytest.raises(UserError) as caught:
        open_source(str(file))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@needs_torch
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("nesting", ["model", "state_dict", "model_state_dict", None])
def test_values(tmp_path: Path, zipped: bool, nesting: str | None) -> None:
    state = state_dict()
    checkpoint = {nesting: state, "epoch": 3, "optimizer": {"lr": 0.1}} if nesting else state
    torch.save(checkpoint, tmp_path / "checkpoint.ckpt", _use_new_zipfile_serialization=zipped)
    source = open_source(str(tmp_path / "checkpoint.ckpt"))
    assert (source.kind, source.config, source.base_model) == ("file", None, None)
    with source.tensors as table:
        assert list(table) == list(state)
        assert table["transposed"] == TensorInfo((5, 2), "float32")
        assert table["brain"] == TensorInfo((2, 2), "bfloat16")
        assert (table.metadata, table.args) == ({}, None)
        for name, tensor in state.items():
            read = table.read(name)
            assert read.dtype.name == table[name].dtype and read.shape == table[name].shape
            assert (read.astype(np.float64) == tensor.detach().double().numpy()).all()
            read[...] = 0
            assert (table.read(name).astype(np.float64) == tensor.detach().double().numpy()).all()
        assert table.read("brain").dtype == ml_dtypes.bfloat16


@needs_torch
def test_values_over_a_change_of_the_memory_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("und3rstand_jax.convert.sources.pickle_files._MAPPED_BYTES", 4096)
    torch.save({f"w{i}": torch.full((1024,), float(i)) for i in range(5)}, tmp_path / "w.pt")
    with open_source(str(tmp_path / "w.pt")).tensors as table:
        assert [float(table.read(name).mean()) for name in table] == [0, 1, 2, 3, 4]


@needs_torch
def test_a_folder_with_a_pickle(tmp_path: Path) -> None:
    torch.save(state_dict(), tmp_path / "pytorch_model.bin")
    torch.save({"step": 1}, tmp_path / "optimizer.pt")
    (tmp_path / "config.json").write_text('{"enc_depth": 2}')
    source = open_source(str(tmp_path))
    assert source.config == {"enc_depth": 2}
    assert set(source.sha256()) == {"pytorch_model.bin", "config.json"}
    source.tensors.close()


def test_safetensors_go_before_a_pickle(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    (tmp_path / "pytorch_model.bin").write_bytes(b"not opened")
    save_file({"w": np.zeros(1, np.float32)}, tmp_path / "model.safetensors")
    with open_source(str(tmp_path)).tensors as table:
        assert list(table) == ["w"]


@needs_torch
def test_args(tmp_path: Path) -> None:
    torch.save({"model": state_dict(), "args": argparse.Namespace(model=CALL, lr=0.1)}, tmp_path / "dust3r.pth")
    torch.save({"model": state_dict(), "croco_kwargs": {"enc_depth": 2}}, tmp_path / "croco.pth")
    with open_source(str(tmp_path / "dust3r.pth")).tensors as table:
        assert table.args == CALL
    with open_source(str(tmp_path / "croco.pth")).tensors as table:
        assert table.args == {"enc_depth": 2}


class Hostile:
    """Runs a shell command when an ordinary unpickler meets it."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


@needs_torch
@pytest.mark.parametrize("suffix", [".pth", ".bin", ".pt"])
@pytest.mark.parametrize("form", ["zip", "legacy", "plain pickle", "newer pickle"])
def test_a_hostile_pickle_runs_nothing(tmp_path: Path, suffix: str, form: str) -> None:
    mark = tmp_path / "executed"
    file = tmp_path / f"hostile{suffix}"
    checkpoint = {"model": {"w": torch.zeros(1)}, "extra": Hostile(mark)}
    if "pickle" in form:
        file.write_bytes(pickle.dumps(checkpoint["extra"], protocol=4 if form == "newer pickle" else 2))
    else:
        torch.save(checkpoint, file, _use_new_zipfile_serialization=form == "zip")
    error = refusal(file)
    assert not mark.exists()
    if form == "newer pickle":  # the loader stops at an instruction it does not know, before it comes to the name
        assert error.startswith(f"{file} is not a complete PyTorch checkpoint (UnpicklingError: Unsupported operand")
    else:
        assert error.startswith(f"{file} was refused and nothing in it was run: its pickle refers to {os.system.__module__}.system")
    os.system(f"touch {mark}")
    assert mark.exists()  # the command would have worked


class Stranger:
    """A class that no list allows."""


@needs_torch
@pytest.mark.parametrize("found", [Stranger(), Path("somewhere"), np.float64(1)], ids=["class", "path", "numpy scalar"])
def test_only_namespace_is_allowed_beyond_tensors(tmp_path: Path, found: object) -> None:
    torch.save({"model": state_dict(), "args": argparse.Namespace(model=CALL, other=found)}, tmp_path / "a.pth")
    assert "was refused and nothing in it was run: its pickle refers to " in refusal(tmp_path / "a.pth")
    assert argparse.Namespace not in torch.serialization.get_safe_globals()  # the permission for Namespace ends with the call


@needs_torch
@pytest.mark.parametrize(
    "call",
    [
        "__import__('os').system('touch {mark}')",
        "Model(enc_depth=__import__('os').system('touch {mark}'))",
        "Model(img_size=(512, open('{mark}', 'w')))",
        "Model(**__import__('os').system('touch {mark}'))",
    ],
)
def test_code_in_the_args_string_is_returned_as_text_and_never_run(tmp_path: Path, call: str) -> None:
    mark = tmp_path / "executed"
    call = call.format(mark=mark)
    torch.save({"model": state_dict(), "args": argparse.Namespace(model=call)}, tmp_path / "a.pth")
    with open_source(str(tmp_path / "a.pth")).tensors as table:
        assert table.args == call
    for parse in (parse_args_string, config_of_options):
        with pytest.raises(UserError, match="args.model"):
            parse(call)
    assert not mark.exists()


@needs_torch
@pytest.mark.parametrize("zipped", [True, False])
def test_a_truncated_pickle(tmp_path: Path, zipped: bool) -> None:
    file = tmp_path / "a.pth"
    torch.save({"w": torch.zeros(1000)}, file, _use_new_zipfile_serialization=zipped)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert f"{file} is not a complete PyTorch checkpoint (RuntimeError: " in refusal(file)


@needs_torch
@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [
        (lambda: [1, 2], "holds a list, expected a state dict"),
        (lambda: {}, "it is empty"),
        (lambda: {"model": {}}, "it is empty"),
        (lambda: {"weights": {"w": torch.zeros(1)}, "epoch": 3}, "2 of 2 entries are something else: 'weights' (dict), 'epoch' (int)"),
        (lambda: {"model": {"w": torch.zeros(1), "lr": 0.1}}, "1 of 2 entries are something else: 'lr' (float)"),
        (lambda: {"model": {3: torch.zeros(1)}}, "1 of 1 entries are something else: 3 (Tensor)"),
        (lambda: {"w": torch.zeros(2, 2).to_sparse()}, "1 of 1 entries are something else: 'w' (Tensor)"),
    ],
)
def test_pickles_that_are_no_state_dicts(tmp_path: Path, checkpoint: Callable[[], object], message: str) -> None:
    torch.save(checkpoint(), tmp_path / "a.pth")
    assert message in refusal(tmp_path / "a.pth")


@needs_torch
def test_an_unreadable_dtype(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2).to(torch.float8_e4m3fn)}, tmp_path / "a.pth")
    with open_source(str(tmp_path / "a.pth")).tensors as table:
        assert table["w"] == TensorInfo((2,), "float8_e4m3fn")
        with pytest.raises(UserError, match="w has dtype float8_e4m3fn, which cannot be read here"):
            table.read("w")


def test_without_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = tmp_path / "executed"
    (tmp_path / "a.pth").write_bytes(pickle.dumps(Hostile(mark)))
    monkeypatch.setitem(sys.modules, "torch", None)
    assert refusal(tmp_path / "a.pth") == "a.pth is a PyTorch file and torch is not installed; run pip install 'und3rstand_jax[torch]'"
    assert not mark.exists()


# Which weights


def weights(value: float) -> dict:
    return {"w": torch.full((2,), value)}


@needs_torch
def test_what_is_left_out_is_listed_and_a_key_chooses_it(tmp_path: Path) -> None:
    file = str(tmp_path / "a.pth")
    torch.save({"model": weights(1), "model_ema": {"module": weights(2), "decay": 0.9}, "optimizer": {"lr": 1}, "epoch": 3}, file)
    with open_source(file).tensors as table:
        assert table.read("w").tolist() == [1, 1]
        assert (table.chosen, table.ignored) == ("model", {"model_ema": "dict of 2", "optimizer": "dict of 1", "epoch": "int"})
    for key in ("model_ema.module", "model"):
        with open_source(file, key=key).tensors as table:
            assert table.read("w").tolist() == ([1, 1] if key == "model" else [2, 2]) and table.chosen == key
    torch.save({"state_dict_ema": weights(3), "nested": {"model": {"net.w": torch.zeros(1), "other.w": torch.ones(1)}}}, file)
    assert "--key chooses another entry: state_dict_ema (1 tensor), nested (dict of 1)" in refusal(Path(file))
    with open_source(file, key="state_dict_ema").tensors as table:
        assert table.read("w").tolist() == [3, 3]
    with open_source(file, key="nested.model.other").tensors as table:  # entries, then the beginning of names
        assert table.read("w").tolist() == [1] and table.ignored == {"state_dict_ema": "1 tensor", "net": "1 tensor"}


@needs_torch
def test_shards_of_an_index_are_one_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("und3rstand_jax.convert.sources.pickle_files._MAPPED_BYTES", 1)
    shards = [f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)]
    for i, shard in enumerate(shards):
        torch.save({f"w{i}": torch.full((2,), float(i)), f"v{i}": torch.zeros(1)}, tmp_path / shard)
    torch.save({"lr": 1}, tmp_path / "optimizer.pt")
    index = {"metadata": {}, "weight_map": {f"{name}{i}": shard for i, shard in enumerate(shards) for name in "wv"}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    source = open_source(str(tmp_path))
    with source.tensors as table:
        assert sorted(table) == ["v0", "v1", "w0", "w1"]
        assert [table.read(name).tolist() for name in ("w1", "w0", "w1")] == [[1, 1], [0, 0], [1, 1]]
    assert set(source.sha256()) == set(shards)
    index["weight_map"]["w0"] = shards[1]
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert f"w0 should be in {shards[1]} and is in {shards[0]}" in refusal(tmp_path)
    (tmp_path / shards[1]).unlink()
    assert f"its index names {shards[1]}, which is missing" in refusal(tmp_path)


# What the file does not hold


@needs_torch
@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_that_repeat_what_is_stored_are_refused(tmp_path: Path, zipped: bool) -> None:
    file = tmp_path / "a.pth"
    torch.save({"w": torch.zeros(1).expand(10**5, 10**5), "b": torch.ones(3)}, file, _use_new_zipfile_serialization=zipped)
    assert file.stat().st_size < 5000
    assert "tensors larger than their stored data: w (40,000,000,000 bytes of values, 4 stored); if this is intended, save" in refusal(file)
    shared = torch.zeros(100)
    torch.save({f"w{i}": shared for i in range(5)}, file, _use_new_zipfile_serialization=zipped)
    assert "stored data: 5 tensors (2,000 bytes of values, 400 stored)" in refusal(file)
    torch.save({f"w{i}": shared for i in range(4)} | {"part": shared[10:20]}, file, _use_new_zipfile_serialization=zipped)
    refused = "stored data" in refusal(file)
    assert refused  # 4.1 times
    torch.save({f"w{i}": shared for i in range(3)} | {"part": shared[10:20]}, file, _use_new_zipfile_serialization=zipped)
    with open_source(str(file)).tensors as table:
        assert table.read("part").shape == (10,)


@needs_torch
def test_a_storage_beyond_the_file(tmp_path: Path) -> None:
    file = tmp_path / "a.pth"
    torch.save({"w": torch.zeros(1000)}, file)
    with zipfile.ZipFile(file) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w") as archive:  # 1000 floats, as BININT2, become 60,000
        for name, content in parts.items():
            archive.writestr(name, content.replace((1000).to_bytes(2, "little"), (60_000).to_bytes(2, "little")))
    assert f"{file} is not a complete PyTorch checkpoint" in refusal(file)


@needs_torch
def test_an_archive_that_is_compressed_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.pth"
    torch.save({"w": torch.zeros(1000)}, file)
    with zipfile.ZipFile(file) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    assert "has compressed parts (" in refusal(file)


@needs_torch
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_is_called_by_its_name(tmp_path: Path) -> None:
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "a.pt"))
    assert f"{tmp_path / 'a.pt'} is a TorchScript archive, a program with its weights inside; where it was made, save" in refusal(
        tmp_path / "a.pt"
    )


@needs_torch
@pytest.mark.parametrize("name", ["__metadata__", "odd\ud800name"])
def test_names_that_no_header_holds(tmp_path: Path, name: str) -> None:
    torch.save({name: torch.zeros(1)}, tmp_path / "a.pth")
    assert "1 of 1 entries are something else: " in refusal(tmp_path / "a.pth")
