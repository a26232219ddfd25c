"""One writer per folder: a lock that the system releases when its process dies, and a record of its holder, for error messages."""

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
    """Who holds a lock: host, process namespace (containers on one host may reuse process numbers), process number, start time."""

    host: str
    namespace: str
    process: int
    started: str


def here() -> tuple[str, str]:
    """This host and process namespace; within both, a process number is unique."""
    try:
        namespace = str(os.stat("/proc/self/ns/pid").st_ino)
    except OSError:  # not Linux: one namespace per host
        namespace = "0"
    return socket.gethostname(), namespace


@contextlib.contextmanager
def locked(file: Path, what: str, wait: bool = False) -> Iterator[None]:
    """Holds a lock while its block runs. The lock file exists only that long, or until the next holder if the process is killed.

    The lock is the system's (flock), so a killed process holds nothing, whatever its file says. On a file system without such locks, the
    file itself is the lock: it counts until its process on this host is gone, or the file is removed. There, nobody waits, and two
    processes that start at the same moment may both get the lock.

    Args:
        file: the lock file, in an existing folder.
        what: what is locked, for messages.
        wait: whether to log a message and wait until the lock is free, instead of raising an error.

    Raises:
        OutputError: another process holds the lock; the message names that process.
        OSError: the file cannot be created.
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
        # Removed while still locked: a waiting process notices that, and takes a new file.
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
    """The holder that the file names; None if the holder has not written it yet, or died first."""
    try:
        return read_json(file, Holder, UserError)
    except UserError:
        return None


def _described(holder: Holder | None) -> str:
    if holder is None:
        return "another process"
    return f"process {holder['process']} on {holder['host']}, since {holder['started']}"


def _may_be_alive(holder: Holder) -> bool:
    """Whether a holder may still be running; on another host or in another namespace, it may always be."""
    if (holder["host"], holder["namespace"]) != here():
        return True
    try:
        os.kill(holder["process"], 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's process
        return True
    return holder["process"] != os.getpid()
