"""Files of a repository on the Hugging Face hub, through the `huggingface_hub` client: its login, its cache, its offline mode.

The client is imported inside functions: it is slow to load, and reads HF_ENDPOINT, HF_HOME and the like once, at import. Its messages
and log lines contain URLs and headers: secrets in them are removed before they are shown (`secrets.py`).
"""

import contextlib
import dataclasses
import errno
import logging
from collections.abc import Iterator
from pathlib import Path

from und3rstand_jax.convert.options import HubAccess
from und3rstand_jax.convert.sources.layout import Location, local_folder
from und3rstand_jax.convert.sources.secrets import Secrets
from und3rstand_jax.support.errors import CheckpointError
from und3rstand_jax.support.progress import is_quiet

_logger = logging.getLogger(__name__)


def open_repository(repo_id: str, access: HubAccess, progress: bool, hub_only: bool = False) -> tuple[Location, str]:
    """The files of a repository, none of them downloaded yet, and the commit that `access.revision` stands for.

    Without a network, or offline (by option or `HF_HUB_OFFLINE`), the cached copy is used, as by the client's own functions.

    Args:
        repo_id: owner/name.
        access: how the hub is reached.
        progress: whether downloads show progress bars.
        hub_only: whether `repo_id` cannot mean a local path; otherwise, messages say that there is no such path.

    Raises:
        CheckpointError: there is no such repository or revision, access is refused, or it is neither reachable nor cached.
        OptionError: the token is malformed.
    """
    secrets = Secrets.of(access)
    no_path = "" if hub_only else f"there is no file or folder {repo_id}, and "
    if access.offline:
        return _cached(repo_id, access, "offline mode is on", no_path, secrets)
    from huggingface_hub import HfApi, constants

    try:
        with secrets.hidden_in_logs():
            info = HfApi(token=access.secret).model_info(repo_id, revision=access.revision, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except (OSError, ValueError, http_error()) as error:
        reason = _unreachable(error)
        if reason is None:
            secrets.raise_error(explain(error, repo_id, access, no_path), error)
        return _cached(repo_id, access, reason, no_path, secrets)
    if not info.sha:
        raise CheckpointError(f"{constants.ENDPOINT} gives no commit for {repo_id}; check that HF_ENDPOINT is a hub")
    commit, files = info.sha, [file.rfilename for file in info.siblings or []]

    def fetch(name: str) -> Path:
        with contextlib.nullcontext() if progress and not is_quiet() else without_progress_bars():
            return _download(repo_id, name, commit, access)

    def location(folder: str) -> Location:
        place = f"{folder}/" if folder else ""
        inside = [name.removeprefix(place) for name in files if name.startswith(place)]
        return Location(
            f"hub repository {repo_id} (commit {commit[:12]}{f', folder {folder}' if folder else ''})",
            tuple(name for name in inside if "/" not in name),
            lambda name: fetch(place + name),
            "ask its authors, or give another repository",
            folders=frozenset(name.partition("/")[0] for name in inside if "/" in name),
            enter=lambda name: location(place + name),
        )

    return location(""), commit


def _cached(repo_id: str, access: HubAccess, reason: str, no_path: str, secrets: Secrets) -> tuple[Location, str]:
    """The copy of a repository in the client's cache, with the files it happens to hold."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    remedy = "run this again with a network, or give a local folder or file"
    try:
        # Asking for no files finds the snapshot without demanding those we do not need.
        found = Path(
            snapshot_download(repo_id, revision=access.revision, cache_dir=access.hub_cache, local_files_only=True, allow_patterns=[])
        )
    except (LocalEntryNotFoundError, HFValidationError) as error:
        at = f" at revision {access.revision}" if access.revision else ""
        nor = f"neither a file or folder here, nor{at} in the cache" if no_path else f"not{at} in the cache"
        secrets.raise_error(f"{reason} and {repo_id} is {nor}; {remedy}", error)
    reason = secrets.hide(reason)
    _logger.warning("%s; using the cached copy of %s, commit %s", reason, repo_id, found.name)
    label = f"the cached copy of {repo_id} (commit {found.name[:12]}; {reason})"

    def location(place: Path) -> Location:
        held = local_folder(place)
        return dataclasses.replace(held, label=label, remedy=remedy, strict=False, enter=lambda name: location(place / name))

    return location(found), found.name


@contextlib.contextmanager
def without_progress_bars() -> Iterator[None]:
    """Keeps the client's own progress bars off stderr while its block runs."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def _download(repo_id: str, name: str, commit: str, access: HubAccess) -> Path:
    from huggingface_hub import hf_hub_download

    secrets = Secrets.of(access)
    try:
        # By the revision's name, not its commit: only then does the client's cache record what the name stands for, for offline use.
        with secrets.hidden_in_logs():
            path = Path(hf_hub_download(repo_id, name, revision=access.revision, token=access.secret, cache_dir=access.hub_cache))
    except (OSError, ValueError, RuntimeError, http_error()) as error:  # RuntimeError: what the client's Rust part (xet) raises
        secrets.raise_error(explain(error, repo_id, access), error)
    found = path.parents[name.count("/")].name
    if found != commit:
        raise CheckpointError(f"{repo_id} changed during the download (commit {commit[:12]}, then {found[:12]}); run this again")
    return path


def http_error() -> type[Exception]:
    """The base of the client's network errors: httpx's or httpx2's, depending on the client's version."""
    from huggingface_hub import errors

    return errors.HTTPError


def _unreachable(error: Exception) -> str | None:
    """Why the hub did not answer, or None if it did and `error` is its answer."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if isinstance(error, OfflineModeIsEnabled):
        return "offline mode is on (HF_HUB_OFFLINE)"
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        return f"{constants.ENDPOINT} is unavailable (HTTP {status})" if status >= 500 else None
    if isinstance(error, http_error()):
        return f"cannot reach {constants.ENDPOINT} ({type(error).__name__}: {first_line(error)}; check the network, proxy and HF_ENDPOINT)"
    return None


def explain(error: BaseException, repo_id: str, access: HubAccess, no_path: str = "") -> str:
    """One line that says what the hub refused or how the download failed, and what to do."""
    from huggingface_hub import constants, errors

    hub, reason = constants.ENDPOINT, first_line(error)
    if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ is not None:
        return explain(error.__cause__, repo_id, access, no_path)
    origin = access.token_origin
    log_in = "log in (hf auth login), set HF_TOKEN or pass --token-file"
    if isinstance(error, errors.GatedRepoError):
        also = f"; the token of {origin} was refused: it may have expired, or not be granted access" if origin else ""
        return f"{repo_id} is gated: ask for access at {hub}/{repo_id}, then {log_in}{also}"
    if isinstance(error, errors.RepositoryNotFoundError):
        also = f"; the token of {origin} does not open it, or has expired" if origin else ""
        return f"{no_path}{hub} has no repository {repo_id} that you may see; check the name, or {log_in} if it is private{also}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repo_id} has no revision {access.revision!r}; choose a branch, tag or commit of {hub}/{repo_id}/commits"
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
        token = f"the token of {origin}" if origin else "access without a token"
        return {
            401: f"the hub refused {token} for {repo_id} (401), which may have expired; remove it, or {log_in}",
            403: f"the hub forbids access to {repo_id} (403) with {token}, which must have read permission for it; {log_in}",
            429: f"the hub reports too many requests for {repo_id} (429); wait some minutes, or log in for a higher limit (hf auth login)",
        }.get(status, f"the hub answered {status} for {repo_id} ({reason}); try again later")
    if isinstance(error, errors.HFValidationError):
        return f"{repo_id!r} is not a hub id: {reason}"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT) or "no space left" in str(error).lower():
        return f"disk full while downloading {repo_id}; free some space, or choose another cache folder (--hub-cache, HF_HUB_CACHE)"
    if isinstance(error, http_error()) or str(error).startswith("Consistency check failed"):
        return f"download of {repo_id} was interrupted ({type(error).__name__}: {reason}); nothing partial is used; run this again"
    return f"cannot download {repo_id} from {hub} ({type(error).__name__}: {reason}); check the network, HF_ENDPOINT and HF_HOME"


def first_line(error: BaseException) -> str:
    """The first line of an error's message."""
    return (str(error).strip().splitlines() or ["no details"])[0]
