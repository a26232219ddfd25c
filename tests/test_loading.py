"""`load_backbone` and `load_backbone_and_probe`: the design's example as written, and the cache of conversions."""

import json
import logging
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import und3rstand_jax as u3d
from tests.conversion import converted, flip_a_bit
from tests.hub_server import Repo, serve
from tests.test_hub import environment
from tests.tiny import CONFIG, LAYERS, backbone_tensors, probe_tensors, save_backbone, save_probes
from und3rstand_jax.convert.cache import Entry, _serves
from und3rstand_jax.loading import CACHE_VARIABLE, cache_folder

ROOT = Path(__file__).parent.parent


def photo(file: Path, seed: int) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(pixels).save(file)
    return file


def test_the_designs_example_runs_as_written(tmp_path: Path, capsys) -> None:
    checkpoint = str(converted(save_probes(tmp_path / "probes", save_backbone(tmp_path / "m")), tmp_path / "jax"))
    a, b = (str(photo(tmp_path / f"{name}.png", seed)) for seed, name in enumerate("ab"))
    capsys.readouterr()

    model, probes = u3d.load_backbone_and_probe(checkpoint)
    view1, view2 = u3d.load_image(a, size=64), u3d.load_image(b, size=64)
    features = model(view1, view2)
    outputs = probes(features)
    for layer_id, (pred1, pred2) in zip(model.probed_layers.layer_ids, outputs):  # noqa: B905 (as the design has it)
        print(layer_id, pred1["pts3d"].shape, pred1["conf"].shape)
        assert pred2["pts3d"].shape == (1, 64, 64, 3)

    assert capsys.readouterr().out.splitlines() == [f"{layer} (1, 64, 64, 3) (1, 64, 64)" for layer in LAYERS]
    assert tuple(features) == LAYERS
    assert [tokens.shape for tokens in features["decoder.1.mlp"]] == [(1, 16, 16)] * 2

    backbone = u3d.load_backbone(checkpoint)
    out = backbone.module.apply({"params": backbone.params}, view1, view2, capture=("encoder.*", "decoder.*"), head=True)
    assert [tokens.shape for tokens in out.activations["decoder.1.cross_attn"]] == [(1, 16, 16)] * 2
    for pred in (out.pred1, out.pred2):
        assert (pred["pts3d"].shape, pred["conf"].shape) == ((1, 64, 64, 3), (1, 64, 64))
    np.testing.assert_allclose(out.activations["decoder.1.mlp"][1], features["decoder.1.mlp"][1], rtol=1e-4, atol=1e-5)


def test_what_is_stored_in_half_precision_is_loaded_as_asked(tmp_path: Path) -> None:
    checkpoint = converted(save_backbone(tmp_path / "m"), tmp_path / "jax")
    single, half = (u3d.load_backbone(checkpoint, dtype=dtype).params for dtype in (jnp.float32, jnp.bfloat16))
    kernel = backbone_tensors()["dec_blocks.1.mlp.fc1.weight"].T
    np.testing.assert_array_equal(single["decoder"]["blocks1"]["mlp"]["fc1"]["kernel"][1], kernel)
    np.testing.assert_array_equal(half["decoder"]["blocks1"]["mlp"]["fc1"]["kernel"][1], kernel.astype(jnp.bfloat16))
    assert half["head1"]["proj"]["kernel"].dtype == half["encoder"]["norm"]["scale"].dtype == jnp.float32
    with pytest.raises(u3d.UserError, match="dtype must be float32 or bfloat16; found float16"):
        u3d.load_backbone(checkpoint, dtype=jnp.float16)


def test_a_checkpoint_without_probes_and_an_unknown_argument(tmp_path: Path) -> None:
    checkpoint = converted(save_backbone(tmp_path / "m"), tmp_path / "jax")
    with pytest.raises(u3d.UserError, match="holds no probes; load it with load_backbone"):
        u3d.load_backbone_and_probe(checkpoint)
    with pytest.raises(TypeError, match="offlne"):
        u3d.load_backbone(checkpoint, offlne=True)


