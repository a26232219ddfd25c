"""The files of a folder or repository that make up a checkpoint: tensor files, and beside them `config.json` and the model card."""

import dataclasses
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import annotated_types
from typing_extensions import TypedDict

from und3rstand_jax.convert.sources.tensor_files import reading
from und3rstand_jax.support.documents import parse_yaml, read_json, read_text
from und3rstand_jax.support.errors import CheckpointError
from und3rstand_jax.support.text import listed

CONFIG = "config.json"
CARD = "README.md"
INDEX = "model.safetensors.index.json"
PICKLE_INDEX = "pytorch_model.bin.index.json"
PICKLE_SUFFIXES = (".pth", ".pt", ".ckpt", ".bin")
TENSOR_SUFFIXES = (".safetensors", *PICKLE_SUFFIXES)
PARTS = ("backbone", "probes")
"""The folders of an export of parts from different sources."""

_logger = logging.getLogger(__name__)

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)

# Config fields that start so may name the base model (`backbone_repo`, `base_model_name_or_path`, …).
_BASE_FIELDS = ("base_model", "backbone")

_PICKLE_SHARD = re.compile(r"pytorch_model.*\.bin")
CARD_HEADER = re.compile(r"\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(\r?\n|\Z)", re.DOTALL)
_LONGEST_HEADER = 64 * 2**10  # characters


def _stays_in_folder(name: str) -> bool:
    """Refuses a file name with a folder in it, which would reach out of the checkpoint."""
    if Path(name).name != name:
        raise ValueError("expected the name of a file beside the index, without a folder")
    return True


_FileName = Annotated[str, annotated_types.Predicate(_stays_in_folder)]


class _Index(TypedDict):
    """An index of shards: tensor name -> the file beside it that holds the tensor."""

    weight_map: Annotated[dict[str, _FileName], annotated_types.MinLen(1)]


@dataclasses.dataclass(frozen=True)
class Location:
    """Where a checkpoint's files are: a local folder, a repository on the hub, or its cached copy.

    Attributes:
        label: what messages call it.
        names: the files in it.
        fetch: file name -> path on this machine; downloads the file if necessary.
        remedy: what to do if a file is missing.
        strict: whether tensor files that the index does not name are a mistake, as in a local folder. From the hub, they are simply not
            fetched.
        folders: the folders in it.
        enter: name of a folder in it -> that folder; one that does not exist has no files.
    """

    label: str
    names: tuple[str, ...]
    fetch: Callable[[str], Path]
    remedy: str
    strict: bool = False
    folders: frozenset[str] = frozenset()
    enter: Callable[[str], "Location"] = dataclasses.field(kw_only=True)

    @property
    def is_split(self) -> bool:
        """Whether it is an export of a backbone and probes that came from different sources, each in its own folder."""
        return self.folders >= {*PARTS} and not any(name.endswith(TENSOR_SUFFIXES) for name in self.names)


def local_folder(path: Path) -> Location:
    """The files directly in a folder."""
    with reading(path):
        entries = sorted(path.iterdir()) if path.is_dir() else []
        names = tuple(entry.name for entry in entries if entry.is_file())
        folders = frozenset(entry.name for entry in entries if entry.is_dir())
    remedy = "add it, or give another folder or file"
    return Location(f"folder {path}", names, path.joinpath, remedy, True, folders, enter=lambda name: local_folder(path / name))


def tensor_files_in(location: Location) -> tuple[tuple[str, ...], dict[str, str] | None]:
    """Names of the files that hold the tensors, and the index's tensor -> file map if there is an index.

    Safetensors files take precedence over pickles; for either, an index decides. Without an index, the files are all `.safetensors` files,
    else `pytorch_model.bin`, else a single pickle with any name.

    Raises:
        CheckpointError: there are none, it is not clear which, or shards are missing or left over.
    """
    safetensors = tuple(name for name in location.names if name.endswith(".safetensors"))
    if INDEX in location.names:
        return _indexed(location, INDEX, safetensors)
    if safetensors:
        return safetensors, None
    if PICKLE_INDEX in location.names:
        return _indexed(location, PICKLE_INDEX, [name for name in location.names if _PICKLE_SHARD.fullmatch(name)])
    pickles = tuple(name for name in location.names if name.endswith(PICKLE_SUFFIXES))
    if "pytorch_model.bin" in pickles:
        return ("pytorch_model.bin",), None
    if len(pickles) == 1:
        return pickles, None
    if pickles:
        raise CheckpointError(f"{location.label} holds several pickles: {listed(pickles)}; expected one; give the path of the one to use")
    found = listed(location.names, most=20)
    raise CheckpointError(
        f"{location.label} holds no tensor file; expected one of *{', *'.join(TENSOR_SUFFIXES)}; found {found or 'no files'}; "
        f"{location.remedy}"
    )


