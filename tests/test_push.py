"""`push_to_hub` and `--push`, with the real client of huggingface_hub against a local hub, and what they uploaded loaded back."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml
from safetensors import safe_open

import und3rstand_jax as u3d
from tests.conversion import converted, flip_a_bit
from tests.hub_server import Hub, Repo, serve
from tests.test_hub import environment
from tests.tiny import LAYERS, save_backbone, save_probes
from und3rstand_jax.checkpoint.format import sealed
from und3rstand_jax.commands.convert import main
from und3rstand_jax.convert.push import public_text

ID = "someone/tiny"
TOKEN = "hf_writes"
LICENCE = "cc-by-nc-sa-4.0"
UPLOADED = {
    "README.md",
    *(f"{part}/{name}" for part in ("backbone", "probes") for name in ("config.json", "model.safetensors")),
    *(f"jax/{name}" for name in ("config.json", "backbone.safetensors", "backbone_unused.safetensors", "probes.safetensors")),
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    return converted(save_probes(folder / "probes", save_backbone(folder / "backbone")), folder / "tiny-jax")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub to which `TOKEN` may write; the client in this process is logged in with it, and does not wait between its attempts."""
    from huggingface_hub import constants

    with serve({}) as running:
        running.uploads.writers = {TOKEN: "someone"}
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", running.url + "/{repo_id}/resolve/{revision}/{filename}")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr("time.sleep", lambda seconds: None)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setenv("UND3RSTAND_JAX_CACHE", str(tmp_path / "cache"))
        yield running


def push(checkpoint: Path, repo_id: str = ID, **options) -> u3d.Upload:
    return u3d.push_to_hub(checkpoint, repo_id, **{"license": LICENCE, "progress": False} | options)


def pushed_file(content: bytes, file: Path) -> Path:
    file.write_bytes(content)
    return file


def assert_equal(found: tuple[u3d.Backbone, u3d.Probes], checkpoint: Path) -> None:
    """Both are what the checkpoint holds, bit for bit."""
    expected = u3d.load_backbone_and_probe(checkpoint)
    assert found[0].config == expected[0].config and found[1].layer_ids == expected[1].layer_ids
    trees = [tuple(loaded.params for loaded in pair) for pair in (found, expected)]
    jax.tree.map(np.testing.assert_array_equal, *trees)


def test_what_is_uploaded_is_loaded_back_from_either_layout(hub: Hub, checkpoint: Path, tmp_path: Path) -> None:
    pushed = push(checkpoint, private=True, message="First of all")
    repo = hub.repos[ID]
    assert repo.private and set(repo.files) == UPLOADED | {".gitattributes"} and pushed.files.keys() == UPLOADED
    assert pushed.url == f"{hub.url}/{ID}/commit/{repo.commit}" and pushed.card.encode() == repo.files["README.md"]
    assert [(commit["message"], set(commit["paths"])) for commit in hub.uploads.commits] == [("First of all", UPLOADED)]
    assert not list(checkpoint.parent.glob(".*"))
    # Whoever has it from there has it under the licence that it was published under, from either layout.
    records = json.loads(repo.files["jax/config.json"])["provenance"].values()
    assert [(record["licence"]["id"], record["licence"]["found"]) for record in records] == [(LICENCE, f"the upload to {ID}")] * 2
    for part in ("backbone", "probes"):
        with safe_open(pushed_file(repo.files[f"{part}/model.safetensors"], tmp_path / part), "numpy") as file:
            assert file.metadata()["license"] == LICENCE
    # From the hub: JAX's layout, without a conversion.
    assert_equal(u3d.load_backbone_and_probe(ID), checkpoint)
    assert {name.partition("/")[0] for name in hub.downloads(ID)} == {"jax"} and not (tmp_path / "cache").exists()
    # PyTorch's, where JAX's is not there: a backbone and probes in folders of their own.
    jax_layout = {name: repo.files.pop(name) for name in UPLOADED if name.startswith("jax/")}
    assert_equal(u3d.load_backbone_and_probe(ID, hub_cache=str(tmp_path / "another")), checkpoint)
    info = u3d.read_checkpoint_info(u3d.converted_checkpoint(ID))
    assert {part: record["source"] for part, record in info.provenance.items()} == {"backbone": f"{ID}/backbone", "probes": ID}
    assert {record["licence"]["id"] for record in info.provenance.values()} == {LICENCE}
    # From a copy on disk: either.
    copy = tmp_path / "copy"
    for name, content in {**repo.files, **jax_layout}.items():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes(content)
    assert u3d.converted_checkpoint(copy) == copy / "jax"
    assert_equal(u3d.load_backbone_and_probe(copy), checkpoint)
    shutil.rmtree(copy / "jax")
    assert_equal(u3d.load_backbone_and_probe(copy), checkpoint)


