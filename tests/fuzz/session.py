"""A fuzzing session: batches of every kind to workers until the time is up, each kind with the same share of it; faults told apart."""

import contextlib
import dataclasses
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from tests.fuzz.contract import Outcome, files_in
from tests.fuzz.worker import CASE, Batch, keep
from und3rstand_jax.support.text import text_table

_ROOT = Path(__file__).parents[2]


@dataclasses.dataclass
class Tally:
    """What became of the inputs of one kind. `faults` has one outcome for each place, `sound` says whether the valid seed was accepted."""

    tried: int = 0
    refused: int = 0
    accepted: int = 0
    seconds: float = 0.0
    slowest: float = 0.0
    largest: float = 0.0
    sound: bool = False
    batches: int = 0
    faults: dict[str, Outcome] = dataclasses.field(default_factory=dict)
    repeated: int = 0

    def add(self, outcome: Outcome, is_valid_seed: bool) -> bool:
        """Counts an outcome; says whether it is a fault that is new."""
        self.sound = self.sound or (is_valid_seed and outcome.verdict == "accepted")
        self.tried += 1
        self.refused += outcome.verdict == "refused"
        self.accepted += outcome.verdict == "accepted"
        self.slowest, self.largest = max(self.slowest, outcome.seconds), max(self.largest, outcome.megabytes)
        if outcome.verdict != "fault":
            return False
        self.repeated += 1
        is_new = outcome.place not in self.faults
        self.faults.setdefault(outcome.place, outcome)
        return is_new


def fuzz(
    seconds: float,
    seed: int,
    kept: Path,
    only: Sequence[str] = (),
    *,
    workers: int = 1,
    progress: bool = True,
    kinds: str = "tests.fuzz.kinds",
    batch_seconds: float = 2.0,
) -> dict[str, Tally]:
    """Runs a session.

    Args:
        seconds: how long; every kind is given its seeds and one batch at least.
        seed: of all inputs.
        only: names of kinds; all if empty.
        kinds: the module that has them, as KINDS.
        kept: folder for inputs that were faults, and for `faults.txt`, which tells them.
        workers: processes.
        progress: whether to show a progress bar and each new fault.
        batch_seconds: after which a batch of derived inputs ends.

    Returns:
        The tally of each kind.
    """
    tallies = {name: Tally() for name in only or importlib.import_module(kinds).KINDS}
    kept.mkdir(parents=True, exist_ok=True)
    session = _Session(kinds, tallies, seed, time.monotonic() + seconds, kept, progress, batch_seconds)
    threads = [threading.Thread(target=session.run, daemon=True) for _ in range(workers)]
    with tqdm(total=round(seconds), unit="s", desc="fuzzing", disable=None if progress else True) as bar:
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            threads[0].join(0.5)
            bar.n = min(round(seconds + time.monotonic() - session.end), round(seconds))
            bar.set_postfix_str(f"{sum(tally.tried for tally in tallies.values())} inputs, {len(session.told)} faults")
    for failure in session.failures:
        raise failure
    (kept / "faults.txt").write_text("\n\n".join(session.told), encoding="utf-8", errors="backslashreplace")
    return tallies


