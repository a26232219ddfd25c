"""Many edits on many pairs, or sets of more views, without computing anything twice.

    pairs ─▶ one unedited pass ─▶ streams before each edit ─▶ edited passes from there on ─▶ measure, on the device
                                                                                              └─▶ finish, on the host

Edits of the same sites run one compiled program, which begins at the layer before the first of them: knocking out every head of a
block runs, for each head, only that block and those after it.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from und3rstand_jax.analysis.sweep_pass import (
    Measure,
    Measured,
    chunks,
    compiled_pass,
    digest_of,
    numbers_of,
    own_numbers,
    stack_affines,
)
from und3rstand_jax.model.affine import SiteEdits
from und3rstand_jax.model.backbone import Backbone, Image
from und3rstand_jax.model.config import ModelConfig
from und3rstand_jax.model.edits import Edit, Edits
from und3rstand_jax.model.layer_ids import network_order
from und3rstand_jax.model.output import BackboneOutput
from und3rstand_jax.model.site_edits import edited_sites, first_edited_layer
from und3rstand_jax.model.sites import select_captures
from und3rstand_jax.model.start import start_layers
from und3rstand_jax.support.errors import EditError, OptionError, UserError
from und3rstand_jax.support.machine import free_memory
from und3rstand_jax.support.pieces import Pieces
from und3rstand_jax.support.progress import progress_bar, with_progress

Finish = Callable[[Mapping[str, np.ndarray], Sequence[int]], Mapping[str, np.ndarray]]
"""Maps what was measured on B pairs, and the pairs' numbers, to what is kept; runs on the host, called from threads."""

_SHARE_OF_MEMORY = 0.8
_IN_FLIGHT = 3


@dataclasses.dataclass(frozen=True)
class Group:
    """Edits that run one program.

    Attributes:
        members: their numbers.
        start: the layer after which the program begins; None for the images.
        first: the first layer that an edit can change.
    """

    members: tuple[int, ...]
    start: str | None
    first: str


