"""Does a DUSt3R use both views? Its error beside what a constant gets, and beside its own where one view's image is taken away.

    training pairs ─▶ true points ─▶ median of every pixel ─▶ constant ─┐
    held-out pairs ─▶ images, and images put wrong ─▶ model ────────────┴─▶ errors of both views, and their ratios

The error is the regression term of DUSt3R's loss (Wang et al., CVPR 2024, section 3.3): mean distance of a predicted point to the true
one over all valid pixels, true and predicted points of both views divided by their joint mean distance to view 1's camera.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float
from tqdm import tqdm

from und3rstand_jax.analysis.two_views_result import CONSTANT, GREY_VIEW1, GREY_VIEW2, MODEL, OTHER_VIEW2, TwoViewResult, ViewPair
from und3rstand_jax.data.example import Example, assemble
from und3rstand_jax.data.loader import Delivery, Feed, Sources, held_out, training_batches, validation_batches
from und3rstand_jax.data.records import Batch, Shape
from und3rstand_jax.data.specification import scenes_of
from und3rstand_jax.data.synthetic.config import SyntheticConfig
from und3rstand_jax.geometry.loss import Target, confidence_sums, normalised_truth, valid_counts
from und3rstand_jax.model.backbone import Backbone
from und3rstand_jax.model.pointmap import Pointmap
from und3rstand_jax.support.errors import UserError

_SMOOTHING = 1e-4  # in units of the scene's size: a distance d counts as √(d² + s²), so that no point holds the median fast


_MEDIAN_STEPS = 200


_SETTLED = 1e-5


Images = tuple[Float[Array, "B H W 3"], Float[Array, "B H W 3"]]


Constant = tuple[Float[np.ndarray, "H W 3"], Float[np.ndarray, "H W 3"]]


Predict = Callable[[Array, Array], tuple[Pointmap, Pointmap]]
"""Both views' pointmaps, with confidence, of images (B, H, W, 3) in [-1, 1]."""


def predictor(backbone: Backbone) -> Predict:
    """The model's own pointmaps.

    Raises:
        UserError: the backbone has no head.
    """
    if backbone.config.head_type is None:
        raise UserError("this backbone has no head, so there are no pointmaps to measure; give a DUSt3R with its head")

    def predict(view1: Array, view2: Array) -> tuple[Pointmap, Pointmap]:
        output = backbone(view1, view2, capture=(), head=True)
        return cast(tuple[Pointmap, Pointmap], (output.pred1, output.pred2))

    return predict


def two_views_on(
    predict: Predict, feed: Feed, held_out_sources: Sources, training_sources: Sources, pairs: int, constant_pairs: int, show_progress: bool
) -> TwoViewResult:
    """Measures on `pairs` held-out pairs, or all there are, with the constant of `constant_pairs` training pairs.

    Args:
        predict: the model.
        feed: where pairs come from; its seed and its first shape count. No batch is larger than its size.
        held_out_sources, training_sources: of the feed, opened for "val" and for "train".
        pairs, constant_pairs: how many.
        show_progress: whether to show bars on a terminal's stderr.

    Raises:
        UserError: data cannot be read, fewer than two pairs are held out, or no training pair has a valid pixel in one of the views.
    """
    places = held_out(feed, held_out_sources, pairs)
    if len(places) < 2:
        raise UserError(f"two held-out pairs are needed, so that one can lend the other its image; found {len(places)}")
    skipped: list[tuple[str, str]] = []
    training_feed = dataclasses.replace(feed, batch_size=min(feed.batch_size, constant_pairs))
    training = _examples(training_feed, training_batches(training_feed, training_sources, 0), constant_pairs, skipped)
    constant = best_constant(_shown(training, constant_pairs, "constant: training pairs", show_progress), constant_pairs, show_progress)
    feed = dataclasses.replace(feed, batch_size=min(feed.batch_size, len(places)))
    examples = _examples(feed, validation_batches(feed, held_out_sources, places), len(places), skipped)
    errors, valid = errors_of(predict, constant, _shown(examples, len(places), "held-out pairs", show_progress))
    return TwoViewResult(errors, valid, len(places), constant_pairs, len(skipped))


def best_constant(examples: Iterable[Example], pairs: int, show_progress: bool = False) -> Constant:
    """Of each view the pointmap that is nearest to the normalised truth of `pairs` pairs, every pixel's geometric median.

    It holds all true points at once, 24·H·W bytes a pair. A pixel without a true point takes the mean of the view's other pixels.

    Raises:
        UserError: a view has no valid pixel at all.
    """
    views = _true_points(examples, pairs)
    rows = len(views[0][0])
    constant = []
    with tqdm(total=2 * rows, desc="constant: medians", unit="row", disable=None if show_progress else True, leave=False) as bar:
        for number, points in enumerate(views, start=1):
            medians = np.empty(points.shape[1:], np.float32)
            for row in range(rows):
                medians[row] = geometric_median(points[:, row])
                bar.update()
            missing = np.isnan(medians).any(axis=-1)
            if missing.all():
                raise UserError(f"view {number} has no valid pixel in {pairs} training pairs; check the data's depth")
            medians[missing] = medians[~missing].mean(axis=0)
            constant.append(medians)
    return constant[0], constant[1]


