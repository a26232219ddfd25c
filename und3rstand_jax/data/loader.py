"""Batches in an order that the seed determines, read by grain's worker processes. No JAX: the workers import this.

Every set of views has a position in one endless sequence. Batch s of B sets has positions s·B … s·B + B − 1, and host h of H reads the
h-th of its H equal parts. A step's data thus depends neither on the number of hosts nor on where a run was interrupted.
"""

import dataclasses
import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Generator, Sequence
from typing import Literal, NamedTuple, TypeAlias

import grain
import numpy as np
from absl import flags

from und3rstand_jax.data.files.file_sets import FileSets, open_sets
from und3rstand_jax.data.records import (
    NOT_RENDERED,
    Batch,
    Shape,
    Split,
    UnreadableSet,
    View,
    ViewSet,
    held_out_scenes,
    things_of,
    training_scenes,
)
from und3rstand_jax.data.specification import SYNTHETIC, DataSpec
from und3rstand_jax.support.errors import DataError, OptionError
from und3rstand_jax.support.text import printable

Unreadable: TypeAlias = Literal["skip", "fail"]

Sources: TypeAlias = tuple[FileSets | None, ...]
"""One source for each spec; None for rendered scenes."""

Place: TypeAlias = tuple[int, int]
"""A set: (number of its source, index in that source)."""

_ATTEMPTS = 20
"""Sets of one source tried in place of an unreadable one before the source as a whole counts as unreadable."""


@dataclasses.dataclass(frozen=True)
class Feed:
    """What batches consist of.

    `batch_size` counts the sets of all hosts. Each batch has one of `shapes`. `crop_jitter` turns on DUSt3R's crop augmentation.
    `unreadable` says whether a set that cannot be read is skipped, that is, reported and replaced by another of its source, or ends
    the run. `workers` processes read files; with 0, threads of this process do.
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

    @property
    def views(self) -> int:
        """Number of views in a set, the same in every source."""
        return self.specs[0].views

    @property
    def things(self) -> str:
        """The name of its sets in messages: "pairs" or "sets of 4 views"."""
        return things_of(self.views)


class Delivery(NamedTuple):
    """One host's part of a batch, its shape, and the sets that were skipped, as (source, message)."""

    batch: Batch
    shape: Shape
    skipped: tuple[tuple[str, str], ...]


def open_sources(specs: Sequence[DataSpec], split: Split) -> Sources:
    """Opens the sources of a feed. Their `notes` say what was left out of their lists.

    Raises:
        DataError: a folder does not contain such a data set, or its list is faulty.
    """
    return tuple(None if spec.root is None else open_sets(spec.kind, spec.root, split, spec.views) for spec in specs)


def training_batches(feed: Feed, sources: Sources, start: int) -> Generator[Delivery, None, None]:
    """This host's part of every batch from number `start` on, without end. Close the generator after use, to end its worker processes.

    Each source is reshuffled on every pass. Rendered scenes never repeat, and come in their own order.

    Args:
        feed: what batches consist of.
        sources: the sources of the feed's specs, from `open_sources`.
        start: number of the first batch.

    Raises:
        DataError: sets cannot be read.
        OptionError: the batch size is not a multiple of the number of hosts.
    """
    parts = []
    for number, source in enumerate(sources):
        if source is None:
            indices = grain.MapDataset.range(len(training_scenes()))
        else:
            indices = grain.MapDataset.range(len(source)).seed(feed.seed + number).shuffle().repeat(None)
        parts.append(indices.map(functools.partial(_place, number)))
    mixed = grain.MapDataset.mix(parts, [spec.weight for spec in feed.specs])
    return _batches(mixed, sources, feed, start)


def held_out(feed: Feed, sources: Sources, pairs: int) -> list[Place]:
    """The held-out sets to validate on: each source's share of `pairs`, evenly spaced over it, or all of its sets if it has fewer."""
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


