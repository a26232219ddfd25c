"""Whether a result may go where it is to go: apart from what it is made of, on a disk with room for it.

Folders that appear whole or not at all.
"""

import contextlib
import errno
import os
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from und3rstand_jax.support.errors import UserError


def check_apart(out: Path, places: Iterable[Path]) -> None:
    """Refuses an output folder that is a source, lies in one, or holds one: replacing it would take the source with it.

    Raises:
        UserError: it is one of these.
    """
    folder = out.resolve()
    for place in places:
        source = place.expanduser().resolve()
        if folder == source or folder.is_relative_to(source):
            raise UserError(f"the output folder {out} is, or is in, the source {place}; choose one elsewhere")
        if folder.is_dir() and source.is_relative_to(folder):
            raise UserError(f"the output folder {out} holds the source {place}; choose one elsewhere")


def check_room(out: Path, needed: int) -> None:
    """Refuses, before any work, a disk that has fewer than `needed` bytes left.

    Raises:
        UserError: it has.
    """
    existing = next(parent for parent in (out.resolve(), *out.resolve().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise UserError(
            f"disk full: {existing} has {_size(free)} free, and the result takes about {_size(needed)}; free some, or choose another --out"
        )


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def check_output_folder(folder: Path, overwrite: bool, is_ours: Callable[[Path], bool]) -> None:
    """Refuses a folder that may not be written, before any work is done for it.

    Args:
        folder: where results are to go. Missing or empty is fine.
        overwrite: whether an earlier result there may be replaced.
        is_ours: whether a folder is an earlier result; anything else is never replaced.

    Raises:
        UserError: the path is a file, or holds something that may not be replaced.
    """
    if not folder.exists() and not folder.is_symlink():
        nearest = next(parent for parent in folder.absolute().parents if parent.exists() or parent.is_symlink())
        if not nearest.is_dir():
            what = "a file" if nearest.exists() else "a link to nothing"
            raise UserError(f"{folder} cannot be made: {nearest} is {what}; choose another --out")
        return
    if folder.is_symlink() and not folder.exists():
        raise UserError(f"{folder} is a link to nothing; --out must name a folder")
    if not folder.is_dir():
        raise UserError(f"{folder} is a file; --out must name a folder")
    if not any(folder.iterdir()):
        return
    if not overwrite:
        raise UserError(f"{folder} is not empty; choose another --out, or give --overwrite to replace it")
    if not is_ours(folder):
        raise UserError(f"{folder} holds no earlier result and is not replaced; choose another --out")


@contextlib.contextmanager
def output_folder(folder: Path, overwrite: bool, is_ours: Callable[[Path], bool]) -> Iterator[Path]:
    """Gives a temporary folder beside `folder` and moves it there when the block ends without an exception.

    Arguments and errors are those of `check_output_folder`; a full disk is an `OSError`, whoever wrote. A failed block leaves
    nothing behind. A killed one leaves `.NAME.partial-…`, never a half-written `folder`; killed between the two renames
    that replace an earlier result, it leaves that as `.NAME.earlier-…`. The next call for `folder` tidies up both.
    """
    if folder.is_symlink() and not folder.exists():
        check_output_folder(folder, overwrite, is_ours)  # while it can be told from the folder that it leads to
    folder = folder.resolve()
    _recover(folder)
    check_output_folder(folder, overwrite, is_ours)
    partial = _sibling(folder, "partial")
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be made: {error.strerror}; choose another --out") from error
    try:
        yield partial
        check_output_folder(folder, overwrite, is_ours)
        _move_into_place(partial, folder)
    except BaseException as error:
        _remove_for_good(partial)
        if _is_disk_full(error):
            told = f"{os.strerror(errno.ENOSPC)}; nothing was kept: free some, or choose another --out"
            raise OSError(errno.ENOSPC, told, str(folder)) from error
        raise


def _move_into_place(partial: Path, folder: Path) -> None:
    if folder.exists() and any(folder.iterdir()):
        earlier = _sibling(folder, "earlier")
        os.rename(folder, earlier)
        os.rename(partial, folder)
        # The result is in place: what cannot be removed now is left to the next call.
        shutil.rmtree(earlier, ignore_errors=True)
    else:
        # A rename replaces an empty folder in one step, and only an empty one.
        os.rename(partial, folder)


def _remove_for_good(partial: Path) -> None:
    """Removes a folder into which writers that Orbax abandoned when it failed may still be writing, for at most two seconds."""
    for _ in range(20):
        shutil.rmtree(partial, ignore_errors=True)
        time.sleep(0.1)
        if not partial.exists():
            return


def _recover(folder: Path) -> None:
    """Finishes or undoes what a killed process of this machine left beside `folder`."""
    for earlier in _left_behind(folder, "earlier"):
        if folder.exists():
            shutil.rmtree(earlier)
        else:
            os.rename(earlier, folder)
    for partial in _left_behind(folder, "partial"):
        shutil.rmtree(partial)


def _sibling(folder: Path, role: str) -> Path:
    return folder.with_name(f".{folder.name}.{role}-{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}")


def _left_behind(folder: Path, role: str) -> list[Path]:
    """The siblings that `_sibling` named in processes of this machine that are no more."""
    prefix = f".{folder.name}.{role}-{socket.gethostname()}-"
    siblings = folder.parent.iterdir() if folder.parent.is_dir() else ()
    return [path for path in siblings if path.name.startswith(prefix) and not _is_alive(path.name.removeprefix(prefix).partition("-")[0])]


def _is_alive(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except (ValueError, OSError):  # not one of our names, or another user's process
        return True
    return True


def _is_disk_full(error: BaseException) -> bool:
    # Orbax and safetensors wrap the system's error in a text of their own.
    texts = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT))
    return isinstance(error, Exception) and any(text in f"{error} {error.__cause__}" for text in texts)