@jax.jit
def geometric_median(points: Float[Array, "N P 3"]) -> Float[Array, "P 3"]:
    """The point with the least sum of distances to each column's points, by Weiszfeld's algorithm (1937).

    Points with NaN do not count; a column of nothing else has the median NaN. Distances are smoothed near 0, which moves a median by at
    most about 1e-4.
    """
    valid = ~jnp.isnan(points).any(axis=-1)
    points = jnp.where(valid[..., None], points, 0.0)

    def weighted_mean(weights: Array) -> Array:
        return jnp.sum(weights[..., None] * points, axis=0) / jnp.sum(weights, axis=0)[:, None]

    def step(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        count, median, _ = state
        squared = jnp.sum((points - median) ** 2, axis=-1)
        new = weighted_mean(valid * lax.rsqrt(squared + _SMOOTHING**2))
        return count + 1, new, jnp.max(jnp.where(jnp.isnan(new), 0.0, jnp.abs(new - median)))

    def moving(state: tuple[Array, Array, Array]) -> Array:
        count, _, moved = state
        return (count < _MEDIAN_STEPS) & (moved > _SETTLED)

    start = weighted_mean(valid.astype(points.dtype))
    return lax.while_loop(moving, step, (jnp.int32(0), start, jnp.float32(jnp.inf)))[1]


def errors_of(predict: Predict, constant: Constant, examples: Iterable[Example]) -> tuple[dict[str, ViewPair], ViewPair]:
    """The errors of both views under every condition, over all pairs' valid pixels, and how many those are of each view."""
    totals: dict[str, np.ndarray] = {}
    count = np.zeros(2)
    for example in examples:
        sums = {name: _model_sums(*predict(*images), example.targets) for name, images in conditions(example.images).items()}
        sums[CONSTANT] = _constant_sums(constant, example.targets)
        for name, of_batch in jax.device_get(sums).items():
            totals[name] = totals.get(name, 0) + np.array(of_batch, np.float64)
        count += np.array(jax.device_get(valid_counts(*example.targets)), np.float64)
    with np.errstate(invalid="ignore"):
        means = {name: totals[name] / count for name in (MODEL, CONSTANT, OTHER_VIEW2, GREY_VIEW1, GREY_VIEW2)}
    return {name: ViewPair(*map(float, mean)) for name, mean in means.items()}, ViewPair(*map(float, count))


def conditions(images: Images) -> dict[str, Images]:
    """What the model is shown: the pair, and the pair with one view's image from the next pair of the batch, or mid-grey."""
    view1, view2 = images
    grey = jnp.zeros_like(view1), jnp.zeros_like(view2)
    return {
        MODEL: images,
        OTHER_VIEW2: (view1, jnp.roll(view2, -1, axis=0)),
        GREY_VIEW1: (grey[0], view2),
        GREY_VIEW2: (view1, grey[1]),
    }


@jax.jit
def _model_sums(pred1: Pointmap, pred2: Pointmap, targets: tuple[Target, Target]) -> tuple[Array, Array]:
    sums = confidence_sums(pred1, pred2, normalised_truth(*targets))
    return sums.regression1, sums.regression2


@jax.jit
def _constant_sums(constant: Constant, targets: tuple[Target, Target]) -> tuple[Array, Array]:
    """As `_model_sums`, of a prediction that is not normalised again."""
    truth = normalised_truth(*targets)
    distances = [jnp.linalg.norm(points - true, axis=-1) for points, true in zip(constant, truth.points, strict=True)]
    one, two = (jnp.sum(jnp.where(valid, distance, 0.0)) for distance, valid in zip(distances, truth.valid, strict=True))
    return one, two


def _true_points(examples: Iterable[Example], pairs: int) -> tuple[Float[np.ndarray, "N H W 3"], Float[np.ndarray, "N H W 3"]]:
    """Both views' normalised true points of the first pairs, NaN where there is none."""
    found: list[np.ndarray] = []
    done = 0
    for example in examples:
        batch = jax.device_get(_points_or_nan(example.targets))
        if not found:
            found = [np.empty((pairs, *points.shape[1:]), np.float32) for points in batch]
        taken = min(len(batch[0]), pairs - done)
        for views, points in zip(found, batch, strict=True):
            views[done : done + taken] = points[:taken]
        done += taken
    assert done == pairs, (done, pairs)
    return found[0], found[1]


@jax.jit
def _points_or_nan(targets: tuple[Target, Target]) -> tuple[Array, Array]:
    truth = normalised_truth(*targets)
    one, two = (jnp.where(valid[..., None], points, jnp.nan) for points, valid in zip(truth.points, truth.valid, strict=True))
    return one, two


def _examples(feed: Feed, deliveries: Iterator[Delivery], pairs: int, skipped: list[tuple[str, str]]) -> Iterator[Example]:
    """The batches that hold the first `pairs` pairs; in the last, pairs behind those have no valid pixel."""
    for delivery in itertools.islice(deliveries, -(-pairs // feed.batch_size)):
        skipped.extend(delivery.skipped)
        yield _assemble(delivery.batch, feed.seed, pairs, feed.shapes[0], scenes_of(feed.specs))


@functools.partial(jax.jit, static_argnums=(3, 4))
def _assemble(batch: Batch, seed: int, pairs: int, shape: Shape, scenes: SyntheticConfig | None) -> Example:
    example = assemble(batch, seed, shape, scenes, colour_jitter=False)
    counts = (batch.position < pairs)[:, None, None]
    one, two = (target._replace(valid=target.valid & counts) for target in example.targets)
    return example._replace(targets=(one, two))


def _shown(examples: Iterable[Example], pairs: int, what: str, show_progress: bool) -> Iterator[Example]:
    with tqdm(total=pairs, desc=what, unit="pair", disable=None if show_progress else True, leave=False) as bar:
        for example in examples:
            yield example
            bar.update(min(len(example.images[0]), pairs - bar.n))
