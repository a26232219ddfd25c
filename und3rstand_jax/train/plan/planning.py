"""From the options of a run and a topology to a plan: the step is compiled and counted, and compiled again with larger batches."""

import dataclasses
import logging
import math
import time
from collections.abc import Callable

from und3rstand_jax.support.errors import OptionError
from und3rstand_jax.train.architecture import backbone_config
from und3rstand_jax.train.options import TrainOptions
from und3rstand_jax.train.plan.chips import Chip
from und3rstand_jax.train.plan.memory import Memory, NotCompiled, measure, memory_limit
from und3rstand_jax.train.plan.shapes import step_arguments
from und3rstand_jax.train.plan.topology import Topology, chip_of, topology_devices
from und3rstand_jax.train.plan.work import Part, step_parts
from und3rstand_jax.train.probes_task import ProbesTask

MOST_COMPILATIONS = 4

_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Largest:
    """The largest batch that fits.

    Attributes:
        pairs: pairs in the largest batch that was compiled and fits; 0 if none does.
        total: bytes that it takes.
        too_many: pairs in the smallest batch that does not fit: one that was compiled, or else one extrapolated from the two largest. None
            if the search ended before it met one.
    """

    pairs: int
    total: float
    too_many: int | None


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a step takes on each device of a topology. Bytes and `pairs` are those of one device.

    Attributes:
        task: what is trained and how, with all defaults filled in. Of several resolutions, the step has the largest.
        topology: what the step runs on.
        device_kind: the name that the devices report.
        devices: number of devices.
        hosts: number of hosts that they belong to.
        pairs: the device's share of the run's batch.
        limit: bytes of memory available.
        tried: by number of pairs, the memory of each batch that was compiled, or why it does not compile.
        largest: the largest batch that fits; None if the search was skipped.
        parts: the step's work.
        chip: the device's peaks; None if they are not known.
    """

    task: ProbesTask
    topology: Topology
    device_kind: str
    devices: int
    hosts: int
    pairs: int
    limit: float
    tried: dict[int, Memory | str]
    largest: Largest | None
    parts: list[Part]
    chip: Chip | None


def make_plan(options: TrainOptions, topology: Topology, quick: bool) -> Plan:
    """Plans the run of these options; reads no weights and no data.

    Args:
        options: the run's options.
        topology: what the run would use.
        quick: skip the search for the largest batch, which takes most of the time.

    Raises:
        OptionError: an option cannot be satisfied, or there is no compiler for the topology.
        CheckpointError: the backbone cannot be found.
    """
    devices = topology_devices(topology)
    if options.attention == "cudnn" and topology.platform != "gpu":
        raise OptionError(f"--attention cudnn requires an NVIDIA GPU; for {topology.name}, give another attention or omit the option")
    hosts = len({device.process_index for device in devices})
    task = ProbesTask.create(options, backbone_config(options.backbone), len(devices), hosts=hosts)
    pairs = task.feed.batch_size // len(devices)
    chip = chip_of(topology, devices[0].device_kind)
    limit = memory_limit(devices, chip)
    parts = step_parts(task, step_arguments(task, pairs), len(devices))
    tried: dict[int, Memory | str] = {}

    def compiled_bytes(pairs: int) -> float:
        _logger.info("compiling the step for %s, %d %s on each device …", topology.name, pairs, task.feed.things)
        since = time.monotonic()
        try:
            memory = measure(topology, task, pairs)
        except NotCompiled as error:
            tried[pairs], total, outcome = str(error), math.inf, str(error)
        else:
            tried[pairs], total, outcome = memory, memory.total, f"{memory.total / 1e9:.2f} GB"
        _logger.info("  %.0f s: %s", time.monotonic() - since, outcome)
        return total

    total, largest = compiled_bytes(pairs), None
    if not quick:
        memory = tried[pairs]
        fixed = 0 if isinstance(memory, str) else memory.total - memory.batch - memory.tokens - memory.temporaries
        largest = largest_batch(compiled_bytes, limit, fixed, pairs, total, options.accumulate)
    return Plan(
        task=task,
        topology=topology,
        device_kind=devices[0].device_kind,
        devices=len(devices),
        hosts=hosts,
        pairs=pairs,
        limit=limit,
        tried=tried,
        largest=largest,
        parts=parts,
        chip=chip,
    )


def largest_batch(bytes_of: Callable[[int], float], limit: float, fixed: float, start: int, total: float, unit: int = 1) -> Largest:
    """Finds the largest batch that fits, in few compilations: every further pair takes about as much memory as the one before.

    Args:
        bytes_of: compiles for a number of pairs and returns the bytes they take, or infinity if compilation fails.
        limit: bytes of memory available.
        fixed: bytes that any batch needs; at most what a batch of 0 would take.
        start: number of pairs in a first batch.
        total: bytes that the first batch takes, by `bytes_of`.
        unit: every batch is a multiple of this number of pairs.
    """
    known = {start // unit: total}
    while True:
        low = max((size for size, found in known.items() if found <= limit), default=0)
        high = min((size for size, found in known.items() if found > limit), default=None)
        size = _next_size({0: fixed, **known}, limit, low, high)
        if size is None or len(known) == MOST_COMPILATIONS:
            break
        known[size] = bytes_of(size * unit)
    too_many = low + 1 if size is None else high
    return Largest(low * unit, known.get(low, fixed), None if too_many is None else too_many * unit)


def _next_size(known: dict[int, float], limit: float, low: int, high: int | None) -> int | None:
    """The largest size that should fit; None if none between `low`, which fits, and `high`, which does not, can."""
    finite = sorted((size, total) for size, total in known.items() if total < math.inf)
    size = 2 * max(known)  # while it is not known how memory grows
    if len(finite) > 1:
        (less, before), (more, after) = finite[-2:]
        if after > before:
            size = math.floor(more + (limit - after) * (more - less) / (after - before))
    size = max(size, 1 if low == 0 else 0)
    if high is not None:
        # If compilation failed, there is nothing to extrapolate from: halve.
        size = min(size, high - 1 if known[high] < math.inf else max((low + high) // 2, 1))
    return size if low < size and size != high else None
