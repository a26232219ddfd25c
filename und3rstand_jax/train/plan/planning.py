"""The largest batch that fits, found with few compilations: every further pair takes about as much memory as the one before.

From options and a topology to a plan: the step compiled, counted, and tried with larger batches.
"""

import dataclasses
import math
import time
from collections.abc import Callable

import jax

from und3rstand_jax.support.errors import UserError
from und3rstand_jax.train.architecture import backbone_config
from und3rstand_jax.train.options import TrainOptions
from und3rstand_jax.train.plan.memory import Memory, NotCompiled, measure, memory_limit, planned_arguments, planned_task
from und3rstand_jax.train.plan.topology import Chip, Topology, gpu, topology_devices, tpu
from und3rstand_jax.train.plan.work import Part, step_parts
from und3rstand_jax.train.step.probe_step import ProbeTask
from und3rstand_jax.train.task import ProbesSetup, set_up

MOST_COMPILATIONS = 4


@dataclasses.dataclass(frozen=True)
class Largest:
    """`pairs` is the largest batch that was compiled and fits, in `total` bytes; 0 if none does.

    `too_many` is the least batch that does not fit: one that was compiled, or else what a line through the largest two says. None where
    the search ended before it met one.
    """

    pairs: int
    total: float
    too_many: int | None


def largest_batch(measure: Callable[[int], float], limit: float, fixed: float, start: int, total: float, unit: int = 1) -> Largest:
    """Compiles for a few batches, the first of which is given, each chosen by what the ones before took.

    Args:
        measure: compiles for a number of pairs and returns the bytes they take, infinitely many where the compiler gives up.
        limit: bytes there are.
        fixed: bytes that any batch needs; at most what a batch of 0 would take.
        start: pairs of the first batch.
        total: bytes they take, as `measure` says it.
        unit: batches are multiples of it.
    """
    known = {start // unit: total}
    while True:
        low = max((size for size, found in known.items() if found <= limit), default=0)
        high = min((size for size, found in known.items() if found > limit), default=None)
        size = _next_size({0: fixed, **known}, limit, low, high)
        if size is None or len(known) == MOST_COMPILATIONS:
            break
        known[size] = measure(size * unit)
    too_many = low + 1 if size is None else high
    return Largest(low * unit, known.get(low, fixed), None if too_many is None else too_many * unit)


def _next_size(known: dict[int, float], limit: float, low: int, high: int | None) -> int | None:
    """The largest size that should fit; None if nothing between `low`, which does, and `high`, which does not, can."""
    finite = sorted((size, total) for size, total in known.items() if total < math.inf)
    size = 2 * max(known)  # where nothing says how memory grows
    if len(finite) > 1:
        (less, before), (more, after) = finite[-2:]
        if after > before:
            size = math.floor(more + (limit - after) * (more - less) / (after - before))
    size = max(size, 1 if low == 0 else 0)
    if high is not None:
        # Where the compiler gave up, no line says how far to go back.
        size = min(size, high - 1 if known[high] < math.inf else max((low + high) // 2, 1))
    return size if low < size and size != high else None


Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a step takes on each of some devices. Bytes are those of one device, and so are `pairs`.

    `tried` are all batches that were compiled: what they take, or why they do not compile. `limit` is what memory there is. `chip` is
    None where no peaks are known of the device, `largest` where it was not asked for.
    """

    setup: ProbesSetup
    task: ProbeTask
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


def make_plan(options: TrainOptions, topology: Topology, quick: bool, say: Say) -> Plan:
    """Plans the run of these options; no weights and no data are read.

    Args:
        options: of the run.
        topology: what it would run on.
        quick: leave out the search for the largest batch, the longest part.
        say: is told what takes long.

    Raises:
        UserError: the options cannot be met, or there is no compiler for the topology.
    """
    devices = topology_devices(topology)
    if options.attention == "cudnn" and topology.platform != "gpu":
        raise UserError(f"--attention cudnn runs on NVIDIA GPUs; for {topology.name} give another, or none")
    hosts = len({device.process_index for device in devices})
    setup = set_up(options, backbone_config(options.backbone), len(devices), hosts=hosts)
    assert setup.options.batch_size is not None  # set_up completes it
    pairs = setup.options.batch_size // len(devices)
    task, chip = planned_task(setup), _chip(topology, devices[0])
    limit = memory_limit(devices, chip)
    parts = step_parts(task, planned_arguments(setup, pairs), len(devices))
    tried: dict[int, Memory | str] = {}

    def attempt(pairs: int) -> float:
        tried[pairs] = found = _attempt(say, topology, setup, pairs)
        return math.inf if isinstance(found, str) else found.total

    total = attempt(pairs)
    largest = None if quick else largest_batch(attempt, limit, _fixed(tried[pairs]), pairs, total, task.accumulate)
    return Plan(setup, task, topology, devices[0].device_kind, len(devices), hosts, pairs, limit, tried, largest, parts, chip)


def _fixed(memory: Memory | str) -> int:
    """Bytes that do not depend on the batch, as far as is known."""
    return 0 if isinstance(memory, str) else memory.total - memory.batch - memory.tokens - memory.temporaries


def _attempt(say: Say, topology: Topology, setup: ProbesSetup, pairs: int) -> Memory | str:
    """What a batch takes, or why it does not compile; says so as well."""
    say(f"compiling the step for {topology.name}, {pairs} pairs on each device …")
    since = time.monotonic()
    try:
        found: Memory | str = measure(topology, setup, pairs)
    except NotCompiled as error:
        found = str(error)
    say(f"  {time.monotonic() - since:.0f} s: {found if isinstance(found, str) else f'{found.total / 1e9:.2f} GB'}")
    return found


def _chip(topology: Topology, device: jax.Device) -> Chip | None:
    if topology.platform == "tpu":
        return tpu(topology.generation)
    return gpu(device.device_kind) if topology.platform == "gpu" else None
