"""Folders of results: how one is recognised, which of its files are its own, and what may therefore be replaced.

A result has a marker: a JSON file with the name of its format and the list of the result's own files. Any other file in the folder
belongs to somebody else and is never removed: a folder that holds such a file is not replaced.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from und3rstand_jax.support.documents import read_json
from und3rstand_jax.support.errors import OutputError, UserError
from und3rstand_jax.support.files import in_home
from und3rstand_jax.support.text import listed


@dataclass(frozen=True)
class ResultKind:
    """What a command writes into a folder.

    Attributes:
        marker: the file, relative to the folder, that every such result has.
        own_files: the files in a folder that belong to a result of this kind, relative to it; None if it holds no such result.
    """

    marker: str
    own_files: Callable[[Path], frozenset[str] | None]


VERSION = 1

_NAMED = 3  # foreign files that a message names


class Marker(TypedDict):
    """The fields of every marker; a kind of result may add more."""

    format: str
    version: int
    files: list[str]


def marked(folder: Path, format: str, marker: str) -> Mapping[str, Any]:
    """The head of a result's marker, to be written last: format, version, and every file in the folder as the result's own."""
    return {"format": format, "version": VERSION, "files": sorted({*files_in(folder), marker})}


def result_of(format: str, marker: str) -> ResultKind:
    """A kind of result that is recognised by the format name in its marker; the marker lists its files."""

    def own_files(folder: Path) -> frozenset[str] | None:
        if (folder / marker).is_symlink() or not (folder / marker).is_file():
            return None
        try:
            content = read_json(folder / marker, Marker, UserError)
        except UserError:  # somebody else's file of that name
            return None
        return frozenset((*content["files"], marker)) if content["format"] == format and content["version"] == VERSION else None

    return ResultKind(marker, own_files)


def files_in(folder: Path) -> Iterator[str]:
    """Every file below a folder, as a path relative to it. Links of any kind are included and not followed."""
    for place, folders, files in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(place, name))]
        for name in (*files, *links):
            yield Path(place, name).relative_to(folder).as_posix()


def remove_empty_folders(folder: Path) -> None:
    """Removes the folders below `folder` that hold no file; a link is a file."""
    for place, _, _ in os.walk(folder, topdown=False):
        if place != str(folder) and not os.listdir(place):
            os.rmdir(place)


def check_own(folder: Path, own: frozenset[str] | None, ignored: Callable[[str], bool] = lambda file: False) -> None:
    """Refuses to replace a folder that holds anything but the files of an earlier result.

    Args:
        folder: the folder to replace.
        own: files of the earlier result; None if there is none.
        ignored: whether a file, by its relative path, is left where it is.

    Raises:
        OutputError: it holds no earlier result, or other files as well; the first few are named.
    """
    if own is None:
        raise OutputError(f"{folder} does not hold an earlier result of this command and is not replaced; choose another --out")
    foreign = sorted(file for file in files_in(folder) if file not in own and not ignored(file))
    if foreign:
        raise OutputError(
            f"{folder} holds {listed(foreign, most=_NAMED)} besides an earlier result, which --overwrite does not remove; "
            "move them elsewhere, or choose another --out"
        )


def check_apart(out: Path, inputs: Iterable[Path], may_lie_in: Iterable[Path] = ()) -> None:
    """Refuses an output that would replace its own inputs. Paths are compared by what they lead to, not by how they are written.

    Args:
        out: the folder or file to write.
        inputs: files and folders that are read; the output may not be one, lie inside one, or contain one.
        may_lie_in: folders that are read and may contain the output, in a folder of its own.

    Raises:
        OutputError: the output breaks one of these rules.
    """
    for given, apart in (*((path, True) for path in inputs), *((path, False) for path in may_lie_in)):
        if not in_home(given).exists():  # the name of a hub repository, or a mistake that its reader will report
            continue
        if _holds(given, out) if apart else _same(in_home(given).resolve(), out.resolve()):
            raise OutputError(f"the output {out} is, or is in, the source {given}; choose another --out")
        if _holds(out, given):
            raise OutputError(f"the output {out} contains the source {given}; choose another --out")


def check_output_file(file: Path, inputs: Iterable[Path], is_earlier: Callable[[Path], bool]) -> None:
    """Refuses an output file that may not be written, before any work is done, and creates its folder.

    Args:
        file: the file to write; an earlier result of the same command is replaced.
        inputs: files and folders that are read.
        is_earlier: whether an existing file is an earlier result.

    Raises:
        OutputError: it is a folder, is or contains one of the inputs, or is a file but not an earlier result.
    """
    if file.is_dir():
        raise OutputError(f"{file} is a folder; --out must name a file")
    check_apart(file, (), inputs)
    if (file.exists() or file.is_symlink()) and not is_earlier(file):
        raise OutputError(f"{file} exists and is not an earlier result of this command; choose another --out")
    file.parent.mkdir(parents=True, exist_ok=True)


def _holds(outer: Path, inner: Path) -> bool:
    """Whether `inner` is `outer` or lies below it, however the paths are written."""
    below = in_home(inner).resolve()
    around = in_home(outer).resolve()
    return any(_same(around, place) for place in (below, *below.parents))


def _same(first: Path, second: Path) -> bool:
    try:
        return first == second or os.path.samefile(first, second)
    except OSError:  # one of them is not there
        return False
