"""What the study of the lens measures: every layer's tokens through the model's own head, with and without its norm, and through the probe.

pairs ─▶ sizes of streams ─▶ a scale for each layer, fitted on some pairs ─▶ errors of every reading, on all pairs
"""

import dataclasses
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from und3rstand_jax.analysis.descriptor_places import descriptor_head, right_by_descriptors
from und3rstand_jax.analysis.inputs import GroundTruth
from und3rstand_jax.analysis.own_head import errors_of, lens_captures, lens_errors, lens_layers, lens_start
from und3rstand_jax.analysis.pair_measures import view_names
from und3rstand_jax.analysis.studies.study import Setting, other_pair, over_pairs, pairs_at_once
from und3rstand_jax.geometry.alignment import Alignment
from und3rstand_jax.geometry.cameras import ViewGeometry
from und3rstand_jax.geometry.pose import camera_errors, camera_of_view
from und3rstand_jax.model.config import ModelConfig
from und3rstand_jax.model.head_choice import head_layers, reads_several_layers

_READINGS = {
    "normed": "the model's own head after decoder.norm",
    "bare": "the model's own head without decoder.norm",
    "scaled": "the model's own head without decoder.norm, tokens times the layer's `scale`; over the pairs it was not fitted on",
    "probe": "the layer's probe",
}


def readings_of(config: ModelConfig) -> dict[str, str]:
    """What each way to read a layer's tokens is; without a norm after the blocks there is nothing to leave out or to scale."""
    if config.last_norm is not None:
        return _READINGS
    return {"normed": "the model's own head", "probe": _READINGS["probe"]}


RIGHT = "normed/descriptors"
"""Right matches by the descriptors made from a layer's tokens, if the model makes any."""

FACTORS = 2.0 ** np.arange(-3.0, 3.5, 0.5)
"""The scales to try, relative to the ratio of the root mean squares of decoder.norm's tokens and the layer's."""

MOST_FITTED = 16
"""The most pairs that a scale is fitted on."""

_AT_ONCE = 2**30  # bytes of tokens and of what a head keeps

_errors = jax.jit(errors_of, static_argnums=(3, 4))


class Scales(NamedTuple):
    """For L layers, the factor with the least sum of all views' mean errors without norm.

    Attributes:
        factors: what tokens are multiplied by.
        at_edge: whether it is the smallest or largest that was tried, so that another might be better.
        pairs: numbers of the pairs that they were fitted on.
    """

    factors: Float[np.ndarray, " L"]
    at_edge: Bool[np.ndarray, " L"]
    pairs: Int[np.ndarray, " F"]


def fit_scales(setting: Setting, alignment: Alignment) -> Scales:
    """Tries `FACTORS` on some of the pairs."""
    config, layers, norm = setting.backbone.config, lens_layers(setting.backbone.config), setting.backbone.config.last_norm
    assert norm is not None, "checked before"
    fitted = fitted_pairs(setting)
    some = dataclasses.replace(setting, pairs=setting.pairs.some(fitted.tolist()))

    def squares(numbers: range) -> dict[str, np.ndarray]:
        output = some.backbone(*some.pairs.some(numbers).views, capture=(*layers, norm), head=False)
        of = {
            layer: sum(np.mean(np.square(view, dtype=np.float64), axis=(1, 2)) for view in map(np.asarray, output[layer]))
            for layer in output
        }
        return {"squares": np.stack([of[layer] for layer in (*layers, norm)], axis=1)}

    means = over_pairs(some, "sizes of streams", squares, lens_at_once(some))["squares"].mean(axis=0)
    ratios = np.sqrt(means[-1] / np.maximum(means[:-1], 1e-30))
    tried = (ratios[:, None] * FACTORS).astype(np.float32)

    def errors(numbers: range) -> dict[str, np.ndarray]:
        chunk = some.pairs.some(numbers)
        output = some.backbone(*chunk.views, capture=(*lens_captures(layers, config), norm), head=False)
        truth = jax.device_put(chunk.truth)
        found = []
        for layer, factors in zip(layers, tried, strict=True):
            start = lens_start(output, layer, config, norm=False)
            read = lens_errors(some.backbone.module, alignment, False, some.backbone.params, start, factors, truth, truth)
            found.append(np.stack([read[name] for name in view_names(some.views)]))
        return {"errors": np.moveaxis(np.stack(found), -1, 0)}  # of (layer, view, factor, pair)

    by_pair = over_pairs(some, "scales of streams", errors, lens_at_once(some))["errors"]
    sums = _known_mean(by_pair).sum(axis=1)
    best = np.argmin(np.where(np.isnan(sums), np.inf, sums), axis=1)
    return Scales(tried[np.arange(len(layers)), best], (best == 0) | (best == len(FACTORS) - 1), fitted)


