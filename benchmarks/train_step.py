"""Time and memory of a training step of all probes, PyTorch against JAX: `python -m benchmarks.train_step`.

36 probes of the default form on the full-size backbone, 512×512, on pairs that both sides are given as arrays. The PyTorch way
(`tests/torch_reference/training.py`) is hooks on the frozen backbone with scaled_dot_product_attention, a loop over 36 modules and
an AdamW for each, in two orders: all outputs before the first loss, as the published probes are called, and probe by probe, which
needs the least memory. Ours is `probe_step` in `parallel`, as a run takes it. Sides run in turn, each in its own process.

Memory beyond the backbone is the process's peak of resident memory less its base: what is resident before anything is loaded, with
the libraries imported, and the bytes of the trunk's weights. Not what is resident after loading: that holds freed memory too, which
the allocator has kept and gives to the step. The peak is that after loading: of the probes' initialisation, compilation and all
steps. On a GPU both are what the framework has allocated there.

Bars, against the first order: 1.5 times PyTorch's pairs/s, half its memory beyond the backbone.
"""

import argparse
import ctypes
import dataclasses
import functools
import gc
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from benchmarks.forward import _jax_matmul_rate, _torch_matmul_rate
from benchmarks.workers import Worker
from und3rstand_jax.data.records import NOT_RENDERED, Batch, Pair, Shape, View
from und3rstand_jax.train.options import TrainOptions

Key = TypeVar("Key")

SPEED_BAR, MEMORY_BAR = 1.5, 0.5
ORDERS = {"step_after_all_outputs": "PyTorch, all outputs first", "step_probe_by_probe": "PyTorch, probe by probe"}
"""The PyTorch way's loops, by the name of their function."""


@dataclasses.dataclass(frozen=True)
class Workload:
    """What every side computes: `batch` pairs of two views of `shape` a step, the backbone in `dtype`."""

    torch_folder: Path
    jax_folder: Path
    batch: int
    shape: Shape
    dtype: str = "float32"


def given_pairs(work: Workload) -> Pair:
    """The same pairs for both sides: noise with a hole in every tenth pixel; time and memory do not hang on what they show."""
    random = np.random.default_rng(0)

    def view() -> View:
        size = (work.batch, *work.shape)
        depth = random.uniform(1, 5, size) * (random.uniform(size=size) > 0.1)
        height, width = work.shape
        intrinsics = np.array([[width, 0, (width - 1) / 2], [0, width, (height - 1) / 2], [0, 0, 1]], np.float32)
        cam2world = np.eye(4, dtype=np.float32)
        cam2world[:3, 3] = random.uniform(-1, 1, 3)
        image = random.integers(0, 256, (*size, 3)).astype(np.uint8)
        return View(image, depth.astype(np.float32), *(np.stack([matrix] * work.batch) for matrix in (intrinsics, cam2world)))

    return Pair(view(), view())


def build_torch(work: Workload, order: str) -> tuple[Callable[[], None], dict[str, Any]]:
    """The PyTorch way; `order` names its loop over the probes."""
    import torch
    from safetensors.torch import load_file

    from tests.torch_reference import load_reference, training

    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = json.loads((work.torch_folder / "config.json").read_text()) | {"head_type": None}
    before = _resident()
    # Copied out of the file: a mapped one is resident only as far as it has been read.
    weights = load_file(work.torch_folder / "model.safetensors").items()
    tensors = {name: tensor.to(device, copy=True) for name, tensor in weights if not name.startswith("downstream_head")}
    model = load_reference(config, tensors, attention="sdpa").to(getattr(torch, work.dtype)).requires_grad_(False)
    del weights, tensors
    weights_bytes = sum(parameter.nbytes for parameter in model.parameters())
    facts = {"base_gb": (_restart_torch_peak() if device == "cuda" else _restart_peak(before + weights_bytes)) / 1e9}

    features = training.hook_decoder(model)
    probes = {}
    for layer, probe in training.single_probes(_probe_config(work)).items():
        probe.to(device)
        probes[layer] = training.TrainedProbe(probe, training.adamw(probe, fused=True))
    given, loop = given_pairs(work), getattr(training, order)

    def run() -> None:
        pair = Pair(*(View(*(torch.from_numpy(array).to(device) for array in view)) for view in given))
        with torch.no_grad():
            model(*training.images(pair, getattr(torch, work.dtype)), record=False)
        loop(probes, features, training.pair_truth(pair))
        if device == "cuda":
            torch.cuda.synchronize()

    return run, facts


