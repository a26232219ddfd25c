"""The device memory that a step takes. The step is compiled from shapes alone, for devices that need not be present.

Totals are the compiler's; their breakdown follows from the sizes of the arguments.
"""

import concurrent.futures
import dataclasses
import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool

import jax
from jax.stages import Compiled

from und3rstand_jax.train.plan.chips import Chip
from und3rstand_jax.train.plan.shapes import Arguments, intermediates, planned_shape, step_arguments, tree_bytes
from und3rstand_jax.train.plan.topology import Topology, topology_devices
from und3rstand_jax.train.probes_task import ProbesTask
from und3rstand_jax.train.step.data_parallel import parallel, parallel_shapes


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device while the step runs: its arguments, and what it needs in addition.

    Attributes:
        backbone: the frozen trunk's parameters.
        probes: the probes' parameters.
        last_good: the copy of the last parameters that gave a finite loss.
        optimizer: the optimiser's state.
        batch: the device's share of the batch.
        padding: what the device's layout of the arguments adds to their sizes.
        tokens: tokens of the captured layers, the one part of the compiler's temporaries that grows with the number of layers.
        temporaries: all other temporaries.
        results: all results except the new state, which takes over the old state's memory.
        program: the machine code.
    """

    backbone: int
    probes: int
    last_good: int
    optimizer: int
    batch: int
    padding: int
    tokens: int
    temporaries: int
    results: int
    program: int

    @property
    def total(self) -> int:
        """The sum."""
        return sum(dataclasses.astuple(self))


class NotCompiled(Exception):
    """The step did not compile: it does not fit into the device's memory, or the compiler crashed. The message says which."""


def measure(topology: Topology, task: ProbesTask, pairs: int) -> Memory:
    """Compiles a step for `pairs` pairs on each device of a topology.

    Args:
        topology: the devices to compile for.
        task: defines the step.
        pairs: number of pairs on each device.

    Raises:
        NotCompiled: it does not fit, or the compiler crashed.
    """
    if topology.platform != "tpu":
        return _measure(topology, task, pairs)
    # In a separate process, because libtpu may crash: it has been seen to overflow its stack at 48 pairs. Spawned, not forked, because
    # JAX has threads; the environment, which libtpu reads, is inherited.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, context, initializer=_silence_stderr) as process:
        try:
            return process.submit(_measure, topology, task, pairs).result()
        except BrokenProcessPool:
            raise NotCompiled("libtpu itself crashed; `ulimit -s unlimited`, here and before the run, may prevent this") from None


def _silence_stderr() -> None:
    """Keeps the stack trace of a crashing compiler off the terminal; exceptions reach the parent process all the same."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _measure(topology: Topology, task: ProbesTask, pairs: int) -> Memory:
    arguments = step_arguments(task, pairs)
    return step_memory(compile_step(task, arguments, topology_devices(topology)), task, arguments)


def compile_step(task: ProbesTask, arguments: Arguments, devices: Sequence[jax.Device]) -> Compiled:
    """The step as `und3rstand_jax.train.run` compiles it, for these devices, which may be of several hosts.

    Raises:
        NotCompiled: the devices' memory cannot hold it.
    """
    step = parallel(task.step(planned_shape(task)), donate=(0,), devices=devices)
    lowered = step.lower(*parallel_shapes(arguments, len(devices)))
    try:
        return lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise NotCompiled(str(error).splitlines()[0]) from None


def step_memory(compiled: Compiled, task: ProbesTask, arguments: Arguments) -> Memory:
    """The memory that a compiled step takes on each of its devices."""
    analysis = compiled.memory_analysis()
    assert analysis is not None, "every backend of ours has one"
    # The compiler drops arguments that nothing reads, which then have no sharding. They occupy memory all the same.
    read = jax.tree.map(lambda leaf, sharding: leaf if sharding is not None else None, tuple(arguments), compiled.input_shardings[0])
    groups = arguments.state.groups.values()
    probes = tree_bytes([group.params for group in groups])
    last_good = tree_bytes([group.last_good for group in groups])
    tokens = min(tree_bytes(intermediates(task, arguments).tokens), analysis.temp_size_in_bytes)
    return Memory(
        backbone=tree_bytes(arguments.backbone),
        probes=probes,
        last_good=last_good,
        optimizer=tree_bytes(arguments.state) - probes - last_good,
        batch=tree_bytes(arguments.batch),
        padding=analysis.argument_size_in_bytes - tree_bytes(read),
        tokens=tokens,
        temporaries=analysis.temp_size_in_bytes - tokens,
        results=analysis.output_size_in_bytes - analysis.alias_size_in_bytes,
        program=analysis.generated_code_size_in_bytes,
    )


def memory_limit(devices: Sequence[jax.Device], chip: Chip | None) -> float:
    """Bytes that a step may take on each device: a CPU's share of the machine's memory, what JAX reserves on a GPU, all of a TPU's."""
    if devices[0].platform == "cpu":
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / len(devices)
    if devices[0].platform == "gpu":
        return float(devices[0].memory_stats()["bytes_limit"])
    assert chip is not None, "every TPU that can be named has one"
    return chip.memory
