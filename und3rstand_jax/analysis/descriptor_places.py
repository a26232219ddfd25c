"""What a model's descriptors say about a pair: how many of their matches are right, and where each token is in the other view.

Only for models that make descriptors (MASt3R); everything here comes on top of the measures for all models.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from und3rstand_jax.analysis.inputs import GroundTruth
from und3rstand_jax.analysis.true_place_attention import BothPlaces, TruePlaces, near_tokens
from und3rstand_jax.geometry.descriptor_matches import match
from und3rstand_jax.geometry.matching import THRESHOLD, match_accuracy, matched, true_places
from und3rstand_jax.model.config import ModelConfig
from und3rstand_jax.model.head_choice import head_of
from und3rstand_jax.model.output import BackboneOutput, Grid, Grids

DESCRIPTORS = "desc"
"""The output that contains them."""

SEEDS = 8
"""Pixels between the seeds of matches."""

RIGHT_MEANING = (
    f"share of right matches by the model's descriptors, reciprocal from seeds every {SEEDS} pixels, of those whose true place view 2 "
    "sees; 0 if no match is of those"
)


def descriptor_head(config: ModelConfig) -> str | None:
    """The name of the head that makes descriptors; None if there is none."""
    head = head_of(DESCRIPTORS, config)
    return None if head is None else head.name


def right_by_descriptors(output: BackboneOutput, truths: Sequence[GroundTruth]) -> Float[np.ndarray, " B"]:
    """Each pair's share of right matches, see `RIGHT_MEANING`; NaN where view 2 sees nothing of view 1.

    Args:
        output: with the head of `descriptor_head` run.
        truths: the ground truth of its pairs.
    """

    def right(number: int, truth: GroundTruth) -> float:
        places = true_places(truth.views, truth.pose, truth.intrinsics[1])
        if not np.isfinite(places).any():
            return np.nan
        found = match(output, pair=number, seeds=SEEDS)
        return match_accuracy(matched(found.pixels1, found.pixels2, places), THRESHOLD * output.image_sizes[1][1]) or 0.0

    return np.array([right(number, truth) for number, truth in enumerate(truths)])


def places_by_descriptors(output: BackboneOutput, number: int, grids: Grids) -> BothPlaces:
    """Where each token's middle pixel is in the other view, going by its descriptor, as `true_place_attention.TruePlaces`.

    `seen` is True where matching back from the most similar pixel ends less than half a token from where it began.

    Args:
        output: with the head of `descriptor_head` run.
        number: the pair's index in its batch.
        grids: of both views' tokens.
    """
    turned = BackboneOutput({}, output.image_sizes[::-1], output.pointmaps[::-1])

    def of_view(of: BackboneOutput, here: Grid, there: Grid) -> TruePlaces:
        height, width = of.image_sizes[0]
        patch = height // here[0]
        found = match(of, pair=number, seeds=patch, tolerance=patch / 2)
        places = np.full((height, width, 2), np.nan)
        places[found.pixels1[:, 1], found.pixels1[:, 0]] = found.pixels2
        return near_tokens(places, here, there)

    return of_view(output, *grids), of_view(turned, *grids[::-1])
