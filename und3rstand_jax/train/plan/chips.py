"""Published peaks of the chips that a step is planned for.

TPUs: Google Cloud's Cloud TPU documentation, system architecture pages "TPU v4", "TPU v5e", "TPU v5p" and "TPU v6e (Trillium)":
bfloat16 TFLOP/s, HBM capacity and bandwidth, and inter-chip interconnect bandwidth, each per chip. GPUs: NVIDIA's data sheets of A100
(80 GB and 40 GB, SXM), H100 (SXM) and H200 (SXM): dense rates, half of those printed with sparsity; NVLink's rate is half its
bidirectional figure.

A TPU multiplies in bfloat16. It computes a float32 product in 3 passes at precision HIGH and in 6 at HIGHEST (its operands split into
two and three bfloat16 parts: Henry, Tang and Heinecke, arXiv 1904.06376); at DEFAULT it takes one pass and loses digits. An NVIDIA GPU
uses TF32 for DEFAULT and HIGH and its float32 units for HIGHEST.
"""

import dataclasses
from collections.abc import Mapping

_TERA, _GIGA = 1e12, 1e9


@dataclasses.dataclass(frozen=True)
class Chip:
    """A chip's peaks.

    Attributes:
        name: the vendor's name.
        memory: in bytes. Capacities are taken as decimal gigabytes, some 6% less than compilers are willing to fill: the runtime needs
            some memory too.
        bandwidth: bandwidth of that memory, in bytes per second.
        interconnect: bandwidth to other chips, one way, in bytes per second.
        bfloat16: FLOP/s of matrix products.
        float32: the same at each precision, by lax.Precision's names in lower case.
    """

    name: str
    memory: float
    bandwidth: float
    interconnect: float
    bfloat16: float
    float32: Mapping[str, float]

    def rate(self, dtype: str, precision: str) -> float:
        """FLOP/s of matrix products with operands of `dtype`; `precision` is one of lax.Precision's names in lower case."""
        return self.float32[precision] if dtype == "float32" else self.bfloat16


def _tpu(name: str, memory: float, bandwidth: float, interconnect: float, bfloat16: float) -> Chip:
    """A TPU, from figures in GB, GB/s, Gbit/s and TFLOP/s."""
    peak = bfloat16 * _TERA
    by_precision = {"default": peak, "high": peak / 3, "highest": peak / 6}
    return Chip(name, memory * _GIGA, bandwidth * _GIGA, interconnect / 8 * _GIGA, peak, by_precision)


def _gpu(name: str, memory: float, bandwidth: float, interconnect: float, bfloat16: float, tf32: float, float32: float) -> Chip:
    """A GPU, from figures in GB, GB/s, GB/s and TFLOP/s."""
    by_precision = {"default": tf32 * _TERA, "high": tf32 * _TERA, "highest": float32 * _TERA}
    return Chip(name, memory * _GIGA, bandwidth * _GIGA, interconnect * _GIGA, bfloat16 * _TERA, by_precision)


TPUS = {
    "v4": _tpu("TPU v4", 32, 1200, 2400, 275),
    "v5e": _tpu("TPU v5e", 16, 819, 1600, 197),
    "v5p": _tpu("TPU v5p", 95, 2765, 4800, 459),
    "v6e": _tpu("TPU v6e", 32, 1640, 3584, 918),
}
"""TPUs by generation."""

GPUS = {
    "A100-SXM4-40GB": _gpu("A100 SXM 40 GB", 40, 1555, 300, 312, 156, 19.5),
    "A100-SXM4-80GB": _gpu("A100 SXM 80 GB", 80, 2039, 300, 312, 156, 19.5),
    "H100 80GB HBM3": _gpu("H100 SXM", 80, 3350, 450, 989.4, 494.7, 67),
    "H200": _gpu("H200 SXM", 141, 4800, 450, 989.4, 494.7, 67),
}
"""GPUs by a part of the device name that the driver reports."""
