"""The cache of conversions: every source is converted once, and again if it changes or its conversion is damaged.

An entry is a converted checkpoint with `.source.json` in it: the request, and the state of the files that it was made from. If size and
time are the same but anything else differs, the SHA-256 of the files, which the entry's provenance records, decides.
"""

import contextlib
import functools
import hashlib
import logging
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import TypedDict

from und3rstand_jax.checkpoint.format import VERSION, is_checkpoint, read_checkpoint_info
from und3rstand_jax.checkpoint.parts import DamageError
from und3rstand_jax.model.families import knows_heads
from und3rstand_jax.support.documents import read_json
from und3rstand_jax.support.errors import CheckpointError, OutputError, UserError
from und3rstand_jax.support.files import file_sha256, in_home, replace_text
from und3rstand_jax.support.locks import locked
from und3rstand_jax.support.text import to_json

if TYPE_CHECKING:
    from und3rstand_jax.convert.options import HubAccess

_logger = logging.getLogger(__name__)

CACHE_VARIABLE = "UND3RSTAND_JAX_CACHE"
_RECORD = ".source.json"
_ELSEWHERE = f"set {CACHE_VARIABLE}, or cache= in Python, to a folder that can be written"

_State = dict[str, list[int]]
"""Path -> size, modification time, inode and inode change time, for a source's files."""


class Entry(TypedDict):
    """How to make a cache entry again, as the arguments of `converted_checkpoint`, and the state of its source's files."""

    source: str
    revision: str | None
    backbone: str | None
    files: _State


def cache_folder(cache: str | Path | None = None) -> Path:
    """Where conversions are kept: the argument, else `$UND3RSTAND_JAX_CACHE`, else the platform's cache folder."""
    if cache is not None:
        return in_home(cache)
    if os.environ.get(CACHE_VARIABLE):
        return in_home(os.environ[CACHE_VARIABLE])
    import platformdirs

    return platformdirs.user_cache_path("und3rstand_jax")


def converted_checkpoint(
    source: str | Path,
    *,
    cache: str | Path | None = None,
    revision: str | None = None,
    token: str | None = None,
    hub_cache: str | None = None,
    offline: bool = False,
    backbone: str | Path | None = None,
    progress: bool = True,
    jax_layout: bool = True,
) -> Path:
    """The folder of a source's converted checkpoint, which is created if it is not in the cache.

    A source that holds the JAX layout beside the PyTorch one (see `und3rstand_jax.convert.push`) needs no conversion: the result is the
    folder of the JAX layout, if it is complete.

    Args:
        source: a converted checkpoint, which is its own folder, or a hub id, folder or file.
        cache: folder for conversions; by default `$UND3RSTAND_JAX_CACHE`, else the platform's cache folder.
        revision: branch, tag or commit of a hub id.
        token: access token for the hub.
        hub_cache: folder for downloaded files.
        offline: whether to work without the network.
        backbone: the backbone of a probe checkpoint, if it is not the one that its config or model card names.
        progress: whether downloads and the conversion show progress bars on a terminal. Nothing else is printed.
        jax_layout: whether to use the JAX layout of a source that has one.

    Raises:
        CheckpointError: the source cannot be found, read or converted.
        ConfigError: its config states an architecture that is not supported, such as a head count that does not fit.
        OptionError: `revision` or `backbone` was given, but does not apply to the source.
        OutputError: the cache cannot be written.
        OSError: the disk is full.
    """
    local = in_home(source)
    if is_checkpoint(local):
        return local
    # The converter is imported only when needed: it imports the hub's client and the readers of PyTorch files.
    from und3rstand_jax.convert.options import HubAccess, ProbeOptions
    from und3rstand_jax.convert.planning import open_plan
    from und3rstand_jax.convert.sources.source import open_source
    from und3rstand_jax.convert.writing import convert

    access = HubAccess(revision, token, hub_cache, offline)
    # Another backbone, or a revision of a local folder, is left to the converter to judge.
    jax_layout = jax_layout and backbone is None and not (local.exists() and revision is not None)
    base = None if backbone is None else str(backbone)
    named = base
    damage: DamageError | None = None
    if jax_layout and local.exists():
        found, damage = _jax_layout(str(source), access, progress)
        if found is not None:
            return found
    # A pickle, which would have to be loaded whole, has no config or card beside it.
    if named is None and local.exists() and (local.is_dir() or local.suffix == ".safetensors"):
        # The backbone that a local probe checkpoint names in its config or card: the result depends on it too.
        with _or_neither(damage):
            opened = open_source(str(source))
        opened.tensors.close()
        named = opened.base_model
    state = _state(str(source)) | (_state(named) if named else {})
    # A path is made absolute: an entry may have to be made again from another working directory.
    entry = Entry(source=str(local.resolve() if local.exists() else source), revision=revision, backbone=base, files=state)
    folder = cache_folder(cache) / _entry_name(str(source), revision, named, state)
    if _serves(folder, entry):
        return folder
    if jax_layout and not local.exists():
        found, damage = _jax_layout(str(source), access, progress)
        if found is not None:
            return found
    with _alone(folder):
        if os.path.lexists(folder):
            if _serves(folder, entry):  # another process has converted it in the meantime
                return folder
            _remove(folder, f"{folder} is damaged, or its source has changed")
        with _or_neither(damage), open_plan(str(source), base, access, ProbeOptions(), progress=progress) as plan:
            try:
                _logger.info("converting %s, once; the result is kept in %s", source, folder)
                convert(plan, folder, progress=progress, check=functools.partial(_record, entry=entry))
            except UserError as error:
                # Without locks, another process may have been faster, and its result serves as well.
                if _serves(folder, entry):
                    return folder
                if isinstance(error, OutputError):
                    raise OutputError(
                        f"the conversion cannot be kept in the cache: {str(error).partition(';')[0]}; {_ELSEWHERE}"
                    ) from error
                raise
    return folder


