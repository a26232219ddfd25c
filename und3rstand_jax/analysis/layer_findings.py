"""How much of the cross-attention of a view's tokens lies where the other view truly sees what they show.

What is measured of a model's layers on many held-out scenes.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from tqdm import tqdm

from und3rstand_jax.analysis.inputs import Inputs, scene_inputs
from und3rstand_jax.analysis.layer_means import DistanceGroup, LayerMeans, Mean, by_distance, falls, means, scene_figures
from und3rstand_jax.analysis.pair import Report, measure
from und3rstand_jax.geometry.matching import true_places
from und3rstand_jax.geometry.pose import pose_errors
from und3rstand_jax.model.backbone import Backbone
from und3rstand_jax.model.layer_ids import HEAD, network_order, paper_layer_ids
from und3rstand_jax.model.output import pair
from und3rstand_jax.probes.probes import Probes
from und3rstand_jax.support.errors import UserError
from und3rstand_jax.support.progress import Stopwatch

_NEAR = 1  # tokens, in rows and columns


Grid = tuple[int, int]
"""(rows, columns) of a view's tokens."""


class TruePlace(NamedTuple):
    """Which tokens of the other view lie within a token of where it sees the middle of each token of this view; and whether it does."""

    near: Bool[np.ndarray, "N M"]
    seen: Bool[np.ndarray, " N"]

    @property
    def even(self) -> float:
        """What attention spread evenly would give it; NaN where nothing is seen."""
        return float(self.near[self.seen].mean()) if self.seen.any() else np.nan


Places = tuple[TruePlace, TruePlace]
"""Of view 1's tokens in view 2, and of view 2's in view 1."""


def both_true_places(inputs: Inputs, grids: tuple[Grid, Grid]) -> Places:
    """Of a rendered pair."""
    assert inputs.truth is not None and inputs.true_pose is not None and inputs.intrinsics is not None
    one, two = inputs.truth
    # All points are in view 1's frame, in which its own camera stands at the origin.
    in_view2 = true_places((one, two), inputs.true_pose, inputs.intrinsics[1])
    in_view1 = true_places((two, one), np.eye(4), inputs.intrinsics[0])
    return _near_tokens(in_view2, grids[0], grids[1]), _near_tokens(in_view1, grids[1], grids[0])