def test_a_file_of_the_jax_layout_needs_nothing_of_this_package_and_its_reader_no_orbax(hub: Hub, checkpoint: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load

    push(checkpoint)
    tensors = load(hub.repos[ID].files["jax/backbone.safetensors"])
    params = u3d.load_backbone(checkpoint).params
    np.testing.assert_array_equal(tensors["backbone/encoder/blocks/attn/qkv/kernel"], params["encoder"]["blocks"]["attn"]["qkv"]["kernel"])
    code = f"import sys, und3rstand_jax as u3d; u3d.load_backbone({ID!r}); print({{'orbax', 'tensorstore'}} & sys.modules.keys())"
    env = environment(hub.url, tmp_path) | {"JAX_PLATFORMS": "cpu"}
    run = subprocess.run([sys.executable, "-c", code], env=env, cwd=Path(__file__).parent.parent, capture_output=True, text=True)
    assert run.stdout == "set()\n", run.stderr


@pytest.mark.parametrize("damage", ["bit", "name", "missing", "not finite", "version"])
def test_a_jax_layout_that_is_not_whole_is_left_for_pytorchs(damage: str, hub: Hub, checkpoint: Path, tmp_path: Path, caplog) -> None:
    from safetensors.numpy import load, save

    push(checkpoint)
    files = hub.repos[ID].files
    file, config = "jax/backbone.safetensors", "jax/config.json"
    tensors = {name: tensor.copy() for name, tensor in load(files[file]).items()}
    if damage == "bit":
        files[file] = files[file][:-3] + bytes([files[file][-3] ^ 0x10]) + files[file][-2:]
    elif damage == "name":
        tensors["backbone/encoder/norm/other"] = tensors.pop("backbone/encoder/norm/scale")
        files[file] = save(tensors)
    elif damage == "missing":
        del files[file]
    elif damage == "not finite":
        tensors["backbone/encoder/norm/scale"][1] = np.nan
        files[file] = save(tensors)
    else:
        files[config] = sealed(files[config].decode().replace('"version": 2', '"version": 3')).encode()
    assert_equal(u3d.load_backbone_and_probe(ID), checkpoint)
    expected = {
        "bit": "values differ from the digest",
        "name": "encoder/norm/scale: missing",
        "missing": "lacks backbone.safetensors, which its config.json lists",
        "not finite": "backbone/encoder/norm/scale of .* holds NaN or infinite values",
        "version": "has format version 3",
    }[damage]
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warning.endswith("; using the PyTorch layout beside it")
    assert re.search(expected, warning)
    # Without PyTorch's layout, the damage is what is told.
    hub.repos[ID].files = {name: content for name, content in files.items() if name.startswith("jax/")}
    with pytest.raises(u3d.CheckpointError, match=expected):
        u3d.load_backbone(ID, cache=tmp_path / "empty")


def test_an_interrupted_upload_goes_on_where_it_was(hub: Hub, checkpoint: Path) -> None:
    pushed = push(checkpoint, dry_run=True).files
    large, small = ({name for name in pushed if name.endswith(".safetensors") and ("probes" in name or "unused" in name) == least}
                    for least in (False, True))  # fmt: skip
    hub.uploads.cut_above = max(pushed[name] for name in small)
    with pytest.raises(u3d.OutputError, match="was interrupted .* run this again: what has been sent is not sent again"):
        push(checkpoint)
    assert set(hub.repos[ID].files) == {".gitattributes"} and hub.uploads.commits == [] and not list(checkpoint.parent.glob(".*"))
    assert len(hub.uploads.sent) == len(small) == 3
    hub.uploads.cut_above = None
    push(checkpoint)
    assert set(hub.repos[ID].files) == UPLOADED | {".gitattributes"}
    assert len(hub.uploads.sent) == len(set(hub.uploads.sent)) == len(small) + len(large) == 5
    # Once more: nothing is sent, and there is no empty commit.
    newest = push(checkpoint).url
    assert newest.endswith(hub.repos[ID].commit) and len(hub.uploads.commits) == 1 and len(hub.uploads.sent) == 5


def test_files_that_are_there_stay_unless_overwritten(hub: Hub, checkpoint: Path, tmp_path: Path) -> None:
    mine = {"README.md": b"mine", "notes.txt": b"mine", "model.safetensors": b"left over", "jax/more.txt": b"mine"}
    hub.repos[ID] = Repo(dict(mine))
    with pytest.raises(
        u3d.OutputError, match=f"{ID} holds README.md, model.safetensors, which the upload would replace or remove; give --overwrite"
    ):
        push(checkpoint)
    assert hub.repos[ID].files == mine
    push(checkpoint, overwrite=True)
    # What an earlier upload left over would be read in place of what is there now.
    assert set(hub.repos[ID].files) == UPLOADED | {"notes.txt", "jax/more.txt"}
    with pytest.raises(u3d.OutputError, match="exists and is public, and --private was given"):
        push(checkpoint, private=True)
    hub.uploads.meanwhile = lambda branch: setattr(branch, "commit", "f" * 40)
    with pytest.raises(u3d.OutputError, match="was changed by somebody else during the upload"):
        push(checkpoint, license="cc-by-nc-4.0", overwrite=True)


def test_a_branch_is_made_and_loaded_from(hub: Hub, checkpoint: Path) -> None:
    push(checkpoint, revision="trial")
    assert set(hub.repos[ID].files) == {".gitattributes"} and set(hub.repos[ID].branches["trial"].files) >= UPLOADED
    assert_equal(u3d.load_backbone_and_probe(ID, revision="trial"), checkpoint)
    with pytest.raises(u3d.OutputError, match="is a commit, which never changes; give a branch"):
        push(checkpoint, revision="a" * 40)


@pytest.mark.parametrize(
    ("refusals", "message"),
    [
        (
            {"create": (401, "Invalid username or password.")},
            r"refused the token of HF_TOKEN in the environment for someone/tiny \(401\): it is",
        ),
        ({"commit": (403, "You need write access")}, r"\(403, You need write access\); it needs write permission there"),
        (
            {"batch": (403, "Private repository storage limit reached")},
            r"has no room left for someone/tiny \(Private repository storage limit",
        ),
        ({"batch": (507, "no")}, r"no room left for someone/tiny \(507\); free some storage"),
        ({"put": (413, "5 GB at most")}, r"refused a file of someone/tiny as too large \(413, 5 GB at most\)"),
        ({"preupload": (503, "maintenance")}, r"answered 503 for someone/tiny \(maintenance\); nothing is visible"),
    ],
)
def test_what_the_hub_refuses_is_told_with_what_to_do(refusals: dict, message: str, hub: Hub, checkpoint: Path) -> None:
    hub.uploads.refusals = refusals
    with pytest.raises(u3d.OutputError, match=message) as caught:
        push(checkpoint)
    assert TOKEN not in str(caught.value) and hub.uploads.commits == [] and "\n" not in str(caught.value)


def test_who_may_not_write_is_told(hub: Hub, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(u3d.OutputError, match=r"does not let the token of HF_TOKEN in the environment write to naver/tiny \(403"):
        push(checkpoint, "naver/tiny")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(u3d.OutputError, match=r"refused access without a token for someone/tiny \(401\): log in with a token"):
        push(checkpoint)
    with pytest.raises(u3d.OutputError, match=r"refused the token of --token for someone/tiny \(401\): it is wrong or has expired"):
        push(checkpoint, token="hf_of_last_year")
    with pytest.raises(u3d.OptionError, match="'tiny' is not a repository name; give OWNER/NAME"):
        push(checkpoint, "tiny")
    with pytest.raises(u3d.OutputError, match="'someone/a--b' is not a repository name"):
        push(checkpoint, "someone/a--b")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(u3d.OutputError, match=r"the upload to someone/tiny at http://127.0.0.1:9 was interrupted \(ConnectError"):
        push(checkpoint)
    assert hub.repos == {}


def test_a_dry_run_shows_everything_and_sends_nothing(hub: Hub, checkpoint: Path, tmp_path: Path, capsys) -> None:
    assert main(["--repo", str(checkpoint), "--push", ID, "--dry-run", "--license", LICENCE]) == 0
    shown = capsys.readouterr().out
    assert hub.requests == []
    pushed = push(checkpoint, dry_run=True)
    assert pushed.url is None and shown.startswith(f"to {ID}, branch main:\n") and shown.endswith(f"README.md:\n\n{pushed.card}\n")
    for name in UPLOADED:
        assert f"\n{name} " in shown


def test_the_command_converts_and_uploads_and_goes_on_after_a_failure(hub: Hub, tmp_path: Path, capsys) -> None:
    source, out = save_backbone(tmp_path / "model"), tmp_path / "out"
    (source / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    command = ["--repo", str(source), "--out", str(out), "--push", ID, "--private", "--message", "From the command"]
    hub.uploads.cut_above = 0
    assert main(command) == 2
    made = (out / "config.json").stat().st_mtime_ns
    hub.uploads.cut_above = None
    assert main(command) == 0
    assert capsys.readouterr().out == f"{hub.url}/{ID}/commit/{hub.repos[ID].commit}\n"
    assert (out / "config.json").stat().st_mtime_ns == made and hub.uploads.commits[0]["message"] == "From the command"
    assert yaml.safe_load(hub.repos[ID].files["README.md"].decode().split("---")[1])["license"] == "cc-by-nc-4.0"
    assert set(hub.repos[ID].files) >= {"model.safetensors", "config.json", "jax/backbone.safetensors"}
    # Another source is not taken for what is there.
    (source / "config.json").write_text((source / "config.json").read_text().replace("RoPE100", "RoPE50"))
    assert main(command) == 2 and "is not empty; choose another --out, or give --overwrite" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--push", ID, "--token", "hf_seen_by_all"], "--push takes no --token, which others could read"),
        (["--push", ID, "--offline"], "goes neither with --inspect nor with --offline"),
        (["--push", ID, "--verify"], "is converted already; with --push it takes"),
        (["--dry-run"], "they go with --push OWNER/NAME"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options: list[str], message: str, checkpoint: Path, capsys) -> None:
    assert main(["--repo", str(checkpoint), *options]) == 2
    said = capsys.readouterr().err
    assert message in said and "seen_by_all" not in said


def test_a_damaged_checkpoint_is_not_uploaded(hub: Hub, checkpoint: Path, tmp_path: Path) -> None:
    damaged = shutil.copytree(checkpoint, tmp_path / "damaged")
    flip_a_bit(damaged / "backbone" / "decoder.norm.bias" / "0")
    with pytest.raises(u3d.CheckpointError, match="values differ from the digest"):
        push(damaged)
    assert hub.requests == []


def test_no_folder_of_this_machine_goes_up(hub: Hub, checkpoint: Path, tmp_path: Path) -> None:
    trained = shutil.copytree(checkpoint, tmp_path / "trained")
    content = json.loads((trained / "config.json").read_text())
    content["provenance"]["probes"] |= {
        "kind": "training",
        "training": {
            "step": 3,
            "options": {
                "data": ["0.5*pairs:/home/me/secret/rooms", "co3d:secret/toys", "synthetic:overlap=0.2-0.9"],
                "out": "secret/run",
            },
        },
    }
    (trained / "config.json").write_text(sealed(json.dumps(content)))
    push(trained)
    options = json.loads(hub.repos[ID].files["jax/config.json"])["provenance"]["probes"]["training"]["options"]
    assert options == {"data": ["0.5*pairs:rooms", "co3d:toys", "synthetic:overlap=0.2-0.9"], "out": "run"}
    assert all(
        b"/home/me" not in content and b"secret" not in content and os.fsencode(tmp_path) not in content
        for content in hub.repos[ID].files.values()
    )


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("/a/b/c", "c"),
        ("co3d:/a/b/", "co3d:b"),
        ("0.25*pairs:../x/y", "0.25*pairs:y"),
        ("pairs:private/rooms", "pairs:rooms"),
        ("0.5*co3d:private/me/toys/", "0.5*co3d:toys"),
        ("blendedmvs:mine", "blendedmvs:mine"),
        ("synthetic:overlap=0.2-0.9", "synthetic:overlap=0.2-0.9"),
        ("naver/DUSt3R_x", "naver/DUSt3R_x"),
        ("all", "all"),
    ],
)
def test_folders_above_a_path_are_left_out(value: str, shown: str) -> None:
    assert public_text(value) == shown


def test_a_path_that_is_there_is_one_even_if_it_reads_like_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert public_text("private/model") == "private/model"
    Path("private/model").mkdir(parents=True)
    assert public_text("private/model") == "model"


def test_the_card_says_what_it_is(hub: Hub, checkpoint: Path) -> None:
    card = push(checkpoint).card
    head = yaml.safe_load(card.split("---")[1])
    assert head == {
        "license": LICENCE,
        "library_name": "und3rstand_jax",
        "pipeline_tag": "image-to-3d",
        "tags": ["dust3r", "pointmap", "probes", "jax", "flax"],
    }
    assert f'load_backbone_and_probe("{ID}")' in card and f"{len(LAYERS)} layers, `{LAYERS[0]}` to `{LAYERS[-1]}`" in card
    info = u3d.read_checkpoint_info(checkpoint)
    for part in info.parts:
        assert all(digest in card for digest in info.provenance[part]["sha256"].values())
