"""The sides that `benchmarks.train_step` compares: how each is built, and what is measured for ours alone.

The PyTorch way (`tests/torch_reference/training.py`) is hooks on the frozen backbone with scaled_dot_product_attention, a loop over 36
modules, and an AdamW for each. Ours is `probe_step` in `parallel`, as in a training run.

Memory beyond the backbone is the process's peak resident memory minus its base. The base is what is resident before anything is loaded,
with the libraries imported, plus the bytes of the trunk's weights. It is not what is resident after loading: that includes freed memory,
which the allocator has kept and gives to the step. The peak is taken after loading, over the probes' initialisation, compilation and all
steps. On a GPU, both are what the framework has allocated there.
"""

import dataclasses
import functools
import gc
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from und3rstand_jax.data.records import NOT_RENDERED, Batch, Shape, View, ViewSet
from und3rstand_jax.data.synthetic.config import SyntheticConfig
from und3rstand_jax.train.options import TrainOptions

if TYPE_CHECKING:
    from und3rstand_jax.data.example import Example

Key = TypeVar("Key")


@dataclasses.dataclass(frozen=True)
class Workload:
    """What every side computes: `batch` pairs of two views of `shape` per step, with the backbone in `dtype`."""

    torch_folder: Path
    jax_folder: Path
    batch: int
    shape: Shape
    dtype: str = "float32"


def given_pairs(work: Workload) -> ViewSet:
    """The same pairs for both sides: noise, with a tenth of the depths missing; time and memory do not depend on the content."""
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

    return (view(), view())


def build_torch(work: Workload, order: str) -> tuple[Callable[[], None], dict[str, Any]]:
    """The PyTorch way; `order` is the name of its loop over the probes."""
    import torch
    from safetensors.torch import load_file

    from tests.torch_reference import load_reference, training

    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = json.loads((work.torch_folder / "config.json").read_text()) | {"head_type": None}
    before = _resident()
    # Copied, because only those pages of a memory-mapped file that have been read are resident.
    weights = load_file(work.torch_folder / "model.safetensors").items()
    tensors = {name: tensor.to(device, copy=True) for name, tensor in weights if not name.startswith("downstream_head")}
    model = load_reference(config, tensors, attention="sdpa").to(getattr(torch, work.dtype)).requires_grad_(False)
    del weights, tensors
    weights_bytes = sum(parameter.nbytes for parameter in model.parameters())
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        base = torch.cuda.memory_allocated()
    else:
        base = restart_peak(before + weights_bytes)

    features = training.hook_decoder(model)
    probes = {}
    for layer, probe in training.single_probes(_probe_config(work)).items():
        probe.to(device)
        probes[layer] = training.TrainedProbe(probe, training.adamw(probe, fused=True))
    given, loop = given_pairs(work), getattr(training, order)

    def run() -> None:
        pair = tuple(View(*(torch.from_numpy(array).to(device) for array in view)) for view in given)
        with torch.no_grad():
            model(*training.images(pair, getattr(torch, work.dtype)), record=False)
        loop(probes, features, training.pair_truth(pair))
        if device == "cuda":
            torch.cuda.synchronize()

    return run, {"base_gb": base / 1e9}


class OurStep:
    """Our step as a training run sets it up, and its parts."""

    def __init__(self, work: Workload, trunk: tuple[Any, Any] | None = None, renders: bool = True) -> None:
        """Loads the trunk and measures the base of memory; then makes the probes.

        Args:
            work: what is computed.
            trunk: the module and its replicated weights, if they are already loaded.
            renders: whether the step can render its pairs; one that cannot is compiled without the renderer.
        """
        import jax
        import orbax.checkpoint  # noqa: F401, libraries that the loader imports must count as imported

        from und3rstand_jax.support.machine import give_back_freed_memory
        from und3rstand_jax.train.step.optimizer import Recipe

        self.work, self.renders = work, renders
        stats, before = jax.local_devices()[0].memory_stats(), _resident()
        self.module, self.backbone = trunk or _replicated_trunk(work)
        self.weights_bytes = weights_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(jax.block_until_ready(self.backbone)))
        give_back_freed_memory()  # as a run does
        self.base = stats["bytes_in_use"] + weights_bytes if stats else restart_peak(before + weights_bytes)
        self.probes, self.recipe = _probe_config(work), Recipe(steps=TrainOptions.steps, warmup_steps=0)
        self.state: Any = None
        self.restart()

    def restart(self) -> None:
        """Sets the state to that before the first step."""
        from und3rstand_jax.train.step.data_parallel import replicate
        from und3rstand_jax.train.step.probe_step import initial_state

        self.state = None
        self.state = replicate(initial_state(self.probes, self.recipe, TrainOptions.seed))

    def example_of(self, batch: Batch) -> "Example":
        """The batch on the device, rendered if it has no pairs; colours stay as they are."""
        from und3rstand_jax.data.example import assemble

        return assemble(batch, TrainOptions.seed, self.work.shape, SyntheticConfig() if self.renders else None, colour_jitter=False)

    def compiled(self, batch: Batch, side_by_side: int = TrainOptions.side_by_side, precision: str | None = None) -> Any:
        """The step compiled for batches like this one; `precision` is that of the probes' products, by default the step's own."""
        from jax import lax

        from und3rstand_jax.support.machine import give_back_freed_memory
        from und3rstand_jax.train.step.data_parallel import parallel, total
        from und3rstand_jax.train.step.probe_step import probe_step

        step = functools.partial(
            probe_step,
            module=self.module,
            probes=self.probes,
            recipe=self.recipe,
            example_of=self.example_of,
            total=total,
            side_by_side=side_by_side,
            **({} if precision is None else {"precision": lax.Precision[precision.upper()]}),
        )
        program = parallel(step, donate=(0,)).lower(self.state, self.backbone, batch).compile()
        give_back_freed_memory()
        return program

    def take(self, program: Any, batch: Batch) -> Any:
        """One step; returns its losses by group, with a leading axis of devices."""
        import jax

        self.state, losses = program(self.state, self.backbone, batch)
        jax.block_until_ready((self.state, losses))
        return losses

    def batch(self, rendered: bool) -> Batch:
        """Pairs that the step itself renders, or the given pairs as arrays."""
        from und3rstand_jax.train.step.data_parallel import split

        position = np.arange(self.work.batch)
        scene = position if rendered else np.full_like(position, NOT_RENDERED)
        return split(Batch(position.astype(np.uint32), scene.astype(np.int32), None if rendered else given_pairs(self.work)))


