"""Readers that break the contract, one way each: what the fuzzer must see."""

import os
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.fuzz.contract import Kind
from und3rstand_jax.support.errors import UserError


def _traceback(folder: Path) -> None:
    raise KeyError("a bug")


class _Raw(UserError):
    """Whose message is shown as it is."""

    def __str__(self) -> str:
        return ValueError.__str__(self)


def _two_lines(folder: Path) -> None:
    raise _Raw("one\ntwo")


def _far_too_long(folder: Path) -> None:
    raise _Raw("long " * 2000)


def _swallowed(folder: Path) -> None:
    try:
        raise MemoryError
    except MemoryError as error:
        raise UserError("it seems damaged") from error


def _memory(folder: Path) -> None:
    np.ones(2**26).sum()  # 537 MB, several times what the rest of a process may let go of meanwhile


def _writes(folder: Path) -> None:
    (folder.parent.parent / "elsewhere").write_text("x")


def _removes(folder: Path) -> None:
    os.remove("/etc/hostname-of-nobody")


def _connects(folder: Path) -> None:
    socket.create_connection(("127.0.0.1", 9))


def _runs(folder: Path) -> None:
    subprocess.run(["true"])


def _dies(folder: Path) -> None:
    if (folder / "a.txt").read_bytes() != b"1":
        os.kill(os.getpid(), signal.SIGABRT)


def _kind(call: Callable[[Path], object]) -> Kind:
    return Kind(call.__name__.strip("_").replace("_", " "), lambda: [{"a.txt": b"1"}], call)


FAULTS = {
    "traceback": (_kind(_traceback), "KeyError: 'a bug'"),
    "two lines": (_kind(_two_lines), "a message of 2 lines for 1 arguments"),
    "far too long": (_kind(_far_too_long), "a message of 1 lines and 10000 letters"),
    "swallowed": (_kind(_swallowed), "refused only when memory had run out"),
    "memory": (_kind(_memory), " MB"),
    "writes": (_kind(_writes), "opened"),
    "removes": (_kind(_removes), "os.remove of"),
    "connects": (_kind(_connects), "socket.getaddrinfo"),
    "runs": (_kind(_runs), "subprocess.Popen"),
}
KINDS = {"dies": _kind(_dies)}
