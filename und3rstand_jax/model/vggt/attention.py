"""Self-attention over the tokens of one view or of all views, as in VGGT (Wang et al., CVPR 2025, section 3.2).

Tokens are (B, V, P, C). Unless they are captured, the scores of all heads never exist at once: over eight views of 518×518 pixels they
would take 7.7 GB.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

from und3rstand_jax.model.affine import Affine, Numbers, apply_affine
from und3rstand_jax.model.attention import Rotation, attend, rotate
from und3rstand_jax.model.block_sites import BlockSites
from und3rstand_jax.model.blocks import Arithmetic
from und3rstand_jax.model.sites import HEADS, MASS, SCORES, WEIGHTS

Tokens = Float[Array, "B V P C"]


class ViewAttention(nn.Module):
    """Multi-head self-attention.

    Attributes:
        arithmetic: how to compute.
        num_heads: number of heads, each with C / num_heads channels.
        step: the name of its step within the block, such as `frame.self_attn`.
        reads_all: whether each view's tokens read those of all views.
        normed: whether queries and keys go through a layer norm over their head's channels first.
        special_tokens: how many of a view's tokens precede its patch tokens.
    """

    arithmetic: Arithmetic
    num_heads: int
    step: str
    reads_all: bool = False
    normed: bool = False
    special_tokens: int = 0

    @nn.compact
    def __call__(self, x: Tokens, rotation: Rotation | None, sites: BlockSites) -> Tokens | None:
        """The update of each token, None if the block ends before it."""
        batch, views, length, width = x.shape
        qkv = self.arithmetic.dense(3 * width, "qkv")(x).reshape(batch, views, length, 3, self.num_heads, -1)
        query, key, value = (qkv[:, :, :, i] for i in range(3))
        if self.normed:
            norm = self.arithmetic.layer_norm
            query, key = (norm(name, 1e-5, jnp.float32)(part) for name, part in (("q_norm", query), ("k_norm", key)))
        if rotation is not None:
            query, key = (rotate(part.reshape(batch * views, *part.shape[2:]), rotation).reshape(part.shape) for part in (query, key))
        # Once, after norm and rotation, which are float32.
        query, key = (part.astype(value.dtype) for part in (query, key))
        if self.reads_all:
            key, value = (part.reshape(batch, 1, views * length, *part.shape[3:]) for part in (key, value))
        scores = Scores(query, key, sites.edits.get(f"{self.step}.{SCORES}"), self.arithmetic.precision)
        self._keep(scores, views if self.reads_all else 1, sites)
        if sites.is_done:
            return None
        mixed = self._mixed(query, key, value) if scores.edit is None else scores.mix(value)
        mixed = sites.at(f"{self.step}.{HEADS}", mixed, heads_axis=3)
        return None if sites.is_done else self.arithmetic.dense(width, "proj")(mixed.reshape(x.shape))

    def _mixed(
        self, query: Float[Array, "B V P H D"], key: Float[Array, "B W M H D"], value: Float[Array, "B W M H D"]
    ) -> Float[Array, "B V P H D"]:
        batch, views, length, heads, dim = query.shape
        of_each = (batch, views * length) if self.reads_all else (batch * views, length)
        keys = (batch * key.shape[1], *key.shape[2:])
        mixed = attend(
            query.reshape(*of_each, heads, dim),
            key.reshape(keys),
            value.reshape(keys),
            self.arithmetic.attention,
            self.arithmetic.precision,
        )
        return mixed.reshape(query.shape)

    def _keep(self, scores: "Scores", read: int, sites: BlockSites) -> None:
        """Keeps the captured scores, weights and masses, which are computed only for this."""
        for part in (SCORES, WEIGHTS, MASS):
            for of in sites.captured_at(f"{self.step}.{part}"):
                if part == MASS:
                    sites.kept[str(of)] = scores.mass(of.heads or range(self.num_heads), of.query_slice, read, self.special_tokens)
                    continue
                chosen = scores.of_heads(of.head_slice, of.query_slice)
                sites.kept[str(of)] = jax.nn.softmax(chosen, axis=-1) if part == WEIGHTS else chosen


@dataclasses.dataclass(frozen=True)
class Scores:
    """The scores of an attention, q·k/√D in float32, computed on demand. W is V if views read themselves, else 1.

    `edit` broadcasts to (B, V, H, P, M).
    """

    query: Float[Array, "B V P H D"]
    key: Float[Array, "B W M H D"]
    edit: Affine | None
    precision: lax.Precision

    def of_heads(self, heads: slice, queries: slice = slice(None)) -> Float[Array, "B V h p M"]:
        """The scores of some heads and queries, after the edit."""
        query, key = self.query[:, :, queries, heads], self.key[:, :, :, heads]
        of_view = "bvphd,bvmhd->bvhpm" if key.shape[1] == query.shape[1] else "bvphd,bwmhd->bvhpm"
        products = jnp.einsum(of_view, query, key, precision=self.precision, preferred_element_type=jnp.float32)
        scores = products * self.query.shape[-1] ** -0.5
        if self.edit is None:
            return scores
        return apply_affine(Affine(*(_chosen(_chosen(part, 2, heads), 3, queries) for part in self.edit)), scores)

    def mix(self, value: Float[Array, "B W M H D"]) -> Float[Array, "B V P H D"]:
        """softmax(scores) v, computed for one head and one view's queries at a time."""
        heads, views = value.shape[3], self.query.shape[1]

        def mixed(head: Array, view: Array) -> Float[Array, "B P D"]:
            weights = self._weights(head, view).astype(value.dtype)
            of_view = value if value.shape[1] == 1 else lax.dynamic_index_in_dim(value, view, 1)
            values = lax.dynamic_index_in_dim(of_view, head, 3, keepdims=False)[:, 0]
            product = jnp.einsum("bpm,bmd->bpd", weights, values, precision=self.precision, preferred_element_type=jnp.float32)
            return product.astype(value.dtype)

        return jnp.moveaxis(_over(mixed, range(heads), views), (0, 1), (3, 1))

    def mass(self, heads: range, queries: slice, read: int, special_tokens: int) -> Float[Array, "B V h p R 2"]:
        """The weight that each query puts on the special tokens and on the patches of each of the R views that it reads."""

        def of_head(head: Array, view: Array) -> Float[Array, "B p R 2"]:
            weights = self._weights(head, view, queries)
            by_view = weights.reshape(*weights.shape[:2], read, -1)
            special, patches = by_view[..., :special_tokens], by_view[..., special_tokens:]
            return jnp.stack([special.sum(axis=-1), patches.sum(axis=-1)], axis=-1)

        return jnp.moveaxis(_over(of_head, heads, self.query.shape[1]), (0, 1), (2, 1))

    def _weights(self, head: Array, view: Array, queries: slice = slice(None)) -> Float[Array, "B p M"]:
        """The weights of one head and one view's queries; both indices may be traced."""

        def one(part: Numbers, axis: int, index: Array) -> Array:
            return jnp.asarray(part) if part.shape[axis] == 1 else lax.dynamic_index_in_dim(jnp.asarray(part), index, axis)

        query, key = (one(lax.dynamic_index_in_dim(part, head, 3), 1, view) for part in (self.query, self.key))
        edit = self.edit and Affine(*(one(one(part, 1, view), 2, head) for part in self.edit))
        return jax.nn.softmax(Scores(query, key, edit, self.precision).of_heads(slice(None), queries)[:, 0, 0], axis=-1)


def _over(of: Callable[[Array, Array], Float[Array, "..."]], heads: range, views: int) -> Float[Array, "h V ..."]:
    """The results of a function for each head and each view, computed one after another."""
    found = lax.map(lambda place: of(*place), (jnp.repeat(jnp.asarray(heads), views), jnp.tile(jnp.arange(views), len(heads))))
    return found.reshape(len(heads), views, *found.shape[1:])


def _chosen(part: Numbers, axis: int, chosen: slice) -> Numbers:
    """Part of an axis, unless it has length 1 and means all."""
    return part if part.shape[axis] == 1 else part[(slice(None),) * axis + (chosen,)]