def measure(setting: Setting, scales: Float[np.ndarray, " L"] | None, alignment: Alignment) -> dict[str, Float[np.ndarray, "S L"]]:
    """READING/view1, /view2, …, /other1, /other2, …, `normed/rotation` and `probe/rotation`, pair by pair; NaN without a probe.

    Also `RIGHT`, if the model makes descriptors. `scales` is None where there is no norm to leave out.
    """
    backbone, probes = setting.backbone, setting.probes
    config, layers, features = backbone.config, lens_layers(backbone.config), descriptor_head(backbone.config)

    captures = (*lens_captures(layers, config), *head_layers(config))
    readings = readings_of(config)
    keys = tuple(f"{prefix}{number}" for prefix in ("view", "other") for number in range(1, setting.views + 1))

    def compute(some: range) -> dict[str, np.ndarray]:
        own = setting.pairs.some(some)
        output = backbone(*own.views, capture=captures, head=False)
        before = setting.pairs.some([number - other_pair(0, setting.count) for number in some])
        truth, of_before = jax.device_put((own.truth, before.truth))
        found: dict[str, list[np.ndarray]] = {}
        for index, layer in enumerate(layers):
            read: dict[str, Mapping[str, np.ndarray]] = {}
            ways: list[tuple[bool, tuple[str, ...], tuple[float, ...]]] = [(True, ("normed",), (1.0,))]
            if scales is not None:
                ways.append((False, ("bare", "scaled"), (1.0, float(scales[index]))))
            for norm, names, factors in ways:
                start = lens_start(output, layer, config, norm)
                if norm and features is not None:
                    described = backbone(start=start, capture=(), head=features)
                    found.setdefault(RIGHT, []).append(right_by_descriptors(described, own.truths))
                values = lens_errors(
                    backbone.module, alignment, norm, backbone.params, start, np.array(factors, np.float32), truth, of_before
                )
                read |= {name: {key: np.asarray(value[way]) for key, value in values.items()} for way, name in enumerate(names)}
            if probes is not None and layer in probes.layer_ids:
                read["probe"] = jax.device_get(_errors(probes.read_layer(layer, output), truth, of_before, alignment, True))
            for name in readings:
                for key in keys:
                    found.setdefault(f"{name}/{key}", []).append(read[name][key] if name in read else np.full(len(some), np.nan))
            for name in ("normed", "probe"):
                found.setdefault(f"{name}/rotation", []).append(
                    _rotations(own.truths, read[name]) if name in read else np.full(len(some), np.nan)
                )
        return {name: np.stack(values, axis=1) for name, values in found.items()}

    by_pair = over_pairs(setting, "lens", compute, lens_at_once(setting))
    # A pair's tokens were also measured against an earlier pair: that is the earlier pair's control.
    later = other_pair(0, setting.count)
    return {name: np.roll(values, -later, axis=0) if "/other" in name else values.copy() for name, values in by_pair.items()}


def _rotations(truths: Sequence[GroundTruth], read: Mapping[str, np.ndarray]) -> Float[np.ndarray, " B"]:
    """Error of the later views' rotations in degrees, the mean over them, as in `HeadFinish`."""

    def rotation(index: int) -> float:
        truth, found = truths[index], []
        for number, (intrinsics, pose) in enumerate(zip(truth.intrinsics[1:], truth.poses[1:], strict=True), start=2):
            confidence = read[f"confidence{number}"][index] if f"confidence{number}" in read else None
            camera = camera_of_view(ViewGeometry(read[f"points{number}"][index], confidence), intrinsics)
            found.append(camera_errors(camera, pose)[0])
        return float(np.mean(found))

    with ThreadPoolExecutor() as pool:
        return np.array(list(pool.map(rotation, range(len(truths)))))


def fitted_pairs(setting: Setting) -> Int[np.ndarray, " F"]:
    """The pairs that scales are fitted on: half of them, at most `MOST_FITTED`, drawn by the seed."""
    return np.sort(np.random.default_rng(setting.seed).permutation(setting.count)[: min(setting.count // 2, MOST_FITTED)])


def _known_mean(values: Float[np.ndarray, "S ..."]) -> Float[np.ndarray, "..."]:
    """The mean over the pairs whose value is not NaN; NaN if there are none."""
    known = ~np.isnan(values)
    return np.where(known, values, 0.0).sum(axis=0) / np.where(known.any(axis=0), known.sum(axis=0), np.nan)


def bytes_a_pair(setting: Setting) -> int:
    """Approximate bytes of a pair's tokens in all layers, and of what a head keeps of it."""
    config = setting.backbone.config
    pixels = sum(rows * columns for rows, columns in setting.grids) * config.patch_size**2
    layers = (*(layer for reading in config.readings for layer in reading), *head_layers(config))
    held = sum(config.layer_width(layer) * config.token_count(layer, grid) for layer in layers for grid in setting.grids)
    return 4 * (held + pixels * (512 if reads_several_layers(config) else 32))


def lens_at_once(setting: Setting) -> int:
    """How many pairs are in memory together."""
    return pairs_at_once(setting, bytes_a_pair(setting), _AT_ONCE)
