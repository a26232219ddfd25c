"""How far the JAX model is from the original, in units of the original's own float32 error."""

from collections.abc import Sequence

import jax
import numpy as np
from numpy.typing import ArrayLike

from tests.golden_cases import EditCase, GoldenCase, relative_error, subsample
from und3rstand_jax.model.backbone import Backbone
from und3rstand_jax.model.output import BackboneOutput


def error_ratios(golden: GoldenCase, backbone: Backbone) -> dict[str, float]:
    """Array of the golden case -> our error over the original's float32 error, both against the original's float64 outputs."""
    output = backbone(golden.view1, golden.view2, capture="*", head=True)
    patches = [_patch_embedding(backbone, view) for view in (golden.view1, golden.view2)]
    return {name: error / golden.float32_error(name) for name, error in golden_errors(golden, output, patches).items()}


def golden_errors(golden: GoldenCase | EditCase, output: BackboneOutput, patches: Sequence[ArrayLike] = ()) -> dict[str, float]:
    """Array of the golden case -> our relative error, against the original's float64 output.

    `output` holds every layer and both pointmaps that the case has, `patches` of each view the embedded patches (B, N, C).
    """
    ours = named_arrays(output) | {f"patch_embed/view{view}": np.asarray(tokens) for view, tokens in enumerate(patches, start=1)}
    return {name: relative_error(stored_part(ours[name], name, golden), expected) for name, expected in golden.arrays.items()}


def named_arrays(output: BackboneOutput) -> dict[str, np.ndarray]:
    """What a run has captured, and its pointmaps, under the names of the golden cases."""
    arrays = {f"{site}/view{view}": np.asarray(x) for site in output for view, x in enumerate(output[site], start=1)}
    preds = {
        f"head.{key}/view{view}": x for view, pred in enumerate((output.pred1, output.pred2), start=1) for key, x in (pred or {}).items()
    }
    return arrays | {name: np.asarray(x) for name, x in preds.items()}


def stored_part(array: np.ndarray, name: str, golden: GoldenCase | EditCase) -> np.ndarray:
    """What the case keeps of one of its arrays."""
    return subsample(array, name.rsplit("/view", 1)[0], golden.case)


def _patch_embedding(backbone: Backbone, view: np.ndarray) -> np.ndarray:
    """The one golden array that has no layer id: it is no residual stream of a block yet."""
    _, state = backbone.module.apply(
        {"params": backbone.params},
        view,
        view,
        capture="encoder.0.self_attn",
        head=False,
        capture_intermediates=lambda module, _: module.name == "patch_embed",
        mutable=["intermediates"],
    )
    (patches,) = jax.tree.leaves(state["intermediates"])
    return np.asarray(patches).reshape(2, len(view), -1, patches.shape[-1])[0]
