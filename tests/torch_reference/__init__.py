"""An independent PyTorch DUSt3R and its probes, and VGGT, for parity tests and as the PyTorch side of the benchmarks.

Written from the published facts and the state-dict names, without sight of the JAX models, so that an error in one is
not an error in both. Its own yardstick is `tests/golden`.
"""

from tests.torch_reference.backbone import DUSt3RReference, ReferenceOutput, load_reference
from tests.torch_reference.probes import ProbeReference
from tests.torch_reference.vggt import VGGTOutput, VGGTReference, load_vggt
from tests.torch_reference.vggt_config import VGGTConfig

__all__ = [
    "DUSt3RReference",
    "ProbeReference",
    "ReferenceOutput",
    "VGGTConfig",
    "VGGTOutput",
    "VGGTReference",
    "load_reference",
    "load_vggt",
]
