"""What a forward pass returns, and the types it is made of."""

from collections.abc import Iterable, Iterator, Mapping

import jax
import numpy as np
from jaxtyping import Array, Float

from und3rstand_jax.model.heads import Pointmap

ViewTokens = tuple[Float[Array, "B _N C"], ...]
"""The tokens of one layer, of every view."""

Activation = tuple[Float[Array | np.ndarray, "B ..."], ...]
"""What one id captures, of every view: tokens (B, N, C), or attention weights (B, heads, N, M). NumPy's after `jax.device_get`."""

Grid = tuple[int, int]
"""(rows, columns) of a view's tokens."""

Grids = tuple[Grid, ...]
"""(rows, columns) of each view's tokens."""

ImageSizes = tuple[tuple[int, int], ...]
"""(height, width) of each view in pixels."""


@jax.tree_util.register_pytree_node_class
class BackboneOutput(Mapping[str, Activation]):
    """The captured layers, and the pointmaps if the heads were run.

    A mapping from layer id to the tokens of view 1, view 2, …, each (B, N, C), in network order; `activations` is the same mapping
    as a plain dict. Captured attention weights are in it under their ids (`und3rstand_jax.model.sites`), (B, heads, N, M) of each view,
    float32, every row summing to 1: a view's tokens over the tokens they attend to, which in cross-attention are the other views', one
    view's after another's.

    `pointmaps` is what the model's own heads make of each view, all in view 1's frame, and empty where no head was run; `pred1` and
    `pred2` are the first two, or None. `image_sizes` are the (height, width) of the views, which cannot be told from the tokens alone.

    It is a pytree (jit, vmap and device_get take it); the ids and sizes are its static part.
    """

    def __init__(self, activations: Mapping[str, Activation], image_sizes: ImageSizes, pointmaps: Iterable[Pointmap] = ()) -> None:
        self.activations = dict(activations)
        self.image_sizes = image_sizes
        self.pointmaps = tuple(pointmaps)

    @property
    def pred1(self) -> Pointmap | None:
        """View 1's pointmap; None where no head was run."""
        return self.pointmaps[0] if self.pointmaps else None

    @property
    def pred2(self) -> Pointmap | None:
        """View 2's."""
        return self.pointmaps[1] if self.pointmaps else None

    def __getitem__(self, layer_id: str) -> Activation:
        try:
            return self.activations[layer_id]
        except KeyError:
            raise KeyError(f"{layer_id} was not captured; captured are: {', '.join(self.activations) or 'none'}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self.activations)

    def __len__(self) -> int:
        return len(self.activations)

    def __repr__(self) -> str:
        heads = "with" if self.pointmaps else "without"
        return f"BackboneOutput({len(self)} layers {heads} pointmaps, image sizes {self.image_sizes})"

    def tree_flatten(self) -> tuple[tuple[object, ...], tuple[tuple[str, ...], ImageSizes]]:
        """Arrays, then the static part; layers keep network order, which a dict as a pytree would not."""
        return (tuple(self.activations.values()), self.pointmaps), (tuple(self.activations), self.image_sizes)

    @classmethod
    def tree_unflatten(cls, static: tuple[tuple[str, ...], ImageSizes], children: tuple) -> "BackboneOutput":
        """The inverse of `tree_flatten`; the leaves may be anything that JAX puts in the arrays' place."""
        output = cls({}, static[1])
        tokens, output.pointmaps = children
        output.activations = dict(zip(static[0], tokens, strict=True))
        return output
