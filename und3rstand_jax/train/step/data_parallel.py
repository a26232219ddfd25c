"""Data parallelism: one program on every device of every host, each with its own pairs and the same parameters.

This is the only module that knows how devices are addressed. It uses `pmap`: arguments and results have a leading axis, one entry per
device, which the rest of the package leaves to these functions. `parallel_by_shard_map` has the same arguments and results. If JAX ever
removes `pmap`, it can replace `parallel` without changes outside this module.
"""

from collections.abc import Callable, Sequence
from typing import ParamSpec, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.stages import Lowered
from jax.typing import ArrayLike

AXIS = "devices"

T = TypeVar("T")
P = ParamSpec("P")
R_co = TypeVar("R_co", covariant=True)


@runtime_checkable
class Program(Protocol[P, R_co]):
    """A function that runs on every device; it is compiled at its first call, or ahead of it."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Arguments and results have a leading axis of local devices."""
        ...

    def lower(self, *args: object) -> Lowered:
        """The program for these arguments, ready to be compiled."""
        ...


def total(values: T) -> T:
    """The sum of each leaf over all devices of all hosts; for use inside `parallel`."""
    return lax.psum(values, AXIS)


def parallel(step: Callable[P, R_co], donate: tuple[int, ...] = (), devices: Sequence[jax.Device] | None = None) -> Program[P, R_co]:
    """`step` as one program for every device. Its arguments come from `replicate` and `split`.

    Args:
        step: written for one device.
        donate: indices of the arguments whose memory the results may reuse.
        devices: the devices to compile for; all by default.
    """
    program: Program[P, R_co] = jax.pmap(step, axis_name=AXIS, donate_argnums=donate, devices=devices)
    return program


def parallel_by_shard_map(step: Callable[P, R_co], donate: tuple[int, ...] = ()) -> Program[P, R_co]:
    """`parallel` on all devices through `jax.shard_map`."""

    def own(tree: T) -> T:
        return jax.tree.map(lambda leaf: leaf[0], tree)

    def on_one_device(*args: P.args, **kwargs: P.kwargs) -> R_co:
        return jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], step(*own(args), **own(kwargs)))

    spec = PartitionSpec(AXIS)
    # The carry of a step's loops starts the same on all devices and later differs, which the check of varying axes would refuse.
    mapped = jax.shard_map(on_one_device, mesh=_sharding().mesh, in_specs=spec, out_specs=spec, check_vma=False)
    program: Program[P, R_co] = jax.jit(mapped, donate_argnums=donate)
    return program


def parallel_shapes(tree: T, devices: int) -> T:
    """The shapes of the arguments of `parallel` on `devices` devices, from those on one: to compile without data."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((devices, *leaf.shape), leaf.dtype), tree)


def replicate(tree: T) -> T:
    """Copies every leaf to every local device.

    It copies leaf by leaf, and releases each one that nothing else refers to: a full-size backbone is never in memory twice.
    """
    sharding = _sharding()
    leaves, structure = jax.tree.flatten(tree)
    del tree
    copied = []
    while leaves:
        copied.append(_replicate_leaf(leaves.pop(0), sharding))
    return jax.tree.unflatten(structure, copied)


def _replicate_leaf(leaf: ArrayLike, sharding: NamedSharding) -> jax.Array:
    row = leaf[None] if isinstance(leaf, jax.Array | np.ndarray) else np.asarray(leaf)[None]
    shards = [jax.device_put(row, device) for device in jax.local_devices()]
    return jax.make_array_from_single_device_arrays((jax.device_count(), *row.shape[1:]), sharding, shards)


def split(tree: T) -> T:
    """A host's part of a batch, (pairs, …), divided evenly among its devices."""
    local, sharding = jax.local_device_count(), _sharding()

    def divided(leaf: np.ndarray) -> jax.Array:
        rows = np.asarray(leaf).reshape(local, leaf.shape[0] // local, *leaf.shape[1:])
        return jax.make_array_from_process_local_data(sharding, rows)

    return jax.tree.map(divided, tree)


def _sharding() -> NamedSharding:
    """The sharding that puts entry i of the leading axis on device i, of all devices of all hosts."""
    return NamedSharding(Mesh(np.asarray(jax.devices()), (AXIS,)), PartitionSpec(AXIS))


def first(tree: T) -> T:
    """The first local device's values, copied into NumPy arrays."""
    return jax.tree.map(lambda leaf: np.array(leaf.addressable_shards[0].data[0]), tree)


def joined(tree: T, axis: int) -> T:
    """The values of all local devices, joined along an axis, as NumPy arrays: the inverse of `split` for results with an axis of pairs."""
    return jax.tree.map(lambda leaf: np.concatenate([np.asarray(shard.data[0]) for shard in leaf.addressable_shards], axis=axis), tree)