def build_ours(work: Workload) -> tuple[Callable[[], None], dict[str, Any]]:
    """Our step on the given pairs."""
    import jax

    ours = OurStep(work)
    batch = ours.batch(rendered=False)
    start = time.perf_counter()
    program = ours.compiled(batch)
    details = {"base_gb": ours.base / 1e9, "compile_s": time.perf_counter() - start, "device": jax.devices()[0].device_kind}
    return lambda: ours.take(program, batch), details


def measure_parts(work: Workload, rounds: int) -> dict[str, list[float]]:
    """Seconds of our step with rendering, and of only its backbone and only its data, in turn; the probes take the rest."""
    import jax

    from und3rstand_jax.train.step.data_parallel import parallel
    from und3rstand_jax.train.step.probe_step import captured_tokens

    ours = OurStep(work)
    given, rendered = ours.batch(rendered=False), ours.batch(rendered=True)
    step = ours.compiled(rendered)
    data = parallel(ours.example_of)
    forward = parallel(functools.partial(captured_tokens, ours.module, ours.probes))
    example = data(rendered)
    parts = {
        "step": lambda: ours.take(step, rendered),
        "backbone": lambda: jax.block_until_ready(forward(ours.backbone, example)),
        "rendering": lambda: jax.block_until_ready(data(rendered)),
        "given": lambda: jax.block_until_ready(data(given)),
    }
    return _in_turn(parts, rounds)


def measure_side_by_side(work: Workload, values: Sequence[int], rounds: int) -> dict[int, tuple[list[float], int]]:
    """For each number of layers computed at once: seconds per step, in turn, and bytes of XLA's temporaries."""
    ours = OurStep(work)
    batch = ours.batch(rendered=False)
    programs = {value: ours.compiled(batch, side_by_side=value) for value in values}
    seconds = _in_turn({value: functools.partial(ours.take, program, batch) for value, program in programs.items()}, rounds)
    return {value: (seconds[value], program.memory_analysis().temp_size_in_bytes) for value, program in programs.items()}


def step_flops(work: Workload) -> tuple[int, int]:
    """Flops of products and convolutions in a step, of the backbone and of the probes, as PyTorch counts them."""
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
    """The module, and the trunk's weights as a training run keeps them; nothing else of the checkpoint stays in memory."""
    import und3rstand_jax as u3d
    from und3rstand_jax.train.step.data_parallel import replicate

    backbone = u3d.load_backbone(work.jax_folder, dtype=work.dtype)
    module = backbone.module
    trunk = [{name: leaf for name, leaf in backbone.params.items() if not name.startswith("head")}]
    del backbone
    return module, replicate(trunk.pop())


def _in_turn(runs: Mapping[Key, Callable[[], Any]], rounds: int) -> dict[Key, list[float]]:
    """Seconds of each run, round by round, after a round that is not counted."""
    seconds: dict[Key, list[float]] = {key: [] for key in runs}
    for _ in range(rounds + 1):
        for key, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[key].append(time.perf_counter() - start)
    return {key: values[1:] for key, values in seconds.items()}


def restart_peak(base: int) -> int:
    """Restarts the process's peak of resident memory, as the system counts it, from what is resident now; returns `base`."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    return base


def _resident() -> int:
    """Resident memory of this process, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
