"""Uploads files to a repository on the Hugging Face hub, in one commit, through the `huggingface_hub` client.

It uses `create_commit`, not `upload_folder`: the latter makes several commits when it uploads through Xet, so others could see half of it.
Whatever an interrupted upload has sent stays on the hub and is not sent again.
"""

import contextlib
import errno
import hashlib
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from und3rstand_jax.convert.options import HubAccess
from und3rstand_jax.convert.sources.hub import first_line, http_error, without_progress_bars
from und3rstand_jax.convert.sources.secrets import Secrets
from und3rstand_jax.support.errors import OutputError
from und3rstand_jax.support.text import listed, one_line

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import ModelInfo, RepoSibling

MAIN = "main"
_COMMIT = re.compile("[0-9a-f]{40}")
_LOG_IN = "log in with a token that may write (hf auth login), or set HF_TOKEN"


class Target(NamedTuple):
    """Where files go, and how.

    Attributes:
        repo_id: owner/name.
        access: token, and branch (`revision`), which is created if it does not exist.
        message: the commit message.
        private: whether a new repository is created private; an existing one must then be private.
        overwrite: whether files of the repository may be replaced, and removed if they are `own`.
    """

    repo_id: str
    access: HubAccess
    message: str
    private: bool
    overwrite: bool


def upload(target: Target, files: Mapping[str, Path], own: Collection[str], progress: bool) -> str:
    """Creates the repository if it does not exist, and commits all files at once.

    Args:
        target: where they go.
        files: path in the repository -> file.
        own: paths that belong to uploads of this kind: those in the repository but not in `files` are left over from an earlier upload.
        progress: whether a terminal shows progress bars.

    Returns:
        The commit's URL; that of the newest commit if the repository already holds exactly these files.

    Raises:
        OutputError: the hub refuses the upload or cannot be reached, or the repository holds other files under these paths.
    """
    secrets = Secrets.of(target.access)
    from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi

    repo_id, branch = target.repo_id, target.access.revision
    if branch is not None and _COMMIT.fullmatch(branch):
        raise OutputError(f"--revision {branch} is a commit, which never changes; give a branch, or leave it out for {MAIN}")
    api = HfApi(token=target.access.secret)
    try:
        with secrets.hidden_in_logs(), contextlib.nullcontext() if progress else without_progress_bars():
            found = _repository(api, target)
            left_over = _compare(target, found, files, own)
            operations: list[CommitOperationAdd | CommitOperationCopy | CommitOperationDelete] = [
                *(CommitOperationDelete(path, is_folder=False) for path in left_over),
                *(CommitOperationAdd(path, str(file)) for path, file in files.items()),
            ]
            # Whatever somebody else commits in the meantime is not overwritten: the hub refuses a commit on another parent.
            commit = api.create_commit(
                repo_id, operations, commit_message=target.message, revision=branch, parent_commit=found.sha, repo_type="model"
            )
    except OutputError:
        raise
    except (OSError, ValueError, RuntimeError, http_error()) as error:  # RuntimeError: a file that could not be uploaded
        secrets.raise_error(_explain(error, target), error, OutputError)
    return str(commit.commit_url)


def _repository(api: "HfApi", target: Target) -> "ModelInfo":
    """The contents of the repository's branch; creates both if they do not exist."""
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    repo_id, branch = target.repo_id, target.access.revision
    try:
        info = api.model_info(repo_id, files_metadata=True)
    except RepositoryNotFoundError:
        api.create_repo(repo_id, private=target.private, exist_ok=True)
        info = api.model_info(repo_id, files_metadata=True)
    if target.private and not info.private:
        raise OutputError(
            f"{repo_id} exists and is public, and --private was given; make it private in its settings, or choose another name"
        )
    if branch in (None, MAIN):
        return info
    try:
        return api.model_info(repo_id, revision=branch, files_metadata=True)
    except RevisionNotFoundError:
        api.create_branch(repo_id, branch=branch, exist_ok=True)
        return api.model_info(repo_id, revision=branch, files_metadata=True)


