"""A device's memory by kind: totals are the compiler's, parts come from the sizes of what it was given."""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import jax
from jax.stages import Compiled

from train.plan.chips import Chip
from train.plan.shapes import Arguments, intermediates, tree_bytes
from train.step.probe_step import ProbeTask


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
