"""What must hold for every input: a value, or one printable line per fault; little time and memory, no writes elsewhere, no network."""

import contextlib
import dataclasses
import os
import re
import sys
import threading
import time
import traceback
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from hypothesis.strategies import SearchStrategy

from und3rstand_jax.data.records import UnreadableSet
from und3rstand_jax.support.errors import UserError

SECONDS = 15.0
"""Of processor time for one input, all threads together: a photo of the most pixels that are read takes half of it."""

MEGABYTES = 1024
"""That one input may add to the process."""

LONGEST_LINE, MOST_LINES = 4000, 60

Files = dict[str, bytes]
"""Relative path -> content: one input, as it is laid out in a folder."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind of input.

    Attributes:
        name: in tables and in the names of kept inputs.
        seeds: makes the inputs that others are derived from; the first is valid and must be accepted.
        call: reads the input in a folder, as the project's users make it do.
        damaged: patterns of the files that are damaged.
        inputs: the strategy for inputs, where it is not `damage.spoilt`.
    """

    name: str
    seeds: Callable[[], Sequence[Files]]
    call: Callable[[Path], object]
    damaged: tuple[str, ...] = ("*",)
    inputs: Callable[[], SearchStrategy[Files]] | None = None


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of one input: "accepted", "refused" or "fault", and in words. `place` tells faults apart: what was raised and where."""

    verdict: str
    text: str
    place: str = ""
    seconds: float = 0.0
    megabytes: float = 0.0


def lay_out(folder: Path, files: Files) -> None:
    """Writes an input into an empty folder."""
    for name, content in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)


def files_in(folder: Path) -> Files:
    """Every file below a folder, as `lay_out` writes them."""
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def check(kind: Kind, folder: Path) -> Outcome:
    """Reads the input in `folder` and judges what happened. What is written must stay in the folder above it."""
    start, before = time.process_time(), _forget_peak()
    error: BaseException | None = None
    with watched(folder.parent) as broken:
        try:
            kind.call(folder)
        except BaseException as caught:
            if isinstance(caught, KeyboardInterrupt):
                raise
            error = caught
    seconds, megabytes = time.process_time() - start, _peak() - before
    if isinstance(error, UserError | UnreadableSet):
        broken += message_faults(error)
    elif error is not None:
        broken.append(f"{type(error).__name__}: {error}")
    if seconds > SECONDS:
        broken.append(f"took {seconds:.1f} s of processor time")
    if megabytes > MEGABYTES:
        broken.append(f"took {megabytes:.0f} MB")
    if not broken:
        verdict, text = ("refused", str(error)) if error else ("accepted", "")
        return Outcome(verdict, text, "", seconds, megabytes)
    trace = "".join(traceback.format_exception(error, limit=-6)) if error else ""
    # Of numbers and names in a message, one is as good as another: the first words and the place make a fault.
    place = f"{re.sub('[0-9.]+', 'N', broken[0].split(':')[0][:60])} {place_of(error) if error else ''}"
    return Outcome("fault", f"{'; '.join(broken)[:1000]}\n{trace}", place, seconds, megabytes)


def message_faults(error: Exception) -> list[str]:
    """What is wrong with an error that a person is to read."""
    lines = str(error).split("\n")
    faults = []
    if len(lines) != max(len(error.args), 1) or not all(lines):
        faults.append(f"a message of {len(lines)} lines for {len(error.args)} arguments: {str(error)[:200]!r}")
    elif not all(line.isprintable() for line in lines):
        faults.append(f"a message that is not printable: {str(error)[:200]!r}")
    if len(lines) > MOST_LINES or max(map(len, lines)) > LONGEST_LINE:
        faults.append(f"a message of {len(lines)} lines and {len(str(error))} letters")
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError):
            faults.append("refused only when memory had run out")
            break
        cause = cause.__cause__ or cause.__context__
    return faults


def place_of(error: BaseException) -> str:
    """The project's innermost line that was running, and the innermost of all."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "und3rstand_jax" in frame.filename]
    return " ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in (*own[-1:], *frames[-1:]))


_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = {f"os.{name}" for name in ("rename", "remove", "mkdir", "rmdir", "link", "symlink", "truncate", "chmod", "chown", "utime")}
_NETWORK = {f"socket.{name}" for name in ("connect", "bind", "sendto", "getaddrinfo", "gethostbyname")}
_PROGRAMS = {"subprocess.Popen", "os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "pty.spawn"}

_state = types.SimpleNamespace(broken=None, inside=())


@contextlib.contextmanager
def watched(folder: Path) -> Iterator[list[str]]:
    """Yields the list of what the block did and should not have: writes outside `folder`, connections, programs, unpickled names.

    Python reports these to audit hooks, of native libraries too where they go through Python; each is refused as well.
    """
    if not _installed:
        sys.addaudithook(_judge)  # for good: there is no way to remove one
        _installed.append(True)
    _state.inside = (str(folder.resolve()), *filter(None, [os.environ.get("JAX_COMPILATION_CACHE_DIR")]))
    _state.broken = broken = []
    try:
        yield broken
    finally:
        _state.broken = None


_installed: list[bool] = []


def _judge(event: str, arguments: tuple[object, ...]) -> None:
    if _state.broken is None:
        return
    fault = ""
    if event == "open":
        path, _, flags = arguments
        if isinstance(flags, int) and flags & _WRITES and not _is_inside(path):
            fault = f"opened {path!r} to write"
    elif event in _CHANGES:
        outside = [path for path in arguments if isinstance(path, str | bytes) and not _is_inside(path)]
        fault = f"{event} of {outside[0]!r}" if outside else ""
    elif event == "pickle.find_class":
        # TensorBoard's writer hands its own events to a thread as pickles.
        fault = f"{event} {arguments!r:.100}" if threading.current_thread() is threading.main_thread() else ""
    elif event in _NETWORK or event in _PROGRAMS:
        fault = f"{event} {arguments!r:.100}"
    if fault:
        _state.broken.append(fault)
        raise PermissionError(f"the fuzzer forbids it: {fault}")


def _is_inside(path: object) -> bool:
    if not isinstance(path, str | bytes | os.PathLike):
        return True  # a descriptor, opened before
    place = os.path.realpath(os.fsdecode(path))
    return place == os.devnull or place.startswith(_state.inside)


def _forget_peak() -> float:
    """Starts to measure the peak of resident memory anew; returns the present, in MB."""
    Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024
