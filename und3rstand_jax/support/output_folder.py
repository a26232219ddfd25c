"""Output folders that appear whole or not at all, and the checks before anything is written.

A result is written to a hidden folder and moved into place when it is complete. If nothing is there yet, the hidden folder is renamed. A
folder that exists stays (a mount point cannot be renamed, and a shell's working directory should not be): the result is written inside
it, and its parts are moved up, the marker last. If that move is killed, the next call for the same folder finishes it.
"""

import contextlib
import errno
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from und3rstand_jax.support.documents import read_json
from und3rstand_jax.support.errors import OutputError
from und3rstand_jax.support.files import own_folder
from und3rstand_jax.support.locks import here, locked
from und3rstand_jax.support.results import ResultKind, check_own
from und3rstand_jax.support.text import size_text

LOCK = ".und3rstand_jax.lock"
"""The lock file in a folder that is being written."""

_PARTIAL, _COMPLETE = ".partial-", ".complete-"
_NEW, _EARLIER = "new", "earlier.json"


def check_free_space(out: Path, needed: int) -> None:
    """Refuses a disk with fewer than `needed` bytes free, before any work is done.

    Raises:
        OutputError: it has fewer.
    """
    existing = next(parent for parent in (out.resolve(), *out.resolve().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        sizes = f"{size_text(free)} free, and the result takes about {size_text(needed)}"
        raise OutputError(f"disk full: {existing} has {sizes}; free some, or choose another --out")


def check_output_folder(folder: Path, overwrite: bool, kind: ResultKind) -> None:
    """Refuses a folder that must not be written, before any work is done for it. Cleans up what a killed process left there.

    Args:
        folder: where results go. Missing or empty is fine.
        overwrite: whether an earlier result there may be replaced.
        kind: the kind of result that may be replaced; a folder that holds anything else never is.

    Raises:
        OutputError: the path is a file or a broken symlink, holds something that must not be replaced, or is being written.
    """
    check_place(folder)
    folder = folder.resolve()
    if any(_leftovers(folder)):
        with locked_output(folder):
            _tidy_up(folder, kind.marker)
    _check_contents(folder, overwrite, kind)


def _check_contents(folder: Path, overwrite: bool, kind: ResultKind) -> None:
    if not folder.exists() or all(map(is_passing, os.listdir(folder))):
        return
    if not overwrite:
        raise OutputError(f"{folder} is not empty; choose another --out, or give --overwrite to replace it")
    check_own(folder, kind.own_files(folder), is_passing)


def check_place(folder: Path) -> None:
    """Refuses a path where no folder can be created.

    Raises:
        OutputError: it is a file or a broken symlink, or below one.
    """
    if not folder.exists() and not folder.is_symlink():
        nearest = next(parent for parent in folder.absolute().parents if parent.exists() or parent.is_symlink())
        if not nearest.is_dir():
            what = "a file" if nearest.exists() else "a broken symlink"
            raise OutputError(f"{folder} cannot be created: {nearest} is {what}; choose another --out")
        return
    if folder.is_symlink() and not folder.exists():
        raise OutputError(f"{folder} is a broken symlink; --out must name a folder")
    if not folder.is_dir():
        raise OutputError(f"{folder} is a file; --out must name a folder")


@contextlib.contextmanager
def output_folder(folder: Path, overwrite: bool, kind: ResultKind) -> Iterator[Path]:
    """Yields a temporary folder, whose contents become those of `folder` when the block ends without an exception.

    Arguments and errors are those of `check_output_folder`; a full disk raises `OSError`, whichever library wrote. A failed block leaves
    nothing behind. A killed one leaves hidden folders, which the next call for `folder` removes, but never a partial result that would
    pass for a whole one. Two processes cannot write to one folder at the same time.
    """
    check_place(folder)  # before resolving: a broken symlink resolves to a missing folder
    folder = folder.resolve()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder} cannot be created: {error.strerror}; choose another --out") from error
    with locked_output(folder):
        _tidy_up(folder, kind.marker)
        _check_contents(folder, overwrite, kind)
        place, prefix = _staging(folder)
        base = place / f"{prefix}{_PARTIAL}{_owner()}{uuid.uuid4().hex[:8]}"
        try:
            (base / _NEW).mkdir(parents=True)
        except OSError as error:
            raise OutputError(f"{folder} cannot be created: {error.strerror}; choose another --out") from error
        try:
            yield base / _NEW
            _check_contents(folder, overwrite, kind)
            if place == folder:
                _move_into(folder, base, kind.marker)
            else:
                os.rename(base / _NEW, folder)  # replaces an empty folder as well, and only an empty one
                base.rmdir()
        except BaseException as error:
            _remove(base)
            # Orbax and safetensors wrap the system's error in a text of their own.
            full = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT))
            if isinstance(error, Exception) and any(text in f"{error} {error.__cause__}" for text in full):
                message = f"{os.strerror(errno.ENOSPC)}; nothing was kept: free some, or choose another --out"
                raise OSError(errno.ENOSPC, message, str(folder)) from error
            raise


