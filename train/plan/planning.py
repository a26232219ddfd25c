"""From options and a topology to a plan: the step compiled, counted, and tried with larger batches."""

import dataclasses
import math
import time
from collections.abc import Callable

import jax

from train.backbone_architecture import backbone_config
from train.options import TrainOptions
from train.plan.chips import Chip, gpu, tpu
from train.plan.compile import NotCompiled
from train.plan.cost import Part, step_parts
from train.plan.measure import measure, planned_arguments, planned_task
from train.plan.memory import Memory, memory_limit
from train.plan.search import Largest, largest_batch
from train.plan.topology import Topology, topology_devices
from train.setup import ProbesSetup, set_up
from train.step.probe_step import ProbeTask
from und3rstand_jax.errors import UserError

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