class _Session:
    """What the threads share, each of which speaks with a worker."""

    def __init__(
        self, kinds: str, tallies: dict[str, Tally], seed: int, end: float, kept: Path, progress: bool, batch_seconds: float
    ) -> None:
        self.kinds, self.tallies, self.seed, self.end, self.kept, self.progress = kinds, tallies, seed, end, kept, progress
        self.batch_seconds = batch_seconds
        self.told: list[str] = []
        self.failures: list[BaseException] = []  # of the session itself
        self._lock = threading.Lock()

    def run(self) -> None:
        """`work`, in a thread."""
        try:
            self.work()
        except BaseException as failure:
            self.failures.append(failure)

    def work(self) -> None:
        """Hands batches to a worker, or to the next one when it dies, until the time is up."""
        while True:
            with _worker(self.kinds) as (process, folder):
                while (asked := self._next()) is not None:
                    if not self._batch(asked, process, folder):
                        break
                else:
                    return

    def _next(self) -> Batch | None:
        """The next batch of the kind that has had the least time."""
        with self._lock:
            waiting = [name for name, tally in self.tallies.items() if time.monotonic() < self.end or tally.batches < 2]
            if not waiting:
                return None
            name = min(waiting, key=lambda name: (self.tallies[name].batches >= 2, self.tallies[name].seconds))
            tally = self.tallies[name]
            tally.batches += 1
            return Batch(name, self.seed, tally.batches - 1)

    def _batch(self, batch: Batch, process: "subprocess.Popen[str]", folder: Path) -> bool:
        """Whether the worker lives."""
        assert process.stdin is not None and process.stdout is not None
        start = time.monotonic()
        # The first input of the first batch, which another worker's batch of the kind may overtake.
        is_valid_seed = batch.number == 0
        try:
            process.stdin.write(json.dumps({"batch": dataclasses.asdict(batch), "seconds": self.batch_seconds}) + "\n")
            process.stdin.flush()
            while line := process.stdout.readline():
                if line == "\n":
                    return True
                self._take(batch.kind, Outcome(**json.loads(line)), is_valid_seed)
                is_valid_seed = False
        finally:
            with self._lock:
                self.tallies[batch.kind].seconds += time.monotonic() - start
        process.wait()
        # Python's last words: why, and where it was, innermost first.
        said = re.split("(?=Fatal Python error|Timeout \\()", (folder / "stderr").read_text(errors="replace"))[-1]
        frames = re.findall(r'File "(.*", line \d+)', said)
        own = [frame for frame in frames if "und3rstand_jax" in frame]
        place = f"died with status {process.returncode} {' '.join((*own[:1], *frames[:1]))}"
        files = files_in(folder / CASE)
        self._take(batch.kind, Outcome("fault", f"{keep(files, batch.kind, folder)}\n{place}\n{said[:3000]}", place))
        return False

    def _take(self, name: str, outcome: Outcome, is_valid_seed: bool = False) -> None:
        with self._lock:
            is_new = self.tallies[name].add(outcome, is_valid_seed)
            if outcome.verdict != "fault":
                return
            file, _, text = outcome.text.partition("\n")
            if is_new:
                place = self.kept / Path(file).name
                shutil.copyfile(file, place)
                self.told.append(f"{name}: {place}\n{text}")
                if self.progress:
                    tqdm.write(f"{name}: {text.splitlines()[0][:160]}\n    {place}", file=sys.stderr)
            Path(file).unlink()


@contextlib.contextmanager
def _worker(kinds: str) -> Iterator[tuple["subprocess.Popen[str]", Path]]:
    """A worker in a folder of its own, which is its home too, so that what it may write is only there."""
    with tempfile.TemporaryDirectory(prefix="fuzz_", ignore_cleanup_errors=True) as place:
        folder = Path(place)
        own = {name: place for name in ("HOME", "TMPDIR", "HF_HOME", "XDG_CACHE_HOME", "MPLCONFIGDIR", "HYPOTHESIS_STORAGE_DIRECTORY")}
        fixed = {"PYTHONPATH": str(_ROOT), "JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        fixed |= {"OMP_NUM_THREADS": "1", "TPU_SKIP_MDS_QUERY": "1"}
        with (folder / "stderr").open("w") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.fuzz.worker", place, kinds],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=os.environ | own | fixed,
                text=True,
            )
        try:
            yield process, folder
        finally:
            process.kill()
            process.wait()


def table(tallies: dict[str, Tally]) -> str:
    """The tallies as a table."""
    head = ("kind", "tried", "refused", "accepted", "faults", "places", "slowest", "most memory", "time")
    rows = [
        (
            name if tally.sound else f"{name} (its valid seed is not accepted)",
            *map(str, (tally.tried, tally.refused, tally.accepted, tally.repeated, len(tally.faults))),
            f"{tally.slowest:.2f} s",
            f"{tally.largest:.0f} MB",
            f"{tally.seconds:.0f} s",
        )
        for name, tally in tallies.items()
    ]
    return text_table(head, rows, numbers_from=1)
