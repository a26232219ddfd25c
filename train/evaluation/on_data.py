"""Evaluates a checkpoint on held-out pairs of the data that `--data` names."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax

from train.data.assemble import assemble
from train.data.example import Example
from train.data.loader import Feed, Place, Sources, held_out, open_sources, validation_batches
from train.data.specification import scenes_of
from train.evaluation.evaluate import evaluate
from train.evaluation.results import Evaluation
from und3rstand_jax.model import Backbone, Probes


def evaluate_on(backbone: Backbone, probes: Probes, feed: Feed, pairs: int, show_progress: bool) -> Evaluation:
    """Errors of probes on `pairs` held-out pairs, or all there are.

    Args:
        backbone: the frozen model.
        probes: on layers of it.
        feed: where pairs come from; its seed and its first shape count, augmentation does not.
        pairs: how many, in batches of at most the feed's size.
        show_progress: whether to show a bar on a terminal's stderr.

    Raises:
        UserError: data cannot be read.
    """
    sources = open_sources(feed.specs, "val")
    places = held_out(feed, sources, pairs)
    # Equal batches, so that one program does for all.
    size = max((divisor for divisor in range(1, feed.batch_size + 1) if len(places) % divisor == 0), default=1)
    examples = _examples(dataclasses.replace(feed, batch_size=size), sources, places)
    return evaluate(backbone, probes, examples, len(places), show_progress=show_progress)


def _examples(feed: Feed, sources: Sources, places: list[Place]) -> Iterator[Example]:
    assembled = jax.jit(functools.partial(_assemble, shape=feed.shapes[0], scenes=scenes_of(feed.specs)))
    for delivery in validation_batches(feed, sources, places):
        yield assembled(delivery.batch, feed.seed)


def _assemble(batch: Any, seed: Any, shape: Any, scenes: Any) -> Example:
    return assemble(batch, seed, shape, scenes, colour_jitter=False)
