"""Epipolar geometry: the fundamental matrix of two cameras, and how far correspondences are from satisfying one.

A place x₁ in view 1 and the place x₂ in view 2 of the same point satisfy x₂ᵀ F x₁ = 0, both with a 1 appended (Hartley and Zisserman,
Multiple View Geometry, 2nd edition, chapter 9). F's scale and sign are arbitrary; its rank is 2.

Places are (x, y): in pixels, with pixel centres at integers, or normalised to their image, whose centre is then 0 and whose longer side
goes from −1 to 1. One factor normalises both axes, so that angles and ratios of distances are preserved.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Key

from und3rstand_jax.geometry.loss import Target

_SAME_DEPTH = 0.02  # relative, as in `und3rstand_jax.geometry.matching`
_LEAST = 1e-12  # of squared gradients: far below those of any F of norm 1 but at its epipoles


class SeenPlaces(NamedTuple):
    """Places of both views that show the same point, normalised to the images, (B, K, 2); `seen` (B, K) says which of the K are valid."""

    places1: Float[Array, "B K 2"]
    places2: Float[Array, "B K 2"]
    seen: Bool[Array, "B K"]


def fundamental_matrix(
    intrinsics1: Float[np.ndarray, "3 3"], intrinsics2: Float[np.ndarray, "3 3"], camera2_to_1: Float[np.ndarray, "4 4"]
) -> Float[np.ndarray, "3 3"]:
    """F of two pinhole cameras for places in pixels, of Frobenius norm 1: K₂⁻ᵀ [t]ₓ R K₁⁻¹ with x₂ = R x₁ + t (Hartley and Zisserman, 9.6).

    Args:
        intrinsics1, intrinsics2: in pixels, pixel centres at integers.
        camera2_to_1: takes points from camera 2's frame (x right, y down, z forward) to camera 1's.

    Returns:
        The matrix; NaN if both cameras are in one place, which determines no F.
    """
    to_2 = np.linalg.inv(camera2_to_1.astype(np.float64))
    x, y, z = to_2[:3, 3]
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    matrix = np.linalg.inv(intrinsics2).T @ cross @ to_2[:3, :3] @ np.linalg.inv(intrinsics1)
    norm = np.linalg.norm(matrix)
    return matrix / norm if norm > 0 else np.full((3, 3), np.nan)


def normaliser(size: tuple[int, int]) -> Float[np.ndarray, "3 3"]:
    """The matrix from pixels of an image of this (height, width) to its normalised places, both with a 1 appended."""
    height, width = size
    half = half_side(size)
    return np.array([[1.0, 0.0, -(width - 1) / 2], [0.0, 1.0, -(height - 1) / 2], [0.0, 0.0, half]]) / half


def half_side(size: tuple[int, int]) -> float:
    """The pixels in a normalised distance of 1: half of the image's longer side."""
    return max(size) / 2


def normalised(matrix: Float[np.ndarray, "3 3"], size1: tuple[int, int], size2: tuple[int, int]) -> Float[np.ndarray, "3 3"]:
    """Converts F for places in pixels to F for normalised places, of Frobenius norm 1."""
    found = np.linalg.inv(normaliser(size2)).T @ matrix @ np.linalg.inv(normaliser(size1))
    return found / np.linalg.norm(found)


def normalised_places(places: Float[Array | np.ndarray, "*B K 2"], size: tuple[int, int]) -> Float[Array | np.ndarray, "*B K 2"]:
    """Converts places in pixels of an image of this (height, width) to normalised places."""
    centre = np.array([(size[1] - 1) / 2, (size[0] - 1) / 2], np.float32)
    return (places - centre) / half_side(size)


def squared_sampson(
    matrix: Float[Array, "*B 3 3"], places1: Float[Array, "*B K 2"], places2: Float[Array, "*B K 2"]
) -> Float[Array, "*B K"]:
    """Squared Sampson distance of correspondences to F: to first order, the squared distance by which both places together have to move
    to satisfy F (Hartley and Zisserman, 11.4.3), in the squared unit of the places.

    It does not depend on F's scale. Its gradient is finite everywhere, including at 0.
    """
    lines2, lines1, product = _lines(matrix, places1, places2)
    slope = jnp.sum(lines2[..., :2] ** 2, axis=-1) + jnp.sum(lines1[..., :2] ** 2, axis=-1)
    return product**2 / jnp.maximum(slope, _LEAST)


def root_sampson(matrix: Float[Array, "*B 3 3"], places1: Float[Array, "*B K 2"], places2: Float[Array, "*B K 2"]) -> Float[Array, "*B K"]:
    """The square root of `squared_sampson`, in the unit of the places, with a gradient of 0 at 0."""
    squared = squared_sampson(matrix, places1, places2)
    return jnp.where(squared > 0, jnp.sqrt(jnp.where(squared > 0, squared, 1.0)), 0.0)


