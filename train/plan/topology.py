"""Devices to plan for: `v5e:2x4`, of which libtpu only needs the name, or the ones that are here, `cpu` and `gpu`."""

import dataclasses
import importlib.util
import math
import os
import re
from typing import TYPE_CHECKING, Any

from und3rstand_jax.errors import UserError

if TYPE_CHECKING:
    import jax

EXAMPLES = "v5e:2x2 (4 chips), v5e:2x4, v5e:4x4 (16 chips on 4 hosts), v6e:2x2, v4:2x2x1, v5p:2x2x1, cpu, gpu"

# Cloud TPU's accelerator types count chips where a chip has one core and cores where it has two.
_ACCELERATOR_TYPES = {"v4": ("v4", 2), "v5e": ("v5litepod", 1), "v5p": ("v5p", 2), "v6e": ("v6e", 1)}
_HOST_BOUNDS = (2, 2, 1)  # chips of a host in a slice of several


@dataclasses.dataclass(frozen=True)
class Topology:
    """`platform` is cpu, gpu or tpu; a TPU has a `generation` (v5e) and `bounds`, the chips along each axis of its torus."""

    name: str
    platform: str
    generation: str = ""
    bounds: tuple[int, ...] = ()


def parse_topology(name: str) -> Topology:
    """The topology of a name. No JAX is needed for it.

    Raises:
        UserError: there is no such device or generation.
    """
    if name in ("cpu", "gpu"):
        return Topology(name, name)
    matched = re.fullmatch(r"(v\d\w*):(\d+(?:x\d+){1,2})", name)
    if matched is None or matched[1] not in _ACCELERATOR_TYPES:
        raise UserError(f"--topology {name!r} is none this program knows; give one such as {EXAMPLES}")
    bounds = tuple(int(side) for side in matched[2].split("x"))
    if 0 in bounds:
        raise UserError(f"--topology {name} has no chips; give one such as {EXAMPLES}")
    return Topology(name, "tpu", matched[1], bounds)


def prepare_environment(topology: Topology) -> None:
    """Sets what JAX and libtpu read when they start; to be called before JAX is imported.

    For a TPU that is not there, JAX itself must run on the CPU, and libtpu must not look for the machine it is on.
    """
    if topology.platform != "gpu":
        os.environ["JAX_PLATFORMS"] = "cpu"
    if topology.platform == "tpu":
        kind, cores = _ACCELERATOR_TYPES[topology.generation]
        os.environ["TPU_SKIP_MDS_QUERY"] = "1"
        os.environ["TPU_ACCELERATOR_TYPE"] = f"{kind}-{cores * math.prod(topology.bounds)}"
        os.environ["TPU_WORKER_HOSTNAMES"] = "localhost"
        os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # a lock keeps processes off each other's TPU, and there is none


def topology_devices(topology: Topology) -> "tuple[jax.Device, ...]":
    """The devices to compile for: those of all hosts of a TPU slice, or the present ones.

    Raises:
        UserError: libtpu is not installed or knows no such slice, or there is no such device here.
    """
    import jax

    if topology.platform == "tpu":
        return _tpu_devices(topology)
    try:
        return tuple(jax.devices(topology.platform))
    except RuntimeError:
        here = ", ".join(sorted({device.platform for device in jax.devices()}))
        raise UserError(f"--topology {topology.name}: there is no {topology.name} here, only {here}; run this where it is") from None


def _tpu_devices(topology: Topology) -> "tuple[jax.Device, ...]":
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(f"--topology {topology.name} needs TPU's compiler; install it with pip install 'und3rstand_jax[tpu]'")
    import jax
    from jax.experimental import topologies

    options: dict[str, Any] = {}
    if any(side < host_side for side, host_side in zip(topology.bounds, _HOST_BOUNDS, strict=False)):
        options["chips_per_host_bounds"] = [*map(min, topology.bounds, _HOST_BOUNDS), *[1] * (3 - len(topology.bounds))]
    if topology.generation == "v4":
        options["chip_config_name"] = "megacore"  # JAX runs a v4's two cores as one device
    try:
        return tuple(topologies.get_topology_desc(platform="tpu", topology_name=topology.name, **options).devices)
    except jax.errors.JaxRuntimeError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"libtpu has no slice {topology.name} ({reason}); give one such as {EXAMPLES}") from None
