"""A batch as the loader gives it becomes an example on the device: scenes are rendered, colours changed."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from train.data.batch import Batch
from train.data.colour import jitter_colours
from train.data.example import Example, to_example
from train.data.records import Pair, Shape
from train.data.synthetic.config import SyntheticConfig
from train.data.synthetic.render import render_pair, render_pairs


def assemble(batch: Batch, seed: Array | int, shape: Shape, scenes: SyntheticConfig | None, colour_jitter: bool) -> Example:
    """The example of a batch; pure. What a pair becomes depends on the seed, its position and its scene, not on the batch.

    Args:
        batch: from the loader; its arrays may be traced.
        seed: of scenes and colours.
        shape: of both views; static, like all that follows.
        scenes: how scenes are rendered; None where there are none, which spares the compiler the renderer.
        colour_jitter: whether each view's colours are changed at random.
    """
    pair = _pairs(batch, seed, shape, scenes)
    example = to_example(pair)
    if not colour_jitter:
        return example
    keys = jax.vmap(lambda position: jax.random.fold_in(jax.random.key(seed), position))(batch.position)
    views = [jax.vmap(jax.random.fold_in, (0, None))(keys, view) for view in (0, 1)]
    one, two = (lax.map(lambda item: jitter_colours(*item), item) for item in zip(views, example.images, strict=True))
    return example._replace(images=(one, two))


def _pairs(batch: Batch, seed: Array | int, shape: Shape, scenes: SyntheticConfig | None) -> Pair:
    if scenes is None:
        if batch.pair is None:
            raise ValueError("a batch without files needs scenes")
        return batch.pair
    if batch.pair is None:
        return render_pairs(seed, batch.scene, shape, scenes)

    def one(item: tuple[Array, Pair]) -> Pair:
        scene, pair = item
        # Under lax.map, unlike under vmap, only the branch that is taken runs.
        return lax.cond(scene >= 0, lambda: render_pair(seed, jnp.maximum(scene, 0), shape, scenes), lambda: pair)

    return lax.map(one, (batch.scene, batch.pair))