def _indexed(location: Location, index: str, held: Sequence[str]) -> tuple[tuple[str, ...], dict[str, str]]:
    """The shards that an index names, of the tensor files `held`, and its map."""
    weight_map = read_json(location.fetch(index), _Index, CheckpointError, "copy or download it again")["weight_map"]
    shards = tuple(dict.fromkeys(weight_map.values()))
    faults = []
    if missing := sorted(set(shards) - set(location.names)):
        faults.append(f"its index names {listed(missing)}, which is missing: {location.remedy}")
    if location.strict and (surplus := sorted(set(held) - set(shards))):
        faults.append(f"its index does not name {listed(surplus)}, which is present: move it elsewhere, or give it alone")
    if faults:
        raise CheckpointError(f"{location.label}: {'; '.join(faults)}")
    return shards, weight_map


def read_config(path: Path) -> dict[str, Any]:
    """A `config.json`, which may hold bare `Infinity` and `-Infinity` as DUSt3R's do.

    Raises:
        CheckpointError: it cannot be read, is not JSON, or not an object.
    """
    return read_json(path, dict[str, Any], CheckpointError, "correct it or download it again")


def split_hub_id(text: str) -> tuple[str, str] | None:
    """The hub id and the folder (one of `PARTS`) in a text such as owner/name/probes; None for any other text."""
    repo, _, folder = text.rpartition("/")
    return (repo, folder) if folder in PARTS and looks_like_hub_id(repo) else None


def looks_like_hub_id(text: str) -> bool:
    """Whether `text` has the form owner/name and does not look like the path of a tensor file."""
    return _HUB_ID.fullmatch(text) is not None and not text.endswith(TENSOR_SUFFIXES)


def base_model(config: Mapping[str, Any] | None, card: Mapping[str, Any], *, local: bool = True) -> tuple[str | None, tuple[str, ...]]:
    """The model that a probe checkpoint belongs to, from its config, else from its model card.

    Args:
        config: the checkpoint's config.
        card: the header of the model card; empty without one.
        local: whether the checkpoint is on the user's machine. Only then may it name a path: a stranger's could have local files read.

    Returns:
        The hub id or path, None if there is none; and the paths that were named but are ignored.
    """
    named = [text for field in _BASE_FIELDS for key, value in (config or {}).items() if key.startswith(field) for text in _sources(value)]
    if not any(local or looks_like_hub_id(text) for text in named):
        named += _sources(card.get("base_model"))
    usable = [text for text in named if local or looks_like_hub_id(text)]
    return next(iter(usable), None), tuple(dict.fromkeys(text for text in named if text not in usable))


def named_models(config: Mapping[str, Any] | None, card: Mapping[str, Any]) -> list[str]:
    """Everything that a config and a model card name as base model, as written there."""
    stated = [value for field in _BASE_FIELDS for key, value in (config or {}).items() if key.startswith(field)]
    stated.append(card.get("base_model"))
    return [text for value in stated for text in (value if isinstance(value, list) else [value]) if isinstance(text, str)]


def card_header(card: Path) -> dict[str, Any]:
    """The YAML at the top of a model card; empty if it cannot be read, which is logged."""
    try:
        head = CARD_HEADER.match(read_text(card, CheckpointError))
        content = parse_yaml(head[1], f"the header of {card}", CheckpointError) if head and len(head[1]) <= _LONGEST_HEADER else None
    except CheckpointError as error:
        # The card is prose for readers; a slip in its header must not stop a conversion that may not need it.
        _logger.warning("no base model or licence could be read from a model card: %s", error)
        return {}
    return content if isinstance(content, dict) else {}


def _sources(value: object) -> list[str]:
    """The strings in a string or list of strings that look like a hub id or a path; a plain word does not."""
    return [
        text
        for text in (value if isinstance(value, list) else [value])
        if isinstance(text, str)
        and (looks_like_hub_id(text) or text.endswith(TENSOR_SUFFIXES) or text.startswith(("/", "./", "../", "~")) or "\\" in text)
    ]
