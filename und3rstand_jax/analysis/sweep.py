"""Many edits on many pairs of views, without computing anything twice.

    pairs ─▶ one unedited pass ─▶ streams before each edit ─▶ edited passes from there on ─▶ measure, on the device
                                                                                              └─▶ finish, on the host

Edits of the same sites run one compiled program, which begins at the layer before the first of them: knocking out every head of a
block costs the blocks behind it, for each head, and nothing of what lies before.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from und3rstand_jax.analysis.sweep_pass import Measure, Measured, chunks, compiled_pass, for_both_views, of_pairs, stack_affines
from und3rstand_jax.model.affine import SiteEdits
from und3rstand_jax.model.backbone import Backbone, Image
from und3rstand_jax.model.edits import Edits
from und3rstand_jax.model.layer_ids import network_order
from und3rstand_jax.model.output import BackboneOutput
from und3rstand_jax.model.sites import select_captures, select_sites
from und3rstand_jax.model.start import start_layers
from und3rstand_jax.support.errors import OptionError
from und3rstand_jax.support.machine import free_memory
from und3rstand_jax.support.pieces import Pieces
from und3rstand_jax.support.progress import progress_bar

Finish = Callable[[Mapping[str, np.ndarray], Sequence[int]], Mapping[str, np.ndarray]]
"""From what was measured of B pairs and the pairs' numbers, on the host, to what is kept; called from threads."""

_SHARE_OF_MEMORY = 0.8


@dataclasses.dataclass(frozen=True)
class Group:
    """Edits that run one program.

    Attributes:
        members: their numbers.
        start: the layer after which the program begins; None for the images.
    """

    members: tuple[int, ...]
    start: str | None


