"""One writer per folder: a lock that the system releases when its process dies, and who holds it, for whoever is refused."""

import contextlib
import errno
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from typing_extensions import TypedDict

from und3rstand_jax.support.documents import read_json
from und3rstand_jax.support.errors import OutputError, UserError
from und3rstand_jax.support.files import own_descriptor

_logger = logging.getLogger(__name__)


class Holder(TypedDict):
    """Who holds a lock: host, process namespace (two containers of one host number their processes alike), process, since when."""

    host: str
    namespace: str
    process: int
    started: str


def here() -> tuple[str, str]:
    """This host and process namespace: among processes that agree in both, a process number names one."""
    try:
        namespace = str(os.stat("/proc/self/ns/pid").st_ino)
    except OSError:  # not Linux: one namespace per host
        namespace = "0"
    return socket.gethostname(), namespace


@contextlib.contextmanager
def locked(file: Path, what: str, wait: bool = False) -> Iterator[None]:
    """Holds a lock while its block runs; the lock's file is there only meanwhile, or until the next holder if the process is killed.

    The lock is the system's (flock), so that a killed process holds nothing, whatever its file says. A file system that has no such locks
    gets the file alone, which then counts until its process, on this host, is gone, or the file is removed; nobody waits there, and of two
    that start at the same moment both may have it.

    Args:
        file: the lock's file; its folder exists.
        what: what is locked, for messages.
        wait: whether to wait until it is free, and log so, instead of being refused.

    Raises:
        OutputError: another process holds it; the message names that process.
        OSError: the file cannot be made.
    """
    descriptor = _acquire(file, what, wait)
    try:
        os.ftruncate(descriptor, 0)
        host, namespace = here()
        started = time.strftime("%Y-%m-%d %H:%M:%S %z")
        holder = Holder(host=host, namespace=namespace, process=os.getpid(), started=started)
        os.write(descriptor, json.dumps(holder).encode())
        yield
    finally:
        # Removed while it is still held: whoever waits for it sees that, and takes a new one.
        with contextlib.suppress(FileNotFoundError):
            file.unlink()
        os.close(descriptor)


def _acquire(file: Path, what: str, wait: bool) -> int:
    import fcntl

    while True:
        # Not inherited by child processes, which may outlive this one.
        descriptor = own_descriptor(file, os.O_RDWR)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            user = _described(_holder(file))
            if not wait:
                os.close(descriptor)
                raise OutputError(f"{what} is in use by {user}; wait until it ends, or choose another --out") from None
            _logger.info("waiting for %s, which is in use by %s", what, user)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in (errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS):
                os.close(descriptor)
                raise
            holder = _holder(file)
            if holder is not None and _may_be_alive(holder):
                os.close(descriptor)
                raise OutputError(f"{what} is in use by {_described(holder)}; if that has ended, remove {file}") from error
            return descriptor
        # Its last holder may have removed the file between the opening and the lock.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(file)):
                return descriptor
        os.close(descriptor)


def _holder(file: Path) -> Holder | None:
    """What the file says; None where its holder has not written it yet, or died before it could."""
    try:
        return read_json(file, Holder, UserError)
    except UserError:
        return None


def _described(holder: Holder | None) -> str:
    if holder is None:
        return "another process"
    return f"process {holder['process']} on {holder['host']}, since {holder['started']}"


def _may_be_alive(holder: Holder) -> bool:
    """Whether a holder has not certainly ended: of another host or namespace nothing is certain."""
    if (holder["host"], holder["namespace"]) != here():
        return True
    try:
        os.kill(holder["process"], 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's process
        return True
    return holder["process"] != os.getpid()
