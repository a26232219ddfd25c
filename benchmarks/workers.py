"""The sides of a comparison, each in its own process, so that its peak memory is its own too; runs are timed in turn."""

import multiprocessing
import resource
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

Build = Callable[..., tuple[Callable[[], None], dict[str, Any]]]
"""Prepares a side: returns the function to time, which must wait for its result, and details to report."""


class Worker:
    """One side, prepared and waiting."""

    def __init__(self, name: str, build: Build, *args: Any) -> None:
        """Starts the process and waits until `build(*args)` has run there."""
        context = multiprocessing.get_context("spawn")  # a forked JAX or PyTorch hangs
        self.name = name
        self.seconds: list[float] = []
        self._pipe, far_end = context.Pipe()
        self._process = context.Process(target=_serve, args=(far_end, build, args), daemon=True)
        self._process.start()
        self.details = self._answer()

    def run(self) -> None:
        """One timed run."""
        self._pipe.send("run")
        self.seconds.append(self._answer())

    def finish(self) -> None:
        """Ends the process; `details` then holds its peak memory."""
        self._pipe.send("finish")
        self.details |= self._answer()
        self._process.join()

    def _answer(self) -> Any:
        try:
            answer = self._pipe.recv()
        except EOFError:
            sys.exit(f"{self.name} died; its message is above")
        return answer


def _serve(pipe: Connection, build: Build, args: tuple[Any, ...]) -> None:
    run, details = build(*args)
    run()
    pipe.send(details)
    while pipe.recv() == "run":
        start = time.perf_counter()
        run()
        pipe.send(time.perf_counter() - start)
    pipe.send({"peak_gb": _peak_bytes() / 1e9})


def _peak_bytes() -> int:
    """Peak of the accelerator's memory if this process used one, else of the process, in bytes."""
    if "jax" in sys.modules:
        stats = sys.modules["jax"].local_devices()[0].memory_stats()
        if stats:
            return stats["peak_bytes_in_use"]
    elif "torch" in sys.modules and sys.modules["torch"].cuda.is_available():
        return sys.modules["torch"].cuda.max_memory_allocated()
    # A side that starts a command is as large as that command.
    return max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) * 1024


def both_layouts(case: str, work: Path) -> tuple[Path, Path]:
    """A model of tests/golden in the hub's layout and converted, each made in `work` unless it is already there."""
    from tests.conversion import converted
    from tests.make_checkpoint import make

    if not (work / "backbone" / "model.safetensors").is_file():
        make(case, work, hidden=64)
    if not (work / "jax" / "config.json").is_file():
        converted(work / "backbone", work / "jax")
    return work / "backbone", work / "jax"
