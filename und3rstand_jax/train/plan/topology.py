"""Published peaks of chips: what an estimate is made from, and the memory a step must fit into.

TPUs: Google Cloud's Cloud TPU documentation, system architecture pages "TPU v4", "TPU v5e", "TPU v5p" and "TPU v6e (Trillium)":
bfloat16 TFLOP/s, HBM capacity and bandwidth, and inter-chip interconnect bandwidth, each per chip. GPUs: NVIDIA's data sheets of A100
(80 GB and 40 GB, SXM), H100 (SXM) and H200 (SXM): dense rates, half of what is printed with sparsity; NVLink's rate is half its
bidirectional figure.

A TPU multiplies in bfloat16. It makes a float32 product of 3 passes at precision HIGH and of 6 at HIGHEST (its operands cut into two and
three bfloat16 parts: Henry, Tang and Heinecke, arXiv 1904.06376); at DEFAULT it takes one, and loses digits. An NVIDIA GPU takes TF32
for DEFAULT and HIGH and its float32 units for HIGHEST.

Devices to plan for: `v5e:2x4`, of which libtpu only needs the name, or the ones that are here, `cpu` and `gpu`.
"""

import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from und3rstand_jax.support.errors import UserError

if TYPE_CHECKING:
    import jax

_TERA, _GIGA = 1e12, 1e9


@dataclasses.dataclass(frozen=True)
class Chip:
    """A chip's peaks. `memory` in bytes; `bandwidth` of that memory and `interconnect` to other chips, one way, in bytes a second.

    `bfloat16` is the rate of matrix products in FLOP/s, `float32` that of each precision. Capacities are taken as decimal gigabytes,
    some 6% less than what compilers are willing to fill: the runtime needs some memory too.
    """

    name: str
    memory: float
    bandwidth: float
    interconnect: float
    bfloat16: float
    float32: Mapping[str, float]

    def rate(self, dtype: str, precision: str) -> float:
        """FLOP/s of matrix products whose operands are of `dtype`, at one of lax.Precision's names in lower case."""
        return self.float32[precision] if dtype == "float32" else self.bfloat16


def tpu(generation: str) -> Chip:
    """The chip of a TPU generation, such as v5e."""
    return _TPUS[generation]


def gpu(device_kind: str) -> Chip | None:
    """The chip that a GPU calls itself, if its peaks are known here."""
    return next((chip for name, chip in _GPUS.items() if name in device_kind), None)


def _tpu(name: str, memory: float, bandwidth: float, interconnect: float, bfloat16: float) -> Chip:
    """From gigabytes, gigabytes a second, gigabits a second and TFLOP/s."""
    peak = bfloat16 * _TERA
    by_precision = {"default": peak, "high": peak / 3, "highest": peak / 6}
    return Chip(name, memory * _GIGA, bandwidth * _GIGA, interconnect / 8 * _GIGA, peak, by_precision)


def _gpu(name: str, memory: float, bandwidth: float, interconnect: float, bfloat16: float, tf32: float, float32: float) -> Chip:
    """From gigabytes, gigabytes a second (twice) and TFLOP/s."""
    by_precision = {"default": tf32 * _TERA, "high": tf32 * _TERA, "highest": float32 * _TERA}
    return Chip(name, memory * _GIGA, bandwidth * _GIGA, interconnect * _GIGA, bfloat16 * _TERA, by_precision)


_TPUS = {
    "v4": _tpu("TPU v4", 32, 1200, 2400, 275),
    "v5e": _tpu("TPU v5e", 16, 819, 1600, 197),
    "v5p": _tpu("TPU v5p", 95, 2765, 4800, 459),
    "v6e": _tpu("TPU v6e", 32, 1640, 3584, 918),
}


# By a part of the name that the driver gives the device.
_GPUS = {
    "A100-SXM4-40GB": _gpu("A100 SXM 40 GB", 40, 1555, 300, 312, 156, 19.5),
    "A100-SXM4-80GB": _gpu("A100 SXM 80 GB", 80, 2039, 300, 312, 156, 19.5),
    "H100 80GB HBM3": _gpu("H100 SXM", 80, 3350, 450, 989.4, 494.7, 67),
    "H200": _gpu("H200 SXM", 141, 4800, 450, 989.4, 494.7, 67),
}


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
