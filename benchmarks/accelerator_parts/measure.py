"""Measures one part after the other within the time limit: which side runs what, in turn, and what is recorded."""

import importlib.util
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.accelerator_parts.plan import MINUTES, SMALL, Part, Sizes
from benchmarks.accelerator_parts.process import Failed, OutOfTime, Process
from benchmarks.accelerator_parts.torch_side import ORDERS

DONE = "done"
NO_TIME = "not run: no time left"
NO_TORCH = "not run: PyTorch is not installed"
NO_TORCH_GPU = "not run: PyTorch finds no GPU here"
NO_CUDNN = "not run: needs an NVIDIA GPU"

_LEAST_SECONDS = 2.0
"""With less time left than this, nothing is started."""
_SECONDS_OF_ROUNDS = 20.0
"""After this many, two rounds are enough."""
_ONE_DEVICE = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0")}
"""Both sides' processes share the first GPU, or the one that was chosen."""
_QUICKLY_COMPILED = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
_PARTS = "benchmarks.accelerator_parts"


class NotRun(Exception):
    """A part that this machine cannot run; the message is its status."""


class Run:
    """The processes of both sides, and the time. Each part is a method named after its kind, and returns its result."""

    def __init__(self, sizes: Sizes, work: Path, minutes: float) -> None:
        self.sizes, self.work, self.minutes = sizes, work, minutes
        self.start = time.monotonic()
        self.facts: dict[str, Any] = {}
        self.imported: set[str] = set()
        """Distributions that either side's process has imported."""
        self._part_end = self._end = self.start + 60 * minutes
        # A process that replaces one that was ended need not compile everything again.
        cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", str(work / "compiled"))
        self._host = Process(f"{_PARTS}.checkpoint:Checkpoints", environment={"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""})
        ours, theirs = {**_ONE_DEVICE, "JAX_COMPILATION_CACHE_DIR": cache}, dict(_ONE_DEVICE)
        if sizes is SMALL and os.environ.get("JAX_PLATFORMS") == "cpu":
            # These times do not matter: everything must just run, quickly, beside whatever else runs there.
            ours["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_QUICKLY_COMPILED}"
            theirs["OMP_NUM_THREADS"] = "1"
        self._jax = Process(f"{_PARTS}.jax_side:JaxSide", sizes, environment=ours)
        self._torch = Process(f"{_PARTS}.torch_side:TorchSide", sizes, environment=theirs)
        self._torch_status = DONE if importlib.util.find_spec("torch") else NO_TORCH
        self._folders: dict[str, str] | None = None
        self._prepared: dict[str, dict[str, Any]] = {}
        self._workload: tuple[object, ...] = ()
        self._batch: int | None = None

    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self.start

    def take(self, part: Part) -> dict[str, Any]:
        """Measures a part: "status", "seconds" and, if it is done, "result"."""
        start = time.monotonic()
        if self._end - start < _LEAST_SECONDS:
            return {"status": NO_TIME, "seconds": 0.0}
        limit = part.limit * max(self.minutes / MINUTES, 1)
        self._part_end = min(self._end, start + limit)
        if part.batch != self._batch:
            self._note_imports()
            self._jax.end()
            self._end_torch()
            self._batch = part.batch
        try:
            found: dict[str, Any] = {"result": getattr(self, part.kind)(**part.setting), "status": DONE}
        except NotRun as reason:
            found = {"status": str(reason)}
        except Failed as error:
            found = {"status": f"failed: {error}"}
        except OutOfTime:
            found = {"status": NO_TIME if time.monotonic() >= self._end else f"not run: took longer than its {limit:.0f} s"}
        if not self._torch.is_there:
            self._prepared.clear()
        return {"seconds": time.monotonic() - start} | found

    def finish(self) -> None:
        """Ends all processes."""
        self._note_imports()
        self._jax.end()
        self._host.end()
        self._end_torch()

    def begin(self) -> None:
        """Starts the work that the host can do while the device measures."""
        self._host.begin("make", self.sizes.case, self.work)

    def machine(self) -> dict[str, Any]:
        """The device and the versions of both sides."""
        self.facts = self._call_jax("facts")
        if self._torch_status == DONE:
            try:
                self.facts |= {"torch": self._call_torch("facts"), "flops": self._call_torch("flops", self.sizes.golden[1:])}
            except Failed as error:
                self._torch_status = f"failed: {error}"
        if self.facts["backend"] == "gpu" and self.facts.get("torch", {}).get("device") == "cpu":
            self._torch_status = NO_TORCH_GPU
        return self.facts

    def ceilings(self) -> dict[str, Any]:
        """Rates of matrix products and copies, of both libraries."""
        return {"jax": self._call_jax("ceilings") | {"status": DONE}, "torch": self._torch_or_status("ceilings")}

    def checkpoint(self) -> dict[str, Any]:
        """The weights, which the host has been making since the beginning."""
        self._folders = self._host.answer(self._left())
        self.imported.update(self._host.call(self._left(), "imported"))
        self._host.end()
        return {}

    def golden(self, dtype: str) -> dict[str, Any]:
        """Parity with the original's outputs."""
        return self._call_jax("golden", self._folder("jax"), dtype)

    def forward(self, batch: int, dtype: str, attention: str) -> dict[str, Any]:
        """A forward pass, in turn with PyTorch's with sdpa."""
        if attention == "cudnn" and "cuda" not in self.facts.get("platform_version", "").lower():
            raise NotRun(NO_CUDNN)
        folder = self._folder("torch")
        self._use(("forward", batch, dtype))
        theirs = self._prepare({"sdpa": ("prepare_forward", folder, batch, dtype)})
        ours = self._call_jax("prepare_forward", self._folder("jax"), batch, dtype, attention)
        return self._in_turn(ours, theirs)

    def step(self, batch: int, precision: str) -> dict[str, Any]:
        """A training step, in turn with both of PyTorch's orders."""
        folders = [self._folder("torch"), self._folder("jax")]
        self._use(("step", batch))
        theirs = self._prepare({order: ("prepare_step", folders, batch) for order in ORDERS})
        ours = self._call_jax("prepare_step", folders, batch, precision)
        return self._in_turn(ours, theirs)

    def vggt(self, views: int, dtype: str) -> dict[str, Any]:
        """A forward pass of a VGGT with all heads, in turn with PyTorch's with sdpa."""
        self._use(("vggt", views, dtype))
        theirs = self._prepare({"sdpa": ("prepare_vggt", views, dtype)})
        return self._in_turn(self._call_jax("prepare_vggt", views, dtype), theirs)

    def training(self) -> dict[str, Any]:
        """The pocket model's probes, trained at every precision."""
        return self._call_jax("training", self._folder("pocket"))

    def rendering(self) -> dict[str, Any]:
        """Rates of rendering."""
        return {"sizes": self._call_jax("rendering")}

    def _left(self) -> float:
        return self._part_end - time.monotonic()

    def _call_jax(self, method: str, *args: object) -> Any:
        return self._jax.call(self._left(), method, *args)

    def _call_torch(self, method: str, *args: object) -> Any:
        """Raises `Failed` for an error; the process, with everything prepared in it, is then gone."""
        try:
            return self._torch.call(self._left(), method, *args)
        except Failed:
            self._end_torch()
            raise

    def _torch_or_status(self, method: str, *args: object) -> dict[str, Any]:
        if self._torch_status != DONE:
            return {"status": self._torch_status}
        try:
            return self._call_torch(method, *args) | {"status": DONE}
        except Failed as error:
            return {"status": f"failed: {error}"}

    def _end_torch(self) -> None:
        self._torch.end()
        self._prepared.clear()

    def _folder(self, name: str) -> str:
        if self._folders is None:
            raise NotRun("not run: there is no checkpoint")
        return self._folders[name]

    def _use(self, workload: tuple[object, ...]) -> None:
        """Makes PyTorch drop what it had prepared for a different workload."""
        if workload != self._workload and self._prepared:
            self._prepared.clear()
            self._call_torch("clear")
        self._workload = workload

    def _prepare(self, calls: dict[str, tuple[Any, ...]]) -> dict[str, dict[str, Any]]:
        """Name -> what preparing that run of PyTorch returned, or why it failed; `calls` is name -> (method, arguments)."""
        failed: dict[str, dict[str, Any]] = {}
        for _ in calls:  # a failure ends the process and loses the others, which are prepared again without it
            for name, (method, *args) in calls.items():
                if name not in self._prepared and name not in failed:
                    found = self._torch_or_status(method, name, *args)
                    (self._prepared if found["status"] == DONE else failed)[name] = found
        return {name: dict(self._prepared.get(name) or failed[name]) for name in calls}

    def _in_turn(self, ours: dict[str, Any], theirs: dict[str, dict[str, Any]]) -> dict[str, Any]:
        """Times all available runs, round by round."""
        runs: dict[str, Callable[[], float]] = {
            name: lambda name=name: self._call_torch("run", name) for name, found in theirs.items() if found["status"] == DONE
        }
        seconds: dict[str, list[float]] = {name: [] for name in [*runs, "jax"]}
        begun = time.monotonic()
        for number in range(self.sizes.rounds):
            if number >= 2 and time.monotonic() - begun > _SECONDS_OF_ROUNDS:
                break
            for name, run in runs.items():
                seconds[name].append(run())
            seconds["jax"].append(self._call_jax("run"))
        for name in runs:
            theirs[name]["seconds"] = seconds[name]
        return {"jax": ours | {"seconds": seconds["jax"], "status": DONE}, "torch": theirs}

    def _note_imports(self) -> None:
        """Asks both sides, if their processes exist, what they have imported."""
        for process in (self._jax, self._torch):
            if process.is_there:
                try:
                    self.imported.update(process.call(5, "imported"))
                except (Failed, OutOfTime) as error:
                    print(f"the imports of a process that is gone are not known: {error}", file=sys.stderr)
