"""Does a model use its other views? Its error, next to the best constant's and to its own with views' images replaced.

    training sets ─▶ true points ─▶ median of every pixel ─▶ constant ─┐
    held-out sets ─▶ images, and images replaced ─▶ model ─────────────┴─▶ errors of every view, and their ratios

The error is the regression term of DUSt3R's loss (Wang et al., CVPR 2024, section 3.3): mean distance from predicted to true
points over all valid pixels, after true and predicted points of all views are each divided by their joint mean distance to view 1's camera.
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
from und3rstand_jax.data.records import things_of
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

MODEL, CONSTANT, OTHER_VIEWS = "model", "constant", "other_views"

_MEANING = {
    "errors": "mean distance to the true point, in units of the set's mean distance to view 1's camera (DUSt3R's regression term)",
    "ratios": "the model's error over the other's, view by view; below 1 the model is better",
    MODEL: "all images as they are",
    CONSTANT: "every pixel's geometric median over training sets, whatever the images; not normalised again",
    "other_viewK": "view K's image is that of the next set of the batch",
    OTHER_VIEWS: "the images of all views after the first are those of the next set of the batch",
    "grey_viewK": "view K's image is mid-grey",
}

Image = Array | np.ndarray
Images = tuple[Float[Image, "B _H _W 3"], ...]

Predict = Callable[..., tuple[Pointmap, ...]]
"""From every view's images (B, H, W, 3) in [-1, 1] to every view's pointmaps, with confidence."""

ByView = tuple[float, ...]
"""One number for each view."""


@dataclasses.dataclass(frozen=True)
class TwoViewResult:
    """What was measured.

    Attributes:
        errors: of the model, with its own and with replaced images, under the names of `conditions`; and of the constant.
        valid_pixels: each view's number of valid pixels, which the errors are means over.
        pairs: number of held-out sets.
        constant_pairs: number of training sets that the constant is the median of.
        unreadable: number of sets that could not be read and were replaced by others.
    """

    errors: dict[str, ByView]
    valid_pixels: ByView
    pairs: int
    constant_pairs: int
    unreadable: int

    @property
    def ratios(self) -> dict[str, ByView]:
        """The model's error over each of the others, view by view; NaN where the other is 0."""
        others = {name: errors for name, errors in self.errors.items() if name != MODEL}
        return {
            name: tuple(ours / theirs if theirs else float("nan") for ours, theirs in zip(self.errors[MODEL], other, strict=True))
            for name, other in others.items()
        }


def two_views_on(
    predict: Predict, feed: Feed, held_out_sources: Sources, training_sources: Sources, pairs: int, constant_pairs: int, progress: bool
) -> TwoViewResult:
    """Measures a model on `pairs` held-out sets, or on all if there are fewer, and the constant of `constant_pairs` training sets.

    Args:
        predict: the model; see `predictor`.
        feed: where sets come from. Its seed and its first shape apply; batches have at most its size.
        held_out_sources, training_sources: the feed's sources, opened for "val" and for "train".
        pairs, constant_pairs: how many sets of each.
        progress: whether a terminal shows progress bars.

    Raises:
        DataError: sets cannot be read, fewer than two are held out, or a view has no valid pixel in any training set.
    """
    places = held_out(feed, held_out_sources, pairs)
    if len(places) < 2:
        raise DataError(f"expected at least two held-out {feed.things}, to exchange images between them; found {len(places)}; give more")
    skipped: list[str] = []

    def shown(what: str, feed: Feed, deliveries: Iterator[Delivery], pairs: int) -> Iterator[Example]:
        done = 0
        with progress_bar(what, pairs, "pair" if feed.views == 2 else "set", progress) as advance:
            for example in assembled(feed, deliveries, pairs, skipped):
                yield example
                advance(min(batch_size(example), pairs - done))
                done += batch_size(example)

    training = dataclasses.replace(feed, batch_size=min(feed.batch_size, constant_pairs))
    batches = training_batches(training, training_sources, 0)
    constant = best_constant(shown(f"constant: training {feed.things}", training, batches, constant_pairs), constant_pairs, progress)
    feed = dataclasses.replace(feed, batch_size=min(feed.batch_size, len(places)))
    batches = validation_batches(feed, held_out_sources, places)
    errors, valid = errors_of(predict, constant, shown(f"held-out {feed.things}", feed, batches, len(places)))
    return TwoViewResult(errors, valid, len(places), constant_pairs, len(skipped))


