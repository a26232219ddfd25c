"""What the model's own head makes of every layer of the decoder: a curve to put beside the probes'.

A lens reads intermediate tokens as if they were the last (for language models: nostalgebraist 2020; for multi-view transformers:
soskek/understand_vggt). Here every later step of the decoder is left out, so that it adds nothing: the stream passes unchanged into the
decoder's norm and the head. A DPT head also reads earlier layers; it is given those that the pass has, as in any other pass.
"""

from collections.abc import Sequence

import numpy as np

from und3rstand_jax.analysis.inputs import Inputs
from und3rstand_jax.analysis.pair_passes import Views, decoder_steps, edited_passes
from und3rstand_jax.geometry.cameras import ViewTruth
from und3rstand_jax.geometry.metrics import point_errors
from und3rstand_jax.model.backbone import Backbone
from und3rstand_jax.model.config import BackboneConfig
from und3rstand_jax.model.edits import Edits, skip


def lens_errors(
    model: Backbone, inputs: Inputs, layers: Sequence[str], reference: tuple[ViewTruth, ViewTruth], progress: bool = False
) -> dict[str, tuple[float, float]]:
    """Both views' errors of the head's points from each of these layers, as `und3rstand_jax.geometry.metrics.point_errors` has them.

    Args:
        model: a backbone with a head.
        inputs: the pair.
        layers: ids of which those after the decoder's steps have a lens.
        reference: what errors are measured against.
        progress: whether a terminal shows a progress bar.
    """
    steps = decoder_steps(model.config)
    read = [layer for layer in layers if layer in steps]

    def errors(views: Views) -> dict[str, np.ndarray]:
        return {"errors": np.array(point_errors(views, reference))}

    found = edited_passes(model, inputs, [without_steps_after(layer, model.config) for layer in read], errors, progress) if read else []
    return {layer: (float(one["errors"][0]), float(one["errors"][1])) for layer, one in zip(read, found, strict=True)}


def without_steps_after(layer: str, config: BackboneConfig) -> Edits:
    """Leaves out every step of the decoder that comes after a layer, in both views."""
    steps = decoder_steps(config)
    return sum((skip(step) for step in steps[steps.index(layer) + 1 :]), Edits())
