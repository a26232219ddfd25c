"""Pairs that compile at once, in place of rendered scenes, for tests of a step's own memory and FLOPs."""

import jax
import jax.numpy as jnp
import pytest

from und3rstand_jax.data.records import View


def render_plain_scenes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaces the renderer until the test ends."""
    monkeypatch.setattr("und3rstand_jax.data.example.render_set", _render_pair)
    monkeypatch.setattr("und3rstand_jax.data.example.render_sets", _render_pairs)


def _render_pairs(seed, indices, shape, config):
    return jax.lax.map(lambda index: _render_pair(seed, index, shape, config), indices)


def _render_pair(seed, index, shape, config):
    depth = jax.random.uniform(jax.random.fold_in(jax.random.key(seed), index), shape) + 1
    image = jnp.broadcast_to((depth[..., None] * 100).astype(jnp.uint8), (*shape, 3))
    view = View(image, depth, jnp.diag(jnp.array([90.0, 90.0, 1.0])), jnp.eye(4))
    return (view, view)
