"""JAX's side, which runs in its own process. Weights stay on the device, and programs are compiled one after the other."""

import functools
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.accelerator_parts.packages import imported
from benchmarks.accelerator_parts.plan import Sizes

EVERYTHING = "*"
"""What the golden case's forward pass captures: every layer, so that one compilation serves both parity and time."""

_CACHE_HIT = "/jax/compilation_cache/cache_hits"


class JaxSide:
    """Each `prepare_…` compiles a program and runs it once; `run` runs it again. The program prepared before is dropped."""

    def __init__(self, sizes: Sizes) -> None:
        self.sizes = sizes
        self._run: Callable[[], object] = lambda: None
        self._golden: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {}
        self._backbones: dict[str, Any] = {}
        self._renderers: dict[int, tuple[Callable[[jax.Array], Any], float]] = {}
        self._ours: Any = None
        self._cache_hits = 0
        jax.monitoring.register_event_listener(self._count_hits)

    def _count_hits(self, event: str, **_: Any) -> None:
        self._cache_hits += event == _CACHE_HIT

    def facts(self) -> dict[str, Any]:
        """The device and the libraries."""
        from und3rstand_jax.support.machine import machine_facts
        from und3rstand_jax.support.versions import package_version

        device = jax.local_devices()[0]
        stats = device.memory_stats() or {}
        more = {name: package_version(name) for name in ("optax", "jaxtyping", "nvidia-cudnn-cu12", "nvidia-cudnn-cu13")}
        return {
            "backend": jax.default_backend(),
            "device": device.device_kind,
            "platform_version": " ".join(device.client.platform_version.split()),
            "memory_limit_gb": stats["bytes_limit"] / 1e9 if "bytes_limit" in stats else None,
            "cores": os.cpu_count(),
            "versions": dict(machine_facts()["versions"]) | {name: version for name, version in more.items() if version},
        }

    def imported(self) -> list[str]:
        """Distributions imported so far."""
        return imported()

    def ceilings(self) -> dict[str, float]:
        """Matrix products in flop/s, and a copy in bytes/s."""
        from benchmarks.matmul_rate import jax_copy_rate, jax_matmul_rate

        rate = functools.partial(jax_matmul_rate, products=self.sizes.products)
        return {
            "float32": rate("float32", "highest"),
            "TF32": rate("float32", "default"),
            "bfloat16": rate("bfloat16", "default"),
            "copy": jax_copy_rate(self.sizes.copied),
        }

    def golden(self, folder: str, dtype: str) -> dict[str, Any]:
        """Parity with the original by group of layers: (worst, median), in the unit of `benchmarks.parity` in float32, else the error."""
        from benchmarks.parity import by_group
        from tests.golden_cases import load_golden
        from tests.parity import golden_errors

        golden = load_golden(self.sizes.case, with_weights=False)
        run, details = self._golden_program(folder, dtype, golden.view1, golden.view2)
        output, state = jax.device_get(run())
        (patches,) = jax.tree.leaves(state["intermediates"])
        # Views of one size go through the encoder as one batch.
        patches = patches.reshape(2, len(golden.view1), -1, patches.shape[-1])
        errors = golden_errors(golden, output, patches)
        values = {name: error / golden.float32_error(name) for name, error in errors.items()} if dtype == "float32" else errors
        groups = {group: (max(found), statistics.median(found)) for group, found in by_group(values).items()}
        return {"arrays": len(values), "groups": groups, **details}

    def _golden_program(self, folder: str, dtype: str, view1: np.ndarray, view2: np.ndarray) -> tuple[Callable[[], Any], dict[str, Any]]:
        if dtype not in self._golden:
            backbone = self._backbone(folder, dtype)
            module = backbone.module.clone(attention="xla")

            def forward(params: Any, a: Any, b: Any) -> Any:
                return module.apply(
                    {"params": params},
                    a,
                    b,
                    capture=EVERYTHING,
                    capture_intermediates=lambda part, _: part.name == "patch_embed",  # the one golden array without a layer id
                    mutable=["intermediates"],
                )

            self._golden[dtype] = self._compiled(jax.jit(forward), backbone.params, jax.device_put(view1), jax.device_put(view2))
        return self._golden[dtype]

    def prepare_forward(self, folder: str, batch: int, dtype: str, attention: str) -> dict[str, Any]:
        """A forward pass with heads: the golden program, with every layer, at its batch and attention; else the layers of the paper."""
        from benchmarks.forward import LAYERS, made_views

        views = made_views(batch, self.sizes.golden[1:])
        if batch == self.sizes.golden[0] and attention == "xla":
            run, details = self._golden_program(folder, dtype, *views)
            captured = "every layer"
        else:
            backbone = self._backbone(folder, dtype)
            module = backbone.module.clone(attention=attention)
            forward = jax.jit(lambda params, a, b: module.apply({"params": params}, a, b, capture=LAYERS))
            run, details = self._compiled(forward, backbone.params, *map(jax.device_put, views))
            captured = "decoder layers"
        self._run = run
        run()
        return details | {"captured": captured}

    def prepare_vggt(self, views: int, dtype: str) -> dict[str, Any]:
        """A forward pass of a VGGT with all heads and random weights, "all" layers captured."""
        from benchmarks.forward_vggt import jax_forward, made_views

        sizes = self.sizes.vggt
        forward, params = jax_forward(sizes.case, dtype)
        self._run, details = self._compiled(forward, params, *map(jax.device_put, made_views(views, sizes.shape)))
        self._run()
        return details

    def prepare_step(self, folders: list[str], batch: int, precision: str) -> dict[str, Any]:
        """A training step of the probes at a precision, from their initial state, and its first loss, averaged over the layers."""
        from benchmarks.train_step_sides import OurStep, Workload
        from und3rstand_jax.train.step.data_parallel import replicate
        from und3rstand_jax.train.step.probe_step import trunk_params

        work = Workload(Path(folders[0]), Path(folders[1]), batch, self.sizes.step_shape)
        if self._ours is None or self._ours.work != work:
            backbone = self._backbone(folders[1], "float32")
            self._ours = OurStep(work, (backbone.module, replicate(trunk_params(backbone.params, backbone.config))), renders=False)
        ours = self._ours
        pairs = ours.batch(rendered=False)
        start, hits = time.perf_counter(), self._cache_hits
        program = ours.compiled(pairs, precision=precision)
        details = self._details(program, start, hits)
        ours.restart()
        losses = ours.take(program, pairs)
        self._run = functools.partial(ours.take, program, pairs)
        self._run()
        return details | {
            "beyond_gb": details["gb"] - ours.weights_bytes / 1e9,
            "first_loss": float(np.mean(np.concatenate([np.ravel(loss.total) for loss in jax.device_get(losses).values()]))),
        }

    def run(self) -> float:
        """Seconds of one run of the program prepared last."""
        start = time.perf_counter()
        jax.block_until_ready(self._run())
        return time.perf_counter() - start

    def rendering(self) -> list[dict[str, Any]]:
        """Rates of rendering, size by size; see `benchmarks.synthetic`."""
        from benchmarks.synthetic import pairs_per_second

        found = []
        for side, batch in self.sizes.rendered.items():
            program, seconds = self._renderer(side)
            rates = [pairs_per_second(program, turn * batch + jax.numpy.arange(batch)) for turn in range(self.sizes.rounds + 1)]
            found.append({"side": side, "batch": batch, "rates": rates[1:], "compile_s": seconds})
        return found

    def training(self, folder: str) -> dict[str, Any]:
        """Validation errors of the pocket model's probes, by precision and seed; see `training`."""
        from benchmarks.accelerator_parts.training import errors_by_precision

        training = self.sizes.training
        render, _ = self._renderer(training.side)
        return errors_by_precision(folder, training, render, self.sizes.rendered[training.side])

    def _renderer(self, side: int) -> tuple[Callable[[jax.Array], Any], float]:
        from benchmarks.synthetic import build

        if side not in self._renderers:
            self._renderers[side] = build(side, self.sizes.rendered[side])
        return self._renderers[side]

    def _backbone(self, folder: str, dtype: str) -> Any:
        import und3rstand_jax as u3d

        if dtype not in self._backbones:
            self._backbones[dtype] = u3d.load_backbone(folder, dtype=dtype)
        return self._backbones[dtype]

    def _compiled(self, function: Any, *args: Any) -> tuple[Callable[[], Any], dict[str, Any]]:
        start, hits = time.perf_counter(), self._cache_hits
        program = function.lower(*args).compile()
        details = self._details(program, start, hits)
        return lambda: program(*args), details

    def _details(self, program: Any, start: float, hits: int) -> dict[str, Any]:
        """Seconds of tracing and compiling since `start`, whether a compiled program was read, and the memory of a run as XLA counts it."""
        seconds, memory = time.perf_counter() - start, program.memory_analysis()
        size = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes + memory.temp_size_in_bytes
        return {"compile_s": seconds, "from_cache": self._cache_hits > hits, "gb": size / 1e9}
