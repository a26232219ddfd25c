"""What every attention head of the blocks where views meet looks at on one pair, and what knocking it out costs there.

pair ─▶ attention weights ─▶ of each head: attention on the true place, on other tokens' places, on its strongest key
  └───▶ a pass for each head, without it ─▶ both views' errors, or how far their points moved ─▶ the costliest, kept with their points
"""

import dataclasses
import functools
import logging
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float

from und3rstand_jax.analysis.inputs import Inputs
from und3rstand_jax.analysis.pair_passes import AT_ONCE, block_flops, edited_passes, edited_views
from und3rstand_jax.analysis.true_place_attention import BothPlaces, attention_elsewhere, attention_on, both_true_places
from und3rstand_jax.analysis.view_set import Attention, Intrinsics, SetAnalysis, Views
from und3rstand_jax.geometry.metrics import mean_displacements, point_errors
from und3rstand_jax.geometry.pose import Pose, camera_of_view
from und3rstand_jax.model.backbone import Backbone
from und3rstand_jax.model.config import ModelConfig
from und3rstand_jax.model.edits import Edits, knock_out
from und3rstand_jax.model.sites import HEADS, WEIGHTS
from und3rstand_jax.support.errors import CheckpointError
from und3rstand_jax.support.text import size_text

CROSS, SELF = "cross_attn", "self_attn"

Measure: TypeAlias = Literal["error", "displacement"]

ERROR: Literal["error"] = "error"
DISPLACEMENT: Literal["displacement"] = "displacement"

MEASURES: dict[Measure, str] = {
    ERROR: "change of each view's normalised point error when the head's output is set to zero; positive where the points get worse. Both "
    "views are normalised together, so one view's error can change without its points moving",
    DISPLACEMENT: "how far each view's points move when the head's output is set to zero: their mean distance from the unedited run's, "
    "over the unedited points' mean distance to view 1's camera",
}
"""What a head's removal costs: the first with ground truth, the second without."""

MEANING = {
    "attention": "cross_attn or self_attn of a decoder block",
    "view": "the view whose tokens are the queries, 1 or 2",
    "block, head": "counted from 0",
    "mass": "share of a query's attention on its true place in the other view and the eight tokens around it; mean over the queries seen "
    "there",
    "elsewhere": "control: the same share on the true places of the other queries that are seen, mean over them",
    "sink": "share of attention on the key that gets most of it, mean over queries",
    "cost": "of view 1 and of view 2, see measure",
    "even": "of view 1 and of view 2: the share of even attention that lies on the true places",
}
"""What each number of a head means."""

_logger = logging.getLogger(__name__)


class Head(NamedTuple):
    """A head of one view's pass: `view` is the one whose tokens are the queries; its attention is CROSS, between the views, or SELF."""

    attention: str
    view: int
    block: int
    head: int

    def knocked_out(self, config: ModelConfig) -> Edits:
        """The edits that set its values to zero."""
        block = config.blocks[self.block]
        return knock_out(f"{block.across if self.attention == CROSS else block.own}.{HEADS}@{self.view}", heads=[self.head])


@dataclasses.dataclass(frozen=True)
class WithoutHead:
    """The pair as the model's own head sees it without one attention head.

    Attributes:
        head: the one that is knocked out.
        views: both views' geometry.
        camera: view 2's camera, by PnP on its points; None if none fits, or without intrinsics.
    """

    head: Head
    views: Views
    camera: Pose | None


@dataclasses.dataclass(frozen=True)
class HeadUse:
    """What heads look at and what knocking them out costs. Axes: the view whose tokens are the queries, block, head.

    Attributes:
        measure: what the costs are; see `MEASURES`.
        cost: for each kind of attention; the last axis is the view whose points change.
        unedited: the errors that the changes are relative to; None for displacements.
        sink: for each kind of attention; see `MEANING`.
        mass, elsewhere: of cross-attention; see `MEANING`. None without ground truth; NaN for a view if the other sees nothing of it.
        even: for each view, the share of evenly spread attention that falls on the true places; None without ground truth.
        self_attention: of every decoder block, each view over its own tokens.
        without: the heads that cost most in the mean over both views, the costliest first.
    """

    measure: Measure
    cost: Mapping[str, Float[np.ndarray, "2 blocks heads 2"]]
    unedited: tuple[float, ...] | None
    sink: Mapping[str, Float[np.ndarray, "2 blocks heads"]]
    mass: Float[np.ndarray, "2 blocks heads"] | None
    elsewhere: Float[np.ndarray, "2 blocks heads"] | None
    even: tuple[float, ...] | None
    self_attention: tuple[Attention, ...]
    without: tuple[WithoutHead, ...]

    @functools.cached_property
    def heads(self) -> tuple[Head, ...]:
        """All heads."""
        return every_head(*self.sink[CROSS].shape[1:])


def every_head(blocks: int, heads: int) -> tuple[Head, ...]:
    """All heads, ordered by attention, view, block and head."""
    return tuple(
        Head(attention, view, block, head) for attention in (CROSS, SELF) for view in (1, 2) for block, head in np.ndindex(blocks, heads)
    )


