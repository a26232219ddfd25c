"""What `--repo SOURCE` stands for: a hub id, a folder or a single file, as one strict and lazy table of named tensors."""

import dataclasses
from pathlib import Path
from typing import Any, Literal

from und3rstand_jax.convert.licences import Licence, licences_of_source
from und3rstand_jax.convert.options import HubAccess
from und3rstand_jax.convert.sources import hub, layout
from und3rstand_jax.convert.sources.pickle_files import PickleFiles
from und3rstand_jax.convert.sources.safetensors_files import SafetensorsFiles
from und3rstand_jax.convert.sources.tensor_files import TensorFiles, TensorsBelow, reading
from und3rstand_jax.support.errors import CheckpointError, OptionError
from und3rstand_jax.support.files import file_sha256, in_home


@dataclasses.dataclass(frozen=True)
class Source:
    """A checkpoint whose headers have been read, but not its tensors.

    Attributes:
        spec: the source as the user gave it.
        kind: what it turned out to be.
        revision: the commit of a hub id, None for a local source.
        config: the parsed `config.json`, None if there is none.
        base_model: hub id or path of the model it builds on, as the config or the model card says; None if neither does. For a hub
            repository, it is a hub id, never a path.
        tensors: the tensors; the caller closes them.
        ignored_paths: paths that the config or card of a hub repository names as base model.
        licences: the weights' licences, according to its model card, the headers of its files, its name and its base models' names;
            empty if nothing states one, several if they contradict each other.
    """

    spec: str
    kind: Literal["hub", "folder", "file"]
    revision: str | None
    config: dict[str, Any] | None
    base_model: str | None
    tensors: TensorFiles
    ignored_paths: tuple[str, ...] = ()
    licences: tuple[Licence, ...] = ()

    def sha256(self) -> dict[str, str]:
        """File name -> hexadecimal SHA-256 of every tensor file and of `config.json`. Reads the files whole; thread-safe."""
        files = list(self.tensors.files)
        if self.config is not None:
            files.append(files[0].with_name(layout.CONFIG))
        digests = {}
        for file in files:
            with reading(file):
                digests[file.name] = file_sha256(file)
        return digests


def open_source(spec: str, access: HubAccess | None = None, *, key: str = "", hub_only: bool = False, progress: bool = True) -> Source:
    """Opens a checkpoint; from the hub, only the files needed are downloaded.

    Args:
        spec: an existing path, else a hub id (owner/name), which may name a part's folder in an export (owner/name/backbone). If the parts
            are in folders of their own, the source is the probes, and the backbone there is their base model.
        access: how the hub is reached, with the client's own settings by default.
        key: the entry of a pickle that holds the weights, or the beginning of their names; by default the usual entries.
        hub_only: whether `spec` is a hub id even where a local path has its name, because a stranger wrote it.
        progress: whether downloads show progress bars.

    Raises:
        CheckpointError: the source does not exist, is not readable, or is not a checkpoint.
        OptionError: a revision was given for a local path, or the token is malformed.
    """
    access = access or HubAccess()
    path = in_home(spec)
    with reading(spec):
        local = path.exists() and not hub_only
        is_folder = path.is_dir()
    repo, folder = layout.split_hub_id(spec) or (spec, "")
    if not local and layout.looks_like_hub_id(repo):
        root, commit = hub.open_repository(repo, access, progress, hub_only)
        if root.is_split and not folder:
            return _of_split(_open_location(f"{spec}/probes", "hub", root.enter("probes"), commit, key, root), spec, f"{spec}/backbone")
        return _open_location(spec, "hub", root.enter(folder) if folder else root, commit, key, root)
    expected = f"a folder, or a {', '.join(layout.TENSOR_SUFFIXES)} file"
    if not local:
        raise CheckpointError(f"{spec} does not exist; expected a hub id (owner/name), {expected}")
    if access.revision is not None:
        raise OptionError(f"--revision {access.revision} was given for {spec}, a local path; revisions belong to hub ids; leave it out")
    if is_folder:
        location = layout.local_folder(path)
        if location.is_split:
            probes = _open_location(str(path / "probes"), "folder", location.enter("probes"), None, key, location)
            return _of_split(probes, spec, str(path / "backbone"))
        around = layout.local_folder(path.absolute().parent) if path.name in layout.PARTS else location
        return _open_location(spec, "folder", location, None, key, around if around.is_split else location)
    if path.suffix not in layout.TENSOR_SUFFIXES:
        raise CheckpointError(f"{spec} is not a checkpoint by its name; expected a hub id, {expected}")
    beside = path.with_name(layout.CONFIG)
    config = layout.read_config(beside) if path.suffix == ".safetensors" and beside.is_file() else None
    tensors = _open_tensors((path,), None, key)
    licences = licences_of_source(
        (path.name, path.absolute().parent.name),
        bases=layout.named_models(config, {}),
        header=tensors.metadata,
        header_name=f"the header of {path.name}",
    )
    return Source(spec, "file", None, config, layout.base_model(config, {})[0], tensors, licences=licences)


def _of_split(probes: Source, spec: str, backbone: str) -> Source:
    """The probes of an export with parts in folders, as the source that was asked for, based on the backbone beside them."""
    return dataclasses.replace(probes, spec=spec, base_model=backbone, ignored_paths=())


def _open_location(
    spec: str, kind: Literal["hub", "folder"], location: layout.Location, commit: str | None, key: str, root: layout.Location
) -> Source:
    """Opens small files first, so that a faulty config is found before gigabytes are downloaded. `root` has the card of all parts."""
    names, weight_map = layout.tensor_files_in(location)
    config = layout.read_config(location.fetch(layout.CONFIG)) if layout.CONFIG in location.names else None
    card = layout.card_header(root.fetch(layout.CARD)) if layout.CARD in root.names else {}
    base, ignored = layout.base_model(config, card, local=kind != "hub")
    files = tuple(map(location.fetch, names))
    tensors = _open_tensors(files, weight_map, key)
    folder = Path(spec).resolve()
    name = spec if kind == "hub" else f"{folder.parent.name}/{folder.name}" if folder.name in layout.PARTS else folder.name
    licences = licences_of_source(
        (name,),
        bases=layout.named_models(config, card),
        card=card,
        card_name=f"the model card of {name}",
        header=tensors.metadata,
        header_name=f"the header of {files[0].name} of {name}",
    )
    return Source(spec, kind, commit, config, base, tensors, ignored, licences)


def _open_tensors(files: tuple[Path, ...], weight_map: dict[str, str] | None, key: str) -> TensorFiles:
    if files[0].suffix == ".safetensors":
        return TensorsBelow(SafetensorsFiles(files, weight_map), key) if key else SafetensorsFiles(files, weight_map)
    pickles = PickleFiles(files, weight_map, key)
    return TensorsBelow(pickles, pickles.prefix) if pickles.prefix else pickles
