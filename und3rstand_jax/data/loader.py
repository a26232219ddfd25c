"""What a process that reads files does when its run is interrupted. No JAX here.

Batches in an order that the seed decides, read by grain's worker processes. No JAX here: they import this.

Every pair has a position in one endless sequence. Batch s of B pairs holds positions s·B … s·B + B − 1, host h of H the h-th of H
equal parts of it: what a step sees depends neither on the number of hosts nor on where a run was interrupted.
"""

import dataclasses
import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import grain
import numpy as np
from absl import flags

from und3rstand_jax.data.files.source import FilePairs, open_pairs
from und3rstand_jax.data.records import NOT_RENDERED, Batch, Pair, Shape, UnreadablePair, View, held_out_scenes, training_scenes
from und3rstand_jax.data.specification import SYNTHETIC, DataSpec
from und3rstand_jax.support.errors import UserError


def live_and_die_with_the_run(worker: int, workers: int) -> None:
    """Prepares a worker process: it takes no notice of signals to stop, and ends when the run itself is gone, however that went.

    Ctrl-C and batch systems signal all processes of a run; the run is to finish its step and save, and needs its readers until then.
    Killed outright, a run cannot end its workers, and they would wait for it for ever.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_run, daemon=True).start()


def _end_with_the_run() -> None:
    # Not by a change of os.getppid(): a run killed while this process was still starting is never seen as its parent.
    run = multiprocessing.parent_process()
    assert run is not None, "a worker process is started by multiprocessing"
    run.join()
    os._exit(0)


Unreadable = Literal["skip", "fail"]


Sources = tuple[FilePairs | None, ...]
"""One for each spec, None for rendered scenes."""


Place = tuple[int, int]
"""(number of the source, index in it) of a pair."""


_TRIES = 20  # of other pairs of the same source, before a source counts as unreadable as a whole


@dataclasses.dataclass(frozen=True)
class Feed:
    """What batches are made of.

    `batch_size` counts the pairs of all hosts. Each batch has one of `shapes`. `crop_jitter` is DUSt3R's augmentation of crops.
    `unreadable` pairs are skipped, each replaced by another of its source and reported, or end the run.
    """

    specs: tuple[DataSpec, ...]
    shapes: tuple[Shape, ...]
    batch_size: int
    seed: int
    crop_jitter: bool = True
    unreadable: Unreadable = "skip"
    workers: int = 0
    host: int = 0
    hosts: int = 1


class Delivery(NamedTuple):
    """One host's part of a batch, its shape, and what could not be read on the way: (source, message) each."""

    batch: Batch
    shape: Shape
    skipped: tuple[tuple[str, str], ...]


class _Loaded(NamedTuple):
    position: int
    scene: int
    pair: Pair | None
    skipped: tuple[tuple[str, str], ...]
    failure: str | None


