"""VGGT's golden cases: inputs made again, outputs of the original read back; see `tests/golden/README.md`."""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64

from tests.golden import weights_vggt
from tests.golden_cases import GOLDEN

SMALL_CASE = "tiny_vggt"
FULL_CASE = "full_vggt_1b"

LEAST_YARDSTICK = 1e-6
"""Arrays of a few numbers can be lucky in float32."""


@dataclass(frozen=True)
class VGGTCase:
    """Inputs and expected outputs of one case.

    `case` is its json; `state_dict` the weights under the original's names; `images` (B, S, H, W, 3) in [0, 1], as the original was
    given them; `arrays` the expected outputs, tokens as (B, S, tokens, channels).
    """

    name: str
    case: dict[str, Any]
    state_dict: dict[str, np.ndarray]
    images: Float64[np.ndarray, "B S H W 3"]
    arrays: dict[str, Float32[np.ndarray, "..."]]

    @property
    def config(self) -> dict[str, Any]:
        """The architecture."""
        return self.case["config"]

    def float32_error(self, name: str) -> float:
        """The original's own relative error in float32 in one of the arrays, or what it might as well have been: the unit of ours."""
        return max(self.case["torch_float32_relative_error"][name], LEAST_YARDSTICK)

    def stored(self, name: str, array: Any) -> Any:
        """What the case holds of a whole array."""
        step = self.case["subsample"]
        if name.startswith(("depth_head.", "point_head.")):
            place = self.case["dpt_internals"]
            return array[place["batch"], place["frame"], :: place["channels"], :: place["pixels"], :: place["pixels"]]
        if name in ("depth", "depth_conf", "world_points", "world_points_conf"):
            return array[:, :, :: step["pixels"], :: step["pixels"]]
        if name.startswith(("pose_enc.", "extrinsic", "intrinsic")):
            return array
        if name.startswith("camera."):
            return array[..., :: step["channels"]]
        return array[:, :, :: step["tokens"], :: step["channels"]]


def load_vggt_case(name: str = SMALL_CASE, with_weights: bool = True) -> VGGTCase:
    """The case `name`; the full-size one makes 4.8 GB of weights. Without them, `state_dict` is empty."""
    case = json.loads((GOLDEN / f"{name}.json").read_text())
    with np.load(GOLDEN / f"{name}.npz") as file:
        arrays = dict(file)
    shapes = case["state_dict"] if with_weights else {}
    state_dict = {key: weights_vggt.tensor(key, tuple(shape), case["seed"]) for key, shape in shapes.items()}
    made = case["images"]
    images = [
        [weights_vggt.image(f"{name}/{b}/{s}", made["height"], made["width"], case["seed"]) for s in range(made["frames"])]
        for b in range(made["batch"])
    ]
    return VGGTCase(name, case, state_dict, np.stack(images) / 255, arrays)