class OurStep:
    """Ours as a run sets it up, and what it is made of."""

    def __init__(self, work: Workload) -> None:
        """Takes the base and loads the trunk; then makes the probes."""
        import jax
        import orbax.checkpoint  # noqa: F401, what the loader imports is to count among the libraries

        from und3rstand_jax.support.machine import give_back_freed_memory
        from und3rstand_jax.train.step.data_parallel import replicate
        from und3rstand_jax.train.step.optimizer import Recipe, initial_state
        from und3rstand_jax.train.step.probe_step import ProbeTask

        self.work = work
        stats, before = jax.local_devices()[0].memory_stats(), _resident()
        self.module, self.backbone = _replicated_trunk(work)
        weights_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(jax.block_until_ready(self.backbone)))
        give_back_freed_memory()  # as a run does
        self.base = stats["bytes_in_use"] + weights_bytes if stats else _restart_peak(before + weights_bytes)
        probes, recipe = _probe_config(work), Recipe(steps=TrainOptions.steps, warmup_steps=0)
        self.task = ProbeTask(self.module, probes, recipe, work.shape, side_by_side=TrainOptions.side_by_side)
        self.state = replicate(initial_state(probes, recipe, TrainOptions.seed))

    def compiled(self, batch: Batch, **options: Any) -> Any:
        """The step, compiled for batches like this one; `options` replace fields of the task."""
        from und3rstand_jax.support.machine import give_back_freed_memory
        from und3rstand_jax.train.step.data_parallel import parallel, total
        from und3rstand_jax.train.step.probe_step import probe_step

        task = dataclasses.replace(self.task, **options)
        program = parallel(functools.partial(probe_step, task, total), donate=(0,)).lower(self.state, self.backbone, batch).compile()
        give_back_freed_memory()
        return program

    def take(self, program: Any, batch: Batch) -> None:
        """One step."""
        import jax

        self.state, losses = program(self.state, self.backbone, batch)
        jax.block_until_ready((self.state, losses))

    def given(self) -> Batch:
        """The given pairs, as arrays."""
        return self._split(given_pairs(self.work))

    def rendered(self) -> Batch:
        """As many pairs that the step itself renders."""
        return self._split(None)

    def _split(self, pair: Pair | None) -> Batch:
        from und3rstand_jax.train.step.data_parallel import split

        position = np.arange(self.work.batch)
        scene = position if pair is None else np.full_like(position, NOT_RENDERED)
        return split(Batch(position.astype(np.uint32), scene.astype(np.int32), pair))


def build_ours(work: Workload) -> tuple[Callable[[], None], dict[str, Any]]:
    """Ours on the given pairs."""
    import jax

    ours = OurStep(work)
    batch = ours.given()
    start = time.perf_counter()
    program = ours.compiled(batch)
    facts = {"base_gb": ours.base / 1e9, "compile_s": time.perf_counter() - start, "device": jax.devices()[0].device_kind}
    return lambda: ours.take(program, batch), facts


def measure_parts(work: Workload, rounds: int) -> dict[str, list[float]]:
    """Seconds of our step with rendering, and of its backbone and its data alone, in turn; probes are what is left."""
    import jax

    from und3rstand_jax.data.example import assemble
    from und3rstand_jax.train.step.data_parallel import parallel
    from und3rstand_jax.train.step.probe_step import captured_tokens

    ours = OurStep(work)
    given, rendered = ours.given(), ours.rendered()
    task = ours.task
    step = ours.compiled(rendered)
    data = parallel(lambda batch: assemble(batch, task.seed, task.shape, task.scenes, task.colour_jitter))
    forward = parallel(lambda backbone, example: captured_tokens(task, backbone, example))
    example = data(rendered)
    parts = {
        "step": lambda: ours.take(step, rendered),
        "backbone": lambda: jax.block_until_ready(forward(ours.backbone, example)),
        "rendering": lambda: jax.block_until_ready(data(rendered)),
        "given": lambda: jax.block_until_ready(data(given)),
    }
    return _in_turn(parts, rounds)