def _jax_layout(source: str, access: "HubAccess", progress: bool) -> tuple[Path | None, DamageError | None]:
    """The JAX layout of a source, or None; and what is wrong with it if it is not complete."""
    from und3rstand_jax.convert.jax_layout import find_jax_layout

    try:
        return find_jax_layout(source, access, progress), None
    except DamageError as error:
        _logger.warning("%s; using the PyTorch layout beside it", error)
        return None, error


@contextlib.contextmanager
def _or_neither(damage: DamageError | None) -> Iterator[None]:
    try:
        yield
    except CheckpointError as error:
        if damage is None:
            raise
        raise neither_layout(damage, error) from error


def neither_layout(damage: DamageError, other: CheckpointError) -> CheckpointError:
    """The error for a source whose JAX layout is damaged and whose PyTorch layout cannot be used."""
    return CheckpointError(f"{damage}; the PyTorch layout beside it cannot be used either: {other}")


def discard_damaged(folder: Path, cache: str | Path | None, damage: Exception) -> Entry | None:
    """Removes a damaged cache entry and returns how to make it again; leaves any other folder alone and returns None."""
    if folder.resolve().parent != cache_folder(cache).resolve():
        return None
    try:
        entry = read_json(folder / _RECORD, Entry, CheckpointError)
    except CheckpointError:
        return None
    with _alone(folder):
        _remove(folder, str(damage))
    return entry


def _serves(folder: Path, entry: Entry) -> bool:
    """Whether a folder is a complete entry for a source in this state; the record of an entry with the same bytes is updated."""
    state = entry["files"]
    try:
        info = read_checkpoint_info(folder)
    except CheckpointError:
        return False
    if info.backbone is not None and not info.backbone.heads and knows_heads(info.provenance["backbone"]["unused"]):
        return False  # converted by an earlier version, which set these heads aside
    if not state:  # a hub repository: there are no local files to compare, and the provenance says which it was
        return any(info.provenance[part]["source"] == entry["source"] for part in info.parts)
    try:
        if read_json(folder / _RECORD, Entry, CheckpointError)["files"] == state:
            return True
    except CheckpointError:
        pass  # a record that cannot be read is ignored: the bytes decide
    known = {(name, digest) for part in info.parts for name, digest in info.provenance[part]["sha256"].items()}
    names = {name for name, _ in known}
    compared = [Path(file) for file in state if Path(file).name in names]
    if not compared or any((file.name, file_sha256(file)) not in known for file in compared):
        return False
    with contextlib.suppress(OSError):  # a read-only cache is as good
        _record(folder, entry)
    return True


def _record(folder: Path, entry: Entry) -> None:
    replace_text(folder / _RECORD, to_json(entry))


def _remove(folder: Path, why: str) -> None:
    _logger.warning("%s: removed from the cache, converting again", why)
    try:
        shutil.rmtree(folder)
    except OSError as error:
        raise OutputError(f"{folder} in the cache cannot be removed: {error.strerror}; remove it, or {_ELSEWHERE}") from error


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Lets one process at a time make an entry; the others wait."""
    with contextlib.ExitStack() as stack:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(folder.with_name(f".{folder.name}.lock"), str(folder), wait=True))
        except OSError as error:
            raise OutputError(f"the cache of conversions {folder.parent} cannot be written: {error.strerror}; {_ELSEWHERE}") from error
        yield


def _entry_name(source: str, revision: str | None, backbone: str | None, state: _State) -> str:
    """A readable name that depends on all that is known without reading: a revision, sizes and times of local files, the format."""
    seen = [(file, size, time) for file, (size, time, *_) in state.items()]
    key = repr((VERSION, source, revision, backbone, seen))
    path = in_home(source)
    readable = re.sub(r"[^\w.-]+", "--", path.resolve().name if path.exists() else source)
    return f"{readable}-{hashlib.sha256(key.encode(errors='surrogateescape')).hexdigest()[:12]}"


def _state(source: str) -> _State:
    """The state of every file that a local source is read from; empty for a hub id."""
    path = in_home(source)
    if not path.exists():
        return {}
    from und3rstand_jax.convert.sources.layout import PARTS, local_folder

    if path.is_dir():
        inside = [file for part in PARTS for file in (path / part).iterdir()] if local_folder(path).is_split else []
        files = sorted([*path.iterdir(), *inside])
    else:
        files = [file for file in (path, path.with_name("config.json")) if file.exists()]
    found: dict[str, Any] = {}
    for file in files:
        status = file.stat()
        found[str(file.resolve())] = [status.st_size, status.st_mtime_ns, status.st_ino, status.st_ctime_ns]
    return found
