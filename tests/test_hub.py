"""The hub side of `und3rstand_jax.convert.sources.source`, with the real huggingface_hub client against a local server.

The client reads its settings at import, so every case runs in a process of its own. `time.sleep` does nothing there: the client's
pauses between retries are not what is tested.
"""

import errno
import hashlib
import io
import json
import logging
import os
import subprocess
import sys
import traceback
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from safetensors.numpy import save, save_file

from tests.hub_server import COMMIT, Hub, Repo, serve
from und3rstand_jax.convert.options import HubAccess
from und3rstand_jax.convert.sources import hub as hub_module
from und3rstand_jax.support.errors import UserError

ID = "someone/dust3r-probes"
WEIGHTS = save({"w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(3, np.float16)})
CONFIG = b'{"depth_mode": ["exp", -Infinity, Infinity]}'
CARD = b"---\nlicense: mit\nbase_model:\n- naver/DUSt3R_ViTLarge_BaseDecoder_512_dpt\n---\n# Probes\n"

LOG_IN = "log in (hf auth login), set HF_TOKEN or pass --token-file"

OPEN = """
import json, sys, time
from pathlib import Path
time.sleep = lambda seconds: None
from und3rstand_jax.convert.options import HubAccess
from und3rstand_jax.convert.sources.source import open_source
from und3rstand_jax.support.errors import UserError
options = json.loads(sys.argv[2])
if "token_file" in options:
    options["token_file"] = Path(options["token_file"])
try:
    source = open_source(sys.argv[1], HubAccess(**options))
except UserError as error:
    print(json.dumps({"error": str(error)}))
else:
    with source.tensors as tensors:
        values = {name: tensors.read(name).tolist() for name in tensors}
        print(json.dumps({"kind": source.kind, "revision": source.revision, "config": source.config, "base_model": source.base_model,
                          "values": values, "sha256": source.sha256()}))
"""


def files() -> dict[str, bytes]:
    extras = {
        "pytorch_model.bin": b"not needed",
        "optimizer.pt": b"not needed",
        "picture.png": b"not needed",
        "logs/run.txt": b"not needed",
    }
    return {"config.json": CONFIG, "README.md": CARD, "model.safetensors": WEIGHTS, **extras}


def environment(url: str, home: Path) -> dict[str, str]:
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING", "HUB_"))}
    settings = {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    timeouts = {"HF_HUB_ETAG_TIMEOUT": "2", "HF_HUB_DOWNLOAD_TIMEOUT": "2", "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1"}
    return inherited | settings | timeouts


def open_in_process(url: str, home: Path, spec: str = ID, env: dict[str, str] | None = None, **options) -> dict:
    command = [sys.executable, "-c", OPEN, spec, json.dumps(options)]
    run = subprocess.run(
        command, env=environment(url, home) | (env or {}), cwd=Path(__file__).parent.parent, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    for secret in (options.get("token"), (env or {}).get("HF_TOKEN"), urlsplit(url).password):
        assert secret is None or secret.strip() not in run.stdout + run.stderr
    return json.loads(run.stdout)


def complete_files(home: Path) -> set[str]:
    """Names of the files that the client's cache offers as complete."""
    return {path.name for path in home.glob("hub/models--*/snapshots/*/*")}


@pytest.fixture
def hub():
    with serve({ID: Repo(files())}) as running:
        yield running


def test_a_repository_is_found_and_only_what_is_needed_is_downloaded(hub: Hub, tmp_path: Path) -> None:
    found = open_in_process(hub.url, tmp_path)
    assert found["kind"] == "hub"
    assert found["revision"] == COMMIT
    assert found["config"] == {"depth_mode": ["exp", -float("inf"), float("inf")]}
    assert found["base_model"] == "naver/DUSt3R_ViTLarge_BaseDecoder_512_dpt"
    assert found["values"] == {"w": [[0, 1, 2], [3, 4, 5]], "b": [1, 1, 1]}
    assert found["sha256"] == {name: hashlib.sha256(files()[name]).hexdigest() for name in ("model.safetensors", "config.json")}
    assert sorted(hub.downloads(ID)) == ["README.md", "config.json", "model.safetensors"]


def test_a_second_run_downloads_nothing_and_offline_needs_no_server(hub: Hub, tmp_path: Path) -> None:
    first = open_in_process(hub.url, tmp_path)
    hub.requests.clear()
    assert open_in_process(hub.url, tmp_path) == first
    assert hub.downloads(ID) == []
    hub.requests.clear()
    assert open_in_process(hub.url, tmp_path, offline=True) == first
    assert open_in_process(hub.url, tmp_path, env={"HF_HUB_OFFLINE": "1"}) == first
    assert open_in_process(hub.url, tmp_path, offline=True, revision=COMMIT) == first
    assert hub.requests == []
    assert open_in_process("http://127.0.0.1:9", tmp_path) == first  # a server that is down: nothing listens on the discard port


def test_cache_option_moves_the_download(hub: Hub, tmp_path: Path) -> None:
    open_in_process(hub.url, tmp_path / "home", hub_cache=str(tmp_path / "elsewhere"))
    assert len(list((tmp_path / "elsewhere").glob("models--*/snapshots/*/model.safetensors"))) == 1
    assert complete_files(tmp_path / "home") == set()


def test_a_revision_is_taken_by_name_and_by_commit_and_a_wrong_one_is_refused(hub: Hub, tmp_path: Path) -> None:
    assert open_in_process(hub.url, tmp_path, revision=COMMIT)["revision"] == COMMIT
    assert open_in_process(hub.url, tmp_path, revision="main")["revision"] == COMMIT
    error = open_in_process(hub.url, tmp_path, revision="v9")["error"]
    assert error == f"{ID} has no revision 'v9'; choose a branch, tag or commit of {hub.url}/{ID}/commits"


def test_a_missing_repository(hub: Hub, tmp_path: Path) -> None:
    error = open_in_process(hub.url, tmp_path, spec="nobody/nothing")["error"]
    assert error.startswith(
        f"there is no file or folder nobody/nothing, and {hub.url} has no repository nobody/nothing that you may see; check the name"
    )


def test_a_gated_repository_without_and_with_token(hub: Hub, tmp_path: Path) -> None:
    hub.repos[ID].gated, hub.repos[ID].token = True, "hf_right"
    error = open_in_process(hub.url, tmp_path)["error"]
    assert error == f"{ID} is gated: ask for access at {hub.url}/{ID}, then {LOG_IN}"
    assert "the token of --token was refused: it may have expired" in open_in_process(hub.url, tmp_path, token="hf_wrong")["error"]
    assert complete_files(tmp_path) == set()
    assert open_in_process(hub.url, tmp_path, token="hf_right")["values"]["b"] == [1, 1, 1]
    assert open_in_process(hub.url, tmp_path / "other", env={"HF_TOKEN": "hf_right"})["revision"] == COMMIT


def test_a_private_repository_without_and_with_token(hub: Hub, tmp_path: Path) -> None:
    hub.repos[ID].private, hub.repos[ID].token = True, "hf_right"
    error = open_in_process(hub.url, tmp_path)["error"]
    assert "has no repository" in error and error.endswith(f"{LOG_IN} if it is private")
    error = open_in_process(hub.url, tmp_path, env={"HF_TOKEN": "of-last-year"})["error"]
    assert error.endswith("; the token of HF_TOKEN in the environment does not open it, or has expired")
    (tmp_path / "token.txt").write_text("hf_right\n")
    assert open_in_process(hub.url, tmp_path, token_file=str(tmp_path / "token.txt"))["revision"] == COMMIT
    assert open_in_process(hub.url, tmp_path, token="hf_right")["revision"] == COMMIT


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, f"the hub refused the token of HF_TOKEN in the environment for {ID} (401), which may have expired; remove it, or {LOG_IN}"),
        (403, f"the hub forbids access to {ID} (403) with the token of HF_TOKEN in the environment, which must have read permission"),
        (429, f"the hub reports too many requests for {ID} (429); wait some minutes, or log in for a higher limit (hf auth login)"),
        (503, f"the hub answered 503 for {ID} ("),
    ],
)
def test_files_that_the_hub_does_not_hand_out(hub: Hub, tmp_path: Path, status: int, message: str) -> None:
    hub.repos[ID].status = status
    assert open_in_process(hub.url, tmp_path, env={"HF_TOKEN": "of-no-usual-form"})["error"].startswith(message)


def test_an_interrupted_download_is_resumed(hub: Hub, tmp_path: Path) -> None:
    hub.repos[ID].cut = {"model.safetensors": 2}
    assert open_in_process(hub.url, tmp_path)["sha256"]["model.safetensors"] == hashlib.sha256(WEIGHTS).hexdigest()
    assert hub.downloads(ID).count("model.safetensors") == 3


def test_a_download_that_never_completes_is_an_error_and_leaves_nothing_to_use(hub: Hub, tmp_path: Path) -> None:
    hub.repos[ID].cut = {"model.safetensors": 1000}
    error = open_in_process(hub.url, tmp_path)["error"]
    assert error.startswith(f"download of {ID} was interrupted (") and error.endswith("nothing partial is used; run this again")
    assert complete_files(tmp_path) == {"config.json", "README.md"}
    error = open_in_process(hub.url, tmp_path, offline=True)["error"]
    assert "holds no tensor file" in error and "found README.md, config.json" in error and "run this again with a network" in error
    hub.repos[ID].cut = {}
    assert open_in_process(hub.url, tmp_path)["values"]["b"] == [1, 1, 1]


@pytest.mark.parametrize("settings", [{"offline": True}, {"env": {"HF_HUB_OFFLINE": "1"}}])
def test_offline_without_cache(hub: Hub, tmp_path: Path, settings: dict) -> None:
    error = open_in_process(hub.url, tmp_path, **settings)["error"]
    assert (
        error.startswith("offline mode is on")
        and f"{ID} is neither a file or folder here, nor in the cache; run this again with a network" in error
    )
    assert hub.requests == []


def test_a_server_that_is_down(tmp_path: Path) -> None:
    error = open_in_process("http://127.0.0.1:9", tmp_path)["error"]
    assert error.startswith("cannot reach http://127.0.0.1:9 (ConnectError") and "nor in the cache" in error


def test_a_server_that_is_no_hub(hub: Hub, tmp_path: Path) -> None:
    hub.portal = True
    error = open_in_process(hub.url, tmp_path)["error"]
    assert error.startswith(f"cannot download {ID} from {hub.url} (JSONDecodeError") and error.endswith(
        "check the network, HF_ENDPOINT and HF_HOME"
    )


def test_a_repository_without_tensors_lists_what_it_holds(hub: Hub, tmp_path: Path) -> None:
    hub.repos[ID] = Repo({"config.json": CONFIG, "notes.txt": b"x"})
    error = open_in_process(hub.url, tmp_path)["error"]
    assert "holds no tensor file" in error and "found config.json, notes.txt" in error
    assert hub.downloads(ID) == []


def test_a_faulty_config_is_found_before_the_tensors_are_downloaded(hub: Hub, tmp_path: Path) -> None:
    hub.repos[ID].files["config.json"] = b"{"
    assert "is not as expected: invalid JSON" in open_in_process(hub.url, tmp_path)["error"]
    assert hub.downloads(ID) == ["config.json"]


def sharded() -> dict[str, bytes]:
    shards = {f"model-0000{i}-of-00002.safetensors": save({f"w{i}": np.full(2, i, np.float32)}) for i in (1, 2)}
    index = {"weight_map": {"w1": "model-00001-of-00002.safetensors", "w2": "model-00002-of-00002.safetensors"}}
    return {**shards, "model.safetensors.index.json": json.dumps(index).encode(), "consolidated.safetensors": b"not needed"}


def test_the_shards_an_index_names_are_downloaded_and_no_others(hub: Hub, tmp_path: Path) -> None:
    hub.repos[ID] = Repo(sharded())
    found = open_in_process(hub.url, tmp_path)
    assert found["values"] == {"w1": [1, 1], "w2": [2, 2]} and found["config"] is None
    assert sorted(hub.downloads(ID)) == sorted(sharded().keys() - {"consolidated.safetensors"})


def test_a_shard_that_the_repository_lacks(hub: Hub, tmp_path: Path) -> None:
    hub.repos[ID] = Repo(sharded())
    del hub.repos[ID].files["model-00002-of-00002.safetensors"]
    assert "its index names model-00002-of-00002.safetensors, which is missing" in open_in_process(hub.url, tmp_path)["error"]


def test_a_path_that_exists_goes_before_the_hub(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from und3rstand_jax.convert.sources.source import open_source

    monkeypatch.chdir(tmp_path)
    Path(ID).mkdir(parents=True)
    save_file({"local": np.zeros(1, np.float32)}, f"{ID}/model.safetensors")
    source = open_source(ID)
    assert (source.kind, source.revision, list(source.tensors)) == ("folder", None, ["local"])


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def full(*args: object, **options: object) -> str:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("huggingface_hub.hf_hub_download", full)
    with pytest.raises(UserError, match=f"disk full while downloading {ID}; free some space"):
        hub_module._download(ID, "model.safetensors", COMMIT, HubAccess())


def test_a_repository_that_changes_during_the_download(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *args, **options: f"/cache/snapshots/{'f' * 40}/model.safetensors")
    with pytest.raises(UserError, match=f"{ID} changed during the download"):
        hub_module._download(ID, "model.safetensors", COMMIT, HubAccess())


# Secrets


@pytest.mark.parametrize("form", ["message", "interrupted", "server that is down"])
def test_a_password_in_the_address_is_never_shown(hub: Hub, tmp_path: Path, form: str) -> None:
    url = hub.url.replace("://", "://reader:pass@word@" if form == "message" else "://reader:secretword@")
    if form == "server that is down":
        url = "http://reader:secretword@127.0.0.1:9"
    hub.repos[ID].cut = {"model.safetensors": 1000} if form == "interrupted" else {}
    error = open_in_process(url, tmp_path, spec="nobody/nothing" if form == "message" else ID)["error"]
    assert (
        ("***@" in error or form == "interrupted") and "secretword" not in error and "pass" not in error
    )  # open_in_process looks at the log lines too


@pytest.mark.parametrize("token", ["two words", "line\nbreak", "", "s\u00fcss"])
def test_a_token_that_cannot_be_one_is_refused_unseen(token: str, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(token)
    for access in (HubAccess(token=token), HubAccess(token_file=tmp_path / "token")):
        with pytest.raises(
            UserError, match="^--token.* holds (no token|more than a token, which is one word of ASCII characters)$"
        ) as caught:
            _ = access.secret
        assert not token or token not in str(caught.value)
    with pytest.raises(UserError, match="were both given"):
        _ = HubAccess(token="a", token_file=tmp_path / "token").secret
    assert "sesame" not in repr(HubAccess(token="sesame"))


def test_a_cause_with_a_secret_in_it_does_not_go_along(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> str:
        logging.getLogger("huggingface_hub.file_download").warning("sending %s", "Bearer open-sesame")
        raise ValueError("Illegal header value b'Bearer open-sesame'")

    heard = io.StringIO()
    handler = logging.StreamHandler(heard)
    logger = logging.getLogger("huggingface_hub")
    level = logger.level  # a command that ran earlier in this process has silenced it
    logger.setLevel(logging.WARNING)
    logger.addHandler(handler)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    try:
        with pytest.raises(UserError) as caught:
            hub_module._download(ID, "model.safetensors", COMMIT, HubAccess(token="open-sesame"))
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    assert heard.getvalue() == "sending Bearer ***\n"
    assert "Illegal header value b'Bearer ***'" in str(caught.value)
    assert "sesame" not in "".join(traceback.format_exception(caught.value)).replace('token="open-sesame"', "")


# A stranger's base model


@pytest.mark.parametrize("place", ["card", "config"])
def test_a_path_as_base_model_of_a_repository_is_named_and_not_read(hub: Hub, tmp_path: Path, place: str) -> None:
    private = tmp_path / "private.safetensors"
    save_file({"patch_embed.proj.weight": np.zeros((1, 3, 2, 2), np.float32)}, private)
    probe = save({"probes.0.mlp.0.weight": np.zeros((1024, 16), np.float32)})
    card, config = (str(private), None) if place == "card" else (None, str(private))
    content = {"README.md": f"---\nbase_model: {card}\n---\n".encode(), "config.json": json.dumps({"base_model": config}).encode()}
    hub.repos[ID] = Repo({"model.safetensors": probe, **content})
    command = [sys.executable, "-m", "convert", "--repo", ID, "--inspect"]
    env = environment(hub.url, tmp_path / "home") | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    run = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 2
    assert run.stderr.startswith(f"error: {ID} names '{private}' as its base model, ignored: a hub repository may name hub ids, not paths")
    # A hub id that is also a path here is that of the hub.
    content["config.json"] = json.dumps({"base_model": "my/model"}).encode()
    hub.repos[ID] = Repo({"model.safetensors": probe, **content})
    (tmp_path / "my" / "model").mkdir(parents=True)
    private.rename(tmp_path / "my" / "model" / "model.safetensors")
    env["HF_HOME"] = str(tmp_path / "another")
    run = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)
    assert run.stderr.startswith(f"error: {hub.url} has no repository my/model that you may see"), run.stderr
