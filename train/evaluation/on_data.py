"""Evaluates a checkpoint on held-out pairs of the data that `--data` names."""

import dataclasses
import functools
import sys
from collections.abc import Iterator
from typing import Any

import jax

from train.data.assemble import assemble
from train.data.example import Example
from train.data.loader import Feed, Place, Sources, held_out, validation_batches
from train.data.specification import scenes_of
from train.evaluation.evaluate import evaluate
from train.evaluation.results import Evaluation
from und3rstand_jax.model import Backbone, Probes


def evaluate_on(
    backbone: Backbone, probes: Probes, feed: Feed, sources: Sources, pairs: int, show_progress: bool
) -> tuple[Evaluation, int]:
    """Errors of probes on `pairs` held-out pairs, or all there are.

    Args:
        backbone: the frozen model.
        probes: on layers of it.
        feed: where pairs come from; its seed and its first shape count, augmentation does not.
        sources: of the feed, opened for "val".
        pairs: how many, in batches of at most the feed's size.
        show_progress: whether to show a bar on a terminal's stderr.

    Returns:
        The evaluation, and how many pairs could not be read and were replaced, which stderr is told as well.

    Raises:
        UserError: data cannot be read.
    """
    places = held_out(feed, sources, pairs)
    # Equal batches, so that one program does for all.
    size = max((divisor for divisor in range(1, feed.batch_size + 1) if len(places) % divisor == 0), default=1)
    skipped: list[tuple[str, str]] = []
    examples = _examples(dataclasses.replace(feed, batch_size=size), sources, places, skipped)
    evaluation = evaluate(backbone, probes, examples, len(places), show_progress=show_progress)
    for _, told in skipped:
        print(f"cannot read {told}: another pair took its place", file=sys.stderr)
    return evaluation, len(skipped)


def _examples(feed: Feed, sources: Sources, places: list[Place], skipped: list[tuple[str, str]]) -> Iterator[Example]:
    assembled = jax.jit(functools.partial(_assemble, shape=feed.shapes[0], scenes=scenes_of(feed.specs)))
    for delivery in validation_batches(feed, sources, places):
        skipped.extend(delivery.skipped)
        yield assembled(delivery.batch, feed.seed)


def _assemble(batch: Any, seed: Any, shape: Any, scenes: Any) -> Example:
    return assemble(batch, seed, shape, scenes, colour_jitter=False)
