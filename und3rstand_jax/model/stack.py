"""Stacks of equal blocks: one parameter tree with a leading layer axis, run by `lax.scan`, captured where asked.

Scanning compiles one block instead of a whole stack. Where the capture changes from block to block, the stack is cut
into runs of blocks with the same capture, so that only what is asked for is ever stacked in memory.
"""

import dataclasses
import itertools
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

Params = dict[str, Any]
"""A parameter tree: nested dicts with arrays as leaves."""

Streams = tuple[jax.Array, ...]
"""Token arrays that go through a stack together: (B, N, C) each."""

Position = tuple[int, str]
"""One place in a stack: index of the block, name of the step."""

P = TypeVar("P")

Block = Callable[[P, Streams, str, Collection[str]], dict[str, Streams]]
"""(parameters of one block, streams, last step to run, captured steps) -> streams after each step."""


def stacked(init: Callable[[jax.Array], Mapping[str, Any]], depth: int) -> Callable[[jax.Array], Params]:
    """An initialiser of `depth` blocks, each drawn independently by `init(key)["params"]`."""
    return lambda key: jax.vmap(init)(jax.random.split(key, depth))["params"]


@dataclasses.dataclass(frozen=True)
class Run:
    """Consecutive blocks [start, stop) with the same captured steps; each ends after the step `until`."""

    start: int
    stop: int
    captured: tuple[str, ...]
    until: str


def plan_runs(steps: tuple[str, ...], depth: int, needed: Collection[Position]) -> tuple[Run, ...]:
    """The runs of blocks that yield every needed position and compute nothing after the last of them.

    Args:
        steps: what a block can return, in the order in which it computes it.
        depth: number of blocks.
        needed: the positions to capture.
    """
    if not needed:
        return ()
    last_block, last_step = max((index, steps.index(step)) for index, step in needed)
    if last_block >= depth:
        raise ValueError(f"block {last_block} is needed of a stack of {depth}")

    def kind(index: int) -> tuple[tuple[str, ...], str]:
        captured = tuple(step for step in steps if (index, step) in needed)
        return captured, steps[last_step] if index == last_block else steps[-1]

    runs = []
    for (captured, until), group in itertools.groupby(range(last_block + 1), key=kind):
        indices = list(group)
        runs.append(Run(indices[0], indices[-1] + 1, captured, until))
    return tuple(runs)


def run_stack(block: Block[P], params: P, streams: Streams, runs: tuple[Run, ...], unroll: bool) -> dict[Position, Streams]:
    """Runs a planned stack; the result holds exactly the captured positions.

    Args:
        block: one block of the stack.
        params: its parameters; the first axis of every leaf is the block.
        streams: the tokens before block 0.
        runs: what to run and keep, from `plan_runs`.
        unroll: write the blocks out instead of scanning: a longer program, which compiles more slowly.
    """
    kept: dict[Position, Streams] = {}
    for run in runs:

        def body(streams: Streams, index: jax.Array | int, run: Run = run) -> tuple[Streams, dict[str, Streams]]:
            # Indexing inside the loop reads one block's weights; slicing the stack outside would copy the run's.
            after = block(jax.tree.map(lambda leaf: jnp.asarray(leaf)[index], params), streams, run.until, run.captured)
            return after[run.until], {step: after[step] for step in run.captured}

        if unroll or run.stop - run.start == 1:
            for index in range(run.start, run.stop):
                streams, captured = body(streams, index)
                kept.update({(index, step): value for step, value in captured.items()})
        else:
            streams, stacked = lax.scan(body, streams, jnp.arange(run.start, run.stop))
            for step, values in stacked.items():
                kept.update({(run.start + i, step): tuple(v[i] for v in values) for i in range(run.stop - run.start)})
    return kept
