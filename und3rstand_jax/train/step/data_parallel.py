"""Data parallelism: one program on every device of every host, each with its own pairs and the same parameters."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

T = TypeVar("T")


AXIS = "devices"


def total(values: T) -> T:
    """The sum of each leaf over all devices of all hosts; for use inside `parallel`."""
    return lax.psum(values, AXIS)


def parallel(step: Callable[..., Any], donate: tuple[int, ...] = (), devices: Sequence[jax.Device] | None = None) -> Any:
    """`step` on every device; every argument and result has a leading axis, one entry a local device."""
    return jax.pmap(step, axis_name=AXIS, donate_argnums=donate, devices=devices)


def replicate(tree: T) -> T:
    """Every leaf on every local device, with the leading axis that `parallel` takes.

    Leaf by leaf, letting go of each where nobody else holds it: a full-size backbone never lies in memory twice.
    """
    sharding = NamedSharding(Mesh(np.asarray(jax.devices()), (AXIS,)), PartitionSpec(AXIS))
    leaves, structure = jax.tree.flatten(tree)
    del tree
    copied = []
    while leaves:
        copied.append(_replicate_leaf(leaves.pop(0), sharding))
    return jax.tree.unflatten(structure, copied)


def _replicate_leaf(leaf: Any, sharding: NamedSharding) -> jax.Array:
    row = leaf[None] if hasattr(leaf, "shape") else np.asarray(leaf)[None]
    shards = [jax.device_put(row, device) for device in jax.local_devices()]
    return jax.make_array_from_single_device_arrays((jax.device_count(), *row.shape[1:]), sharding, shards)


def split(tree: T) -> T:
    """A host's part of a batch, (pairs, …), as (local devices, pairs of a device, …)."""
    local = jax.local_device_count()
    return jax.tree.map(lambda leaf: leaf.reshape(local, leaf.shape[0] // local, *leaf.shape[1:]), tree)


def first(tree: T) -> T:
    """What the first local device holds, as NumPy arrays of this process's own."""
    return jax.tree.map(lambda leaf: np.array(leaf.addressable_shards[0].data[0]), tree)
