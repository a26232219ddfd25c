"""The write side of the local hub of `tests.hub_server`: what the client of huggingface_hub 2.4 sends to make a commit, without Xet.

POST /api/repos/create, /api/models/ID/branch/NAME      a repository, a branch
POST /api/validate-yaml                                 the header of a model card
POST /api/models/ID/preupload/REV                       which files are large, and what is there of the others
POST /ID.git/info/lfs/objects/batch, PUT /lfs/OID, POST /lfs/verify    large files, each sent unless the hub has its bytes
POST /api/models/ID/commit/REV                          lines of JSON: a header, then a file or a deletion each
"""

import base64
import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from tests.hub_server import Hub, Repo

LICENCES = ("apache-2.0", "mit", "cc-by-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "other")
ROUTES = {
    "create": re.compile(r"/api/repos/create"),
    "validate": re.compile(r"/api/validate-yaml"),
    "branch": re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)/branch/(?P<revision>.+)"),
    "preupload": re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)/preupload/(?P<revision>.+)"),
    "commit": re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)/commit/(?P<revision>.+)"),
    "batch": re.compile(r"/(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch"),
    "verify": re.compile(r"/lfs/verify"),
    "put": re.compile(r"/lfs/(?P<oid>[0-9a-f]{64})"),
}


@dataclass
class Uploads:
    """What can be written, by whom, and what goes wrong.

    `writers` are tokens -> the owner that each may write for. `objects` are the large files that were sent, SHA-256 -> bytes, of any
    repository, `sent` their order. The connection of a large file of more than `cut_above` bytes drops after half of it. `refusals` are
    steps (`ROUTES`) -> status and message. `meanwhile` is called before a commit, as if somebody else had been faster.
    """

    writers: dict[str, str] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    cut_above: int | None = None
    refusals: dict[str, tuple[int, str]] = field(default_factory=dict)
    meanwhile: Any = None
    commits: list[dict[str, Any]] = field(default_factory=list)
    sent: list[str] = field(default_factory=list)


def git_name(content: bytes) -> str:
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


def is_large(name: str) -> bool:
    return name.endswith(".safetensors")


def listed(name: str, content: bytes) -> dict[str, Any]:
    """A file in a listing with metadata."""
    lfs = {"lfs": {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}} if is_large(name) else {}
    return {"rfilename": name, "size": len(content), "blobId": git_name(content), **lfs}


class Refusal(Exception):
    """An answer with an error: status, code, message."""


def answer(hub: "Hub", step: str, match: re.Match[str], body: bytes, token: str | None, cut: bool) -> dict[str, Any]:
    """What the hub says to a request that writes.

    Raises:
        Refusal: it says no.
        ConnectionAbortedError: the connection breaks.
    """
    from tests.hub_server import Repo

    uploads = hub.uploads
    if step in uploads.refusals:
        raise Refusal(uploads.refusals[step][0], None, uploads.refusals[step][1])
    if step == "put":
        return _put(uploads, match["oid"], body, cut)
    if step == "validate":
        return _validate(json.loads(body)["content"])
    if token not in uploads.writers:
        raise Refusal(401, None, "Invalid username or password.")
    owner = uploads.writers[token]
    if step == "verify":
        asked = json.loads(body)
        if len(uploads.objects.get(asked["oid"], b"")) != asked["size"]:
            raise Refusal(404, None, "not uploaded")
        return {}
    asked = json.loads(body) if step != "commit" else {}
    repo_id = f"{asked['organization']}/{asked['name']}" if step == "create" else match["repo"]
    if repo_id.partition("/")[0] != owner:
        raise Refusal(403, None, f"You don't have the rights to write under the namespace of {repo_id}")
    if step == "create":
        if repo_id in hub.repos:
            raise Refusal(409, None, "You already created this model repo")
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        hub.repos[repo_id] = Repo({".gitattributes": b"*.safetensors filter=lfs\n"}, private=private, token=token)
        return {"url": f"{hub.url}/{repo_id}", "name": repo_id}
    repo = hub.repos[repo_id]
    if step == "branch":
        repo.branches[match["revision"]] = Repo(dict(repo.files), commit=repo.commit)
        return {}
    if step == "batch":
        return {"transfer": "basic", "objects": [_to_send(hub, item) for item in asked["objects"]]}
    branch = repo.at(match["revision"])
    if branch is None:
        raise Refusal(404, "RevisionNotFound", "Invalid rev id")
    if step == "preupload":
        return {"files": [_mode(branch, file["path"]) for file in asked["files"]]}
    return _commit(hub, repo_id, branch, [json.loads(line) for line in body.splitlines()])


def _put(uploads: Uploads, oid: str, body: bytes, cut: bool) -> dict[str, Any]:
    if cut:
        raise ConnectionAbortedError
    if hashlib.sha256(body).hexdigest() != oid:
        raise Refusal(400, None, "other bytes than announced")
    uploads.objects[oid] = body
    uploads.sent.append(oid)
    return {}


def _validate(card: str) -> dict[str, Any]:
    head = yaml.safe_load(card.split("---")[1])
    if head.get("license") not in (None, *LICENCES):
        raise Refusal(400, None, f'"license" must be one of {LICENCES}')
    assert isinstance(head.get("tags", []), list) and isinstance(head.get("base_model", []), str | list)
    return {"errors": [], "warnings": []}


def _to_send(hub: "Hub", item: dict[str, Any]) -> dict[str, Any]:
    if item["oid"] in hub.uploads.objects:
        return item
    return item | {"actions": {"upload": {"href": f"{hub.url}/lfs/{item['oid']}"}, "verify": {"href": f"{hub.url}/lfs/verify"}}}


def _mode(branch: "Repo", path: str) -> dict[str, Any]:
    held = branch.files.get(path)
    name = None if held is None else hashlib.sha256(held).hexdigest() if is_large(path) else git_name(held)
    return {"path": path, "uploadMode": "lfs" if is_large(path) else "regular", "shouldIgnore": False, "oid": name}


def _commit(hub: "Hub", repo_id: str, branch: "Repo", lines: list[dict[str, Any]]) -> dict[str, Any]:
    if hub.uploads.meanwhile is not None:
        hub.uploads.meanwhile(branch)
    header = lines[0]["value"]
    if header.get("parentCommit", branch.commit) != branch.commit:
        raise Refusal(412, None, "A commit has happened since. Please refresh and try again.")
    files = dict(branch.files)
    for line in lines[1:]:
        value = line["value"]
        match line["key"]:
            case "file":
                files[value["path"]] = base64.b64decode(value["content"])
            case "lfsFile":
                files[value["path"]] = hub.uploads.objects[value["oid"]]
            case "deletedFile":
                del files[value["path"]]
            case other:
                raise AssertionError(other)
    branch.files, branch.commit = files, hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
    hub.uploads.commits.append({"message": header["summary"], "paths": [line["value"]["path"] for line in lines[1:]]})
    return {"commitUrl": f"{hub.url}/{repo_id}/commit/{branch.commit}", "commitOid": branch.commit, "success": True}
