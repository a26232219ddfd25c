"""Compiles the step that the loop runs, from shapes alone, for devices that need not be here."""

import functools
from collections.abc import Sequence

import jax
from jax.stages import Compiled

from train.plan.shapes import Arguments
from train.step.data_parallel import parallel, total
from train.step.probe_step import ProbeTask, probe_step


class NotCompiled(Exception):
    """The compiler gave up: it found no way to fit the step into the device's memory, or crashed. The message says which."""


def compile_step(task: ProbeTask, arguments: Arguments, devices: Sequence[jax.Device]) -> Compiled:
    """The step as `train.run.loop` compiles it, for these devices, which may be of several hosts.

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
