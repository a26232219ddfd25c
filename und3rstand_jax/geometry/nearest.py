"""The most similar of many descriptors, without a matrix of all pairs in memory."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

# Targets compared at a time. Each block's maximum is taken first, and its place is searched only in the best block: XLA's argmax takes
# nine times as long on CPUs, where 512 rows stay in the cache. `python -m benchmarks.matching` measures it.
_BLOCK = 512
_MOST_QUERIES = 4096
_FEWEST_QUERIES = 64
_PLACED_AT_ONCE = 64


class Descriptors:
    """The descriptors of all pixels of a view, on the device, to search for the most similar ones.

    Pixels have the flat index y·W + x. A descriptor that is not finite is similar to none.
    """

    def __init__(self, descriptors: Float[Array | np.ndarray, "H W D"]) -> None:
        flat = jnp.asarray(descriptors, jnp.float32).reshape(-1, descriptors.shape[-1])
        self.shape = (int(descriptors.shape[0]), int(descriptors.shape[1]))
        self.known: Bool[np.ndarray, " N"] = np.asarray(jnp.isfinite(flat).all(axis=-1))
        self._flat = flat
        beyond = -len(flat) % _BLOCK
        self._rows = jnp.pad(jnp.where(self.known[:, None], flat, 0.0), ((0, beyond), (0, 0)))
        self._usable = jnp.pad(jnp.asarray(self.known), (0, beyond))

    def of(self, places: Int[np.ndarray, " Q"]) -> Float[Array, "Q D"]:
        """The descriptors at flat indices."""
        return self._flat[jnp.asarray(places)]

    def nearest(self, queries: Float[Array, "Q D"]) -> Int[np.ndarray, " Q"]:
        """The flat index of the pixel most similar to each query: the largest dot product, the first of equal ones."""
        if not self.known.any():
            raise ValueError("no descriptor of the view is finite")
        found = []
        for low in range(0, len(queries), _MOST_QUERIES):
            part = queries[low : low + _MOST_QUERIES]
            # Few sizes, so few programs to compile.
            size = max(_FEWEST_QUERIES, 1 << (len(part) - 1).bit_length())
            padded = jnp.pad(part, ((0, size - len(part)), (0, 0)))
            found.append(np.asarray(_nearest(padded, self._rows, self._usable))[: len(part)])
        return np.concatenate(found) if found else np.empty(0, np.int32)


@jax.jit
def _nearest(queries: Float[Array, "Q D"], rows: Float[Array, "N D"], usable: Bool[Array, " N"]) -> Int[Array, " Q"]:
    def similarity(block: Int[Array, ""], queries: Float[Array, "q D"]) -> Float[Array, "block q"]:
        some = lax.dynamic_slice_in_dim(rows, block * _BLOCK, _BLOCK)
        known = lax.dynamic_slice_in_dim(usable, block * _BLOCK, _BLOCK)
        return jnp.where(known[:, None], jnp.matmul(some, queries.T, precision=lax.Precision.HIGHEST), -jnp.inf)

    def better(best: tuple[Array, Array], block: Int[Array, ""]) -> tuple[tuple[Array, Array], None]:
        largest = similarity(block, queries).max(axis=0)
        return (jnp.maximum(best[0], largest), jnp.where(largest > best[0], block, best[1])), None

    nothing = jnp.full(len(queries), -jnp.inf), jnp.zeros(len(queries), jnp.int32)
    (_, blocks), _ = lax.scan(better, nothing, jnp.arange(len(rows) // _BLOCK, dtype=jnp.int32))

    def place(query_and_block: tuple[Array, Array]) -> Int[Array, ""]:
        query, block = query_and_block
        return block * _BLOCK + jnp.argmax(similarity(block, query[None])[:, 0]).astype(jnp.int32)

    return lax.map(place, (queries, blocks), batch_size=_PLACED_AT_ONCE)