def conversions(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir())


def test_a_local_source_is_converted_once_and_anew_when_it_has_changed(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    source = save_backbone(tmp_path / "m")
    file = source / "model.safetensors"
    for given in (source, file, str(file)):
        u3d.load_backbone(given, cache=cache)
    assert len(conversions(cache)) == 2
    made = {path.name: (path / "config.json").stat().st_mtime_ns for path in cache.iterdir()}
    save_backbone(source, {name: tensor + np.float32(1) for name, tensor in backbone_tensors().items()})
    scale = u3d.load_backbone(source, cache=cache).params["encoder"]["norm"]["scale"]
    np.testing.assert_array_equal(scale, backbone_tensors()["enc_norm.weight"] + np.float32(1))
    (source / "config.json").write_text(json.dumps(CONFIG | {"pos_embed": "RoPE50"}))
    assert u3d.load_backbone(file, cache=cache).config.rope_base == 50
    assert len(conversions(cache)) == 4
    assert made == {name: (cache / name / "config.json").stat().st_mtime_ns for name in made}


def test_a_changed_backbone_of_unchanged_probes_is_taken(tmp_path: Path) -> None:
    probes, cache = save_probes(tmp_path / "probes", "nobody/nothing"), tmp_path / "cache"
    for added in (0, 1):
        backbone = save_backbone(tmp_path / "m", {name: tensor + np.float32(added) for name, tensor in backbone_tensors().items()})
        model, _ = u3d.load_backbone_and_probe(probes, backbone=backbone, cache=cache)
        np.testing.assert_array_equal(model.params["encoder"]["norm"]["scale"], backbone_tensors()["enc_norm.weight"] + np.float32(added))


def test_option_and_environment_variable_move_the_cache(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "by variable"))
    assert cache_folder() == tmp_path / "by variable"
    assert cache_folder(tmp_path / "by option") == tmp_path / "by option"
    monkeypatch.delenv(CACHE_VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "platform"))
    if sys.platform == "linux":
        assert cache_folder() == tmp_path / "platform" / "und3rstand_jax"
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "used"))
    u3d.load_backbone(save_backbone(tmp_path / "m"))
    assert len(conversions(tmp_path / "used")) == 1


@pytest.mark.parametrize(
    ("load", "progress"),
    [(u3d.converted_checkpoint, None), (u3d.converted_checkpoint, False), (u3d.load_backbone, False), (u3d.load_backbone_and_probe, False)],
)
def test_a_conversion_prints_nothing_and_its_progress_bars_can_be_switched_off(load, progress, tmp_path: Path, capfd, monkeypatch) -> None:
    from tqdm import tqdm

    disabled = []

    class Bar(tqdm):
        def __init__(self, *args, disable: bool | None, **options) -> None:
            disabled.append(disable)
            super().__init__(*args, disable=disable, **options)

    monkeypatch.setattr("tqdm.tqdm", Bar)
    monkeypatch.setattr(logging.getLogger("und3rstand_jax"), "handlers", [])  # a command before this test has set its own
    source = save_probes(tmp_path / "probes", save_backbone(tmp_path / "m"))
    load(source, cache=tmp_path / "cache", **({} if progress is None else {"progress": progress}))
    # None leaves it to tqdm, which shows bars on a terminal alone.
    assert disabled == [True if progress is False else None] * 2
    assert capfd.readouterr() == ("", "")


