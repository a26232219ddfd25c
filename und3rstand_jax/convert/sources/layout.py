"""Which files of a folder or a repository make up a checkpoint."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from und3rstand_jax.convert.sources.tensor_files import reading
from und3rstand_jax.support.errors import UserError

CONFIG = "config.json"


CARD = "README.md"


INDEX = "model.safetensors.index.json"


PICKLE_SUFFIXES = (".pth", ".pt", ".bin")


TENSOR_SUFFIXES = (".safetensors", *PICKLE_SUFFIXES)


@dataclass(frozen=True)
class Place:
    """Where a checkpoint's files are: a folder, a repository on the hub, or the cached copy of one.

    `fetch` gives a file's path on this machine (and downloads it where necessary). `remedy` is what to do when a file is missing.
    In a folder of the user's own (`strict`), files beside an index that it does not name are a mistake; on the hub they are not fetched.
    """

    label: str
    names: tuple[str, ...]
    fetch: Callable[[str], Path]
    remedy: str
    strict: bool = False


def folder(path: Path) -> Place:
    """The files directly in a folder."""
    with reading(path):
        names = tuple(sorted(entry.name for entry in path.iterdir() if entry.is_file()))
    return Place(f"folder {path}", names, path.joinpath, "add it, or give another folder or file", strict=True)


def tensor_names(place: Place) -> tuple[tuple[str, ...], dict[str, str] | None]:
    """Names of the files that hold the tensors, and the index's tensor -> file map if there is an index.

    An index decides; else all `.safetensors` files; else `pytorch_model.bin`; else a single pickle of any name.

    Raises:
        UserError: there are none, it is not clear which, or shards are missing or left over.
    """
    safetensors = tuple(name for name in place.names if name.endswith(".safetensors"))
    if INDEX in place.names:
        weight_map = _read_index(place)
        shards = tuple(dict.fromkeys(weight_map.values()))
        _check_shards(place, shards, safetensors)
        return shards, weight_map
    if safetensors:
        return safetensors, None
    pickles = tuple(name for name in place.names if name.endswith(PICKLE_SUFFIXES))
    if "pytorch_model.bin" in pickles:
        return ("pytorch_model.bin",), None
    if len(pickles) == 1:
        return pickles, None
    if pickles:
        raise UserError(f"{place.label} holds several pickles: {', '.join(pickles)}; expected one; give the path of the one you mean")
    found = ", ".join(place.names[:20]) + (", …" if len(place.names) > 20 else "")
    raise UserError(
        f"{place.label} holds no tensor file; expected one of *{', *'.join(TENSOR_SUFFIXES)}; found {found or 'no files'}; {place.remedy}"
    )


def _read_index(place: Place) -> dict[str, str]:
    path = place.fetch(INDEX)
    try:
        with reading(path):
            weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        # A file name with a folder in it would reach out of the checkpoint.
        if not all(isinstance(file, str) and Path(file).name == file for file in weight_map.values()) or not weight_map:
            raise ValueError("weight_map must map tensor names to names of files beside it")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not a safetensors index ({type(error).__name__}: {error}); copy or download it again") from error
    return weight_map


def _check_shards(place: Place, shards: tuple[str, ...], found: tuple[str, ...]) -> None:
    missing = sorted(set(shards) - set(found))
    surplus = sorted(set(found) - set(shards)) if place.strict else []
    complaints = []
    if missing:
        complaints.append(f"its index names {', '.join(missing)}, which is not there: {place.remedy}")
    if surplus:
        complaints.append(f"its index does not name {', '.join(surplus)}, which is there: move it elsewhere, or give it alone")
    if complaints:
        raise UserError(f"{place.label}: {'; '.join(complaints)}")
