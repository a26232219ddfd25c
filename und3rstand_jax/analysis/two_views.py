"""Does a DUSt3R use both views? Its error beside that of the best constant, and beside its own with one view's image taken away.

    training pairs ─▶ true points ─▶ median of every pixel ─▶ constant ─┐
    held-out pairs ─▶ images, and images replaced ─▶ model ─────────────┴─▶ errors of both views, and their ratios

The error is the regression term of DUSt3R's loss (Wang et al., CVPR 2024, section 3.3): mean distance of a predicted point to the true
one over all valid pixels, true and predicted points of both views divided by their joint mean distance to view 1's camera.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from und3rstand_jax.analysis.batch_errors import assembled
from und3rstand_jax.analysis.constant_pointmap import Constant, best_constant
from und3rstand_jax.data.example import Example, batch_size
from und3rstand_jax.data.loader import Delivery, Feed, Sources, held_out, training_batches, validation_batches
from und3rstand_jax.geometry.loss import Targets, confidence_sums, normalised_truth, valid_counts
from und3rstand_jax.model.backbone import Backbone
from und3rstand_jax.model.head_choice import POINTMAP
from und3rstand_jax.model.heads import Pointmap, planes_of
from und3rstand_jax.support.documents import read_json
from und3rstand_jax.support.errors import CheckpointError, DataError, UserError
from und3rstand_jax.support.progress import progress_bar
from und3rstand_jax.support.results import VERSION
from und3rstand_jax.support.text import JsonObject, text_table, to_json

FORMAT = "und3rstand_jax two views"

MODEL, CONSTANT = "model", "constant"
OTHER_VIEW2, GREY_VIEW1, GREY_VIEW2 = "other_view2", "grey_view1", "grey_view2"

_LABELS = {
    MODEL: "the model",
    CONSTANT: "(a) the best constant pointmap",
    OTHER_VIEW2: "(b) the model, view 2's image of another pair",
    GREY_VIEW1: "(c) the model, view 1's image grey",
    GREY_VIEW2: "(d) the model, view 2's image grey",
}

_MEANING = {
    "errors": "mean distance to the true point, in units of the pair's mean distance to view 1's camera (DUSt3R's regression term)",
    "ratios": "the model's error over the other's, view by view; below 1 the model is better",
    MODEL: "both images as they are",
    CONSTANT: "every pixel's geometric median over training pairs, whatever the images; not normalised again",
    OTHER_VIEW2: "view 2's image is that of the next pair of the batch",
    GREY_VIEW1: "view 1's image is mid-grey",
    GREY_VIEW2: "view 2's image is mid-grey",
}

Image = Array | np.ndarray
Images = tuple[Float[Image, "B _H _W 3"], ...]

Predict = Callable[[Image, Image], tuple[Pointmap, ...]]
"""From both views' images (B, H, W, 3) in [-1, 1] to both views' pointmaps, with confidence."""


@dataclasses.dataclass(frozen=True)
class ViewPair:
    """One number for each view."""

    view1: float
    view2: float


@dataclasses.dataclass(frozen=True)
class TwoViewResult:
    """What was measured.

    Attributes:
        errors: of the model, of the constant, and of the model with wrong images, under the names above.
        valid_pixels: of each view, which the errors are means over.
        pairs: held-out pairs measured on.
        constant_pairs: training pairs that the constant is the median of.
        unreadable: pairs that could not be read and were replaced by others.
    """

    errors: dict[str, ViewPair]
    valid_pixels: ViewPair
    pairs: int
    constant_pairs: int
    unreadable: int

    @property
    def ratios(self) -> dict[str, ViewPair]:
        """The model's error over each of the others, view by view; NaN where the other is 0."""
        model = dataclasses.astuple(self.errors[MODEL])
        others = {name: dataclasses.astuple(error) for name, error in self.errors.items() if name != MODEL}
        return {
            name: ViewPair(*(ours / theirs if theirs else float("nan") for ours, theirs in zip(model, other, strict=True)))
            for name, other in others.items()
        }


def two_views_on(
    predict: Predict, feed: Feed, held_out_sources: Sources, training_sources: Sources, pairs: int, constant_pairs: int, progress: bool
) -> TwoViewResult:
    """Measures a model on `pairs` held-out pairs, or on all there are if fewer, with the constant of `constant_pairs` training pairs.

    Args:
        predict: the model; see `predictor`.
        feed: where pairs come from. Its seed and its first shape apply; batches have at most its size.
        held_out_sources, training_sources: of the feed, opened for "val" and for "train".
        pairs, constant_pairs: how many.
        progress: whether a terminal shows progress bars.

    Raises:
        DataError: pairs cannot be read, fewer than two are held out, or a view has no valid pixel in any training pair.
    """
    places = held_out(feed, held_out_sources, pairs)
    if len(places) < 2:
        raise DataError(f"two held-out pairs are needed, so that one can lend the other its image; found {len(places)}")
    skipped: list[str] = []

    def shown(what: str, feed: Feed, deliveries: Iterator[Delivery], pairs: int) -> Iterator[Example]:
        done = 0
        with progress_bar(what, pairs, "pair", progress) as advance:
            for example in assembled(feed, deliveries, pairs, skipped):
                yield example
                advance(min(batch_size(example), pairs - done))
                done += batch_size(example)

    training = dataclasses.replace(feed, batch_size=min(feed.batch_size, constant_pairs))
    batches = training_batches(training, training_sources, 0)
    constant = best_constant(shown("constant: training pairs", training, batches, constant_pairs), constant_pairs, progress)
    feed = dataclasses.replace(feed, batch_size=min(feed.batch_size, len(places)))
    batches = validation_batches(feed, held_out_sources, places)
    errors, valid = errors_of(predict, constant, shown("held-out pairs", feed, batches, len(places)))
    return TwoViewResult(errors, valid, len(places), constant_pairs, len(skipped))