def line_distances(
    matrix: Float[Array, "*B 3 3"], places1: Float[Array, "*B K 2"], places2: Float[Array, "*B K 2"]
) -> tuple[Float[Array, "*B K"], Float[Array, "*B K"]]:
    """Distances of view 1's places to the epipolar lines of view 2's, and of view 2's to those of view 1's, in the unit of the places."""
    lines2, lines1, product = _lines(matrix, places1, places2)

    def distance(lines: Array) -> Array:
        return jnp.abs(product) / jnp.sqrt(jnp.maximum(jnp.sum(lines[..., :2] ** 2, axis=-1), _LEAST))

    return distance(lines1), distance(lines2)


def smallest_singular_value(matrix: Float[Array, "*B 3 3"]) -> Float[Array, "*B"]:
    """The smallest singular value after scaling to Frobenius norm 1: 0 for a true F, whose rank is 2; at most 1/√3, for a rotation."""
    norm = jnp.linalg.norm(matrix, axis=(-2, -1), keepdims=True)
    return jnp.linalg.svd(matrix / jnp.maximum(norm, _LEAST), compute_uv=False)[..., -1]


def seen_places(keys: Key[Array, " B"], targets: tuple[Target, ...], intrinsics2: Float[Array, "B 3 3"], count: int) -> SeenPlaces:
    """Up to `count` pixels of view 1 that view 2 sees too, drawn at random without replacement, and where they are in view 2.

    A point is seen if its true depth in view 2 is within 2 % of that of view 2's surface at the nearest pixel, as in
    `und3rstand_jax.geometry.matching.true_places`.

    Args:
        keys: (B,), one for each pair.
        targets: the ground truth of both views.
        intrinsics2: of view 2's camera, in pixels, pixel centres at integers.
        count: K.
    """
    size1, size2 = ((target.valid.shape[1], target.valid.shape[2]) for target in targets)

    def of_pair(key: Key[Array, ""], one: Target, two: Target, intrinsics: Array) -> SeenPlaces:
        rows, columns = jnp.meshgrid(jnp.arange(size1[0]), jnp.arange(size1[1]), indexing="ij")
        places2, seen = _projected(one, two, intrinsics)
        order = jnp.where(seen, jax.random.uniform(key, seen.shape), -1.0).ravel()
        chosen = lax.top_k(order, count)[1]
        places1 = jnp.stack([columns, rows], axis=-1).reshape(-1, 2)[chosen].astype(jnp.float32)
        known = seen.ravel()[chosen]
        pixels = ((places1, size1), (places2.reshape(-1, 2)[chosen], size2))
        here, there = (jnp.asarray(normalised_places(places, size)) for places, size in pixels)
        return SeenPlaces(here, there, known)

    one, two = targets
    return jax.vmap(of_pair)(keys, one, two, intrinsics2)


def _projected(one: Target, two: Target, intrinsics: Float[Array, "3 3"]) -> tuple[Float[Array, "H W 2"], Bool[Array, "H W"]]:
    """Where view 1's points are in view 2 in pixels, and which of them it sees."""
    height, width = two.valid.shape

    def into_2(points: Array) -> Array:
        return jnp.matmul(points - two.cam2world[:3, 3], two.cam2world[:3, :3], precision=lax.Precision.HIGHEST)

    in_2 = into_2(one.pts3d)
    depth = in_2[..., 2]
    seen = one.valid & (depth > 0)
    divided = in_2[..., :2] / jnp.where(seen, depth, 1.0)[..., None]
    places = divided * jnp.stack([intrinsics[0, 0], intrinsics[1, 1]]) + intrinsics[:2, 2]
    nearest = jnp.rint(jnp.where(seen[..., None], places, 0.0)).astype(jnp.int32)
    column, row = nearest[..., 0], nearest[..., 1]
    seen &= (column >= 0) & (column < width) & (row >= 0) & (row < height)
    column, row = jnp.clip(column, 0, width - 1), jnp.clip(row, 0, height - 1)
    surface = into_2(two.pts3d)[..., 2][row, column]
    seen &= two.valid[row, column] & (jnp.abs(surface - depth) <= _SAME_DEPTH * depth)
    return jnp.where(seen[..., None], places, 0.0), seen


def _lines(matrix: Array, places1: Array, places2: Array) -> tuple[Array, Array, Array]:
    """F x₁ and Fᵀ x₂, the epipolar lines in views 2 and 1, and x₂ᵀ F x₁."""
    one, two = (jnp.concatenate([places, jnp.ones_like(places[..., :1])], axis=-1) for places in (places1, places2))
    lines2 = jnp.einsum("...ij,...kj->...ki", matrix, one, precision=lax.Precision.HIGHEST)
    lines1 = jnp.einsum("...ij,...ki->...kj", matrix, two, precision=lax.Precision.HIGHEST)
    return lines2, lines1, jnp.sum(lines2 * two, axis=-1)
