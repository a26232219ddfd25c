"""Stacks of equal blocks: one parameter tree with a leading layer axis, run by `lax.scan`, with captures on request.

Scanning compiles one block instead of a whole stack. Where captures or edited sites change from block to block, the stack is cut
into runs of blocks with the same ones, so that only captured values are stacked in memory, and only edited blocks pay for edits.
"""

import dataclasses
import itertools
from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike

from und3rstand_jax.model.affine import Affine, SiteEdits
from und3rstand_jax.model.block_sites import BlockSites
from und3rstand_jax.model.layer_ids import stack_positions

Params = dict[str, Any]
"""A parameter tree: nested dicts with arrays as leaves."""

Streams = tuple[jax.Array, ...]
"""Token arrays that go through a stack together: (B, N, C) each."""

Position = tuple[int, str]
"""One place in a stack: index of the block, name of the step."""

P = TypeVar("P")

BlockEdits = Mapping[str, tuple[Affine | None, ...]]
"""Site within one block -> its edit in each stream."""


def stacked(init: Callable[[jax.Array], Mapping[str, Any]], depth: int) -> Callable[[jax.Array], Params]:
    """An initialiser of `depth` blocks, each drawn independently by `init(key)["params"]`."""
    return lambda key: jax.vmap(init)(jax.random.split(key, depth))["params"]


@dataclasses.dataclass(frozen=True)
class Run:
    """Consecutive blocks [start, stop) with the same captured and edited sites.

    The first begins after its step `since`, if that is given; each ends at the site `until`.
    """

    start: int
    stop: int
    captured: tuple[str, ...]
    until: str
    since: str | None = None

    def sites(self, edits: BlockEdits, stream: int) -> BlockSites:
        """What happens at the sites of one stream in one of the blocks."""
        ours = {site: affine for site, views in edits.items() if (affine := views[stream]) is not None}
        return BlockSites(self.captured, ours, self.since, self.until)


Block = Callable[[P, Streams, Streams, Run, BlockEdits], dict[str, Streams]]
"""(parameters of one block, streams, streams before the block, the block's run, its edits) -> streams at each site that is kept."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """Where a stack is entered: after step `since` of a block, or at its beginning."""

    block: int
    since: str | None = None


def plan_runs(
    steps: tuple[str, ...],
    depth: int,
    needed: Collection[Position],
    edits: Mapping[int, BlockEdits] = MappingProxyType({}),
    entry: Entry = Entry(0),
) -> tuple[Run, ...]:
    """The runs of blocks that yield every needed position and compute nothing after the last of them.

    Args:
        steps: what a block can return, in the order in which it computes it.
        depth: number of blocks.
        needed: the positions to capture, after the entry.
        edits: those of each block that has any.
        entry: where the stack is entered.
    """
    if not needed:
        return ()
    last_block, last_step = max((index, steps.index(step)) for index, step in needed)
    if last_block >= depth:
        raise ValueError(f"block {last_block} is needed, but the stack has {depth} blocks")

    def kind(index: int) -> tuple[tuple[str, ...], str, str | None, object]:
        captured = tuple(step for step in steps if (index, step) in needed)
        until = steps[last_step] if index == last_block else steps[-1]
        return captured, until, entry.since if index == entry.block else None, _axes(edits.get(index, {}))

    runs = []
    for (captured, until, since, _), group in itertools.groupby(range(entry.block, last_block + 1), key=kind):
        indices = list(group)
        runs.append(Run(indices[0], indices[-1] + 1, captured, until, since))
    return tuple(runs)


def _axes(edits: BlockEdits) -> object:
    """The part of a block's edits on which the compiled program depends."""
    return sorted((site, str(jax.tree.map(np.shape, views))) for site, views in edits.items())


def block_edits(stack: str, edits: SiteEdits) -> dict[int, BlockEdits]:
    """The edits, by site within the block, of each block that has any in the stack of this name."""
    found: dict[int, dict[str, tuple]] = {}
    for site, views in edits.items():
        for index, within in stack_positions(stack, [site]):
            found.setdefault(index, {})[within] = views
    return dict(found)


def stack_entry(since: str | None, steps: tuple[str, ...]) -> Entry:
    """Where a stack whose blocks have these steps is entered by a pass that begins after the layer `since`."""
    parts = () if since is None else since.split(".", 2)
    if len(parts) < 3:
        return Entry(0)  # from the images, or the embedding before the blocks
    _, index, step = parts
    return Entry(int(index) + 1) if step == steps[-1] else Entry(int(index), step)


def run_stack(
    block: Block[P],
    params: P,
    streams: Streams,
    runs: tuple[Run, ...],
    unroll: bool,
    edits: Mapping[int, BlockEdits] = MappingProxyType({}),
    before: Streams | None = None,
    remat: bool = False,
    capture_dtype: DTypeLike | None = None,
) -> dict[Position, Streams]:
    """Runs a planned stack; the result holds exactly the captured positions.

    Args:
        block: one block of the stack.
        params: its parameters; the first axis of every leaf is the block.
        streams: the tokens that the first run begins with.
        runs: what to run and keep, from `plan_runs`.
        unroll: write the blocks out instead of scanning: a longer program, which compiles more slowly.
        edits: those of each block that has any; edits of blocks that are not run are ignored.
        before: the tokens before the first run's block, if the run begins in the block's middle.
        remat: whether the backward pass recomputes each block instead of storing its intermediate values.
        capture_dtype: the dtype of captures, by default their own. Converted after the stack, they would be in memory twice.
    """
    kept: dict[Position, Streams] = {}
    for run in runs:

        def body(
            streams: Streams, index_and_edits: tuple[jax.Array | int, BlockEdits], run: Run = run
        ) -> tuple[Streams, dict[str, Streams]]:
            index, edits = index_and_edits
            # Indexing inside the loop reads one block's weights; slicing the stack outside would copy the run's.
            of_block = jax.tree.map(lambda leaf: jnp.asarray(leaf)[index], params)
            after = block(of_block, streams, streams if run.since is None or before is None else before, run, edits)
            captured = {step: after[step] for step in run.captured}
            if capture_dtype is not None:
                captured = jax.tree.map(lambda x: x.astype(capture_dtype), captured)
            return after[run.until], captured

        if remat:
            body = jax.checkpoint(body)
        of_run = [dict(edits.get(index, {})) for index in range(run.start, run.stop)]
        if unroll or len(of_run) == 1:
            for index, of_block in zip(range(run.start, run.stop), of_run, strict=True):
                streams, captured = body(streams, (index, of_block))
                kept.update({(index, step): value for step, value in captured.items()})
        else:
            xs = jnp.arange(run.start, run.stop), jax.tree.map(lambda *leaves: jnp.stack(leaves), *of_run)
            streams, stacked = lax.scan(body, streams, xs)
            for step, values in stacked.items():
                kept.update({(run.start + i, step): tuple(v[i] for v in values) for i in range(run.stop - run.start)})
    return kept
