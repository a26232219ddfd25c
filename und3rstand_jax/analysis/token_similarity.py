"""How alike two sets of tokens are, and how many dimensions one uses: linear CKA, effective rank, mean cosine.

Linear CKA (Kornblith et al. 2019, "Similarity of neural network representations revisited") is HSIC(K, L) / √(HSIC(K, K) · HSIC(L, L)) of
the Gram matrices of the same N samples in two representations. HSIC is estimated without bias (Song et al. 2012), as the inner product
of U-centred matrices (Székely and Rizzo 2014), whose mean over sets of samples may be taken before the ratio (Nguyen et al. 2021).
"""

from concurrent.futures import ThreadPoolExecutor

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float

LEAST_SAMPLES = 4
"""Fewer samples have no unbiased HSIC."""

_EXACT = lax.Precision.HIGHEST


def gram(tokens: Float[Array, "*L N C"]) -> Float[Array, "*L N N"]:
    """Inner products of the tokens, after subtracting their mean."""
    centred = _centred(tokens)
    return jnp.matmul(centred, jnp.swapaxes(centred, -1, -2), precision=_EXACT)


def u_centred(grams: Float[Array, "*L N N"], kept: Bool[Array, " N"] | None = None) -> Float[Array, "*L N N"]:
    """Gram matrices without diagonal, row and column means, such that their inner products estimate HSIC without bias.

    Args:
        grams: symmetric.
        kept: the samples that count; all by default. Rows and columns of others are 0.
    """
    samples = grams.shape[-1]
    kept = jnp.ones(samples, bool) if kept is None else kept
    counted = kept[:, None] & kept[None] & ~jnp.eye(samples, dtype=bool)
    count = jnp.sum(kept)
    off = jnp.where(counted, grams, 0.0)
    rows = jnp.sum(off, axis=-1, keepdims=True)
    total = jnp.sum(rows, axis=-2, keepdims=True)
    of_rows = (rows + jnp.swapaxes(rows, -1, -2)) / jnp.maximum(count - 2, 1)
    return jnp.where(counted, off - of_rows + total / jnp.maximum((count - 1) * (count - 2), 1), 0.0)


def inner(one: Float[Array, "... N N"], two: Float[Array, "... N N"], count: Array | int) -> Float[Array, "..."]:
    """HSIC of every U-centred matrix of `one` with every one of `two`, of `count` samples; axes of `one`, then of `two`.

    NaN for fewer than `LEAST_SAMPLES`.
    """
    products = jnp.tensordot(one, two, axes=((-2, -1), (-2, -1)), precision=_EXACT)
    return jnp.where(count >= LEAST_SAMPLES, products / jnp.maximum(count * (count - 3), 1), jnp.nan)


def linear_cka(one: Float[Array | np.ndarray, "N C1"], two: Float[Array | np.ndarray, "N C2"]) -> Float[Array, ""]:
    """Linear CKA of a set of samples in two representations: about 0 if independent, 1 if equal up to a rotation, factor and shift.

    An estimate may be below 0. NaN for fewer than `LEAST_SAMPLES`, and where a representation is constant.
    """
    of_one, of_two = u_centred(gram(jnp.asarray(one))), u_centred(gram(jnp.asarray(two)))
    own = inner(of_one, of_one, len(one)) * inner(of_two, of_two, len(one))
    return jnp.where(own > 0, inner(of_one, of_two, len(one)) / jnp.sqrt(own), jnp.nan)


def effective_rank(tokens: Float[np.ndarray, "*L N C"]) -> Float[np.ndarray, "*L"]:
    """The exponential of the entropy of the normalised eigenvalues of the tokens' covariance (Roy and Vetterli 2007), on the host.

    k for tokens that use k dimensions evenly; NaN for tokens that are all equal.
    """
    sets = tokens.reshape(-1, *tokens.shape[-2:])
    # Not on the device: on CPUs, XLA may deadlock when it computes eigenvalues of several arrays at once.
    with ThreadPoolExecutor() as pool:
        return np.array(list(pool.map(_rank_of_set, sets)), np.float64).reshape(tokens.shape[:-2])


def _rank_of_set(tokens: Float[np.ndarray, "N C"]) -> float:
    wide = tokens.astype(np.float32)
    centred = wide - wide.mean(axis=0, dtype=np.float64).astype(np.float32)
    if len(centred) < centred.shape[1]:
        centred = centred.T
    values = np.maximum(np.linalg.eigvalsh(centred.T @ centred).astype(np.float64), 0.0)
    if not values.sum() > 0:
        return np.nan
    shares = values[values > 0] / values.sum()
    return float(np.exp(-np.sum(shares * np.log(shares))))


def mean_cosine(tokens: Float[Array, "*L N C"]) -> Float[Array, "*L"]:
    """The mean cosine between two different tokens, without centring: 1 if all have one direction. NaN for one token."""
    wide = tokens.astype(jnp.float32)
    length = jnp.linalg.norm(wide, axis=-1, keepdims=True)
    summed = jnp.sum(wide / jnp.maximum(length, 1e-30), axis=-2)
    count = tokens.shape[-2]
    return (jnp.sum(summed**2, axis=-1) - count) / (count * (count - 1) if count > 1 else jnp.nan)


def ratio_of_means(
    cross: Float[np.ndarray, "S ..."], one: Float[np.ndarray, "S ..."], two: Float[np.ndarray, "S ..."]
) -> tuple[Float[np.ndarray, "..."], Float[np.ndarray, "..."]]:
    """CKA over S pairs of views: the ratio of the mean HSICs, and its jackknife standard error over pairs.

    Pairs in which any of the three is NaN do not count.
    """
    known = ~np.isnan(cross + one + two)
    count = known.sum(axis=0)
    sums = [np.asarray(np.where(known, values, 0.0).sum(axis=0, dtype=np.float64)) for values in (cross, one, two)]

    def ratio(cross: Float[np.ndarray, "..."], one: Float[np.ndarray, "..."], two: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        with np.errstate(invalid="ignore", divide="ignore"):  # undefined for constant tokens
            return np.where((one > 0) & (two > 0), cross / np.sqrt(one * two), np.nan)

    without = ratio(*(total - np.where(known, values, 0.0) for total, values in zip(sums, (cross, one, two), strict=True)))
    without = np.where(known, without, np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        centre = np.where(known, without, 0.0).sum(axis=0) / count
        squares = np.where(known, (without - centre) ** 2, 0.0).sum(axis=0)
        error = np.where(count > 1, np.sqrt((count - 1) / count * squares), np.nan)
    return ratio(*sums), error


def _centred(tokens: Float[Array, "*L N C"]) -> Float[Array, "*L N C"]:
    wide = tokens.astype(jnp.float32)
    return wide - jnp.mean(wide, axis=-2, keepdims=True)
