"""Output folders that appear whole or not at all, and the checks before anything is written.

A result is written to a hidden folder beside its destination and renamed into place when it is complete. Before that, the destination
must be apart from the sources, on a disk with enough free space, and empty or an earlier result that may be replaced.
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

from und3rstand_jax.support.errors import OutputError


def check_apart(out: Path, sources: Iterable[Path]) -> None:
    """Refuses an output folder that is a source, lies in one, or holds one: replacing it would delete the source.

    Raises:
        OutputError: it is one of these.
    """
    folder = out.resolve()
    for given in sources:
        source = given.expanduser().resolve()
        if folder == source or folder.is_relative_to(source):
            raise OutputError(f"the output folder {out} is, or is in, the source {given}; choose one elsewhere")
        if folder.is_dir() and source.is_relative_to(folder):
            raise OutputError(f"the output folder {out} holds the source {given}; choose one elsewhere")


def check_free_space(out: Path, needed: int) -> None:
    """Refuses, before any work, a disk with fewer than `needed` bytes free.

    Raises:
        OutputError: it has fewer.
    """
    existing = next(parent for parent in (out.resolve(), *out.resolve().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        shown = [f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB" for count in (free, needed)]
        raise OutputError(
            f"disk full: {existing} has {shown[0]} free, and the result takes about {shown[1]}; free some, or choose another --out"
        )


def check_output_folder(folder: Path, overwrite: bool, is_ours: Callable[[Path], bool]) -> None:
    """Refuses a folder that must not be written, before any work is done for it.

    Args:
        folder: where results go. Missing or empty is fine.
        overwrite: whether an earlier result there may be replaced.
        is_ours: whether a folder is an earlier result; anything else is never replaced.

    Raises:
        OutputError: the path is a file or a broken symlink, or holds something that must not be replaced.
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
    if not any(folder.iterdir()):
        return
    if not overwrite:
        raise OutputError(f"{folder} is not empty; choose another --out, or give --overwrite to replace it")
    if not is_ours(folder):
        raise OutputError(f"{folder} does not hold an earlier result and is not replaced; choose another --out")


@contextlib.contextmanager
def output_folder(folder: Path, overwrite: bool, is_ours: Callable[[Path], bool]) -> Iterator[Path]:
    """Yields a temporary folder beside `folder` and moves it there when the block ends without an exception.

    Arguments and errors are those of `check_output_folder`; a full disk is an `OSError`, whoever wrote. A failed block leaves
    nothing behind. A killed one leaves `.NAME.partial-…`, never a half-written `folder`; killed between the two renames
    that replace an earlier result, it leaves that as `.NAME.earlier-…`. The next call for `folder` cleans up both.
    """
    if folder.is_symlink() and not folder.exists():
        check_output_folder(folder, overwrite, is_ours)  # which must see the symlink itself: resolved, it is a missing folder
    folder = folder.resolve()
    for earlier in _left_behind(folder, "earlier"):
        if folder.exists():
            shutil.rmtree(earlier)
        else:
            os.rename(earlier, folder)
    for partial in _left_behind(folder, "partial"):
        shutil.rmtree(partial)
    check_output_folder(folder, overwrite, is_ours)
    partial = _sibling(folder, "partial")
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise OutputError(f"{folder} cannot be created: {error.strerror}; choose another --out") from error
    try:
        yield partial
        check_output_folder(folder, overwrite, is_ours)
        _move_into_place(partial, folder)
    except BaseException as error:
        # Writers that Orbax abandoned when it failed may still be writing there, for a second or two.
        for _ in range(20):
            shutil.rmtree(partial, ignore_errors=True)
            time.sleep(0.1)
            if not partial.exists():
                break
        # Orbax and safetensors wrap the system's error in a text of their own.
        full = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT))
        if isinstance(error, Exception) and any(text in f"{error} {error.__cause__}" for text in full):
            message = f"{os.strerror(errno.ENOSPC)}; nothing was kept: free some, or choose another --out"
            raise OSError(errno.ENOSPC, message, str(folder)) from error
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


def _sibling(folder: Path, role: str) -> Path:
    return folder.with_name(f".{folder.name}.{role}-{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}")


def _left_behind(folder: Path, role: str) -> list[Path]:
    """The siblings that `_sibling` named in processes of this machine that have ended."""
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