def use_of_heads(model: Backbone, inputs: Inputs, analysis: SetAnalysis, kept: int = AT_ONCE, progress: bool = False) -> HeadUse:
    """Measures every head of the decoders' cross- and self-attention on a pair.

    Takes a pass for each head of each view, and a few more. The weights of all self-attention are in memory at once, as are those of
    cross-attention in `analyse_views`.

    Args:
        model: a backbone with a head.
        inputs: the pair.
        analysis: of the same model and pair.
        kept: for how many of the costliest heads to keep the points without them.
        progress: whether a terminal shows a progress bar.

    Raises:
        CheckpointError: the backbone has no head, so there are no points that could change; or see `check_attention`.
    """
    config = model.config
    check_attention(config)
    if not config.heads:
        raise CheckpointError(
            "what heads are used for is measured on the points of the model's own head, and this checkpoint has none; give one with a head"
        )
    own = _self_attention(model, inputs)
    blocks, count = len(config.blocks), config.block_heads
    heads = every_head(blocks, count)
    held = 4 * blocks * count * sum((rows * columns) ** 2 for rows, columns in analysis.grids)
    tera = len(heads) * block_flops(config, analysis.grids) / 1e12
    _logger.info("knocking out each of %d heads: %.2g Tflop in the decoder, %s for self-attention", len(heads), tera, size_text(held))
    costs, unedited = _costs(model, inputs, analysis, heads, progress)
    by_attention = costs.reshape(2, 2, blocks, count, 2)
    places = places_of(analysis)
    order = np.argsort(-costs.mean(axis=1), kind="stable")[:kept]
    return HeadUse(
        measure=DISPLACEMENT if analysis.truth is None else ERROR,
        cost=dict(zip((CROSS, SELF), by_attention, strict=True)),
        unedited=unedited if analysis.truth is not None else None,
        sink={CROSS: _sinks(analysis.attention), SELF: _sinks(own)},
        mass=None if places is None else attention_on(analysis.attention, places),
        elsewhere=None if places is None else attention_elsewhere(analysis.attention, places),
        even=None if places is None else tuple(place.uniform_share for place in places),
        self_attention=own,
        without=_without(model, inputs, analysis.intrinsics, [heads[number] for number in order]),
    )


def check_attention(config: ModelConfig) -> None:
    """Refuses a model whose attention between the views reads more than the other view's tokens: the measures would mean something else.

    Raises:
        CheckpointError: some of its attention between the views reads a view's own tokens too.
    """
    if any(config.reads(block.across) != "others" for block in config.blocks):
        raise CheckpointError(
            "the use of single heads is measured only for models whose attention between the views reads the other views alone, and this "
            f"one's ({config.blocks[0].across}) reads a view's own tokens too; omit --uses: the studies heads and knock-out tell both apart"
        )


def places_of(analysis: SetAnalysis) -> BothPlaces | None:
    """The true places of both views' tokens; None without ground truth."""
    truth = analysis.ground_truth
    return None if truth is None else both_true_places(truth, analysis.grids)


def _sinks(attention: Sequence[Attention]) -> Float[np.ndarray, "2 blocks heads"]:
    """The share of its attention that each head puts on the key that gets most of it."""
    return np.stack([[block.weights[view].mean(axis=1).max(axis=-1) for block in attention] for view in (0, 1)])


def _self_attention(model: Backbone, inputs: Inputs) -> tuple[Attention, ...]:
    names = [f"{block.own}.{WEIGHTS}" for block in model.config.blocks]
    output = model(*inputs.views, capture=names, head=False)
    weights = (tuple(np.asarray(view, np.float32)[0] for view in output[name]) for name in names)
    return tuple(Attention.to_itself(block, views) for block, views in enumerate(weights))


def _costs(
    model: Backbone, inputs: Inputs, analysis: SetAnalysis, heads: Sequence[Head], progress: bool
) -> tuple[Float[np.ndarray, "heads V"], tuple[float, ...]]:
    """The cost of each head, and what the same measure gives without an edit."""
    truth = analysis.truth
    # The unedited run of the same program: a head that does nothing costs exactly nothing.
    (unedited,) = edited_views(model, inputs, [Edits()])

    def measure(views: Views) -> dict[str, np.ndarray]:
        return {"numbers": np.array(mean_displacements(views, unedited) if truth is None else point_errors(views, truth))}

    start = measure(unedited)["numbers"]
    found = edited_passes(model, inputs, [head.knocked_out(model.config) for head in heads], measure, progress)
    return np.stack([one["numbers"] for one in found]) - start, (float(start[0]), float(start[1]))


def _without(model: Backbone, inputs: Inputs, intrinsics: Intrinsics | None, heads: Sequence[Head]) -> tuple[WithoutHead, ...]:
    found = edited_views(model, inputs, [head.knocked_out(model.config) for head in heads])
    return tuple(
        WithoutHead(head, views, None if intrinsics is None else camera_of_view(views[1], intrinsics[1]))
        for head, views in zip(heads, found, strict=True)
    )
