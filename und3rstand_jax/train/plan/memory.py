"""A device's memory by kind: totals are the compiler's, parts come from the sizes of what it was given.

Compiles the step that the loop runs, from shapes alone, for devices that need not be here.

Memory of a setup's step at some batch. For TPUs in a process of its own, which libtpu may take down with it.
"""

import concurrent.futures
import dataclasses
import functools
import math
import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import jax
from jax.stages import Compiled

from und3rstand_jax.train.plan.shapes import Arguments, intermediates, step_arguments, tree_bytes
from und3rstand_jax.train.plan.topology import Chip, Topology, topology_devices
from und3rstand_jax.train.step.data_parallel import parallel, total
from und3rstand_jax.train.step.probe_step import ProbeTask, probe_step
from und3rstand_jax.train.task import ProbesSetup


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device while the step runs: its arguments, and what it needs beside them.

    `padding` is what the device's layout of the arguments adds to their sizes. `tokens` are the captured layers' tokens, the one part
    of the compiler's temporaries that grows with the number of layers, and `temporaries` the rest of these. The new state takes the
    old one's place: `results` are all others.
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
        """All of it."""
        return sum(dataclasses.astuple(self))


def step_memory(compiled: Compiled, task: ProbeTask, arguments: Arguments) -> Memory:
    """What a compiled step takes on each of its devices."""
    found: Any = compiled.memory_analysis()
    # An argument that nothing reads has no sharding: the compiler leaves it out, and it lies in memory all the same.
    read = jax.tree.map(lambda leaf, sharding: leaf if sharding is not None else None, tuple(arguments), compiled.input_shardings[0])
    groups = arguments.state.groups.values()
    probes = tree_bytes([group.params for group in groups])
    last_good = tree_bytes([group.last_good for group in groups])
    tokens = min(tree_bytes(intermediates(task, arguments).tokens), found.temp_size_in_bytes)
    return Memory(
        backbone=tree_bytes(arguments.backbone),
        probes=probes,
        last_good=last_good,
        optimizer=tree_bytes(arguments.state) - probes - last_good,
        batch=tree_bytes(arguments.batch),
        padding=found.argument_size_in_bytes - tree_bytes(read),
        tokens=tokens,
        temporaries=found.temp_size_in_bytes - tokens,
        results=found.output_size_in_bytes - found.alias_size_in_bytes,
        program=found.generated_code_size_in_bytes,
    )


def memory_limit(devices: Sequence[jax.Device], chip: Chip | None) -> float:
    """What a step may take on each of the devices: of a CPU its share of the machine, of a GPU what JAX keeps for itself."""
    if devices[0].platform == "cpu":
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / len(devices)
    if devices[0].platform == "gpu":
        return float(devices[0].memory_stats()["bytes_limit"])
    assert chip is not None  # every TPU that can be named has one
    return chip.memory


class NotCompiled(Exception):
    """The compiler gave up: it found no way to fit the step into the device's memory, or crashed. The message says which."""


def compile_step(task: ProbeTask, arguments: Arguments, devices: Sequence[jax.Device]) -> Compiled:
    """The step as `und3rstand_jax.train.run.loop` compiles it, for these devices, which may be of several hosts.

    Raises:
        NotCompiled: the devices' memory cannot hold it.
    """
    step = parallel(functools.partial(probe_step, task, total), donate=(0,), devices=devices)
    on_devices = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((len(devices), *leaf.shape), leaf.dtype), arguments)
    lowered = step.lower(*on_devices)
    try:
        return lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise NotCompiled(str(error).splitlines()[0]) from None


def planned_task(setup: ProbesSetup) -> ProbeTask:
    """The step that is planned: of several resolutions the largest is what must fit."""
    return setup.task(max(setup.feed.shapes, key=math.prod))


def planned_arguments(setup: ProbesSetup, pairs: int) -> Arguments:
    """Its arguments for `pairs` pairs a device."""
    return step_arguments(planned_task(setup), pairs, from_files=any(spec.root is not None for spec in setup.feed.specs))


def measure(topology: Topology, setup: ProbesSetup, pairs: int) -> Memory:
    """Compiles the step for `pairs` pairs a device.

    Raises:
        NotCompiled: it does not fit, or the compiler crashed.
    """
    # libtpu has been seen to overflow its stack at 48 pairs. A GPU, on the other hand, is not for two processes.
    return _measure_apart(topology, setup, pairs) if topology.platform == "tpu" else _measure(topology, setup, pairs)


def _measure(topology: Topology, setup: ProbesSetup, pairs: int) -> Memory:
    task, arguments = planned_task(setup), planned_arguments(setup, pairs)
    return step_memory(compile_step(task, arguments, topology_devices(topology)), task, arguments)


def _measure_apart(topology: Topology, setup: ProbesSetup, pairs: int) -> Memory:
    # Spawned, not forked: JAX has threads. The environment, and with it the compiler's, is inherited.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, context, initializer=_silence) as process:
        try:
            return process.submit(_measure, topology, setup, pairs).result()
        except BrokenProcessPool:
            raise NotCompiled("libtpu crashed, a fault of its own; after `ulimit -s unlimited`, here and in the run, it may not") from None


def _silence() -> None:
    """Keeps a crashing compiler's stack trace off the terminal; exceptions reach the parent all the same."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
