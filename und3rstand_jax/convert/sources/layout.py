"""Which files of a folder or a repository make up a checkpoint, and what stands beside the tensors: `config.json` and the model card."""

import json
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from und3rstand_jax.convert.sources.tensor_files import reading
from und3rstand_jax.support.errors import CheckpointError

CONFIG = "config.json"
CARD = "README.md"
INDEX = "model.safetensors.index.json"
PICKLE_SUFFIXES = (".pth", ".pt", ".bin")
TENSOR_SUFFIXES = (".safetensors", *PICKLE_SUFFIXES)

_logger = logging.getLogger(__name__)

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)

# Config fields that start so may name the base model (`backbone_repo`, `base_model_name_or_path`, …).
_BASE_FIELDS = ("base_model", "backbone")


@dataclass(frozen=True)
class Location:
    """Where a checkpoint's files are: a local folder, a repository on the hub, or its cached copy.

    Attributes:
        label: how messages call it.
        names: the files it holds.
        fetch: file name -> path on this machine; downloads the file where necessary.
        remedy: what to do when a file is missing.
        strict: whether tensor files that the index does not name are a mistake, as in a folder of the user's own. From the hub they
            are just not fetched.
    """

    label: str
    names: tuple[str, ...]
    fetch: Callable[[str], Path]
    remedy: str
    strict: bool = False


def local_folder(path: Path) -> Location:
    """The files directly in a folder."""
    with reading(path):
        names = tuple(sorted(entry.name for entry in path.iterdir() if entry.is_file()))
    return Location(f"folder {path}", names, path.joinpath, "add it, or give another folder or file", strict=True)


def tensor_files_in(location: Location) -> tuple[tuple[str, ...], dict[str, str] | None]:
    """Names of the files that hold the tensors, and the index's tensor -> file map if there is an index.

    An index decides; else all `.safetensors` files; else `pytorch_model.bin`; else a single pickle of any name.

    Raises:
        CheckpointError: there are none, it is not clear which, or shards are missing or left over.
    """
    safetensors = tuple(name for name in location.names if name.endswith(".safetensors"))
    if INDEX in location.names:
        weight_map = _read_index(location)
        shards = tuple(dict.fromkeys(weight_map.values()))
        faults = []
        if missing := sorted(set(shards) - set(safetensors)):
            faults.append(f"its index names {', '.join(missing)}, which is not there: {location.remedy}")
        if location.strict and (surplus := sorted(set(safetensors) - set(shards))):
            faults.append(f"its index does not name {', '.join(surplus)}, which is there: move it elsewhere, or give it alone")
        if faults:
            raise CheckpointError(f"{location.label}: {'; '.join(faults)}")
        return shards, weight_map
    if safetensors:
        return safetensors, None
    pickles = tuple(name for name in location.names if name.endswith(PICKLE_SUFFIXES))
    if "pytorch_model.bin" in pickles:
        return ("pytorch_model.bin",), None
    if len(pickles) == 1:
        return pickles, None
    if pickles:
        raise CheckpointError(
            f"{location.label} holds several pickles: {', '.join(pickles)}; expected one; give the path of the one to use"
        )
    found = ", ".join(location.names[:20]) + (", …" if len(location.names) > 20 else "")
    raise CheckpointError(
        f"{location.label} holds no tensor file; expected one of *{', *'.join(TENSOR_SUFFIXES)}; found {found or 'no files'}; "
        f"{location.remedy}"
    )


def _read_index(location: Location) -> dict[str, str]:
    path = location.fetch(INDEX)
    try:
        with reading(path):
            weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        # A file name with a folder in it would reach out of the checkpoint.
        if not all(isinstance(file, str) and Path(file).name == file for file in weight_map.values()) or not weight_map:
            raise ValueError("weight_map must map tensor names to names of files beside it")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is not a safetensors index ({type(error).__name__}: {error}); copy or download it again") from error
    return weight_map


def read_config(path: Path) -> dict[str, Any]:
    """A `config.json`, which may hold bare `Infinity` and `-Infinity` as DUSt3R's do.

    Raises:
        CheckpointError: it cannot be read, is not JSON, or not an object.
    """
    try:
        with reading(path):
            config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}); correct it or download it again") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} must hold a JSON object with the model's options; found {type(config).__name__}")
    return config


def looks_like_hub_id(text: str) -> bool:
    """Whether `text` reads owner/name and not like the path of a tensor file."""
    return _HUB_ID.fullmatch(text) is not None and not text.endswith(TENSOR_SUFFIXES)


def base_model(config: Mapping[str, Any] | None, card: Path | None) -> str | None:
    """Hub id or path of the model that a probe checkpoint belongs to, from its config, else from its model card."""
    named = [value for field in _BASE_FIELDS for key, value in (config or {}).items() if key.startswith(field)]
    if not any(map(_first_source, named)) and card is not None:
        from huggingface_hub.repocard import metadata_load
        from yaml import YAMLError

        try:
            with reading(card):
                named = [(metadata_load(card) or {}).get("base_model")]
        except (ValueError, YAMLError) as error:
            # The card is prose for readers; a slip in its header must not stop a conversion that may not need it.
            _logger.warning("no base model read from %s: its YAML header is not valid (%s)", card, error)
    return next(filter(None, map(_first_source, named)), None)


def _first_source(value: object) -> str | None:
    """The first of a string or a list of strings that reads like a hub id or a path; a plain word does not."""
    for text in value if isinstance(value, list) else [value]:
        if isinstance(text, str) and (
            looks_like_hub_id(text) or text.endswith(TENSOR_SUFFIXES) or text.startswith(("/", "./", "../", "~"))
        ):
            return text
    return None