def _near_tokens(places: Float[np.ndarray, "H W 2"], here: Grid, there: Grid) -> TruePlace:
    patch = places.shape[0] // here[0]
    middles = places[patch // 2 :: patch, patch // 2 :: patch].reshape(-1, 2)
    seen = np.isfinite(middles).all(axis=-1)
    # Pixel centres are at integers: the first token reaches from -0.5 to patch - 0.5.
    token = np.floor((np.where(seen[:, None], middles, 0) + 0.5) / patch)
    rows, columns = np.divmod(np.arange(there[0] * there[1]), there[1])
    near = (np.abs(token[:, :1] - columns) <= _NEAR) & (np.abs(token[:, 1:] - rows) <= _NEAR)
    return TruePlace(near, seen)


def attention_on(report: Report, places: Places) -> Float[np.ndarray, "2 blocks heads"]:
    """Share of its attention that each head of each view's decoder gives the place: the mean over the tokens that the other view sees.

    NaN where it sees none.
    """
    weights = pair([getattr(block, name) for block in report.attention] for name in ("from_view1", "from_view2"))
    return np.stack([_on(np.stack(of_view), place) for of_view, place in zip(weights, places, strict=True)])


def _on(weights: Float[np.ndarray, "blocks heads N M"], place: TruePlace) -> Float[np.ndarray, "blocks heads"]:
    if not place.seen.any():
        return np.full(weights.shape[:2], np.nan)
    return np.asarray((weights * place.near).sum(axis=-1)[..., place.seen].mean(axis=-1))


FIRST_BLOCKS = (1, 2)
"""From which blocks on the kinds of steps are compared: block 0's first step has no layer before it."""


class Attention(NamedTuple):
    """Mean share of cross-attention on the true place, on that of another scene, and what lies there if it is spread evenly.

    Of view 1's decoder and of view 2's. A head that looks at the same part of the image whatever the scene shows gives both places
    alike. `error`: standard error of the difference between both, which is taken scene by scene.
    """

    on_place: Float[np.ndarray, "2 blocks heads"]
    on_another: Float[np.ndarray, "2 blocks heads"]
    error: Float[np.ndarray, "2 blocks heads"]
    even: Float[np.ndarray, "2"]


class Findings(NamedTuple):
    """All that is measured: of every layer; of the last one by the distance of the cameras; by kind of step, how far the errors fall.

    `turn`: median angle in degrees between the two cameras, which is the rotation error of a model that sees none.
    """

    layers: list[LayerMeans]
    attention: Attention
    by_distance: list[DistanceGroup]
    falls: dict[int, dict[str, tuple[Mean, Mean]]]
    turn: float


def findings(model: Backbone, probes: Probes, scenes: int, data: str) -> Findings:
    """Measures that many held-out scenes.

    Raises:
        UserError: not every decoder layer has a probe: a fall could not be told to be one step's.
    """
    if without := sorted(set(paper_layer_ids(model.config.dec_depth)) - set(probes.layer_ids), key=network_order):
        raise UserError(f"expected a probe on every decoder layer, found none on {', '.join(without)}; train probes with --layers all")
    figures, on_place, on_another, even, distances, turns = [], [], [], [], [], []
    last: Places | None = None
    for number in tqdm(range(scenes), desc="scenes"):
        inputs = scene_inputs(number, data, model.config.img_size)
        report = measure(model, probes, probes.layer_ids, inputs, {}, Stopwatch())
        places = both_true_places(inputs, report.grids)
        on_place.append(attention_on(report, places))
        on_another.append(np.full_like(on_place[-1], np.nan) if last is None else attention_on(report, last))
        even.append([place.even for place in places])
        assert inputs.true_pose is not None
        distances.append(float(np.linalg.norm(inputs.true_pose[:3, 3])))
        turns.append(pose_errors(np.eye(4), inputs.true_pose)[0])
        # All that is needed of it, so that not every pointmap of every scene stays in memory.
        figures.append([scene_figures(layer) for layer in report.layers])
        last = places
    difference = np.subtract(on_place, on_another)
    error = np.nanstd(difference, axis=0, ddof=1) / np.sqrt(np.isfinite(difference).sum(axis=0))
    probed = [[layer for layer in scene if layer.layer_id != HEAD] for scene in figures]
    return Findings(
        [means(layer) for layer in zip(*figures, strict=True)],
        Attention(np.nanmean(on_place, axis=0), np.nanmean(on_another, axis=0), error, np.nanmean(even, axis=0)),
        by_distance([scene[-1] for scene in figures], distances),
        {block: falls(probed, block) for block in FIRST_BLOCKS},
        float(np.median(turns)),
    )


_SHARES = ("on_true_place", "on_another_scenes", "standard_error_of_difference", "spread_evenly")


def as_json(found: Findings) -> dict[str, object]:
    """All figures: a mean is [mean, standard error], attention goes by view's decoder, block and head."""
    return {
        "layers": [dataclasses.asdict(layer) for layer in found.layers],
        "last_layer_by_distance": [dataclasses.asdict(group) for group in found.by_distance],
        "falls_from_block": found.falls,
        "median_turn_of_the_cameras": found.turn,
        "attention": {name: shares.tolist() for name, shares in zip(_SHARES, found.attention, strict=True)},
    }


def from_json(facts: Mapping[str, Any]) -> Findings:
    """What `as_json` was given; null, as which NaN is written, is NaN."""
    return Findings(
        [_means(layer) for layer in facts["layers"]],
        Attention(*(np.asarray(facts["attention"][name], float) for name in _SHARES)),
        [DistanceGroup(group["nearest"], group["farthest"], _means(group["means"])) for group in facts["last_layer_by_distance"]],
        {
            int(block): {kind: (_mean(one), _mean(two)) for kind, (one, two) in by_kind.items()}
            for block, by_kind in facts["falls_from_block"].items()
        },
        facts["median_turn_of_the_cameras"],
    )


def _means(layer: Mapping[str, Any]) -> LayerMeans:
    known: dict[str, Any] = {name: _mean(value) if isinstance(value, list) else value for name, value in layer.items()}
    return LayerMeans(**known)


def _mean(value: Sequence[float | None]) -> Mean:
    return Mean(*np.asarray(value, float).tolist())
