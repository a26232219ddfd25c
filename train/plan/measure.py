"""Memory of a setup's step at some batch. For TPUs in a process of its own, which libtpu may take down with it."""

import concurrent.futures
import math
import multiprocessing
import os
from concurrent.futures.process import BrokenProcessPool

from train.plan.compile import NotCompiled, compile_step
from train.plan.memory import Memory, step_memory
from train.plan.shapes import Arguments, step_arguments
from train.plan.topology import Topology, topology_devices
from train.setup import ProbesSetup
from train.step.probe_step import ProbeTask


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
