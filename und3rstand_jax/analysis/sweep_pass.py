"""One pass of a sweep: several edits of the same sites on several pairs, as one batch of one compiled program."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from und3rstand_jax.model.affine import Affine, SiteEdits, neutral_like
from und3rstand_jax.model.backbone import Backbone
from und3rstand_jax.model.edits import Edit, Edits
from und3rstand_jax.model.module import MultiViewModel
from und3rstand_jax.model.output import BackboneOutput
from und3rstand_jax.model.sites import parse_site

Measured: TypeAlias = Mapping[str, Array]
"""Name -> what was measured, (B, …) for B pairs."""

Measure: TypeAlias = Callable[[BackboneOutput, Any, Any], Measured]
"""A function of an edited pass over B pairs, their truth, and what all pairs share, on the device; it is traced, so it must be pure."""


@functools.lru_cache(maxsize=64)
def compiled_pass(
    module: MultiViewModel,
    measure: Measure,
    capture: tuple[str, ...],
    head: bool,
    structure: jax.tree_util.PyTreeDef,
    shapes: tuple[jax.ShapeDtypeStruct, ...],
) -> Any:
    """A pass's program, compiled ahead of its first run to find out how much memory it takes. A later sweep gets it from the cache."""
    return _pass.lower(module, measure, capture, head, *jax.tree.unflatten(structure, shapes)).compile()


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _pass(
    module: MultiViewModel,
    measure: Measure,
    capture: tuple[str, ...],
    head: bool,
    params: dict,
    inputs: Any,
    affines: SiteEdits,
    truth: Any,
    shared: Any,
) -> Measured:
    """E edits, stacked along the first axis of `affines`, on S pairs each, as one batch of E·S."""
    leaves = jax.tree.leaves(affines)
    edits, pairs = len(leaves[0]) if leaves else 1, len(jax.tree.leaves((inputs, truth))[0])

    def repeated(leaf: Array) -> Array:
        return _over_devices(jnp.tile(leaf, (edits, *(1,) * (leaf.ndim - 1))))

    def flat(leaf: Array) -> Array:
        return _over_devices(jnp.broadcast_to(leaf, (edits, pairs, *leaf.shape[2:])).reshape(edits * pairs, *leaf.shape[2:]))

    inputs, truth = jax.tree.map(repeated, (inputs, truth))
    images, start = (inputs, None) if isinstance(inputs, tuple) else ((), inputs)
    output = module.apply({"params": params}, *images, capture=capture, head=head, edits=jax.tree.map(flat, affines), start=start)
    return measure(cast(BackboneOutput, output), truth, shared)


def _over_devices(batch: Array) -> Array:
    """A batch split evenly over this process's devices, if it divides evenly."""
    devices = jax.local_devices()
    if len(devices) == 1 or len(batch) % len(devices):
        return batch
    mesh = Mesh(np.array(devices), ("pairs",))
    return jax.lax.with_sharding_constraint(batch, NamedSharding(mesh, PartitionSpec("pairs")))


def stack_affines(edits: Sequence[SiteEdits]) -> SiteEdits:
    """Several edits of the same sites as one, stacked along a new first axis."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *edits)


def numbers_of(backbone: Backbone, edits: Edits, pairs: range, views: tuple) -> SiteEdits:
    """The edits' numbers for some of the pairs; for all views if they have one size, so that edits of any view run one program.

    Args:
        backbone: the model.
        edits: as passed to the sweep.
        pairs: which pairs, by number.
        views: every view of these pairs.

    Raises:
        LayerError, EditError: an edit cannot be applied.
    """
    resolved = backbone.resolve(Edits(tuple(_of_pairs(edit, pairs) for edit in edits)), views)
    if len(set(map(np.shape, views))) > 1:
        return resolved
    return {site: _of_all_views(affines) for site, affines in resolved.items()}


def _of_all_views(affines: tuple[Affine | None, ...]) -> tuple[Affine, ...]:
    some = next(affine for affine in affines if affine is not None)  # a site with edits has one
    return tuple(affine or neutral_like(some) for affine in affines)


def own_numbers(edit: Edit) -> tuple[int | None, int | None]:
    """For how many pairs scale and shift have separate numbers, along the first axis; None where all pairs share them."""
    axes = 4 if parse_site(edit.site).has_heads else 3
    scale, shift = (
        np.shape(numbers)[0] if np.ndim(numbers) == axes and np.shape(numbers)[0] > 1 else None for numbers in (edit.scale, edit.shift)
    )
    return scale, shift


def _of_pairs(edit: Edit, pairs: range) -> Edit:
    """The edit with only these pairs' numbers, where each pair has its own."""
    of_scale, of_shift = own_numbers(edit)
    return dataclasses.replace(
        edit,
        scale=edit.scale if of_scale is None else np.asarray(edit.scale)[pairs.start : pairs.stop],
        shift=edit.shift if of_shift is None else np.asarray(edit.shift)[pairs.start : pairs.stop],
    )


def digest_of(tree: Any) -> str:
    """A digest of a pytree's structure and numbers; for large arrays, of every k-th number."""
    leaves, structure = jax.tree.flatten(tree)
    digest = hashlib.sha256(str(structure).encode())
    for leaf in leaves:
        values = np.asarray(leaf).ravel()
        digest.update(str(values.shape).encode())
        digest.update(np.ascontiguousarray(values[:: 1 + values.size // 2**16]).tobytes())
    return digest.hexdigest()[:16]


def chunks(members: Sequence[int], size: int) -> list[list[int]]:
    """Chunks of equal size; the last one is padded with copies of its last member, whose results are discarded."""
    chunks = [list(members[low : low + size]) for low in range(0, len(members), min(size, len(members)))]
    chunks[-1] += chunks[-1][-1:] * (len(chunks[0]) - len(chunks[-1]))
    return chunks
