"""What the study of the fundamental matrix measures: the root Sampson error of every pair's F, as each probe reads it."""

import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from und3rstand_jax.analysis.inputs import GroundTruth
from und3rstand_jax.analysis.studies.study import Setting, over_pairs, pairs_at_once
from und3rstand_jax.geometry.cameras import sampled_pixels
from und3rstand_jax.geometry.epipolar import (
    fundamental_matrix,
    half_side,
    normalised,
    normalised_places,
    root_sampson,
    smallest_singular_value,
)
from und3rstand_jax.geometry.matching import true_places
from und3rstand_jax.model.backbone import Backbone
from und3rstand_jax.model.config import ModelConfig
from und3rstand_jax.model.module import MultiViewModel
from und3rstand_jax.model.output import BackboneOutput
from und3rstand_jax.probes.epipolar import CONSTANT, EpipolarConfig, EpipolarProbes, averages, read_all

TRAINED, CONTROL, UNTRAINED, EXACT = "trained", "control", "untrained", "exact"


def bytes_a_pair(setting: Setting) -> int:
    """Bytes of a pair's tokens in all layers from the input of the blocks where views meet."""
    config = setting.backbone.config
    return 4 * layers_from_embed(config) * config.block_width * sum(config.token_count(config.embed, grid) for grid in setting.grids)


def layers_from_embed(config: ModelConfig) -> int:
    """How many layers there are, starting with that input."""
    return len(config.layer_ids) - config.layer_ids.index(config.embed)


def epipolar_at_once(setting: Setting) -> int:
    """How many pairs have up to a GiB of tokens."""
    return pairs_at_once(setting, bytes_a_pair(setting), 2**30)


def measure_epipolar(
    setting: Setting, trained: EpipolarProbes, control: EpipolarProbes, control_backbone: Backbone
) -> dict[str, Float[np.ndarray, "S ..."]]:
    """Every number of every probe, pair by pair: PROBE/NAME (S, layers), such as trained/error; constant and exact have one column."""
    untrained = trained.untrained(setting.seed)

    def compute(some: range) -> dict[str, np.ndarray]:
        views = [view[some.start : some.stop] for view in setting.pairs.views]
        truths = setting.pairs.truths[some.start : some.stop]
        size = (views[0].shape[1], views[0].shape[2])
        places1, places2, seen = (np.stack(arrays) for arrays in zip(*map(correspondences_of, truths), strict=True))
        own = _matrices(setting.backbone.module, trained.config, setting.backbone.params, (trained.params, untrained.params), *views)
        # In the model's arithmetic, in which the control's probes were trained too.
        other = _matrices(setting.backbone.module, control.config, control_backbone.params, (control.params,), *views)
        layers = trained.layer_ids
        matrices = {
            TRAINED: jnp.stack([own[0][layer] for layer in layers]),
            CONTROL: jnp.stack([other[0][layer] for layer in layers]),
            UNTRAINED: jnp.stack([own[1][layer] for layer in layers]),
            CONSTANT: own[0][CONSTANT][None],
            EXACT: jnp.asarray(np.stack([exact_matrix(truth) for truth in truths])[None], jnp.float32),
        }
        ends = np.cumsum([len(of_probe) for of_probe in matrices.values()])[:-1]
        numbers = _errors(jnp.concatenate([*matrices.values()]), places1, places2, seen, half_side(size))
        found = {"correspondences": seen.sum(axis=-1).astype(np.float64)}
        for name, values in numbers.items():
            parts = np.split(np.asarray(values, np.float64).T, ends, axis=1)
            found |= {f"{probe}/{name}": part for probe, part in zip(matrices, parts, strict=True)}
        return found

    return over_pairs(setting, "fundamental matrices", compute, epipolar_at_once(setting))


def correspondences_of(
    truth: GroundTruth,
) -> tuple[Float[np.ndarray, "N 2"], Float[np.ndarray, "N 2"], Bool[np.ndarray, " N"]]:
    """Grid pixels of view 1, their true places in view 2, both normalised to the images, and which of them view 2 sees."""
    pixels = sampled_pixels(*truth.views[0].valid.shape)
    columns, rows = pixels.astype(int).T
    places = true_places(truth.views, truth.pose, truth.intrinsics[1])[rows, columns]
    seen = np.isfinite(places).all(axis=-1)
    one = normalised_places(pixels, _size(truth, 0))
    two = normalised_places(np.where(seen[:, None], places, 0.0), _size(truth, 1))
    return np.asarray(one), np.asarray(two), seen


def exact_matrix(truth: GroundTruth) -> Float[np.ndarray, "3 3"]:
    """F of the pair's cameras for places normalised to the images; NaN if both are in the same place."""
    return normalised(fundamental_matrix(truth.intrinsics[0], truth.intrinsics[1], truth.pose), _size(truth, 0), _size(truth, 1))


def _size(truth: GroundTruth, view: int) -> tuple[int, int]:
    height, width = truth.views[view].valid.shape
    return height, width


@functools.partial(jax.jit, static_argnums=(0, 1))
def _matrices(
    module: MultiViewModel, config: EpipolarConfig, params: Any, probes: tuple, view1: Array, view2: Array
) -> list[dict[str, Float[Array, "B 3 3"]]]:
    """F as each set of probes reads it from every row, all from one pass."""
    output = cast(BackboneOutput, module.apply({"params": params}, view1, view2, capture=config.layer_ids, head=False))
    tokens = averages(output, config)
    return [read_all(config, of_probes, tokens) for of_probes in probes]


@functools.partial(jax.jit, static_argnums=4)
def _errors(
    matrices: Float[Array, "L B 3 3"], places1: Float[Array, "B N 2"], places2: Float[Array, "B N 2"], seen: Bool[Array, "B N"], unit: float
) -> dict[str, Float[Array, "L B"]]:
    """Mean and median root Sampson error in pixels, NaN without a correspondence, and the smallest singular value."""

    def of_row(row: Float[Array, "B 3 3"]) -> dict[str, Float[Array, " B"]]:
        distances = jnp.where(seen, root_sampson(row, places1, places2) * unit, jnp.nan)
        return {
            "error": jnp.nanmean(distances, axis=-1),
            "median": jnp.nanmedian(distances, axis=-1),
            "singular": smallest_singular_value(row),
        }

    return jax.lax.map(of_row, matrices)
