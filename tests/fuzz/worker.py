"""A process that reads inputs until it is told to stop, or dies of one.

A line of JSON asks for a batch, {"batch": its fields, "seconds"}; a line answers for each input, and an empty one ends the batch. The
folder that is read then (`case`) is left behind by a process that dies, with what it died of on its stderr.
"""

import contextlib
import dataclasses
import faulthandler
import functools
import hashlib
import importlib
import json
import math
import os
import pkgutil
import resource
import shutil
import signal
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

from tests.fuzz.contract import Files, Kind, Outcome, check, lay_out

CASE = "case"
SECONDS = 60.0
"""Of processor time, after which an input is given up; the contract's own limit is what a reader may take."""

_LONGEST_WAIT = 900.0
"""Seconds on the clock, after which an input is given up: a wait without end is meant, not a machine that has other things to do."""

ADDRESS_SPACE = 3 * 2**30
"""Bytes that an input may add to it: a native library that asks for more is refused, and the machine survives."""


class _TimeIsUp(Exception):
    """Of a batch."""


@dataclasses.dataclass(frozen=True)
class Batch:
    """Inputs of a kind, the same ones for the same numbers: number 0 is the seeds as they are, others are derived from them."""

    kind: str
    seed: int
    number: int
    count: int = 200


def run_batch(kind: Kind, batch: Batch, folder: Path, report: Callable[[Outcome], None], seconds: float = math.inf) -> None:
    """Reads the inputs of a batch as far as it comes in this time, each laid out in the folder `case` of `folder`."""
    import hypothesis

    from tests.fuzz.damage import inputs_of

    seeds = seeds_of(kind, folder)

    end = time.monotonic() + seconds

    def read(files: Files) -> None:
        if time.monotonic() >= end and batch.number != 0:
            raise _TimeIsUp
        report(read_once(kind, files, folder))

    if batch.number == 0:
        for files in seeds:
            read(files)
        return
    number = int.from_bytes(hashlib.sha256(f"{kind.name} {batch.seed} {batch.number}".encode()).digest()[:8], "big")
    settings = hypothesis.settings(
        max_examples=batch.count,
        phases=(hypothesis.Phase.generate,),
        derandomize=False,
        database=None,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    # Raised out of it, since it would go on to make inputs that nobody reads.
    with contextlib.suppress(_TimeIsUp):
        hypothesis.seed(number)(settings(hypothesis.given(inputs_of(kind, seeds))(read)))()


@functools.cache
def seeds_of(kind: Kind, folder: Path) -> tuple[Files, ...]:
    """The seeds of a kind, after a first call with the valid one: imports and compilations are not what is measured."""
    seeds = tuple(kind.seeds())
    shutil.rmtree(folder / CASE, ignore_errors=True)
    lay_out(folder / CASE, seeds[0])
    with contextlib.suppress(Exception):  # it is judged when its turn comes
        kind.call(folder / CASE)
    return seeds


def read_once(kind: Kind, files: Files, folder: Path) -> Outcome:
    """Lays an input out and reads it; that of a fault stays, packed, beside the folder `case`."""
    case = folder / CASE
    shutil.rmtree(case, ignore_errors=True)
    case.mkdir(parents=True)
    lay_out(case, files)
    outcome = check(kind, case)
    if outcome.verdict == "fault":
        kept = keep(files, kind.name, folder)
        return dataclasses.replace(outcome, text=f"{kept}\n{outcome.text}")
    return outcome


def keep(files: Files, kind: str, folder: Path) -> Path:
    """An input as one file, which `replay` reads."""
    digest = hashlib.sha256(repr(sorted(files.items())).encode()).hexdigest()[:12]
    file = folder / f"{kind.replace(' ', '_').replace(',', '')}-{digest}.zip"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.comment = kind.encode()
        for name, content in files.items():
            archive.writestr(name, content)
    return file


def prepare() -> None:
    """Imports the whole package: hypothesis draws on the constants of the modules that it finds, which must be the same each time."""
    import und3rstand_jax

    for module in pkgutil.walk_packages(und3rstand_jax.__path__, "und3rstand_jax."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)


def main(folder: Path, module: str) -> None:
    """Answers requests on stdin, in `folder`; `module` has the kinds."""
    # Readers may print: their output is nobody's business, and the answers go to what was stdout.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.chdir(folder)
    prepare()
    kinds: dict[str, Kind] = importlib.import_module(module).KINDS
    faulthandler.enable()
    faulthandler.register(signal.SIGPROF, chain=True)  # a traceback, and then the end

    def report(outcome: Outcome) -> None:
        print(json.dumps(dataclasses.asdict(outcome)), file=answers, flush=True)
        _limit()

    for line in sys.stdin:
        asked = json.loads(line)
        batch = Batch(**asked["batch"])
        kind = kinds[batch.kind]
        seeds_of(kind, folder)
        _limit()
        run_batch(kind, batch, folder, report, asked["seconds"])
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_PROF, 0)
        print("", file=answers, flush=True)


def _limit() -> None:
    """Sets the bounds of the next input: the process ends with a traceback, or is refused memory."""
    faulthandler.dump_traceback_later(_LONGEST_WAIT, exit=True)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + ADDRESS_SPACE, resource.RLIM_INFINITY))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
