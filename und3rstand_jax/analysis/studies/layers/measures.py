"""What the study of layers measures on every pair: each layer as its probe reads it, and as the control's does; and descriptors.

pairs ─▶ backbone, once ─▶ probe of each layer, and the head ─▶ errors, on the device ─▶ matches and pose, on the host
"""

import functools
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from und3rstand_jax.analysis.descriptor_places import descriptor_head, right_by_descriptors
from und3rstand_jax.analysis.pair_measures import DIRECTION, KNOWN, MATCHES, ROTATION, HeadFinish, PairTruth, points_of, view_names
from und3rstand_jax.analysis.studies.study import Setting, over_pairs, pairs_at_once
from und3rstand_jax.geometry.alignment import Alignment, aligned_errors
from und3rstand_jax.model.heads import Pointmap
from und3rstand_jax.model.layer_ids import HEAD
from und3rstand_jax.model.module import MultiViewModel
from und3rstand_jax.model.output import BackboneOutput
from und3rstand_jax.probes.config import ProbeConfig
from und3rstand_jax.probes.probes import Probes, read_layer

DESCRIPTORS = f"{HEAD}/descriptors"


def metrics_of(views: int) -> tuple[str, ...]:
    """What is measured of every layer, in the order of the records."""
    return (*view_names(views), MATCHES, KNOWN, ROTATION, DIRECTION)


def measure_layers(setting: Setting, probes: Probes, alignment: Alignment) -> dict[str, Float[np.ndarray, " S"]]:
    """LAYER/METRIC of every pair."""
    backbone, has_head = setting.backbone, bool(setting.backbone.config.heads)
    finish = HeadFinish(setting.pairs.truths, with_known=True)

    def compute(some: range) -> dict[str, np.ndarray]:
        found: dict[str, np.ndarray] = {}
        read = _read_all(backbone.module, probes.config, alignment, has_head, True, backbone.params, probes.params, *_chunk(setting, some))
        measured = {layer: {name: np.asarray(values) for name, values in of.items()} for layer, of in read.items()}
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for layer, numbers in zip(measured, pool.map(lambda of: finish(of, list(some)), measured.values()), strict=True):
                found |= {f"{layer}/{metric}": np.asarray(numbers[metric]) for metric in metrics_of(setting.views)}
        return found

    return over_pairs(setting, "layers", compute, layers_at_once(setting))


def control_errors(setting: Setting, alignment: Alignment) -> dict[str, Float[np.ndarray, " S"]]:
    """LAYER/same1 and the like: every view's error by probes with the control's training, on the model and on random weights."""
    assert setting.control is not None, "there is a control"
    control, found = setting.control, dict[str, np.ndarray]()
    for name, backbone, probes in (("same", setting.backbone, control.same), ("random", control.backbone, control.probes)):

        def compute(some: range, backbone=backbone, probes=probes) -> dict[str, np.ndarray]:  # type: ignore[no-untyped-def]
            read = _read_all(
                backbone.module, probes.config, alignment, False, False, backbone.params, probes.params, *_chunk(setting, some)
            )
            return {f"{layer}/{view}": np.asarray(of[view]) for layer, of in read.items() for view in view_names(setting.views)}

        errors = over_pairs(setting, f"control: {name}", compute, layers_at_once(setting))
        found |= {key.replace("/view", f"/{name}"): values for key, values in errors.items()}
    return found


def right_matches(setting: Setting) -> dict[str, Float[np.ndarray, " S"]]:
    """How many of the descriptors' matches are right."""
    backbone, head = setting.backbone, descriptor_head(setting.backbone.config)
    assert head is not None, "the model makes descriptors"

    def compute(some: range) -> dict[str, np.ndarray]:
        pairs = setting.pairs.some(some)
        return {DESCRIPTORS: right_by_descriptors(backbone(*pairs.views, capture=(), head=head), pairs.truths)}

    return over_pairs(setting, "descriptors", compute, layers_at_once(setting))


def _chunk(setting: Setting, some: range) -> tuple[tuple[np.ndarray, ...], PairTruth]:
    pairs = setting.pairs.some(some)
    return pairs.views, pairs.truth


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _read_all(
    module: MultiViewModel,
    config: ProbeConfig,
    alignment: Alignment,
    head: bool,
    points: bool,
    params: Any,
    probe_params: Any,
    views: tuple[Array, ...],
    truth: PairTruth,
) -> dict[str, dict[str, Array]]:
    """For every layer, every view's error and, with `points`, what `HeadFinish` needs."""
    output = cast(BackboneOutput, module.apply({"params": params}, *views, capture=config.layer_ids, head=head))
    found: dict[str, dict[str, Array]] = {}

    def measured(preds: tuple[Pointmap, ...]) -> dict[str, Array]:
        errors = aligned_errors(preds, truth.truth, jnp.asarray(truth.unit), alignment)
        return {**dict(zip(view_names(len(errors)), errors, strict=True)), **(points_of(preds) if points else {})}

    for number, group in enumerate(config.groups):
        for index, layer in enumerate(group.layer_ids):
            of_layer = jax.tree.map(lambda leaf, index=index: leaf[index], probe_params[f"group{number}"])
            found[layer] = measured(read_layer(of_layer, tuple(map(jnp.asarray, output.patches(layer))), output.image_sizes, group, config))
    if head:
        found[HEAD] = measured(output.pointmaps)
    return found


def layers_at_once(setting: Setting) -> int:
    """How many pairs have up to half a GiB of points in all layers."""
    layers = len(setting.probes.layer_ids) + 1 if setting.probes else 1
    pixels = sum(view.shape[1] * view.shape[2] for view in setting.pairs.views)
    return pairs_at_once(setting, layers * pixels * 16)