def sweep(
    backbone: Backbone,
    views: tuple[Image, ...],
    edits: Sequence[Edits],
    measure: Measure,
    truth: Any = (),
    shared: Any = (),
    *,
    finish: Finish | None = None,
    capture: Sequence[str] = (),
    head: bool | None = None,
    batch_size: int = 64,
    pieces: Pieces | None = None,
    progress: bool = False,
) -> list[dict[str, np.ndarray]]:
    """Measures every edit on every pair.

    The views of all pairs are in memory at once and, for the pairs of one pass, the tokens before every edit.

    Args:
        backbone: the model.
        views: every view of S pairs, or of S sets of more views.
        edits: any number; `Edits()` among them is the unedited run. A scale or shift with S along its first axis has separate
            numbers for each pair.
        measure: what to measure; compiled with the model. For each edit, it sees only the captures that the edit can change.
        truth: a pytree of arrays (S, …) that `measure` gets besides the output.
        shared: a pytree of arrays that `measure` gets unchanged, such as the parameters of probes.
        finish: what to make of the results on the host, while the device continues.
        capture: layers to capture for `measure`, by pattern.
        head: whether to run the model's head; by default where it has one.
        batch_size: most pairs in one pass; fewer if they do not fit into memory.
        pieces: where finished parts are kept, so that an interrupted sweep can resume; by default nowhere.
        progress: whether a terminal shows a progress bar.

    Returns:
        What was measured for each edit, (S, …), on the host.

    Raises:
        LayerError, EditError: an edit cannot be applied; its number is in the message, and nothing has run.
        OptionError: there is no pair, the batch size is below 1, or the model does not take this many views.
    """
    backbone.config.check_view_count(len(views))
    images = tuple(np.asarray(view) for view in views)
    count = len(images[0])
    if not count or batch_size < 1:
        raise OptionError(f"a sweep needs at least one pair and a batch size of 1 or more; found {count} pairs and batch size {batch_size}")
    has_head = bool(backbone.config.heads) if head is None else head
    shared = jax.tree.map(jnp.asarray, shared)
    program = _Program(backbone, edits, measure, shared, select_captures(capture, backbone.config), has_head, finish)
    groups = grouped(edits, backbone, images)
    truth = jax.tree.map(np.asarray, truth)
    most = program.fitting(batch_size, groups, images, truth, progress)
    together = -(-count // -(-count // most))  # chunks of one size, which run the same programs
    found: list[list[dict[str, np.ndarray]]] = [[] for _ in edits]
    with progress_bar("sweep", len(edits) * count, "pass", progress) as advance:
        for low in range(0, count, together):
            pairs = range(low, min(low + together, count))
            chunk = jax.tree.map(lambda leaf, pairs=pairs: leaf[pairs.start : pairs.stop], (images, truth))
            of_views, of_truth = jax.device_put(chunk)
            for members, results in program.run(groups, pairs, of_views, of_truth, max(1, most // len(pairs)), pieces):
                for number, result in zip(members, results, strict=True):
                    found[number].append(result)
                advance(len(members) * len(pairs))
    return [{name: np.concatenate([part[name] for part in parts]) for name in parts[0]} for parts in found]


def grouped(edits: Sequence[Edits], backbone: Backbone, views: tuple[np.ndarray, ...]) -> list[Group]:
    """The edits, grouped by the program that they run; the earliest start first.

    Raises:
        LayerError, EditError: an edit cannot be applied to views like these; its number is in the message.
    """
    config, first_pair = backbone.config, tuple(view[:1] for view in views)
    found: dict[object, list[int]] = {}
    starts: dict[object, tuple[str | None, str]] = {}
    for number, some in enumerate(edits):
        try:
            own = tuple(map(own_numbers, some))
            for edit, numbers in zip(some, own, strict=True):
                _check_own(edit, numbers, len(views[0]))
            resolved = numbers_of(backbone, some, range(1), first_pair)
        except UserError as error:
            raise type(error)(f"edits[{number}]: {error}") from error
        # What matters is which numbers are separate for each pair; how many edits a site has no longer shows.
        kind = tuple(sorted(resolved)), str(jax.tree.map(np.shape, resolved)), own if any(map(any, own)) else ()
        found.setdefault(kind, []).append(number)
        starts[kind] = start_of(some, config), first_edited_layer(some, config) if some else config.layer_ids[0]
    groups = [Group(tuple(members), *starts[kind]) for kind, members in found.items()]
    return sorted(groups, key=lambda group: () if group.start is None else network_order(group.start))


def _check_own(edit: Edit, of_pairs: tuple[int | None, int | None], count: int) -> None:
    for name, found in zip(("scale", "shift"), of_pairs, strict=True):
        if found not in (None, count):
            raise EditError(f"{edit.site!r}: {name} has numbers for {found} pairs; expected one set for all, or {count}")


def start_of(edits: Edits, config: ModelConfig) -> str | None:
    """The last layer that a pass can start from and see all edits; None to start from the images, as a pass without edits does."""
    order = config.layer_ids
    last = min((order.index(site.layer_id) - (site.part is not None) for site in edited_sites(edits, config)), default=-1)
    return order[last] if last >= 0 else None


@dataclasses.dataclass
class _Program:
    """What all passes of a sweep have in common."""

    backbone: Backbone
    edits: Sequence[Edits]
    measure: Measure
    shared: Any
    captured: tuple[str, ...]
    head: bool
    finish: Finish | None

    def fitting(self, most: int, groups: Sequence[Group], views: tuple, truth: Any, progress: bool) -> int:
        """The largest batch, halving from `most`, with which the passes of every group fit into memory. Compiles them."""
        free, count = free_memory(), len(views[0])
        while most > 1 and free is not None:
            pairs = min(most, count)
            chunk_views, chunk_truth = jax.tree.map(lambda leaf, pairs=pairs: leaf[:pairs], (views, truth))
            before, inputs = jax.eval_shape(functools.partial(self._all_inputs, groups), chunk_views)
            held = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(before))
            most_of_a_pass = 0
            for group, of_group in with_progress(zip(groups, inputs, strict=True), "compiling", len(groups), "program", progress):
                numbers = chunks(group.members, most // pairs)[0]
                affines = stack_affines([numbers_of(self.backbone, self.edits[n], range(pairs), chunk_views) for n in numbers])
                memory = self._compiled(group, of_group, affines, chunk_truth).memory_analysis()
                if memory is not None:
                    most_of_a_pass = max(most_of_a_pass, memory.temp_size_in_bytes + (1 + _IN_FLIGHT) * memory.output_size_in_bytes)
            if held + most_of_a_pass < _SHARE_OF_MEMORY * free:
                break
            most = (most + 1) // 2
        return most

    def _all_inputs(self, groups: Sequence[Group], views: tuple) -> tuple[BackboneOutput, list[Any]]:
        before = self._before(groups, views)
        return before, [self._inputs(group, before, views) for group in groups]

    def run(
        self, groups: Sequence[Group], pairs: range, views: tuple, truth: Any, at_once: int, pieces: Pieces | None
    ) -> Iterator[tuple[tuple[int, ...], list[dict[str, np.ndarray]]]]:
        """Numbers of edits, and for each what was measured on these pairs; group by group, from `pieces` where it is already there."""
        before: BackboneOutput | None = None
        pool = ThreadPoolExecutor(os.cpu_count())
        try:
            pending: list[tuple[Group, str, list[Future]]] = []
            in_flight: list[Future] = []
            for group in groups:
                name = self._piece_name(group, pairs, views) if pieces is not None else ""
                kept = None if pieces is None else pieces.read(name)
                if kept is not None:
                    yield group.members, [{key: values[index] for key, values in kept.items()} for index in range(len(group.members))]
                    continue
                if before is None:
                    before = self._before(groups, views)
                inputs = self._inputs(group, before, views)
                futures: list[Future] = []
                # Unedited runs are all the same.
                members = group.members if len(self.edits[group.members[0]]) else group.members[:1]
                for numbers in chunks(members, at_once):
                    affines = stack_affines([numbers_of(self.backbone, self.edits[n], pairs, views) for n in numbers])
                    compiled = self._compiled(group, inputs, affines, truth)
                    measured = compiled(self.backbone.params, inputs, affines, truth, self.shared)
                    real = min(len(numbers), len(members) - len(futures) * len(numbers))
                    futures.append(pool.submit(self._finished, measured, real, pairs))
                    in_flight.append(futures[-1])
                    if len(in_flight) > _IN_FLIGHT:  # what the device has measured waits there for the host
                        in_flight.pop(0).result()
                pending.append((group, name, futures))
                # The host finishes one group while the device is at the next.
                if len(pending) > 1:
                    yield self._kept(*pending.pop(0), pieces)
            for some in pending:
                yield self._kept(*some, pieces)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _kept(
        self, group: Group, name: str, futures: Sequence[Future], pieces: Pieces | None
    ) -> tuple[tuple[int, ...], list[dict[str, np.ndarray]]]:
        results = [result for future in futures for result in future.result()]
        results *= len(group.members) // len(results)
        if pieces is not None:
            pieces.write(name, {key: np.stack([result[key] for result in results]) for key in results[0]})
        return group.members, results

    def _finished(self, measured: Measured, edits: int, pairs: range) -> list[dict[str, np.ndarray]]:
        count = edits * len(pairs)
        arrays = {name: np.asarray(values)[:count] for name, values in measured.items()}
        # NumPy's files do not support bfloat16.
        arrays = {name: values.astype(np.float32) if values.dtype == jnp.bfloat16 else values for name, values in arrays.items()}
        if self.finish is not None:
            arrays = dict(self.finish(arrays, [*pairs] * edits))
        return [{name: values[i * len(pairs) : (i + 1) * len(pairs)] for name, values in arrays.items()} for i in range(edits)]

    def _piece_name(self, group: Group, pairs: range, views: tuple) -> str:
        """Covers what a piece depends on that the question of `Pieces` may not say: the edits, and the pairs."""
        digests = [digest_of([self.edits[number] for number in group.members]), digest_of(views)]
        return f"{pairs} {group.members} {digests}"

    def _before(self, groups: Sequence[Group], views: tuple) -> BackboneOutput:
        """One unedited pass that captures the tokens that every group begins with."""
        config = self.backbone.config
        wanted = {layer for group in groups if group.start for layer in start_layers(group.start, config, self.head)}
        return self.backbone(*views, capture=tuple(wanted), head=False)

    def _inputs(self, group: Group, before: BackboneOutput, views: tuple) -> Any:
        if group.start is None:
            return views
        layers = start_layers(group.start, self.backbone.config, self.head)
        return BackboneOutput({layer: before.activations[layer] for layer in layers}, before.image_sizes)

    def _compiled(self, group: Group, inputs: Any, affines: SiteEdits, truth: Any) -> Any:
        behind = tuple(layer for layer in self.captured if network_order(layer) >= network_order(group.first))
        leaves, structure = jax.tree.flatten((self.backbone.params, inputs, affines, truth, self.shared))
        shapes = tuple(jax.ShapeDtypeStruct(leaf.shape, jax.dtypes.canonicalize_dtype(leaf.dtype)) for leaf in leaves)
        return compiled_pass(self.backbone.module, self.measure, behind, self.head, structure, shapes)
