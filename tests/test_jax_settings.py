"""The same results whatever JAX is set to: JAX_ENABLE_X64 makes new arrays float64, JAX_DISABLE_JIT makes loops of Python."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import step_cases
from und3rstand_jax.data.example import jitter_colours, to_example
from und3rstand_jax.data.records import ViewSet
from und3rstand_jax.data.synthetic.config import SyntheticConfig
from und3rstand_jax.data.synthetic.render import RenderedSets, render_set
from und3rstand_jax.data.synthetic.textures import fractal_noise
from und3rstand_jax.geometry.cameras import ViewGeometry, ViewTruth
from und3rstand_jax.geometry.loss import invariant_error
from und3rstand_jax.geometry.metrics import point_errors, set_errors
from und3rstand_jax.model.dust3r.module import DUSt3R
from und3rstand_jax.model.images import as_view
from und3rstand_jax.train.step.optimizer import Recipe, schedule

IMAGE = np.random.default_rng(0).uniform(-1, 1, (8, 9, 3)).astype(np.float32)


def doubled(views: ViewSet) -> ViewSet:
    """A batch's sets as a reader may give them: NumPy's numbers are float64 unless told otherwise."""
    return jax.tree.map(lambda leaf: leaf.astype(np.float64) if leaf.dtype == np.float32 else leaf, views)


def examples():
    return jax.jit(to_example)(doubled(step_cases.batch(0, 2).views))


def jittered():
    return jitter_colours(jax.random.key(5), jnp.asarray(IMAGE))


def predictions():
    return [{"pts3d": 1.1 * target.pts3d + 0.1, "conf": jnp.ones_like(target.pts3d[..., 0])} for target in examples().targets]


def two_pointmaps():
    points = np.random.default_rng(1).normal(0, 1, (2, 4, 5, 3)).astype(np.float32)
    views = tuple(ViewGeometry(view, None) for view in points)
    return point_errors(views, tuple(ViewTruth(view[::-1], view[..., 0] > -1) for view in points))


def rendered_set(views):
    return RenderedSets(SyntheticConfig(views=views), 3, "train", 2, (16, 24)).read(1)


EXACT = {
    "jittered colours": jax.jit(jittered),
    "examples": examples,
    "errors": lambda: jax.jit(set_errors)(predictions(), examples().targets),
    "errors of pointmaps": two_pointmaps,
    "learning rates": lambda: [schedule(Recipe(9, 3))(jnp.int32(step)) for step in range(9)],
}


@pytest.mark.parametrize("name", EXACT)
def test_x64_changes_no_bit(name):
    usual = jax.tree.map(np.asarray, EXACT[name]())
    with jax.enable_x64(True):
        assert jnp.zeros(()).dtype == jnp.float64
        found = jax.tree.map(np.asarray, EXACT[name]())
    assert jax.tree.structure(usual) == jax.tree.structure(found)
    for one, other in zip(jax.tree.leaves(usual), jax.tree.leaves(found), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def assert_close(usual, found):
    for one, other in zip(jax.tree.leaves(usual), jax.tree.leaves(found), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_allclose(one, np.asarray(other), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_x64_changes_a_rendered_set_by_rounding_alone():
    """Indices of 64 bits make XLA fuse, and so round, differently. A set of many views takes all that a pair does, and more."""
    usual = rendered_set(4)
    with jax.enable_x64(True):
        assert_close(usual, rendered_set(4))


@pytest.mark.slow
def test_x64_is_used_nowhere_in_a_rendered_pair_and_a_model():
    module = DUSt3R(dataclasses.replace(step_cases.CONFIG, head_type="dpt", dec_depth=4))

    def work():
        image = as_view(np.random.default_rng(0).uniform(-1, 1, (1, 32, 48, 3)), 16, "image")
        params = module.init(jax.random.key(3), image, image)["params"]
        return params, module.apply({"params": params}, image, image).pred1, render_set(3, 1, (16, 24), SyntheticConfig())

    usual = jax.eval_shape(work)
    with jax.enable_x64(True):
        assert jax.eval_shape(work) == usual


@pytest.mark.slow
def test_x64_changes_a_step_by_rounding_alone():
    """optax takes the bias correction's power in JAX's default float."""
    case = step_cases.Case(layers=step_cases.LAYERS[:2], micro_batches=2)

    def stepped():
        return jax.tree.map(
            np.asarray, step_cases.one_device_step(case)(case.initial_state(), step_cases.backbone(), step_cases.batch(0, 4))
        )

    usual = stepped()
    with jax.enable_x64(True):
        assert_close(usual, stepped())


def noise():
    point = tuple(jnp.linspace(-3, 3, 7, dtype=jnp.float32) * factor for factor in (1, 0.3, -2))
    return fractal_noise(point, jnp.uint32(7), jnp.float32(0.8), jnp.full(7, 1e-3, jnp.float32))


@pytest.mark.parametrize(
    "work",
    [noise, jittered, lambda: invariant_error(predictions(), examples().targets)],
)
def test_without_jit_the_loops_give_the_same(work):
    usual = jax.jit(work)()
    with jax.disable_jit():
        assert_close(usual, work())
