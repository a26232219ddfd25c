"""A small local server that speaks as much of the Hugging Face hub's protocol as its client needs to fetch and upload model files.

Give its `url` to a client as HF_ENDPOINT. The requests follow huggingface_hub 1.33 and 2.4: `GET /api/models/ID[/revision/REV]` for the
commit and the list of files, then `HEAD` and `GET /ID/resolve/REV/FILE` with ETag, X-Repo-Commit and ranges. What writes is in
`tests.hub_uploads`.
"""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tests.hub_uploads import ROUTES, Refusal, Uploads, answer, listed

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Repo:
    """One repository: file name -> content, at one commit that `main` and the commit itself stand for.

    A gated repository shows its listing to everybody and its files only with `token`; a private one hides both.
    `cut` drops the connection in the middle of a file: file name -> how often;
    `status` answers every request for a file with an error.
    """

    files: dict[str, bytes]
    commit: str = COMMIT
    gated: bool = False
    private: bool = False
    token: str | None = None
    cut: dict[str, int] = field(default_factory=dict)
    status: int | None = None
    branches: dict[str, "Repo"] = field(default_factory=dict)

    def at(self, revision: str | None) -> "Repo | None":
        """What a branch or a commit holds; None where there is none of that name."""
        if revision in (None, "main", self.commit):
            return self
        return next((branch for name, branch in self.branches.items() if revision in (name, branch.commit)), None)

    @classmethod
    def of_folder(cls, folder: Path) -> "Repo":
        """A repository with the files of a folder."""
        return cls({path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()})


class Hub:
    """The running server: its address, its repositories (to be changed at will), and the requests it has seen.

    As a `portal` it answers everything with a page in HTML, as the log-in page of a hotel's network does.
    """

    def __init__(self, url: str, repos: dict[str, Repo]) -> None:
        self.url = url
        self.repos = repos
        self.requests: list[tuple[str, str]] = []
        self.portal = False
        self.uploads = Uploads()

    def downloads(self, repo_id: str) -> list[str]:
        """Names of the files that were asked for with GET, in order."""
        pattern = re.compile(rf"/{re.escape(repo_id)}/resolve/[^/]+/(.+)")
        return [match[1] for method, path in self.requests if method == "GET" and (match := pattern.fullmatch(path))]


@contextmanager
def serve(repos: dict[str, Repo]) -> Iterator[Hub]:
    """Runs the server on a free port of 127.0.0.1 until the block ends."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    server.hub = Hub(f"http://127.0.0.1:{server.server_address[1]}", repos)  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server.hub  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


_API = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+?)(?:/revision/(?P<revision>.+))?")
_FILE = re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._write()

    def do_PUT(self) -> None:
        self._write()

    def _write(self) -> None:
        hub: Hub = self.server.hub  # type: ignore[attr-defined]
        path = unquote(urlsplit(self.path).path)
        hub.requests.append((self.command, path))
        step, match = next((step, match) for step, route in ROUTES.items() if (match := route.fullmatch(path)))
        length = int(self.headers["Content-Length"])
        token = self.headers.get("Authorization", "").removeprefix("Bearer ") or None
        if cut := step == "put" and hub.uploads.cut_above is not None and length > hub.uploads.cut_above:
            length //= 2
        try:
            content = answer(hub, step, match, self.rfile.read(length), token, cut)
        except Refusal as refusal:
            return self._refuse(*refusal.args)
        except ConnectionAbortedError:
            self.close_connection = True
            return self.connection.close()
        self._send(json.dumps(content).encode(), {"Content-Type": "application/json"})

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on stderr: `requests` is the log."""

    def _answer(self) -> None:
        hub: Hub = self.server.hub  # type: ignore[attr-defined]
        path = unquote(urlsplit(self.path).path)
        hub.requests.append((self.command, path))
        if hub.portal:
            return self._send(b"<html>Log in to the network</html>", {"Content-Type": "text/html"})
        match = _API.fullmatch(path) or _FILE.fullmatch(path)
        repo = hub.repos.get(match["repo"]) if match else None
        if match is None or repo is None:
            return self._refuse(404, "RepoNotFound", "Repository not found")
        granted = repo.token is not None and self.headers.get("Authorization") == f"Bearer {repo.token}"
        branch = repo.at(match["revision"])
        if repo.private and not granted:
            return self._refuse(401, "RepoNotFound", "Invalid username or password.")
        if branch is None:
            return self._refuse(404, "RevisionNotFound", "Invalid rev id")
        if match.re is _API:
            held = [listed(name, content) for name, content in branch.files.items()]
            listing = {"id": match["repo"], "sha": branch.commit, "private": repo.private, "siblings": held}
            return self._send(json.dumps(listing).encode(), {"Content-Type": "application/json"})
        if repo.gated and not granted:
            return self._refuse(401, "GatedRepo", "Access to this model is restricted.")
        if repo.status is not None:
            return self._refuse(repo.status, None, "refused")
        if match["file"] not in branch.files:
            return self._refuse(404, "EntryNotFound", "Entry not found")
        self._send_file(repo, branch, match["file"])

    def _send_file(self, repo: Repo, branch: Repo, name: str) -> None:
        content = branch.files[name]
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": branch.commit, "Accept-Ranges": "bytes"}
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(asked[1]) if asked else 0
        if asked:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        rest = content[start:]
        if self.command == "GET" and repo.cut.get(name, 0) > 0:
            repo.cut[name] -= 1
            # The first cut comes after half of the file; later ones send nothing more, so the client sees no progress.
            self._send(rest, headers, status=206 if asked else 200, sent=0 if asked else len(rest) // 2)
            self.close_connection = True
        else:
            self._send(rest, headers, status=206 if asked else 200)

    def _refuse(self, status: int, code: str | None, message: str) -> None:
        self._send(b"{}", {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {}), status=status)

    def _send(self, body: bytes, headers: dict[str, str], *, status: int = 200, sent: int | None = None) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:sent])
