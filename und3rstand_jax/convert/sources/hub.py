"""What stands beside the tensors: `config.json`, and the base model that it or the model card names.

Files of a repository on the Hugging Face hub, through the `huggingface_hub` client: its login, its cache, its offline mode.
"""

import errno
import json
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from und3rstand_jax.convert.sources.layout import TENSOR_SUFFIXES, Place
from und3rstand_jax.convert.sources.tensor_files import reading
from und3rstand_jax.support.errors import UserError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)


_BASE_FIELDS = ("base_model", "backbone")
"""Beginnings of the config fields that may name the base model (`backbone_repo`, `base_model_name_or_path`, …)."""


def looks_like_hub_id(text: str) -> bool:
    """Whether `text` reads owner/name and not like the path of a tensor file."""
    return _HUB_ID.fullmatch(text) is not None and not text.endswith(TENSOR_SUFFIXES)


def read_config(path: Path) -> dict[str, Any]:
    """A `config.json`, which may hold bare `Infinity` and `-Infinity` as DUSt3R's do.

    Raises:
        UserError: it cannot be read, is not JSON, or not an object.
    """
    try:
        with reading(path):
            config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); correct it or download it again") from error
    if not isinstance(config, dict):
        raise UserError(f"{path} must hold a JSON object with the model's options; found {type(config).__name__}")
    return config


def base_model(config: Mapping[str, Any] | None, card: Path | None) -> str | None:
    """Hub id or path of the model that a probe checkpoint belongs to, from its config, else from its model card."""
    for field in _BASE_FIELDS:
        for key, value in (config or {}).items():
            if key.startswith(field) and (named := _first_source(value)):
                return named
    return _first_source(_card_metadata(card).get("base_model")) if card else None


def _first_source(value: Any) -> str | None:
    """The first of a string or of a list of strings that reads like a hub id or a path; a plain word does not."""
    for text in value if isinstance(value, list) else [value]:
        if isinstance(text, str) and (
            looks_like_hub_id(text) or text.endswith(TENSOR_SUFFIXES) or text.startswith(("/", "./", "../", "~"))
        ):
            return text
    return None


def _card_metadata(card: Path) -> dict[str, Any]:
    from huggingface_hub.repocard import metadata_load
    from yaml import YAMLError

    try:
        with reading(card):
            return metadata_load(card) or {}
    except (ValueError, YAMLError) as error:
        # The card is prose for readers; a slip in its header must not stop a conversion that may not need it.
        logging.getLogger(__name__).warning("no base model read from %s: its YAML header is not valid (%s)", card, error)
        return {}


