"""What every attention head of the decoders looks at on one pair, and what its loss costs there.

pair ─▶ attention weights ─▶ of each head: attention on the true place, on other tokens' places, on its strongest key
  └───▶ a pass for each head, without it ─▶ both views' errors, or how far their points moved ─▶ the costliest, kept with their points
"""

import dataclasses
import functools
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import numpy as np
from jaxtyping import Float

from und3rstand_jax.analysis.inputs import GroundTruth, Inputs
from und3rstand_jax.analysis.pair import Attention, PairAnalysis
from und3rstand_jax.analysis.pair_passes import AT_ONCE, CROSS, SELF, Views, decoder_flops, edited_passes
from und3rstand_jax.analysis.true_place_attention import BothPlaces, attention_elsewhere, attention_on, both_true_places
from und3rstand_jax.geometry.cameras import ViewGeometry, ViewTruth
from und3rstand_jax.geometry.metrics import mean_displacements, point_errors
from und3rstand_jax.geometry.pose import PoseEstimate, pose_against, second_camera
from und3rstand_jax.model.backbone import Backbone
from und3rstand_jax.model.edits import Edits, knock_out
from und3rstand_jax.model.layer_ids import HEAD
from und3rstand_jax.model.output import pair
from und3rstand_jax.support.errors import CheckpointError

Measure: TypeAlias = Literal["error", "displacement"]

ERROR: Literal["error"] = "error"
DISPLACEMENT: Literal["displacement"] = "displacement"

MEASURES: dict[Measure, str] = {
    ERROR: "change of each view's normalised point error when the head is set to zero; positive where its loss makes the points worse",
    DISPLACEMENT: "mean distance of each view's points from the unedited run's when the head is set to zero, over their mean distance to "
    "view 1's camera",
}
"""What a loss costs: the first with ground truth, the second without."""

MEANING = {
    "attention": "cross_attn or self_attn of a decoder block",
    "view": "whose tokens ask, 1 or 2",
    "block, head": "counted from 0",
    "match": "share of a query's attention on its true place in the other view and the tokens around it; mean of the queries seen there",
    "elsewhere": "control: the same share on the true places of the other seen queries, mean over them",
    "sink": "share of attention on the key that gets most of it, mean over queries",
    "cost": "of view 1 and view 2, see measure",
}
"""Of each number of a head, what it is."""

_logger = logging.getLogger(__name__)


class Head(NamedTuple):
    """A head of one view's decoder: `view` is the one whose tokens ask."""

    attention: str
    view: int
    block: int
    head: int

    @property
    def knocked_out(self) -> Edits:
        """Its values set to zero."""
        return knock_out(f"decoder.{self.block}.{self.attention}.heads@{self.view}", heads=[self.head])


@dataclasses.dataclass(frozen=True)
class SelfAttention:
    """Post-softmax self-attention of one decoder block: each head's weights of every token of a view over the same view's tokens."""

    block: int
    from_view1: Float[np.ndarray, "heads N1 N1"]
    from_view2: Float[np.ndarray, "heads N2 N2"]


@dataclasses.dataclass(frozen=True)
class WithoutHead:
    """The pair as the model's own head sees it without one attention head.

    Attributes:
        head: which.
        views: both views' geometry.
        errors: normalised point errors, as of `Layer`.
        pose: of view 2.
    """

    head: Head
    views: Views
    errors: tuple[float, float]
    pose: PoseEstimate


@dataclasses.dataclass(frozen=True)
class HeadUse:
    """What heads look at and what their loss costs. Axes: the view whose tokens ask, block, head.

    Attributes:
        measure: what costs are, see `MEASURES`.
        cost: by attention; the last axis is the view whose points change.
        unedited: the errors that the changes are counted from; None for displacements.
        sink: by attention, see `MEANING`.
        match, elsewhere: of cross-attention, see `MEANING`; None without ground truth. NaN for a view of which nothing is seen.
        even: of each view, what attention that is spread evenly has on the true places; None without ground truth.
        self_attention: of every decoder block.
        without: the heads whose loss costs most, in the mean of both views; the costliest first.
    """

    measure: Measure
    cost: Mapping[str, Float[np.ndarray, "2 blocks heads 2"]]
    unedited: tuple[float, float] | None
    sink: Mapping[str, Float[np.ndarray, "2 blocks heads"]]
    match: Float[np.ndarray, "2 blocks heads"] | None
    elsewhere: Float[np.ndarray, "2 blocks heads"] | None
    even: tuple[float, float] | None
    self_attention: tuple[SelfAttention, ...]
    without: tuple[WithoutHead, ...]

    @functools.cached_property
    def heads(self) -> tuple[Head, ...]:
        """All heads."""
        return tuple(
            Head(attention, view + 1, block, head)
            for attention, sinks in self.sink.items()
            for view, block, head in np.ndindex(*sinks.shape)
        )


