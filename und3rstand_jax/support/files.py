"""Files: only regular ones are read; each is written under a new name and renamed into place, whole or not at all.

A folder may belong to somebody else, who has planted symbolic links under the names that are written next. So a file is created under a
random name, exclusively, and renamed into place: the rename replaces a link and never follows it.
"""

import contextlib
import errno
import hashlib
import os
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO, Literal

from und3rstand_jax.support.errors import OutputError


def in_home(path: Path | str) -> Path:
    """The path with a leading ~ or ~user replaced by that home folder; unchanged if there is none."""
    try:
        return Path(os.path.expanduser(path))
    except ValueError:  # a null character, which no user's name and no file's has
        return Path(path)


def open_regular(file: Path | str) -> BinaryIO:
    """Opens a regular file to read its bytes; anything else is refused, without waiting for the other end of a pipe.

    Raises:
        OSError: it cannot be opened, or is a pipe, device, socket or folder.
    """
    if "\0" in str(file):
        raise OSError(errno.EINVAL, "its name contains a null character", str(file))
    descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK)
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            what = "a folder" if stat.S_ISDIR(mode) else "a pipe" if stat.S_ISFIFO(mode) else "a device or socket"
            raise OSError(errno.EINVAL, f"it is {what}, expected a file", str(file))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def file_sha256(file: Path | str) -> str:
    """SHA-256 of a regular file, in hexadecimal; thread-safe.

    Raises:
        OSError: as in `open_regular`, or the file cannot be read.
    """
    digest = hashlib.sha256()
    with open_regular(file) as stream:
        while block := stream.read(2**20):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def fresh_file(file: Path, mode: Literal["w", "wb"] = "w") -> Iterator[IO[Any]]:
    """Yields a new file to write, which replaces `file` when the block ends without an exception; text is UTF-8.

    Raises:
        OSError: it cannot be written; `file` is unchanged.
    """
    partial = file.with_name(f".{file.name[:100]}.partial-{uuid.uuid4().hex}")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
    try:
        with os.fdopen(descriptor, mode, encoding=None if mode == "wb" else "utf-8", newline=None if mode == "wb" else "") as stream:
            yield stream
        os.replace(partial, file)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise


def replace_text(file: Path, text: str) -> None:
    """Writes a text file whole or not at all; a file that already has this text is left alone."""
    with contextlib.suppress(OSError, OutputError), open_own(file) as held:
        if held.read() == text.encode():
            return
    with fresh_file(file) as stream:
        stream.write(text)


def open_own(file: Path) -> BinaryIO:
    """Opens a file that this program wrote earlier, to read its bytes; it must be a regular file, not a link.

    Raises:
        FileNotFoundError: there is no such file.
        OutputError: it is not a regular file.
    """
    if stat.S_ISREG(os.lstat(file).st_mode):
        return open_regular(file)
    raise _not_own(file)


def open_to_append(file: Path) -> IO[str]:
    """Opens a text file to append lines to; creates it if it is missing.

    Raises:
        OutputError: it is a symbolic link, or has a second hard link: appending would change another file.
    """
    return os.fdopen(own_descriptor(file, os.O_WRONLY | os.O_APPEND), "a", encoding="utf-8", newline="")


def own_descriptor(file: Path, flags: int) -> int:
    """Opens a file that belongs to this program and has a fixed name; creates it if it is missing.

    Raises:
        OutputError: it is a symbolic link, has a second hard link, or is not a regular file: writing would change something else.
    """
    try:
        descriptor = os.open(file, flags | os.O_CREAT | os.O_NONBLOCK | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
            raise
        raise _not_own(file) from error
    found = os.fstat(descriptor)
    # No link at all: its last holder has just removed it.
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        os.close(descriptor)
        raise _not_own(file)
    return descriptor


def _not_own(file: Path) -> OutputError:
    return OutputError(f"{file} is a link, pipe or folder, or has a second hard link; expected a regular file of this program: remove it")


def own_folder(folder: Path) -> Path:
    """A subfolder for results, created if it is missing.

    Raises:
        OutputError: it is a link, or not a folder: files written into it would end up elsewhere.
    """
    with contextlib.suppress(FileExistsError):
        folder.mkdir(parents=True)
    if not stat.S_ISDIR(os.lstat(folder).st_mode):
        raise OutputError(f"{folder} is a symbolic link or a file; expected a folder that belongs to the results: remove it")
    return folder