def validation_batches(feed: Feed, sources: Sources, places: Sequence[Place]) -> Generator[Delivery, None, None]:
    """Batches of these sets, in order. The last one is filled up with the first sets again, at positions from len(places) on."""
    batches = -(-len(places) // feed.batch_size)
    filled = [places[i % len(places)] for i in range(batches * feed.batch_size)]
    return _batches(grain.MapDataset.source(filled), sources, feed, 0)


def shape_of_step(feed: Feed, step: int) -> Shape:
    """The shape of all views in the batch of a step."""
    return feed.shapes[int(np.random.default_rng((feed.seed, step)).integers(len(feed.shapes)))]


class _Loaded(NamedTuple):
    """A set at its position, or why it could not be read."""

    position: int
    scene: int
    views: ViewSet | None
    skipped: tuple[tuple[str, str], ...]
    failure: str | None


@dataclasses.dataclass(frozen=True)
class _Load:
    """Reads the set at a position; grain sends this object to its workers."""

    sources: Sources
    feed: Feed

    def __call__(self, position: int, place: Place) -> _Loaded:
        number, index = place
        source = self.sources[number]
        if source is None:
            return _Loaded(position, index, None, (), None)
        shape = shape_of_step(self.feed, position // self.feed.batch_size)
        skipped: list[tuple[str, str]] = []
        # Replacements are drawn at random: a set's neighbours in a damaged sequence would be damaged as well.
        draws = np.random.default_rng((self.feed.seed, position))
        for _ in range(_ATTEMPTS):
            try:
                views = source.load(index, shape, draws if self.feed.crop_jitter else None)
                return _Loaded(position, NOT_RENDERED, views, tuple(skipped), None)
            except UnreadableSet as error:
                skipped.append((printable(source.name), str(error)))
                if self.feed.unreadable == "fail":
                    return _Loaded(position, NOT_RENDERED, None, (), f"{error} (--unreadable skip continues without it)")
                index = int(draws.integers(len(source)))
        failure = f"{skipped[-1][0]}: {_ATTEMPTS} {self.feed.things} in a row could not be read, the last because {skipped[-1][1]}"
        return _Loaded(position, NOT_RENDERED, None, (), failure)


def _batches(places: grain.MapDataset, sources: Sources, feed: Feed, start: int) -> Generator[Delivery, None, None]:
    """Reads the sets at the places, in order, and batches them."""
    if feed.batch_size % feed.hosts:
        raise OptionError(f"a batch of {feed.batch_size} {feed.things} cannot be divided among {feed.hosts} hosts")
    loaded = places.map_with_index(_Load(sources, feed))
    parts = loaded.batch(feed.batch_size // feed.hosts, drop_remainder=True, batch_fn=functools.partial(_collate, feed))
    own = parts[feed.host + start * feed.hosts :: feed.hosts]
    reads_files = any(source is not None for source in sources)
    dataset = own.to_iter_dataset(grain.ReadOptions(num_threads=4 if reads_files else 0, prefetch_buffer_size=8 if reads_files else 0))
    if reads_files and feed.workers:
        # grain reads its workers' settings from absl's flags, which are parsed only in programs started through absl.
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        options = grain.MultiprocessingOptions(num_workers=feed.workers, per_worker_buffer_size=2)
        # Through pipes, not shared memory, which leaks when a process is killed and is only 64 MB in a container by default.
        dataset = grain.experimental.WithOptionsIterDataset(dataset, grain.experimental.DatasetOptions(min_shm_size=2**62))
        dataset = dataset.mp_prefetch(options, worker_init_fn=prepare_worker)
    iterator = iter(dataset)
    try:
        for delivery in iterator:
            if isinstance(delivery, str):
                raise DataError(delivery)
            yield delivery
    finally:
        iterator.close()  # which ends the workers


def _place(number: int, index: int) -> Place:
    # A function of the module, because workers unpickle it.
    return number, index


def _collate(feed: Feed, loaded: Sequence[_Loaded]) -> Delivery | str:
    """A batch of sets, or a message that says why there is none: grain would wrap an exception in one of its own and bury the message."""
    failures = [item.failure for item in loaded if item.failure]
    if failures:
        return failures[0]
    shape = shape_of_step(feed, loaded[0].position // feed.batch_size)
    views = None
    if any(spec.kind != SYNTHETIC for spec in feed.specs):
        placeholder = View(
            np.zeros((*shape, 3), np.uint8), np.zeros(shape, np.float32), np.eye(3, dtype=np.float32), np.eye(4, dtype=np.float32)
        )
        sets = [item.views or (placeholder,) * feed.views for item in loaded]
        views = tuple(View(*(np.stack(arrays) for arrays in zip(*of_view, strict=True))) for of_view in zip(*sets, strict=True))
    positions = np.array([item.position for item in loaded], np.uint32)
    scenes = np.array([item.scene for item in loaded], np.int32)
    return Delivery(Batch(positions, scenes, views), shape, tuple(skip for item in loaded for skip in item.skipped))


def prepare_worker(worker: int, workers: int) -> None:
    """Makes a worker process ignore SIGINT and SIGTERM, and exit once the run's main process is gone, however it ended.

    Ctrl-C and batch systems signal every process of a run. The main process then finishes its step and saves, for which it still needs
    its workers. If it is killed outright, it cannot stop its workers, which would then wait for it forever.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)

    def exit_with_run() -> None:
        # Not by a change of os.getppid(): if the run is killed while this process is still starting, the run was never its parent.
        run = multiprocessing.parent_process()
        assert run is not None, "a worker process is started by multiprocessing"
        run.join()
        os._exit(0)

    threading.Thread(target=exit_with_run, daemon=True).start()