def _compare(target: Target, found: "ModelInfo", files: Mapping[str, Path], own: Collection[str]) -> list[str]:
    """The files of an earlier upload that must be removed.

    Raises:
        OutputError: a file would be replaced or removed, but `overwrite` is off.
    """
    there = {sibling.rfilename: sibling for sibling in found.siblings or []}
    differing = [path for path, file in files.items() if path in there and not _is_equal(there[path], file)]
    left_over = sorted(path for path in there if path in own and path not in files)
    if (differing or left_over) and not target.overwrite:
        raise OutputError(
            f"{target.repo_id} holds {listed([*differing, *left_over], most=3)}, which the upload would replace or remove; "
            "give --overwrite to allow that (its other files stay), or choose another name or --revision"
        )
    return left_over


def _is_equal(held: "RepoSibling", file: Path) -> bool:
    """Whether a file in the repository has the same bytes as a local one, by the digests that the hub lists."""
    if held.size is not None and held.size != file.stat().st_size:
        return False
    if held.lfs is not None:
        digest = hashlib.sha256()
        expected = held.lfs.sha256
    else:
        digest = hashlib.sha1(f"blob {file.stat().st_size}\0".encode(), usedforsecurity=False)  # Git's hash of a file
        expected = held.blob_id or ""
    with file.open("rb") as stream:
        while block := stream.read(2**20):
            digest.update(block)
    return digest.hexdigest() == expected


def _explain(error: BaseException, target: Target) -> str:
    """One line that says what the hub refused or how the upload failed, and what to do."""
    from huggingface_hub import constants, errors

    if isinstance(error, RuntimeError) and error.__cause__ is not None:  # "Error while uploading …", from what went wrong
        return _explain(error.__cause__, target)
    repo_id, hub, reason = target.repo_id, constants.ENDPOINT, one_line(first_line(error))
    origin = target.access.token_origin
    token = f"the token of {origin}" if origin else "access without a token"
    again = "nothing is visible on the hub; run this again: what has been sent is not sent again"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return f"nothing was uploaded to {repo_id}: offline mode is on (HF_HUB_OFFLINE); unset it"
    if isinstance(error, errors.HFValidationError):
        return f"{repo_id!r} is not a repository name: {reason}; give OWNER/NAME"
    said = one_line(str(getattr(error, "server_message", None) or error))
    if any(word in said.lower() for word in ("quota", "storage limit", "storage space")):
        return f"the hub has no room left for {repo_id} ({said}); free some storage at {hub}/settings/billing, or upload elsewhere"
    if isinstance(error, errors.GatedRepoError):
        return f"{repo_id} is gated: ask for access at {hub}/{repo_id}, then {_LOG_IN}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repo_id} has no branch {target.access.revision!r}, and it cannot be created; create it at {hub}/{repo_id}"
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
        refused = f"the hub refused {token} for {repo_id} (401): " + ("it is wrong or has expired; " if origin else "") + _LOG_IN
        return {
            401: refused,
            402: f"the hub requires payment for {repo_id} (402, {said}); see {hub}/settings/billing",
            403: f"the hub does not let {token} write to {repo_id} (403, {said}); it needs write permission there",
            404: f"{hub} has no repository {repo_id} that {token} may write to; check the name, or {_LOG_IN}",
            409: f"{repo_id} is being written by somebody else (409, {said}); run this again",
            412: f"{repo_id} was changed by somebody else during the upload (412); nothing was replaced: look at it, then run this again",
            413: f"the hub refused a file of {repo_id} as too large (413, {said}); nothing was committed: ask the hub's support for more",
            429: f"the hub reports too many requests for {repo_id} (429); wait some minutes, then run this again",
            507: f"the hub has no room left for {repo_id} (507); free some storage at {hub}/settings/billing, or upload elsewhere",
        }.get(status, f"the hub answered {status} for {repo_id} ({said}); {again}")
    if isinstance(error, http_error()):
        return f"the upload to {repo_id} at {hub} was interrupted ({type(error).__name__}: {reason}); {again}"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"disk full while uploading to {repo_id}; free some space and run this again"
    return f"cannot upload to {repo_id} at {hub} ({type(error).__name__}: {one_line(str(error))}); {again}"
