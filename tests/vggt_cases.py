"""A tiny VGGT and rendered-like sets of views for it: cases for tests of training."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests.data_sets import make_views
from und3rstand_jax.data.records import NOT_RENDERED, Batch, View
from und3rstand_jax.model.vggt.config import VGGTConfig
from und3rstand_jax.model.vggt.module import VGGT

SHAPE = (28, 42)
CONFIG = VGGTConfig(
    img_size=(42, 42),
    embed_dim=32,
    depth=2,
    num_heads=2,
    enc_depth=1,
    enc_num_heads=2,
    camera_depth=1,
    camera_num_heads=2,
    camera_iterations=2,
    dpt_width=16,
    dpt_channels=(8, 8, 8, 8),
    dpt_layers=(0, 0, 1, 1),
    head_names=("camera", "points"),
)


def module() -> VGGT:
    """The model."""
    return VGGT(CONFIG, attention="xla")


@functools.cache
def moving() -> Any:
    """Random parameters of which no branch is scaled to nearly nothing, as a fresh model's are; none is drawn by the slow initialisers."""
    image = jax.ShapeDtypeStruct((1, 14, 14, 3), np.float32)
    shapes = jax.eval_shape(module().init, jax.random.key(0), image, image)["params"]
    rng = np.random.default_rng(3)

    def draw(path: Any, leaf: Any) -> Any:
        if path[-1].key in ("scale", "gamma"):
            return jnp.ones(leaf.shape)
        return jnp.asarray(rng.normal(0, 0.02 if path[-1].key == "bias" else 0.15, leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


@functools.cache
def sets(count: int, views: int = 3) -> tuple[View, ...]:
    """Views of a room as its cameras see it, (count, …) each."""
    made = make_views(count * views, SHAPE)
    return tuple(jax.tree.map(lambda *leaves: np.stack(leaves), *made[view::views]) for view in range(views))


def batch(count: int, views: int = 3) -> Batch:
    """A batch of them."""
    return Batch(np.arange(count, dtype=np.uint32), np.full(count, NOT_RENDERED, np.int32), sets(count, views))