def predictor(backbone: Backbone) -> Predict:
    """The model's own pointmaps.

    Raises:
        CheckpointError: the backbone has no head.
    """
    if not backbone.config.heads:
        raise CheckpointError("this backbone has no head, so there are no pointmaps to measure; give a model with its head")

    def predict(view1: Image, view2: Image) -> tuple[Pointmap, ...]:
        output = backbone(view1, view2, capture=(), head=POINTMAP)
        return output.pointmaps

    return predict


def errors_of(predict: Predict, constant: Constant, examples: Iterable[Example]) -> tuple[dict[str, ViewPair], ViewPair]:
    """Both views' errors under every condition, means over all pairs' valid pixels, and how many valid pixels each view has."""
    totals: dict[str, np.ndarray] = {}
    count = np.zeros(2)
    for example in examples:
        sums = {name: _model_sums(predict(*images), example.targets) for name, images in conditions(example.images).items()}
        sums[CONSTANT] = _constant_sums(constant, example.targets)
        for name, of_batch in jax.device_get(sums).items():
            totals[name] = totals.get(name, 0) + np.array(of_batch, np.float64)
        count += np.array(jax.device_get(valid_counts(example.targets)), np.float64)
    with np.errstate(invalid="ignore"):
        means = {name: totals[name] / count for name in (MODEL, CONSTANT, OTHER_VIEW2, GREY_VIEW1, GREY_VIEW2)}
    return {name: ViewPair(*map(float, mean)) for name, mean in means.items()}, ViewPair(*map(float, count))


def conditions(images: Images) -> dict[str, Images]:
    """What the model is shown: the pair, and the pair with one view's image replaced by the next pair's of the batch, or by mid-grey."""
    view1, view2 = images
    return {
        MODEL: images,
        OTHER_VIEW2: (view1, jnp.roll(view2, -1, axis=0)),
        GREY_VIEW1: (jnp.zeros_like(view1), view2),
        GREY_VIEW2: (view1, jnp.zeros_like(view2)),
    }


@jax.jit
def _model_sums(preds: tuple[Pointmap, ...], targets: Targets) -> tuple[Array, ...]:
    sums = confidence_sums(tuple(map(planes_of, preds)), normalised_truth(targets))
    return sums.regressions


@jax.jit
def _constant_sums(constant: tuple[Array, ...], targets: Targets) -> tuple[Array, ...]:
    """As `_model_sums`, without normalising the prediction, which is normalised already."""
    truth = normalised_truth(targets)
    distances = [jnp.linalg.norm(points - jnp.stack(true, axis=-1), axis=-1) for points, true in zip(constant, truth.points, strict=True)]
    return tuple(jnp.sum(jnp.where(valid, distance, 0.0)) for distance, valid in zip(distances, truth.valid, strict=True))


def format_result(result: TwoViewResult) -> str:
    """Aligned text: the errors under each condition, and the model's error over them."""
    rows = []
    for name, label in _LABELS.items():
        errors = [f"{value:.4f}" for value in dataclasses.astuple(result.errors[name])]
        ratios = [f"{value:.3f}" for value in dataclasses.astuple(result.ratios[name])] if name != MODEL else ["", ""]
        rows.append([label, *errors, *ratios])
    table = text_table(["normalised point error", "view 1", "view 2", "model / this: view 1", "view 2"], rows, numbers_from=1)
    return f"{table}\n{result.pairs} held-out pairs; the constant is of {result.constant_pairs} training pairs"


def as_json(result: TwoViewResult, options: JsonObject) -> str:
    """Everything that was measured, with the options it was measured with, as strict JSON: NaN is null."""
    ratios = {name: dataclasses.asdict(ratio) for name, ratio in result.ratios.items()}
    return to_json(
        {"format": FORMAT, "version": VERSION, "options": options, **dataclasses.asdict(result), "ratios": ratios, "meaning": _MEANING}
    )


def is_two_views(file: Path) -> bool:
    """Whether a file is what `as_json` made."""
    try:
        return read_json(file, dict[str, Any], UserError).get("format") == FORMAT
    except UserError:
        return False
