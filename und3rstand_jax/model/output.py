"""What a forward pass returns, and the types it is made of."""

from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float

from und3rstand_jax.model.config import Grid
from und3rstand_jax.model.heads import Pointmap
from und3rstand_jax.model.sites import HEADS, UPDATE, parse_site
from und3rstand_jax.support.errors import LayerError

ViewTokens = tuple[Float[Array, "B _N C"], ...]
"""The tokens of one layer, for every view."""

Activation = tuple[Float[Array | np.ndarray, "B ..."], ...]
"""The values captured under one id, for every view: tokens (B, N, C), or attention weights (B, heads, N, M). NumPy's after
`jax.device_get`."""

Grids = tuple[Grid, ...]
"""(rows, columns) of each view's tokens."""

ImageSizes = tuple[tuple[int, int], ...]
"""(height, width) of each view in pixels."""

Static = tuple[tuple[str, ...], ImageSizes, tuple[tuple[str, int], ...]]
"""Ids, image sizes, and the number of special tokens of layers that have any."""


class Cameras(NamedTuple):
    """The cameras of V views as a model estimates them, in float32.

    Attributes:
        extrinsics: [R | t] from the frame of the pointmaps to each camera's own (x right, y down, z forward), in the pointmaps' unit.
        intrinsics: focal lengths and principal point in pixels.
        pose_encodings: those after each of the K iterations that refine the cameras, see `und3rstand_jax.model.pose_encoding`.
    """

    extrinsics: Float[Array, "B V 3 4"]
    intrinsics: Float[Array, "B V 3 3"]
    pose_encodings: Float[Array, "K B V 9"]


@jax.tree_util.register_pytree_node_class
class BackboneOutput(Mapping[str, Activation]):
    """The captured layers, and the pointmaps if the heads were run.

    A mapping from layer id to the tokens of view 1, view 2, …, each (B, N, C), in network order; `activations` is the same mapping
    as a plain dict. Captured attention weights are in it under their own ids (`und3rstand_jax.model.sites`): float32, (B, heads, N, M) for
    each view, every row summing to 1. Rows are a view's tokens, columns the tokens they attend to; in cross-attention these are the other
    views' tokens, concatenated view by view.

    `pointmaps` has the predictions of the model's own heads for each view, all in view 1's frame (for a VGGT, roughly). It is empty if no
    head was run; `pred1` and `pred2` are the first two, or None. `image_sizes` has the (height, width) of each view, which the tokens alone
    do not show.

    Models with special tokens (VGGT) have them before the patch tokens in most layers: `patches` and `special` return either kind.
    `cameras` is None if the model has no camera head or it was not run.

    It is a pytree (jit, vmap and device_get take it); the ids, sizes and numbers of special tokens are its static part.
    """

    def __init__(
        self,
        activations: Mapping[str, Activation],
        image_sizes: ImageSizes,
        pointmaps: Iterable[Pointmap] = (),
        cameras: Cameras | None = None,
        special_tokens: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        self.activations = dict(activations)
        self.image_sizes = image_sizes
        self.pointmaps = tuple(pointmaps)
        self.cameras = cameras
        self.special_tokens = dict(special_tokens)

    def patches(self, layer_id: str) -> Activation:
        """A layer's tokens of every view without the special ones: (B, rows·columns, C), row by row; also for its `.update` and `.heads`.

        Raises:
            LayerError: the id is neither a layer nor its `.update` or `.heads`.
        """
        first = self._special_count(layer_id)
        return tuple(tokens[:, first:] for tokens in self[layer_id]) if first else self[layer_id]

    def special(self, layer_id: str) -> Activation:
        """A layer's special tokens of every view, in the order of the config's `special_tokens`; (B, 0, C) where it has none.

        Raises:
            LayerError: as for `patches`.
        """
        count = self._special_count(layer_id)
        return tuple(tokens[:, :count] for tokens in self[layer_id])

    def _special_count(self, layer_id: str) -> int:
        site = parse_site(layer_id)
        if site.part not in (None, UPDATE, HEADS):
            raise LayerError(f"{layer_id} does not split into patches and special tokens; give a layer, or its .update or .heads")
        return self.special_tokens.get(site.layer_id, 0)

    @property
    def depth(self) -> tuple[Float[Array | np.ndarray, "B _H _W"], ...]:
        """Each view's depth along its camera's axis, (B, H, W), in the unit of the points; empty if no depth head was run."""
        return tuple(pointmap["depth"] for pointmap in self.pointmaps if "depth" in pointmap)

    @property
    def pred1(self) -> Pointmap | None:
        """View 1's pointmap; None if no head was run."""
        return self.pointmaps[0] if self.pointmaps else None

    @property
    def pred2(self) -> Pointmap | None:
        """View 2's pointmap; None if there is none."""
        return self.pointmaps[1] if len(self.pointmaps) > 1 else None

    def __getitem__(self, layer_id: str) -> Activation:
        try:
            return self.activations[layer_id]
        except KeyError:
            raise KeyError(f"{layer_id} was not captured; captured: {', '.join(self.activations) or 'none'}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self.activations)

    def __len__(self) -> int:
        return len(self.activations)

    def __repr__(self) -> str:
        heads = "with" if self.pointmaps else "without"
        return f"BackboneOutput({len(self)} layers {heads} pointmaps, image sizes {self.image_sizes})"

    def tree_flatten(self) -> tuple[tuple[object, ...], Static]:
        """Arrays, then the static part; layers keep network order, which a dict as a pytree would lose."""
        static = tuple(self.activations), self.image_sizes, tuple(self.special_tokens.items())
        return (tuple(self.activations.values()), self.pointmaps, self.cameras), static

    @classmethod
    def tree_unflatten(cls, static: Static, children: tuple) -> "BackboneOutput":
        """The inverse of `tree_flatten`; the leaves may be anything that JAX puts in the arrays' place."""
        layers, sizes, special = static
        output = cls({}, sizes)
        tokens, output.pointmaps, output.cameras = children
        output.activations = dict(zip(layers, tokens, strict=True))
        output.special_tokens = dict(special)
        return output
