"""PyTorch's side, which runs in its own process."""

import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.accelerator_parts.packages import imported
from benchmarks.accelerator_parts.plan import Sizes

ORDERS = {"all outputs first": "step_after_all_outputs", "probe by probe": "step_probe_by_probe"}
"""The PyTorch way's loops over the probes, by the name of their function; see `benchmarks.train_step`."""


class TorchSide:
    """Runs are prepared under a name, and then timed one by one, in turn with JAX's."""

    def __init__(self, sizes: Sizes) -> None:
        import torch

        self.sizes = sizes
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self._runs: dict[str, Callable[[], object]] = {}

    def facts(self) -> dict[str, Any]:
        """The device and the libraries."""
        import torch

        on_gpu = self.device == "cuda"
        return {
            "device": torch.cuda.get_device_name() if on_gpu else "cpu",
            "versions": {
                "torch": torch.__version__,
                "CUDA of torch": torch.version.cuda,
                "cuDNN of torch": torch.backends.cudnn.version() if on_gpu else None,
            },
        }

    def imported(self) -> list[str]:
        """Distributions imported so far."""
        return imported()

    def ceilings(self) -> dict[str, float]:
        """Matrix products in flop/s, and a copy in bytes/s."""
        from benchmarks.matmul_rate import torch_copy_rate, torch_matmul_rate

        rate = functools.partial(torch_matmul_rate, self.device, products=self.sizes.products)
        return {
            "float32": rate("float32"),
            "TF32": rate("float32", tf32=True),
            "bfloat16": rate("bfloat16"),
            "copy": torch_copy_rate(self.device, self.sizes.copied),
        }

    def flops(self, shape: tuple[int, int]) -> int:
        """Flops of products and convolutions in the forward pass of one pair."""
        from benchmarks.forward import model_flops

        return model_flops(self.sizes.case, shape)

    def clear(self) -> None:
        """Forgets all runs, and gives their memory back."""
        import torch

        self._runs.clear()
        if self.device == "cuda":
            torch.cuda.empty_cache()

    def prepare_forward(self, name: str, folder: str, batch: int, dtype: str) -> dict[str, Any]:
        """A forward pass with sdpa, which records every layer and runs the heads."""
        from benchmarks.forward import made_views, torch_forward

        images = made_views(batch, self.sizes.golden[1:])
        return self._prepare(name, lambda: (torch_forward(Path(folder), "sdpa", dtype, images), 0.0))

    def prepare_vggt(self, name: str, views: int, dtype: str) -> dict[str, Any]:
        """A forward pass of a VGGT with all heads, under autocast in bfloat16."""
        from benchmarks.forward_vggt import torch_forward

        sizes = self.sizes.vggt
        return self._prepare(name, lambda: (torch_forward(sizes.case, None, views, sizes.shape, dtype), 0.0))

    def prepare_step(self, name: str, folders: Sequence[str], batch: int) -> dict[str, Any]:
        """A training step in the order of this name."""
        from benchmarks.train_step_sides import Workload, build_torch

        work = Workload(Path(folders[0]), Path(folders[1]), batch, self.sizes.step_shape)

        def build() -> tuple[Callable[[], object], float]:
            run, details = build_torch(work, ORDERS[name])
            return run, details["base_gb"]

        return self._prepare(name, build)

    def _prepare(self, name: str, build: Callable[[], tuple[Callable[[], object], float]]) -> dict[str, Any]:
        """Builds a run and warms it up; returns the peak memory of this run alone if the device counts it, else None."""
        import torch

        on_gpu = self.device == "cuda"
        before = torch.cuda.memory_allocated() if on_gpu else 0
        run, base = build()
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        for _ in range(2):  # the optimiser's moments exist from the second step on
            run()
        self._runs[name] = run
        if not on_gpu:
            return {"gb": None, "beyond_gb": None}
        peak = torch.cuda.max_memory_allocated()
        return {"gb": (peak - before) / 1e9, "beyond_gb": peak / 1e9 - base}

    def run(self, name: str) -> float:
        """Seconds of one run."""
        start = time.perf_counter()
        self._runs[name]()
        return time.perf_counter() - start
