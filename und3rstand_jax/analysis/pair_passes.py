"""Edited passes of one pair by one compiled program, whichever heads are set to zero.

Edits of different sites are different programs, and for one pair and a small model, compiling takes longer than running. So every pass
edits all heads of the blocks, most of them with an edit that changes nothing.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from und3rstand_jax.analysis.inputs import Inputs
from und3rstand_jax.analysis.steps import kinds_of, pattern_of
from und3rstand_jax.analysis.sweep import Finish, sweep
from und3rstand_jax.analysis.view_set import Views
from und3rstand_jax.geometry.cameras import ViewGeometry
from und3rstand_jax.model.backbone import Backbone
from und3rstand_jax.model.config import ModelConfig
from und3rstand_jax.model.edits import Edit, Edits
from und3rstand_jax.model.output import BackboneOutput, Grids
from und3rstand_jax.model.sites import HEADS

AT_ONCE = 12
"""Passes in one batch."""


def edited_passes(
    model: Backbone,
    inputs: Inputs,
    edits: Sequence[Edits],
    measure: Callable[[Views], Mapping[str, np.ndarray]],
    progress: bool = False,
) -> list[dict[str, np.ndarray]]:
    """Runs the pair once with each of the edits.

    Args:
        model: a backbone with a head.
        inputs: the pair.
        edits: knock-outs of the blocks' heads, by `knock_out`.
        measure: maps the head's points of both views to what is kept of a pass; called from threads.
        progress: whether a terminal shows a progress bar.

    Returns:
        What was measured, for each edit.
    """

    def finish(measured: Mapping[str, np.ndarray], pairs: Sequence[int]) -> dict[str, np.ndarray]:
        found = [measure(_views(measured, index)) for index in range(len(pairs))]
        return {name: np.stack([one[name] for one in found]) for name in found[0]}

    return [{name: values[0] for name, values in one.items()} for one in _passes(model, inputs, edits, finish, progress)]


def edited_views(model: Backbone, inputs: Inputs, edits: Sequence[Edits]) -> list[Views]:
    """Both views' geometry from the head, with the pair run once for each of the edits; see `edited_passes`."""
    return [_views(one, 0) for one in _passes(model, inputs, edits)]


def _passes(
    model: Backbone, inputs: Inputs, edits: Sequence[Edits], finish: Finish | None = None, progress: bool = False
) -> list[dict[str, np.ndarray]]:
    unchanged = _unchanged(model.config)
    # Padded to one batch: fewer would be another program.
    filled = [*edits, *[Edits()] * (AT_ONCE - len(edits))]
    found = sweep(model, inputs.views, [unchanged + some for some in filled], _points, finish=finish, batch_size=AT_ONCE, progress=progress)
    return found[: len(edits)]


def block_flops(config: ModelConfig, grids: Grids) -> int:
    """Flops of the matrix products of all blocks where views meet, in one pass over all views; a multiply-add counts as two."""
    width, views = config.block_width, range(len(grids))

    def of_step(step: str) -> int:
        tokens = [config.token_count(step, grid) for grid in grids]
        # An attention has four square matrices, an MLP two that are `mlp_ratio` times as long.
        if not step.endswith("_attn"):
            return 2 * config.mlp_ratio * width * width * sum(tokens)
        attended = sum(tokens[view] * config.attention_keys(step, grids, view) for view in views)
        return 4 * width * width * sum(tokens) + 2 * width * attended

    return 2 * sum(of_step(step) for block in config.blocks for step in block.steps)


def _unchanged(config: ModelConfig) -> Edits:
    heads = range(config.block_heads)
    kinds = kinds_of(config)
    return Edits(tuple(Edit(pattern_of(kind, config, HEADS), heads=heads) for kind in (kinds.own, kinds.across)))


def _points(output: BackboneOutput, truth: Any, shared: Any) -> dict[str, Array]:
    both = enumerate(output.pointmaps, start=1)
    return {f"{name}{view}": jnp.asarray(values) for view, of_view in both for name, values in of_view.items()}


def _views(measured: Mapping[str, np.ndarray], index: int) -> Views:
    def of_view(view: int) -> ViewGeometry:
        confidence = measured.get(f"conf{view}")
        return ViewGeometry(measured[f"pts3d{view}"][index], None if confidence is None else confidence[index])

    return of_view(1), of_view(2)