def sweep(
    backbone: Backbone,
    views: tuple[Image, Image],
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

    Args:
        backbone: the model.
        views: both views of S pairs; all pairs are held in memory, and the tokens before every edit of `batch_size` of them.
        edits: any number; `Edits()` among them is the unedited run. A scale or shift with S along its first axis has each pair's own.
        measure: what to measure; compiled with the model. Of an edit, it sees those captures that lie behind it or at it.
        truth: a pytree of arrays (S, …) that `measure` is given beside the output.
        shared: a pytree of arrays that it is given as they are, such as the parameters of probes.
        finish: what to make of that on the host, while the device goes on.
        capture: layers to capture for `measure`, by pattern.
        head: whether to run the model's head; by default where it has one.
        batch_size: most pairs in one pass; fewer where the memory does not hold as many.
        pieces: where finished parts are kept, so that an interrupted sweep goes on; by default nowhere.
        progress: whether a terminal shows a progress bar.

    Returns:
        Of each edit what was measured, (S, …), on the host.

    Raises:
        LayerError, EditError: an edit cannot be made.
        OptionError: there is no pair.
    """
    one, two = (np.asarray(view) for view in views)
    count = len(one)
    if not count or batch_size < 1:
        raise OptionError(f"a sweep needs at least one pair and a batch of one; found {count} pairs, and a batch of {batch_size}")
    has_head = backbone.config.head_type is not None if head is None else head
    program = _Program(backbone, measure, shared, select_captures(capture, backbone.config), has_head, finish)
    groups = grouped(edits, backbone, (one, two))
    truth = jax.tree.map(np.asarray, truth)
    most = program.fitting(batch_size, groups, edits, (one, two), truth)
    together = min(most, count)
    found: list[list[dict[str, np.ndarray]]] = [[] for _ in edits]
    with progress_bar("sweep", len(edits) * count, "pass", progress) as advance:
        for low in range(0, count, together):
            pairs = range(low, min(low + together, count))
            chunk = jax.tree.map(lambda leaf, pairs=pairs: leaf[pairs.start : pairs.stop], ((one, two), truth))
            at_once = max(1, most // len(pairs))
            for members, results in program.run(groups, edits, pairs, chunk[0], chunk[1], at_once, pieces):
                for number, result in zip(members, results, strict=True):
                    found[number].append(result)
                advance(len(members) * len(pairs))
    return [{name: np.concatenate([part[name] for part in parts]) for name in parts[0]} for parts in found]


def grouped(edits: Sequence[Edits], backbone: Backbone, views: tuple[Image, Image]) -> list[Group]:
    """The edits by the program that they run; the earliest start first.

    Raises:
        LayerError, EditError: an edit cannot be made on views like these.
    """
    config, same_size = backbone.config, np.shape(views[0]) == np.shape(views[1])
    found: dict[object, list[int]] = {}
    starts: dict[object, str | None] = {}
    for number, some in enumerate(edits):
        # Neutral numbers take the other view's place, so that both views' edits are one program.
        kind = tuple(
            (
                tuple(site.id for site in select_sites(edit.site, config)),
                None if same_size else edit.view,
                tuple(getattr(edit, name) is None for name in ("heads", "tokens", "queries", "keys", "pairs")),
                np.shape(edit.scale),
                np.shape(edit.shift),
            )
            for edit in some
        )
        found.setdefault(kind, []).append(number)
        starts[kind] = start_of(some, backbone)
    groups = [Group(tuple(members), starts[kind]) for kind, members in found.items()]
    return sorted(groups, key=lambda group: () if group.start is None else network_order(group.start))


def start_of(edits: Edits, backbone: Backbone) -> str | None:
    """The last layer from which a pass sees all of the edits; None to begin with the images, as a pass without edits does."""
    order = backbone.config.layer_ids
    first = []
    for edit in edits:
        for site in select_sites(edit.site, backbone.config):
            first.append(order.index(site.layer_id) - (site.part is not None))
    return order[min(first)] if min(first, default=-1) >= 0 else None


@dataclasses.dataclass
class _Program:
    """What all passes of a sweep have in common."""

    backbone: Backbone
    measure: Measure
    shared: Any
    captured: tuple[str, ...]
    head: bool
    finish: Finish | None

    def fitting(self, most: int, groups: Sequence[Group], edits: Sequence[Edits], views: tuple, truth: Any) -> int:
        """The largest batch, halved from `most` on, whose longest pass fits into memory."""
        free = free_memory()
        while most > 1 and free is not None:
            pairs = min(most, len(views[0]))
            chunk_views, chunk_truth = jax.tree.map(lambda leaf, pairs=pairs: leaf[:pairs], (views, truth))
            inputs = jax.eval_shape(lambda views: self._inputs(groups[0], self._before(groups, views), views), chunk_views)
            numbers = chunks(groups[0].members, most // pairs)[0]
            affines = stack_affines([self._affines(edits[number], range(pairs), chunk_views) for number in numbers])
            memory = self._compiled(groups[0], inputs, affines, chunk_truth).memory_analysis()
            if memory is None or memory.temp_size_in_bytes + memory.output_size_in_bytes < _SHARE_OF_MEMORY * free:
                break
            most = (most + 1) // 2
        return most

    def run(
        self, groups: Sequence[Group], edits: Sequence[Edits], pairs: range, views: tuple, truth: Any, at_once: int, pieces: Pieces | None
    ) -> Iterator[tuple[tuple[int, ...], list[dict[str, np.ndarray]]]]:
        """Numbers of edits, and of each what was measured of these pairs; group by group, from `pieces` where it is there."""
        before: BackboneOutput | None = None
        with ThreadPoolExecutor(2) as pool:
            pending: list[tuple[Group, list[Future]]] = []
            for group in groups:
                name = f"{pairs} {group.members}"
                kept = None if pieces is None else pieces.read(name)
                if kept is not None:
                    yield group.members, [{key: values[index] for key, values in kept.items()} for index in range(len(group.members))]
                    continue
                if before is None:
                    before = self._before(groups, views)
                futures = []
                for numbers in chunks(group.members, at_once):
                    affines = stack_affines([self._affines(edits[number], pairs, views) for number in numbers])
                    inputs = self._inputs(group, before, views)
                    compiled = self._compiled(group, inputs, affines, truth)
                    measured = compiled(self.backbone.params, inputs, affines, truth, self.shared)
                    futures.append(pool.submit(self._finished, measured, len(numbers), pairs))
                pending.append((group, futures))
                # The host finishes one group while the device is at the next.
                if len(pending) > 1:
                    yield self._kept(*pending.pop(0), pairs, pieces)
            for group, futures in pending:
                yield self._kept(group, futures, pairs, pieces)

    def _kept(
        self, group: Group, futures: Sequence[Future], pairs: range, pieces: Pieces | None
    ) -> tuple[tuple[int, ...], list[dict[str, np.ndarray]]]:
        results = [result for future in futures for result in future.result()][: len(group.members)]
        if pieces is not None:
            pieces.write(f"{pairs} {group.members}", {name: np.stack([result[name] for result in results]) for name in results[0]})
        return group.members, results

    def _finished(self, measured: Measured, edits: int, pairs: range) -> list[dict[str, np.ndarray]]:
        arrays = {name: np.asarray(values) for name, values in measured.items()}
        if self.finish is not None:
            arrays = dict(self.finish(arrays, [*pairs] * edits))
        return [{name: values[i * len(pairs) : (i + 1) * len(pairs)] for name, values in arrays.items()} for i in range(edits)]

    def _before(self, groups: Sequence[Group], views: tuple) -> BackboneOutput:
        """One unedited pass with the tokens that every group begins with."""
        config = self.backbone.config
        wanted = {layer for group in groups if group.start for layer in start_layers(group.start, config, self.head)}
        return self.backbone(views[0], views[1], capture=tuple(wanted), head=False)

    def _inputs(self, group: Group, before: BackboneOutput, views: tuple) -> Any:
        if group.start is None:
            return views
        layers = start_layers(group.start, self.backbone.config, self.head)
        return BackboneOutput({layer: before.activations[layer] for layer in layers}, before.image_sizes)

    def _affines(self, edits: Edits, pairs: range, views: tuple) -> SiteEdits:
        ours = Edits(tuple(of_pairs(edit, pairs) for edit in edits))
        resolved = self.backbone.resolve(ours, views)
        same_size = np.shape(views[0]) == np.shape(views[1])
        return {site: for_both_views(affines) for site, affines in resolved.items()} if same_size else resolved

    def _compiled(self, group: Group, inputs: Any, affines: SiteEdits, truth: Any) -> Any:
        behind = tuple(layer for layer in self.captured if group.start is None or network_order(layer) >= network_order(group.start))
        leaves, structure = jax.tree.flatten((self.backbone.params, inputs, affines, truth, self.shared))
        shapes = tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves)
        return compiled_pass(self.backbone.module, self.measure, behind, self.head, structure, shapes)
