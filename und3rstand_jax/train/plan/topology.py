"""The devices that a step is planned for, by name.

A topology is a TPU slice such as `v5e:2x4`, or this machine's own devices, `cpu` or `gpu`. The machine need not have the TPU slice: libtpu
compiles for it by name.
"""

import dataclasses
import importlib.util
import math
import os
import re
from typing import TYPE_CHECKING

from und3rstand_jax.support.errors import OptionError
from und3rstand_jax.train.plan.chips import GPUS, TPUS, Chip

if TYPE_CHECKING:
    import jax

EXAMPLES = "v5e:2x2 (4 chips), v5e:2x4, v5e:4x4 (16 chips on 4 hosts), v6e:2x2, v4:2x2x1, v5p:2x2x1, cpu, gpu"

# Cloud TPU's accelerator types count chips where a chip has one core and cores where it has two.
_ACCELERATOR_TYPES = {"v4": ("v4", 2), "v5e": ("v5litepod", 1), "v5p": ("v5p", 2), "v6e": ("v6e", 1)}

_HOST_BOUNDS = (2, 2, 1)  # chips of each host in a slice of several hosts


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices to compile for.

    Attributes:
        name: as `--topology` names it.
        platform: cpu, gpu or tpu.
        generation: a TPU's generation, such as v5e.
        bounds: the chips along each axis of a TPU slice's torus.
    """

    name: str
    platform: str
    generation: str = ""
    bounds: tuple[int, ...] = ()


def parse_topology(name: str) -> Topology:
    """The topology that a name stands for. Does not import JAX.

    Raises:
        OptionError: there is no such device or generation.
    """
    if name in ("cpu", "gpu"):
        return Topology(name, name)
    matched = re.fullmatch(r"(v\d\w*):(\d{1,9}(?:x\d{1,9}){1,2})", name)
    if matched is None or matched[1] not in _ACCELERATOR_TYPES:
        raise OptionError(f"--topology {name!r} is not a known device; give one such as {EXAMPLES}")
    bounds = tuple(int(side) for side in matched[2].split("x"))
    if 0 in bounds:
        raise OptionError(f"--topology {name} has no chips; give one such as {EXAMPLES}")
    return Topology(name, "tpu", matched[1], bounds)


def prepare_environment(topology: Topology) -> None:
    """Sets the environment variables that JAX and libtpu read when they start. Call it before importing JAX.

    To compile for a TPU that this machine lacks, JAX itself must run on the CPU, and libtpu must not look up the machine it runs on.
    """
    if topology.platform != "gpu":
        os.environ["JAX_PLATFORMS"] = "cpu"
    if topology.platform == "tpu":
        kind, cores = _ACCELERATOR_TYPES[topology.generation]
        os.environ["TPU_SKIP_MDS_QUERY"] = "1"
        os.environ["TPU_ACCELERATOR_TYPE"] = f"{kind}-{cores * math.prod(topology.bounds)}"
        os.environ["TPU_WORKER_HOSTNAMES"] = "localhost"
        os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # the lock file guards a TPU, and there is none


def topology_devices(topology: Topology) -> "tuple[jax.Device, ...]":
    """The devices to compile for: those of all hosts of a TPU slice, or those of this machine.

    Raises:
        OptionError: libtpu is not installed or has no such slice, or this machine has no such device.
    """
    if topology.platform == "tpu" and importlib.util.find_spec("libtpu") is None:
        raise OptionError(f"--topology {topology.name} needs the TPU compiler; install it with pip install 'und3rstand_jax[tpu]'")
    import jax
    from jax.experimental import topologies

    if topology.platform != "tpu":
        try:
            return tuple(jax.devices(topology.platform))
        except RuntimeError:
            here = ", ".join(sorted({device.platform for device in jax.devices()}))
            raise OptionError(
                f"--topology {topology.name}: this machine has no {topology.name}, only {here}; run this on one that has it"
            ) from None
    options: dict[str, object] = {}
    if any(side < host_side for side, host_side in zip(topology.bounds, _HOST_BOUNDS, strict=False)):
        options["chips_per_host_bounds"] = [*map(min, topology.bounds, _HOST_BOUNDS), *[1] * (3 - len(topology.bounds))]
    if topology.generation == "v4":
        options["chip_config_name"] = "megacore"  # JAX runs a v4's two cores as one device
    try:
        return tuple(topologies.get_topology_desc(platform="tpu", topology_name=topology.name, **options).devices)
    except jax.errors.JaxRuntimeError as error:
        reason = " ".join(str(error).split())
        raise OptionError(f"libtpu has no slice {topology.name} ({reason}); give one such as {EXAMPLES}") from None


def chip_of(topology: Topology, device_kind: str) -> Chip | None:
    """The chip of a topology's devices, which report the name `device_kind`; None if its peaks are not listed here."""
    if topology.platform == "tpu":
        return TPUS[topology.generation]
    if topology.platform == "gpu":
        return next((chip for name, chip in GPUS.items() if name in device_kind), None)
    return None
