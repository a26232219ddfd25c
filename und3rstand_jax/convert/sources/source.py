"""What `--repo SOURCE` stands for: a hub id, a folder or a single file, as one strict and lazy table of named tensors."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from und3rstand_jax.convert.sources import hub, layout
from und3rstand_jax.convert.sources.formats import PickleFile, SafetensorsFiles
from und3rstand_jax.convert.sources.hub import base_model, looks_like_hub_id, read_config
from und3rstand_jax.convert.sources.tensor_files import TensorFiles, reading
from und3rstand_jax.support.errors import UserError


@dataclass(frozen=True)
class Source:
    """A checkpoint, its headers read and its tensors not.

    Attributes:
        spec: the source as the user gave it.
        kind: what it turned out to be.
        revision: the commit of a hub id, None for what is local.
        config: the parsed `config.json`, None if there is none.
        base_model: hub id or path of the model it builds on, as the config or the model card says; None if neither does.
        tensors: the tensors, to be closed by the caller.
    """

    spec: str
    kind: Literal["hub", "folder", "file"]
    revision: str | None
    config: dict[str, Any] | None
    base_model: str | None
    tensors: TensorFiles

    def sha256(self) -> dict[str, str]:
        """File name -> hexadecimal SHA-256 of every tensor file and of `config.json`. Reads them whole; safe in a thread."""
        files = list(self.tensors.files)
        if self.config is not None:
            files.append(files[0].with_name(layout.CONFIG))
        return {file.name: _digest(file) for file in files}


def open_source(
    spec: str, *, revision: str | None = None, token: str | None = None, hub_cache: str | None = None, offline: bool = False
) -> Source:
    """Opens a checkpoint; from the hub, only the files needed are downloaded.

    Args:
        spec: a path that exists, else a hub id (owner/name).
        revision: branch, tag or commit of a hub id.
        token: access token for the hub; None is the client's own login.
        hub_cache: the hub client's cache folder; None is its own.
        offline: use what is cached only.

    Raises:
        UserError: the source is not there, not readable, or not a checkpoint.
    """
    path = Path(spec).expanduser()
    with reading(spec):
        local = path.exists()
        is_folder = path.is_dir()
    if not local and looks_like_hub_id(spec):
        place, commit = hub.open_repository(spec, revision=revision, token=token, cache=hub_cache, offline=offline)
        return _open_place(spec, "hub", place, commit)
    if not local:
        raise UserError(f"{spec} does not exist; expected a hub id (owner/name), a folder, or a {', '.join(layout.TENSOR_SUFFIXES)} file")
    if revision is not None:
        raise UserError(f"--revision {revision} was given for {spec}, which is a local path; revisions belong to hub ids; leave it out")
    return _open_place(spec, "folder", layout.folder(path), None) if is_folder else _open_file(spec, path)


def _open_place(spec: str, kind: Literal["hub", "folder"], place: layout.Place, commit: str | None) -> Source:
    """Small files first, so that a faulty config is found before gigabytes are downloaded."""
    names, weight_map = layout.tensor_names(place)
    config = read_config(place.fetch(layout.CONFIG)) if layout.CONFIG in place.names else None
    base = base_model(config, place.fetch(layout.CARD) if layout.CARD in place.names else None)
    return Source(spec, kind, commit, config, base, _open_tensors(tuple(place.fetch(name) for name in names), weight_map))


def _open_file(spec: str, path: Path) -> Source:
    if path.suffix not in layout.TENSOR_SUFFIXES:
        raise UserError(
            f"{spec} is not a checkpoint by its name; expected one of {', '.join(layout.TENSOR_SUFFIXES)}, a folder or a hub id"
        )
    beside = path.with_name(layout.CONFIG)
    config = read_config(beside) if path.suffix == ".safetensors" and beside.is_file() else None
    return Source(spec, "file", None, config, base_model(config, None), _open_tensors((path,), None))


def _open_tensors(files: tuple[Path, ...], weight_map: Mapping[str, str] | None) -> TensorFiles:
    if files[0].suffix == ".safetensors":
        return SafetensorsFiles(files, weight_map)
    return PickleFile(files[0])


def _digest(file: Path) -> str:
    with reading(file), file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