def locked_output(folder: Path) -> contextlib.AbstractContextManager[None]:
    """Holds the lock of a results folder: inside the folder, or beside it if it does not exist yet."""
    return locked(folder / LOCK if folder.exists() else folder.with_name(f".{folder.name}{LOCK}"), str(folder))


def is_passing(file: str) -> bool:
    """Whether a file, by its path relative to an output folder, is a temporary file of a writer."""
    top = file.partition("/")[0]
    return top == LOCK or top.startswith((_PARTIAL, _COMPLETE))


def _staging(folder: Path) -> tuple[Path, str]:
    """The place where a result is prepared, inside `folder` or, if it does not exist yet, beside it; and the prefix of names there."""
    return (folder, "") if folder.exists() else (folder.parent, f".{folder.name}")


def _owner() -> str:
    """The part of a hidden folder's name that identifies this host and process namespace; folders of others may be in use."""
    return "-".join((*here(), ""))


def _move_into(folder: Path, base: Path, marker: str) -> None:
    """Moves the parts of a complete result up into a folder that stays, and moves out what they replace."""
    earlier = [name for name in os.listdir(folder) if not is_passing(name)]
    (base / _EARLIER).write_text(json.dumps(earlier))
    complete = base.with_name(base.name.replace(_PARTIAL, _COMPLETE, 1))
    os.rename(base, complete)
    _finish_moving(folder, complete, marker)


def _finish_moving(folder: Path, complete: Path, marker: str) -> None:
    """Moves whatever has not been moved yet. The marker leaves first and arrives last, so that no mixture passes for a result."""
    # A stranger could plant names or a link here to have files of other folders moved.
    new, leaving, old = own_folder(complete / _NEW), complete / "leaving", complete / "old"
    if not old.exists():
        leaving.mkdir(exist_ok=True)
        earlier = {*os.listdir(folder)}.intersection(read_json(complete / _EARLIER, list[str], OutputError))
        for name in sorted(earlier, key=lambda name: (name != marker, name)):
            os.rename(folder / name, leaving / name)
        os.rename(leaving, old)
    for name in sorted(os.listdir(new), key=lambda name: (name == marker, name)):
        if os.path.lexists(folder / name):
            raise OutputError(f"{folder / name} has appeared in the meantime; move it away, then run this again to complete the result")
        os.rename(new / name, folder / name)
    _remove(complete)


def _leftovers(folder: Path) -> Iterator[Path]:
    """The hidden folders of this host's processes; while the lock is held, these are killed ones."""
    place, prefix = _staging(folder)
    for left in sorted(place.iterdir()) if place.is_dir() else ():
        if left.name.startswith((f"{prefix}{_PARTIAL}{_owner()}", f"{prefix}{_COMPLETE}{_owner()}")) and not left.is_symlink():
            yield left


def _tidy_up(folder: Path, marker: str) -> None:
    """Removes unfinished results and moves complete ones into place."""
    for left in _leftovers(folder):
        if left.name.startswith(_COMPLETE):
            _finish_moving(folder, left, marker)
        else:
            _remove(left)


def _remove(folder: Path) -> None:
    """Removes a folder of this program. Writers that a failed Orbax call abandoned may still write there for a second or two."""
    for _ in range(20):
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.1)
        if not folder.exists():
            break