@dataclasses.dataclass(frozen=True)
class _Load:
    """Turns (number of the source, index in it) into a pair; what grain sends to its workers."""

    sources: Sources
    feed: Feed

    def __call__(self, position: int, place: Place) -> _Loaded:
        number, index = place
        source = self.sources[number]
        if source is None:
            return _Loaded(position, index, None, (), None)
        shape = shape_of_step(self.feed, position // self.feed.batch_size)
        skipped: list[tuple[str, str]] = []
        # Replacements are drawn, not taken from beside: a broken sequence would else be read over and over.
        draws = np.random.default_rng((self.feed.seed, position))
        for _ in range(_TRIES):
            try:
                pair = source.load(index, shape, draws if self.feed.crop_jitter else None)
                return _Loaded(position, NOT_RENDERED, pair, tuple(skipped), None)
            except UnreadablePair as error:
                skipped.append((source.name, str(error)))
                if self.feed.unreadable == "fail":
                    return _Loaded(position, NOT_RENDERED, None, (), f"{error} (--unreadable skip goes on without it)")
                index = int(draws.integers(len(source)))
        told = f"{source.name}: {_TRIES} pairs in a row could not be read, the last because {skipped[-1][1]}"
        return _Loaded(position, NOT_RENDERED, None, (), told)


def open_sources(specs: Sequence[DataSpec], split: Literal["train", "val"]) -> Sources:
    """The sources of a feed, opened; their `notes` say what was left out when their lists were made.

    Raises:
        UserError: a source is not what its kind promises.
    """
    return tuple(None if spec.root is None else open_pairs(spec.kind, spec.root, split) for spec in specs)


def training_batches(feed: Feed, sources: Sources, start: int) -> Iterator[Delivery]:
    """This host's part of every batch from number `start` on, without end.

    Args:
        feed: what batches are made of.
        sources: of the feed's specs, from `open_sources`.
        start: number of the first batch.

    Raises:
        UserError: pairs cannot be read.
    """
    parts = [_shuffled(number, source, feed.seed + number) for number, source in enumerate(sources)]
    mixed = grain.MapDataset.mix(parts, [spec.weight for spec in feed.specs])
    return _deliver(mixed, sources, feed, start)


def held_out(feed: Feed, sources: Sources, pairs: int) -> list[Place]:
    """Which held-out pairs `pairs` of them are: of each source its share, evenly spaced, and all there are where that is fewer."""
    shares = np.array([spec.weight for spec in feed.specs])
    ends = np.floor(np.cumsum(shares) / shares.sum() * pairs + 0.5).astype(int)
    places: list[Place] = []
    for number, (source, wanted) in enumerate(zip(sources, np.diff(ends, prepend=0).tolist(), strict=True)):
        if source is None:
            places += [(number, scene) for scene in held_out_scenes()[:wanted]]
        else:
            count = min(wanted, len(source))
            places += [(number, i * len(source) // count) for i in range(count)]
    return places


def validation_batches(feed: Feed, sources: Sources, places: Sequence[Place]) -> Iterator[Delivery]:
    """Batches of these pairs, in order; the last is filled up with the first pairs again, whose positions are not below their number."""
    batches = -(-len(places) // feed.batch_size)
    filled = [places[i % len(places)] for i in range(batches * feed.batch_size)]
    return _deliver(grain.MapDataset.source(filled), sources, feed, 0)


def shape_of_step(feed: Feed, step: int) -> Shape:
    """The shape of all pairs of a batch."""
    return feed.shapes[int(np.random.default_rng((feed.seed, step)).integers(len(feed.shapes)))]


def _shuffled(number: int, source: FilePairs | None, seed: int) -> grain.MapDataset:
    """(number, index) of every pair of a source, in a new order every time through; scenes, which never repeat, in theirs."""
    if source is None:
        indices = grain.MapDataset.range(len(training_scenes()))
    else:
        indices = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat(None)
    return indices.map(functools.partial(_tagged, number))


def _tagged(number: int, index: int) -> Place:
    return number, index


def _deliver(places: grain.MapDataset, sources: Sources, feed: Feed, start: int) -> Iterator[Delivery]:
    if feed.batch_size % feed.hosts:
        raise UserError(f"a batch of {feed.batch_size} pairs does not divide among {feed.hosts} hosts")
    loaded = places.map_with_index(_Load(sources, feed))
    parts = loaded.batch(feed.batch_size // feed.hosts, drop_remainder=True, batch_fn=functools.partial(_collate, feed))
    own = parts[feed.host + start * feed.hosts :: feed.hosts]
    reads_files = any(source is not None for source in sources)
    dataset = own.to_iter_dataset(grain.ReadOptions(num_threads=4 if reads_files else 0, prefetch_buffer_size=8 if reads_files else 0))
    if reads_files and feed.workers:
        # grain asks absl's flags how to run its workers; in a program that is not absl's, nobody has read them.
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        options = grain.MultiprocessingOptions(num_workers=feed.workers, per_worker_buffer_size=2)
        dataset = dataset.mp_prefetch(options, worker_init_fn=live_and_die_with_the_run)
    for delivery in dataset:
        if isinstance(delivery, str):
            raise UserError(delivery)
        yield delivery


def _collate(feed: Feed, loaded: Sequence[_Loaded]) -> Delivery | str:
    """A batch of pairs, or why there is none: an exception would reach the loop as grain's own, without our words."""
    failures = [item.failure for item in loaded if item.failure]
    if failures:
        return failures[0]
    shape = shape_of_step(feed, loaded[0].position // feed.batch_size)
    pair = None
    if any(spec.kind != SYNTHETIC for spec in feed.specs):
        pairs = [item.pair or _blank(shape) for item in loaded]
        pair = Pair(*(View(*(np.stack(arrays) for arrays in zip(*views, strict=True))) for views in zip(*pairs, strict=True)))
    positions = np.array([item.position for item in loaded], np.uint32)
    scenes = np.array([item.scene for item in loaded], np.int32)
    return Delivery(Batch(positions, scenes, pair), shape, tuple(told for item in loaded for told in item.skipped))


def _blank(shape: Shape) -> Pair:
    """What stands in a batch for a scene that the device renders."""
    view: Any = View(np.zeros((*shape, 3), np.uint8), np.zeros(shape, np.float32), np.eye(3, dtype=np.float32), np.eye(4, dtype=np.float32))
    return Pair(view, view)