def use_of_heads(model: Backbone, inputs: Inputs, analysis: PairAnalysis, kept: int = AT_ONCE, progress: bool = False) -> HeadUse:
    """Measures every head of the decoders' cross- and self-attention on a pair.

    Takes a pass for each head of each view, besides two. Held at once are the weights of all self-attention, as `analyse_pair` holds
    those of cross-attention.

    Args:
        model: a backbone with a head.
        inputs: the pair.
        analysis: of the same model and pair.
        kept: of so many heads, the points without them are kept.
        progress: whether a terminal shows a progress bar.

    Raises:
        CheckpointError: the backbone has no head, so that there are no points that could change.
    """
    config = model.config
    if config.head_type is None:
        raise CheckpointError("what heads are used for shows in the points of the model's own head, and this checkpoint has none")
    own, seconds = _self_attention(model, inputs)
    heads = [
        Head(attention, view, block, head)
        for attention in (CROSS, SELF)
        for view in (1, 2)
        for block, head in np.ndindex(config.dec_depth, config.dec_num_heads)
    ]
    tera = len(heads) * decoder_flops(config, analysis.grids) / 1e12
    _logger.info("leaving out each of %d heads once: %.2g Tflop in the decoder, about %s", len(heads), tera, _told(len(heads) * seconds))
    costs, unedited = _costs(model, inputs, analysis, heads, progress)
    shape = (2, config.dec_depth, config.dec_num_heads, 2)
    split = len(heads) // 2
    places = places_of(analysis)
    order = np.argsort(-costs.mean(axis=1), kind="stable")[:kept]
    return HeadUse(
        measure=DISPLACEMENT if analysis.truth is None else ERROR,
        cost={CROSS: costs[:split].reshape(shape), SELF: costs[split:].reshape(shape)},
        unedited=unedited if analysis.truth is not None else None,
        sink={CROSS: _sinks(analysis.attention), SELF: _sinks(own)},
        match=None if places is None else attention_on(analysis.attention, places),
        elsewhere=None if places is None else attention_elsewhere(analysis.attention, places),
        even=None if places is None else pair(place.uniform_share for place in places),
        self_attention=own,
        without=_without(model, inputs, analysis, [heads[number] for number in order]),
    )


def places_of(analysis: PairAnalysis) -> BothPlaces | None:
    """The true places of both views' tokens; None without ground truth."""
    if analysis.truth is None or analysis.true_pose is None or analysis.intrinsics is None:
        return None
    return both_true_places(GroundTruth(analysis.truth, analysis.true_pose, analysis.intrinsics), analysis.grids)


def reference_of(analysis: PairAnalysis) -> tuple[ViewTruth, ViewTruth]:
    """What errors of the model's own head are measured against: the truth, or else the head's own points."""
    if analysis.truth is not None:
        return analysis.truth
    return pair(ViewTruth(view.points, np.isfinite(view.points).all(axis=-1)) for view in _own_views(analysis))


def _sinks(attention: Sequence[Attention] | Sequence[SelfAttention]) -> Float[np.ndarray, "2 blocks heads"]:
    """The share of its attention that each head puts on the key that gets most of it."""
    return np.stack([[getattr(block, name).mean(axis=1).max(axis=-1) for block in attention] for name in ("from_view1", "from_view2")])


def _self_attention(model: Backbone, inputs: Inputs) -> tuple[tuple[SelfAttention, ...], float]:
    """Of every block; and how many seconds a pass takes once it is compiled."""
    names = [f"decoder.{block}.self_attn.weights" for block in range(model.config.dec_depth)]

    def run() -> Any:
        return jax.block_until_ready(model(*inputs.views, capture=names, head=True))

    output = run()
    start = time.perf_counter()
    run()
    seconds = time.perf_counter() - start
    weights = (pair(np.asarray(view, np.float32)[0] for view in output[name]) for name in names)
    return tuple(SelfAttention(block, *views) for block, views in enumerate(weights)), seconds


def _costs(
    model: Backbone, inputs: Inputs, analysis: PairAnalysis, heads: Sequence[Head], progress: bool
) -> tuple[Float[np.ndarray, "heads 2"], tuple[float, float]]:
    """Of each head; and what the same measure gives without an edit."""
    truth = analysis.truth
    # The unedited run of the same program: a head that does nothing costs exactly nothing.
    (before,) = edited_passes(model, inputs, [Edits()], _points)
    unedited = _geometry(before)

    def measure(views: Views) -> dict[str, np.ndarray]:
        return {"numbers": np.array(mean_displacements(views, unedited) if truth is None else point_errors(views, truth))}

    start = measure(unedited)["numbers"]
    found = edited_passes(model, inputs, [head.knocked_out for head in heads], measure, progress)
    return np.stack([one["numbers"] for one in found]) - start, (float(start[0]), float(start[1]))


def _without(model: Backbone, inputs: Inputs, analysis: PairAnalysis, heads: Sequence[Head]) -> tuple[WithoutHead, ...]:
    found = edited_passes(model, inputs, [head.knocked_out for head in heads], _points)
    reference, intrinsics, own = reference_of(analysis), analysis.intrinsics, analysis.layers[-1].pose
    scene_size = float(np.concatenate([np.linalg.norm(view.points[view.valid], axis=-1) for view in reference]).mean())
    results = []
    for head, one in zip(heads, found, strict=True):
        views = _geometry(one)
        camera = None if intrinsics is None else second_camera(views[1], intrinsics[1])
        pose = pose_against(camera, own.camera2_to_1 if analysis.truth is None else analysis.true_pose, scene_size)
        results.append(WithoutHead(head, views, point_errors(views, reference), pose))
    return tuple(results)


def _points(views: Views) -> dict[str, np.ndarray]:
    named = {f"points{number}": view.points for number, view in enumerate(views, start=1)}
    confident = {f"confidence{number}": view.confidence for number, view in enumerate(views, start=1) if view.confidence is not None}
    return named | confident


def _geometry(measured: Mapping[str, np.ndarray]) -> Views:
    return pair(ViewGeometry(measured[f"points{view}"], measured.get(f"confidence{view}")) for view in (1, 2))


def _own_views(analysis: PairAnalysis) -> Views:
    (layer,) = (layer for layer in analysis.layers if layer.layer_id == HEAD)
    return layer.views


def _told(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} minutes"