def test_download_bars_are_off_during_a_quiet_download_and_then_as_before(tmp_path: Path) -> None:
    script = """
import sys
from huggingface_hub import file_download
from huggingface_hub.utils import are_progress_bars_disabled
import und3rstand_jax as u3d
seen = []
download = file_download.http_get
def http_get(*args, **options):
    seen.append(are_progress_bars_disabled())
    return download(*args, **options)
file_download.http_get = http_get
u3d.converted_checkpoint("owner/name", progress="loud" in sys.argv)
print(sorted(set(seen)), are_progress_bars_disabled())
"""
    with serve({"owner/name": Repo.of_folder(save_backbone(tmp_path / "m"))}) as hub:
        for word, during in (("quiet", True), ("loud", False)):
            env = environment(hub.url, tmp_path / word) | {CACHE_VARIABLE: str(tmp_path / f"{word} cache"), "JAX_PLATFORMS": "cpu"}
            del env["HF_HUB_DISABLE_PROGRESS_BARS"]
            run = subprocess.run([sys.executable, "-c", script, word], env=env, cwd=ROOT, capture_output=True, text=True)
            assert run.stdout == f"[{during}] False\n", run.stderr


def test_a_failed_conversion_leaves_no_half_cache(tmp_path: Path, monkeypatch) -> None:
    cache, source = tmp_path / "cache", save_backbone(tmp_path / "m")

    def fail(*args: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("und3rstand_jax.convert.writing.write_checkpoint_info", fail)
        with pytest.raises(OSError, match="No space left on device; nothing was kept"):
            u3d.load_backbone(source, cache=cache)
    assert conversions(cache) == []
    u3d.load_backbone(source, cache=cache)
    assert len(conversions(cache)) == 1


LOAD = """
import os, signal, sys
import und3rstand_jax as u3d
if "die" in sys.argv:
    import und3rstand_jax.convert.writing
    und3rstand_jax.convert.writing.write_checkpoint_info = lambda *args: os.kill(os.getpid(), signal.SIGKILL)
model, probes = u3d.load_backbone_and_probe("owner/name")
print(len(probes.layer_ids), float(model.params["encoder"]["norm"]["scale"][3]))
"""


def test_a_hub_id_is_converted_once_then_needs_no_network_and_a_killed_load_does_no_harm(tmp_path: Path) -> None:
    cache = tmp_path / "cache"

    def load(url: str, *args: str) -> subprocess.CompletedProcess:
        env = environment(url, tmp_path / "home") | {CACHE_VARIABLE: str(cache), "JAX_PLATFORMS": "cpu"}
        return subprocess.run([sys.executable, "-c", LOAD, *args], env=env, cwd=ROOT, capture_output=True, text=True)

    both = save_backbone(tmp_path / "both", backbone_tensors() | probe_tensors())
    with serve({"owner/name": Repo.of_folder(both)}) as hub:
        assert load(hub.url, "die").returncode == -9
        assert [name for name in conversions(cache) if not name.startswith(".")] == []
        first = load(hub.url)
    assert first.returncode == 0, first.stderr
    assert len(conversions(cache)) == 1  # the killed one's leftovers are gone
    second = load("http://127.0.0.1:9")
    assert second.returncode == 0, second.stderr
    expected = f"{len(LAYERS)} {float(backbone_tensors()['enc_norm.weight'][3])}\n"
    assert first.stdout == second.stdout == expected
    assert second.stderr == ""


def test_two_that_convert_the_same_source_share_one_conversion(tmp_path: Path, monkeypatch) -> None:
    import und3rstand_jax.convert.writing

    cache, source = tmp_path / "cache", save_backbone(tmp_path / "m")
    original, converted_by = und3rstand_jax.convert.writing.convert, []
    second = threading.Thread(target=lambda: found.append(u3d.converted_checkpoint(source, cache=cache)))
    found: list[Path] = []

    def convert(*args, **options) -> None:
        """While this one is at work, another comes for the same."""
        converted_by.append(threading.current_thread())
        second.start()
        second.join(0.5)
        assert second.is_alive()  # it waits
        original(*args, **options)

    monkeypatch.setattr(und3rstand_jax.convert.writing, "convert", convert)
    folder = u3d.converted_checkpoint(source, cache=cache)
    second.join(60)
    assert found == [folder]
    assert converted_by == [threading.current_thread()]
    assert conversions(cache) == [folder.name]


def same_size_and_time(file: Path, content: bytes) -> None:
    before = file.stat()
    assert len(content) == before.st_size
    file.write_bytes(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_an_entry_of_the_same_size_and_time_but_other_bytes_is_converted_again(tmp_path: Path, caplog) -> None:
    cache, source = tmp_path / "cache", save_backbone(tmp_path / "m")
    entry = u3d.converted_checkpoint(source, cache=cache)
    made = (entry / "config.json").stat().st_mtime_ns
    tensors = source / "model.safetensors"
    other = save_backbone(tmp_path / "n", {name: tensor + np.float32(1) for name, tensor in backbone_tensors().items()})
    same_size_and_time(tensors, tensors.read_bytes())  # written anew with the same bytes: nothing to do
    assert u3d.converted_checkpoint(source, cache=cache) == entry
    assert (entry / "config.json").stat().st_mtime_ns == made
    same_size_and_time(tensors, (other / "model.safetensors").read_bytes())
    scale = u3d.load_backbone(source, cache=cache).params["encoder"]["norm"]["scale"]
    np.testing.assert_array_equal(scale, backbone_tensors()["enc_norm.weight"] + np.float32(1))
    assert "removed from the cache, converting again" in caplog.text
    assert conversions(cache) == [entry.name]


@pytest.mark.parametrize("damage", ["config", "leaf", "bit"])
def test_a_damaged_entry_is_converted_again(damage: str, tmp_path: Path, caplog) -> None:
    cache, source = tmp_path / "cache", save_backbone(tmp_path / "m")
    entry = u3d.converted_checkpoint(source, cache=cache)
    if damage == "config":
        (entry / "config.json").write_text("{")
    elif damage == "leaf":
        (entry / "backbone" / "encoder.norm.scale" / "0").unlink()
    else:
        flip_a_bit(entry / "backbone" / "encoder.norm.scale" / "0")
    scale = u3d.load_backbone(source, cache=cache).params["encoder"]["norm"]["scale"]
    np.testing.assert_array_equal(scale, backbone_tensors()["enc_norm.weight"])
    assert caplog.text.count("removed from the cache, converting again") == 1
    flip_a_bit(entry / "backbone" / "encoder.norm.scale" / "0")
    # Named by its folder, as by a command that has looked at its config before, it is made again from what it says of its source.
    scale = u3d.load_backbone(entry, cache=cache).params["encoder"]["norm"]["scale"]
    np.testing.assert_array_equal(scale, backbone_tensors()["enc_norm.weight"])
    assert conversions(cache) == [entry.name]


def test_an_entry_of_a_hub_id_must_say_in_its_provenance_that_it_is_that_one(tmp_path: Path) -> None:
    folder = u3d.converted_checkpoint(save_backbone(tmp_path / "owner"), cache=tmp_path / "cache")
    assert u3d.read_checkpoint_info(folder).provenance["backbone"]["source"] == "owner"
    # Of a repository there are no files to compare: what an entry says of itself has to do.
    for asked, serves in (("owner", True), ("owner/name", False)):
        entry = Entry(source=asked, revision=None, backbone=None, files={})
        (folder / ".source.json").write_text(json.dumps(entry))
        assert _serves(folder, entry) == serves


def test_a_damaged_checkpoint_outside_the_cache_is_never_removed(tmp_path: Path) -> None:
    mine = shutil.copytree(u3d.converted_checkpoint(save_backbone(tmp_path / "m"), cache=tmp_path / "cache"), tmp_path / "mine" / "jax")
    flip_a_bit(mine / "backbone" / "encoder.norm.scale" / "0")
    with pytest.raises(u3d.CheckpointError, match="encoder/norm/scale"):
        u3d.load_backbone(mine, cache=tmp_path / "cache")
    assert (mine / "config.json").exists()


def test_a_cache_that_cannot_be_written_says_what_to_do_about_the_cache(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(
        u3d.OutputError, match=f"the cache of conversions .* cannot be written: .*; set {CACHE_VARIABLE}, or cache= "
    ) as caught:
        u3d.load_backbone(save_backbone(tmp_path / "m"), cache=tmp_path / "file" / "cache")
    assert "--out" not in str(caught.value)