def measure_side_by_side(work: Workload, values: Sequence[int], rounds: int) -> dict[int, tuple[list[float], int]]:
    """By how many layers are computed at once: seconds a step, in turn, and bytes of XLA's temporaries."""
    ours = OurStep(work)
    batch = ours.given()
    programs = {value: ours.compiled(batch, side_by_side=value) for value in values}
    seconds = _in_turn({value: functools.partial(ours.take, program, batch) for value, program in programs.items()}, rounds)
    return {value: (seconds[value], program.memory_analysis().temp_size_in_bytes) for value, program in programs.items()}


def step_flops(work: Workload) -> tuple[int, int]:
    """Multiplications and additions of products and convolutions in a step, of the backbone's and of the probes', by PyTorch's count."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from tests.torch_reference import DUSt3RReference, training

    with torch.device("meta"):
        config = json.loads((work.torch_folder / "config.json").read_text()) | {"head_type": None}
        model, probes = DUSt3RReference(config), training.single_probes(_probe_config(work))
        features = training.hook_decoder(model)
        with FlopCounterMode(display=False) as backbone, torch.no_grad():
            model(*[torch.zeros(work.batch, 3, *work.shape)] * 2, record=False)
        with FlopCounterMode(display=False) as trained:
            for layer, probe in probes.items():
                for pred in probe({layer: features[layer]}, (work.shape, work.shape))[0]:
                    (pred["pts3d"].sum() + pred["conf"].sum()).backward()
    return backbone.get_total_flops(), trained.get_total_flops()


def _probe_config(work: Workload) -> Any:
    """The default probes on the layers of the paper."""
    from und3rstand_jax.checkpoint.format import read_checkpoint_info
    from und3rstand_jax.model.layer_ids import paper_layer_ids
    from und3rstand_jax.probes.config import probe_config

    backbone = read_checkpoint_info(work.jax_folder).backbone
    assert backbone is not None  # made so
    return probe_config(backbone, paper_layer_ids(backbone.dec_depth))


def _replicated_trunk(work: Workload) -> tuple[Any, Any]:
    """The module, and its weights without the heads' as a run holds them; nothing else of the checkpoint is left in memory."""
    import und3rstand_jax as u3d
    from und3rstand_jax.train.step.data_parallel import replicate

    backbone = u3d.load_backbone(work.jax_folder, dtype=work.dtype)
    module = backbone.module
    trunk = [{name: leaf for name, leaf in backbone.params.items() if not name.startswith("head")}]
    del backbone
    return module, replicate(trunk.pop())


def _in_turn(runs: Mapping[Key, Callable[[], Any]], rounds: int) -> dict[Key, list[float]]:
    """Seconds of each run, round by round, after one that is not counted."""
    seconds: dict[Key, list[float]] = {key: [] for key in runs}
    for _ in range(rounds + 1):
        for key, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[key].append(time.perf_counter() - start)
    return {key: values[1:] for key, values in seconds.items()}


def _restart_torch_peak() -> int:
    import torch

    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def _restart_peak(base: int) -> int:
    """`base`, once the process's peak, as the system counts it, starts again from what is resident now."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    return base


def _resident() -> int:
    """Bytes of this process that lie in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _checkpoints(case: str, work: Path) -> tuple[Path, Path]:
    """The model in both layouts, made once in `work`."""
    from tests.conversion import converted
    from tests.make_checkpoint import make

    if not (work / "backbone" / "model.safetensors").is_file():
        make(case, work, hidden=64)
    if not (work / "jax" / "config.json").is_file():
        converted(work / "backbone", work / "jax")
    return work / "backbone", work / "jax"


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="timed steps of each side (default: 3)")
    parser.add_argument("--batch", type=int, default=1, help="pairs a step (default: 1)")
    parser.add_argument("--case", default="full_512_dpt", help="model, of tests/golden (default: full_512_dpt)")
    parser.add_argument("--size", default="512x512", metavar="WxH", help="of both views (default: 512x512)")
    parser.add_argument("--side-by-side", metavar="N,N,…", help="instead, our step by how many layers are computed at once")
    parser.add_argument("--work", type=Path, help="folder to keep the checkpoints in, 4.6 GB at full size (default: a temporary one)")
    args = parser.parse_args()
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # several processes share a GPU
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # one device on either side
    width, height = map(int, args.size.split("x"))
    with tempfile.TemporaryDirectory() as temporary:
        folders = _checkpoints(args.case, args.work or Path(temporary))
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        _restart_peak(0)  # a process's peak starts at that of the one that started it
        work = Workload(*folders, args.batch, (height, width))
        if args.side_by_side:
            _print_side_by_side(work, measure_side_by_side(work, list(map(int, args.side_by_side.split(","))), args.rounds))
        else:
            _compare(work, args.rounds)


