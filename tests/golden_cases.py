"""The golden cases in `tests/golden`: inputs made again, outputs of the original read back.

See `tests/golden/README.md` for what the cases are and where they come from.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64
from numpy.typing import ArrayLike

from tests.golden import weights

GOLDEN = Path(__file__).parent / "golden"
SMALL_CASES = ("tiny_dpt", "tiny_linear", "tiny_linear_mixed_sizes", "tiny_mast3r")
FULL_CASE = "full_512_dpt"
EDIT_CASES = (
    *("edit_one_head", "edit_heads", "edit_mean_ablation", "edit_sublayers", "edit_steering", "edit_patching"),
    *("edit_knockout", "edit_many", "edit_neutral", "edit_mixed_sizes", "edit_other_layers"),
)


@dataclass(frozen=True)
class GoldenCase:
    """Inputs and expected outputs of one case.

    `case` is its json; `state_dict` the weights under the original's names; `images` both views (B, H, W, 3) in [-1, 1]
    in float64, as the original was given them; `arrays` the expected outputs, named `LAYER/view1` and `LAYER/view2`.
    """

    name: str
    case: dict[str, Any]
    state_dict: dict[str, np.ndarray]
    images: tuple[Float64[np.ndarray, "B H1 W1 3"], Float64[np.ndarray, "B H2 W2 3"]]
    arrays: dict[str, np.ndarray]

    @property
    def config(self) -> dict[str, Any]:
        """What the hub's config.json would hold."""
        return self.case["config"]

    @property
    def view1(self) -> Float32[np.ndarray, "B H1 W1 3"]:
        """Images of view 1, rounded to float32."""
        return self.images[0].astype(np.float32)

    @property
    def view2(self) -> Float32[np.ndarray, "B H2 W2 3"]:
        """Images of view 2, rounded to float32."""
        return self.images[1].astype(np.float32)

    def float32_error(self, name: str) -> float:
        """The original's own relative error in float32 in one of the arrays: the unit of ours."""
        return self.case["torch_float32_relative_error"][name]


@dataclass(frozen=True)
class EditCase:
    """Edits of a golden case's run, and what they lead to.

    `case` is its json; `base` the case whose weights and images are used and whose arrays are the unedited run's; `shifts`
    the arrays that edits name, `edits/I/shift`; `arrays` the expected outputs, named as the base's.
    """

    name: str
    case: dict[str, Any]
    base: GoldenCase
    shifts: dict[str, Float32[np.ndarray, "..."]]
    arrays: dict[str, np.ndarray]

    @property
    def edits(self) -> list[dict[str, Any]]:
        """`site`, `view`, `scale`, `shift` (a number or a name of `shifts`) and the places, edit by edit."""
        return self.case["edits"]

    def float32_error(self, name: str) -> float:
        """The original's own relative error in float32 in one of the arrays; 0 where it must be equal."""
        return self.case["torch_float32_relative_error"][name]

    def relative_change(self, name: str) -> float:
        """‖edited − unedited‖ / ‖unedited‖ of one of the arrays in the original in float64; 0 where the edits do not reach."""
        return self.case["relative_change"][name]


def load_golden(name: str, with_weights: bool = True) -> GoldenCase:
    """The case `name`; the full-size one makes 2.3 GB of weights. Without them, `state_dict` is empty."""
    case = json.loads((GOLDEN / f"{name}.json").read_text())
    with np.load(GOLDEN / f"{name}.npz") as file:
        arrays = dict(file)
    shapes = case["state_dict"] if with_weights else {}
    state_dict = {key: weights.tensor(key, tuple(shape), case["seed"]) for key, shape in shapes.items()}
    images = (view_images(name, case, "view1"), view_images(name, case, "view2"))
    return GoldenCase(name, case, state_dict, images, arrays)


def load_edit_case(name: str, with_weights: bool = True) -> EditCase:
    """The edit case `name`; without weights, its base's `state_dict` is empty."""
    case = json.loads((GOLDEN / f"{name}.json").read_text())
    with np.load(GOLDEN / f"{name}.npz") as file:
        stored = dict(file)
    shifts = {key: array for key, array in stored.items() if key.startswith("edits/")}
    arrays = {key: array for key, array in stored.items() if key not in shifts}
    return EditCase(name, case, load_golden(case["base"], with_weights), shifts, arrays)


def view_images(name: str, case: dict[str, Any], view: str) -> Float64[np.ndarray, "B H W 3"]:
    """The images of `view1` or `view2`, in [-1, 1], as `weights.image` draws them for `name` and the case's seed."""
    height, width = case["images"][view]
    images = [weights.image(f"{name}/{view}/{b}", height, width, case["seed"]) for b in range(case["images"]["batch"])]
    # In float64: computed in float32, the scaling alone moves tiny_linear's activations by 1e-6.
    return (np.stack(images) / 255 - 0.5) / 0.5


def subsample(array: Any, layer: str, case: dict[str, Any]) -> Any:
    """What the case keeps of a layer's (B, N, C) or, for `head.*`, of its (B, H, W, …)."""
    step = case["subsample"]
    if layer.startswith("head."):
        return array[:, :: step["pixels"], :: step["pixels"]]
    return array[:, :: step["tokens"], :: step["channels"]]


def relative_error(ours: ArrayLike, golden: ArrayLike) -> float:
    """‖ours − golden‖ / ‖golden‖ in float64."""
    golden = np.asarray(golden, np.float64)
    return float(np.linalg.norm(np.asarray(ours, np.float64) - golden) / np.linalg.norm(golden))