def open_repository(
    repo_id: str, *, revision: str | None = None, token: str | None = None, cache: str | None = None, offline: bool = False
) -> tuple[Place, str]:
    """A repository's files, none of them downloaded yet, and the commit that `revision` stands for.

    Without a network, or offline (by option or `HF_HUB_OFFLINE`), it is the cached copy, as with the client's own functions.

    Args:
        repo_id: owner/name.
        revision: branch, tag or commit; None is the main branch.
        token: access token; None is the client's own login.
        cache: cache folder; None is the client's own.
        offline: never use the network.

    Raises:
        UserError: there is no such repository or revision, access is refused, or it is neither reachable nor cached.
    """
    if offline:
        return _cached(repo_id, revision, cache, "offline mode is on")
    # Imported here because it is slow to load, and because it reads HF_ENDPOINT, HF_HOME and the like once, at import.
    from huggingface_hub import HfApi, constants

    try:
        info = HfApi(token=token).model_info(repo_id, revision=revision, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except (OSError, ValueError, _http_error()) as error:
        reason = _unreachable(error)
        if reason is None:
            raise UserError(_explain(error, repo_id, revision)) from error
        return _cached(repo_id, revision, cache, reason)
    if not info.sha:
        raise UserError(f"{constants.ENDPOINT} gives no commit for {repo_id}; check that HF_ENDPOINT is a hub")
    names = tuple(sibling.rfilename for sibling in info.siblings or [] if "/" not in sibling.rfilename)
    commit = info.sha

    def fetch(name: str) -> Path:
        return _download(repo_id, name, revision, commit, token, cache)

    return Place(f"hub repository {repo_id} (commit {commit[:12]})", names, fetch, "ask its authors, or give another repository"), commit


def _download(repo_id: str, name: str, revision: str | None, commit: str, token: str | None, cache: str | None) -> Path:
    from huggingface_hub import hf_hub_download

    with _explained(repo_id, revision):
        # By the revision's name, not by its commit: only so the client notes in its cache what the name stands for, for offline use.
        path = Path(hf_hub_download(repo_id, name, revision=revision, token=token, cache_dir=cache))
    if path.parent.name != commit:
        raise UserError(f"{repo_id} changed while it was downloaded (commit {commit[:12]}, then {path.parent.name[:12]}); run this again")
    return path


def _cached(repo_id: str, revision: str | None, cache: str | None, reason: str) -> tuple[Place, str]:
    """The copy of a repository in the client's cache, with the files it happens to hold."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    remedy = "run this again with a network, or give a local folder or file"
    try:
        # Asking for no files finds the snapshot without demanding those we do not need.
        found = Path(snapshot_download(repo_id, revision=revision, cache_dir=cache, local_files_only=True, allow_patterns=[]))
    except (LocalEntryNotFoundError, HFValidationError) as error:
        at = f" at revision {revision}" if revision else ""
        raise UserError(f"{reason} and {repo_id}{at} is not in the cache; {remedy}") from error
    logging.getLogger(__name__).warning("%s; using the cached copy of %s, commit %s", reason, repo_id, found.name)
    names = tuple(sorted(entry.name for entry in found.iterdir() if entry.is_file()))
    return Place(f"the cached copy of {repo_id} (commit {found.name[:12]}; {reason})", names, found.joinpath, remedy), found.name


def _http_error() -> type[Exception]:
    """The base of the client's network errors: httpx's or httpx2's, by the client's version."""
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
        return f"{constants.ENDPOINT} is out of order (HTTP {status})" if status >= 500 else None
    if isinstance(error, _http_error()):
        return f"cannot reach {constants.ENDPOINT} ({type(error).__name__}: {_first_line(error)}; check the network, proxy and HF_ENDPOINT)"
    return None


@contextmanager
def _explained(repo_id: str, revision: str | None) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, RuntimeError, _http_error()) as error:  # RuntimeError: what the client's Rust part (xet) raises
        raise UserError(_explain(error, repo_id, revision)) from error


def _explain(error: BaseException, repo_id: str, revision: str | None) -> str:
    """One line on what the hub or the download said no to, and what to do about it."""
    from huggingface_hub import constants, errors

    hub = constants.ENDPOINT
    if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ is not None:
        return _explain(error.__cause__, repo_id, revision)
    if isinstance(error, errors.GatedRepoError):
        return f"{repo_id} is gated: ask for access at {hub}/{repo_id}, then log in (hf auth login) or pass --token"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"{hub} has no repository {repo_id} that you may see; check the name, or log in (hf auth login, --token) if it is private"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repo_id} has no revision {revision!r}; choose a branch, tag or commit of {hub}/{repo_id}/commits"
    if isinstance(error, errors.HfHubHTTPError):
        return _explain_status(error.response.status_code, error, repo_id)
    if isinstance(error, errors.HFValidationError):
        return f"{repo_id!r} is not a hub id: {_first_line(error)}"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT) or "no space left" in str(error).lower():
        return f"disk full while downloading {repo_id}; free some space, or choose another cache folder (--hub-cache, HF_HUB_CACHE)"
    if isinstance(error, _http_error()) or str(error).startswith("Consistency check failed"):
        return (
            f"download of {repo_id} was interrupted ({type(error).__name__}: {_first_line(error)}); nothing partial is used; run this again"
        )
    return (
        f"cannot download {repo_id} from {hub} ({type(error).__name__}: {_first_line(error)}); check the network, HF_ENDPOINT and HF_HOME"
    )


def _explain_status(status: int, error: BaseException, repo_id: str) -> str:
    if status == 401:
        return f"the hub refused the token for {repo_id} (401); log in again (hf auth login) or pass a valid --token"
    if status == 403:
        return f"the hub forbids access to {repo_id} (403); your token must have read permission for it (hf auth login, --token)"
    if status == 429:
        return f"the hub says too many requests for {repo_id} (429); wait some minutes, or log in for a higher limit (hf auth login)"
    return f"the hub answered {status} for {repo_id} ({_first_line(error)}); try again later"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no details"])[0]