def _compare(work: Workload, rounds: int) -> None:
    import torch

    on_gpu = torch.cuda.is_available()
    for dtype in ("float32", "bfloat16") if on_gpu else ("float32",):
        sized = dataclasses.replace(work, dtype=dtype)
        sides = [*(Worker(name, build_torch, sized, order) for order, name in ORDERS.items()), Worker("JAX", build_ours, sized)]
        for _ in range(rounds):
            for side in sides:
                side.run()
        for side in sides:
            side.finish()
        rates = [
            max(_jax_matmul_rate(name), _torch_matmul_rate("cuda" if on_gpu else "cpu", name)) for name in (dtype, "float32")
        ]  # of the backbone's products, and of the probes'
        _print_sides(sized, sides, _least_seconds(sized, rates))
        _print_parts(measure_parts(sized, rounds))


def _least_seconds(work: Workload, rates: Sequence[float]) -> float:
    """Of a step, would all its products run at the measured ceilings and the rest take no time."""
    return sum(flops / rate for flops, rate in zip(step_flops(work), rates, strict=True))


def _print_sides(work: Workload, sides: Sequence[Worker], least: float) -> None:
    ours = sides[-1]
    print(f"36 probes, {work.shape[1]}×{work.shape[0]}, {work.batch} pairs a step, backbone in {work.dtype}, on {ours.facts['device']}")
    print(
        f"({os.cpu_count()} CPU cores); {len(ours.seconds)} steps in turn, median [min, max]; compilation {ours.facts['compile_s']:.1f} s"
    )
    print(f"all matrix products at the measured ceiling: {least:.2f} s")
    print("| side | seconds | pairs/s | peak GB | base GB | beyond the backbone GB | of the matrix-product ceiling |")
    print("|---|---|---|---|---|---|---|")
    for side in sides:
        cells = (
            side.name,
            _spread(side.seconds),
            _spread([work.batch / seconds for seconds in side.seconds]),
            f"{side.facts['peak_gb']:.2f}",
            f"{side.facts['base_gb']:.2f}",
            f"{_beyond(side):.2f}",
            f"{least / statistics.median(side.seconds):.0%}",
        )
        print(f"| {' | '.join(cells)} |")
    for bars, theirs in zip((True, False), sides[:-1], strict=True):
        speed = statistics.median(a / b for a, b in zip(theirs.seconds, ours.seconds, strict=True))
        memory = _beyond(ours) / _beyond(theirs)
        print(f"JAX against {theirs.name}: {speed:.2f}× the pairs/s{_verdict(speed >= SPEED_BAR, SPEED_BAR) if bars else ''}, ", end="")
        print(f"{memory:.2f}× the memory beyond the backbone{_verdict(memory <= MEMORY_BAR, MEMORY_BAR) if bars else ''}")


def _print_parts(parts: Mapping[str, Sequence[float]]) -> None:
    """Shares of our step that renders its pairs."""
    step, backbone, rendering, given = (statistics.median(parts[name]) for name in ("step", "backbone", "rendering", "given"))
    print(f"our step with rendering: {_spread(parts['step'])} s, of it backbone {backbone / step:.0%}, ", end="")
    print(
        f"probes {(step - backbone - rendering) / step:.0%}, data {rendering / step:.1%} ({rendering:.3f} s; of given pairs {given:.3f} s)"
    )


def _print_side_by_side(work: Workload, table: Mapping[int, tuple[Sequence[float], int]]) -> None:
    print("| layers side by side | pairs/s | seconds | XLA's temporaries GB |")
    print("|---|---|---|---|")
    for value, (seconds, temporaries) in table.items():
        rates = [work.batch / taken for taken in seconds]
        print(f"| {value} | {_spread(rates)} | {_spread(seconds)} | {temporaries / 1e9:.2f} |")


def _beyond(side: Worker) -> float:
    return side.facts["peak_gb"] - side.facts["base_gb"]


def _verdict(met: bool, bar: float) -> str:
    return f" (bar {bar}: {'met' if met else 'MISSED'})"


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.3g} [{min(values):.3g}, {max(values):.3g}]"


if __name__ == "__main__":
    main()
