"""How far the JAX model is from the original, in units of the original's own float32 error."""

from collections.abc import Sequence

import jax
import numpy as np
from numpy.typing import ArrayLike

from tests.golden_cases import GoldenCase, relative_error, subsample
from und3rstand_jax.model.backbone import Backbone
from und3rstand_jax.model.output import BackboneOutput


def error_ratios(golden: GoldenCase, backbone: Backbone) -> dict[str, float]:
    """Array of the golden case -> our error over the original's float32 error, both against the original's float64 outputs."""
    output = backbone(golden.view1, golden.view2, capture="*", head=True)
    patches = [_patch_embedding(backbone, view) for view in (golden.view1, golden.view2)]
    return {name: error / golden.float32_error(name) for name, error in golden_errors(golden, output, patches).items()}


def golden_errors(golden: GoldenCase, output: BackboneOutput, patches: Sequence[ArrayLike]) -> dict[str, float]:
    """Array of the golden case -> our relative error, against the original's float64 output.

    `output` holds every layer and both pointmaps, `patches` of each view the embedded patches (B, N, C).
    """
    preds = (output.pred1, output.pred2)
    errors = {}
    for name, expected in golden.arrays.items():
        layer, view = name.rsplit("/view", 1)
        index = int(view) - 1
        if layer == "patch_embed":
            ours = patches[index]
        elif layer.startswith("head."):
            ours = preds[index][layer.removeprefix("head.")]
        else:
            ours = output[layer][index]
        errors[name] = relative_error(subsample(np.asarray(ours), layer, golden.case), expected)
    return errors


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