def predictor(backbone: Backbone) -> Predict:
    """The model's own pointmaps.

    Raises:
        CheckpointError: the backbone has no head.
    """
    if not backbone.config.heads:
        raise CheckpointError("this backbone has no head, so there are no pointmaps to measure; give a model that has one")

    def predict(*images: Image) -> tuple[Pointmap, ...]:
        output = backbone(*images, capture=(), head=POINTMAP)
        return output.pointmaps

    return predict


def errors_of(predict: Predict, constant: Constant, examples: Iterable[Example]) -> tuple[dict[str, ByView], ByView]:
    """Every view's errors under every condition, means over all sets' valid pixels, and how many valid pixels each view has."""
    totals: dict[str, np.ndarray] = {}
    count = np.zeros(len(constant))
    for example in examples:
        shown = conditions(example.images)
        sums = {name: _model_sums(predict(*images), example.targets) for name, images in shown.items()}
        sums[CONSTANT] = _constant_sums(constant, example.targets)
        for name in (MODEL, CONSTANT, *list(shown)[1:]):
            totals[name] = totals.get(name, 0) + np.array(jax.device_get(sums[name]), np.float64)
        count += np.array(jax.device_get(valid_counts(example.targets)), np.float64)
    with np.errstate(invalid="ignore"):
        means = {name: total / count for name, total in totals.items()}
    return {name: tuple(map(float, mean)) for name, mean in means.items()}, tuple(map(float, count))


def conditions(images: Images) -> dict[str, Images]:
    """What the model is shown: the set, and the set with images replaced by those of the next set of the batch, or by mid-grey.

    Returns:
        name -> images: `model`; `other_view2` and so on; with more than two views `other_views`, all but the first replaced;
        `grey_view1` and so on.
    """
    others = tuple(jnp.roll(image, -1, axis=0) for image in images)
    shown = {MODEL: images}
    shown |= {f"other_view{view}": _replaced(images, view, others[view - 1]) for view in range(2, len(images) + 1)}
    if len(images) > 2:
        shown[OTHER_VIEWS] = (images[0], *others[1:])
    return shown | {f"grey_view{view}": _replaced(images, view, jnp.zeros_like(image)) for view, image in enumerate(images, start=1)}


def _replaced(images: Images, view: int, image: Image) -> Images:
    return (*images[: view - 1], image, *images[view:])


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
    rows: list[list[str]] = []
    views = len(result.valid_pixels)
    for name, errors in result.errors.items():
        ratios = [f"{value:.3f}" for value in result.ratios[name]] if name != MODEL else [""] * views
        # The first row is the model's.
        label = _label(name, views) if not rows else f"({chr(ord('a') + len(rows) - 1)}) {_label(name, views)}"
        rows.append([label, *(f"{value:.4f}" for value in errors), *ratios])
    heads = [f"view {view}" for view in range(1, views + 1)]
    table = text_table(["normalised point error", *heads, f"model / this: {heads[0]}", *heads[1:]], rows, numbers_from=1)
    things = things_of(views)
    return f"{table}\n{result.pairs} held-out {things}; the constant is of {result.constant_pairs} training {things}"


def _label(name: str, views: int) -> str:
    if name in (MODEL, CONSTANT):
        return {MODEL: "the model", CONSTANT: "the best constant pointmap"}[name]
    another = f"of another {'pair' if views == 2 else 'set'}"
    if name == OTHER_VIEWS:
        return f"the model, all images but view 1's {another}"
    kind, view = name.split("_view")
    return f"the model, view {view}'s image {another if kind == 'other' else 'grey'}"


def as_json(result: TwoViewResult, options: JsonObject) -> str:
    """Everything that was measured, and the options used, as strict JSON: NaN is null."""
    tables = {what: {name: _named(values) for name, values in getattr(result, what).items()} for what in ("errors", "ratios")}
    facts = dataclasses.asdict(result) | tables | {"valid_pixels": _named(result.valid_pixels)}
    return to_json({"format": FORMAT, "version": VERSION, "options": options, **facts, "meaning": _MEANING})


def _named(values: ByView) -> dict[str, float]:
    return {f"view{view}": value for view, value in enumerate(values, start=1)}


def is_two_views(file: Path) -> bool:
    """Whether a file was made by `as_json`."""
    try:
        return read_json(file, dict[str, Any], UserError).get("format") == FORMAT
    except UserError:
        return False
