"""Edits as a pytree and as part of the program: gradients, batches, what compiles anew and what does not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import und3rstand_jax as u3d
from tests.edit_cases import FIRST, SMALL, apart, model, neutral, numbers, small, small_params
from tests.test_attention_weights import SIZES, TINY, params, views
from tests.test_model_properties import assert_same
from und3rstand_jax.model import backbone as backbones
from und3rstand_jax.model.dust3r.module import DUSt3R
from und3rstand_jax.model.edits import Edit, Edits
from und3rstand_jax.model.output import BackboneOutput

pytestmark = pytest.mark.quick


def test_edits_add_up_in_order():
    one, two, three = u3d.knock_out("decoder.1.mlp"), u3d.skip("decoder.0.mlp", 2), u3d.steer("decoder.1.mlp", 1.0)
    assert [edit.site for edit in one + two + three] == ["decoder.1.mlp", "decoder.0.mlp.update", "decoder.1.mlp"]
    assert [edit.shift for edit in one + three] == [0.0, 1.0] and len(Edits() + one) == 1 and list(Edits()) == []


def test_heads_and_view_may_stand_behind_the_site():
    edits = u3d.knock_out("decoder.*.cross_attn.heads:0-2@2") + u3d.block_attention("decoder.3.cross_attn:1@1", keys=[0])
    edits += u3d.skip("encoder.0.mlp@1") + u3d.knock_out("decoder.0.mlp@2", view=2)
    assert [(edit.site, edit.view, edit.heads) for edit in edits] == [
        ("decoder.*.cross_attn.heads", 2, (0, 1, 2)),
        ("decoder.3.cross_attn.scores", 1, (1,)),
        ("encoder.0.mlp.update", 1, None),
        ("decoder.0.mlp", 2, None),
    ]


STEERING = numbers(TINY.dec_embed_dim)


def differentiable(head=0.75, steering=STEERING, score=0.9):
    """Edits that depend on numbers, and a blocked key at one of their sites."""
    edits = Edits((Edit("decoder.0.cross_attn.heads:1", 2, scale=head),)) + u3d.steer("decoder.0.mlp", steering, 1, tokens=[1, 4])
    return edits + u3d.block_attention("decoder.1.self_attn", keys=[0]) + Edits((Edit("decoder.1.self_attn.scores", scale=score),))


@jax.jit
def loss(edits, gain=1.0):
    """A number made of everything that the edits lead to."""
    images = [gain * view for view in views(SIZES["equal"])]
    out = DUSt3R(SMALL).apply({"params": small_params()}, *images, capture="decoder.1.mlp", head=True, edits=edits)
    values = (*out["decoder.1.mlp"], out.pred1["pts3d"], jnp.log(out.pred2["conf"]))
    return sum(jnp.mean(x * numbers(*x.shape, seed=9)) for x in values)


def test_gradients_of_scales_and_shifts_are_those_of_differences():
    gradient = jax.jit(jax.grad(loss))(differentiable())
    assert isinstance(gradient, Edits) and [edit.site for edit in gradient] == [edit.site for edit in differentiable()]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))  # of the blocked key too
    direction = numbers(TINY.dec_embed_dim, seed=5)
    along = {
        "head": (lambda step: {"head": 0.75 + step}, gradient.edits[0].scale),
        "steering": (lambda step: {"steering": STEERING + step * direction}, direction @ np.asarray(gradient.edits[1].shift)),
        "score": (lambda step: {"score": 0.9 + step}, gradient.edits[3].scale),
    }
    for name, (moved, expected) in along.items():
        above, below = (float(loss(differentiable(**moved(step)))) for step in (0.02, -0.02))
        assert (above - below) / 0.04 == pytest.approx(float(expected), rel=0.02, abs=5e-6), name
        assert abs(expected) > 1e-4, name


@pytest.mark.slow
def test_gradients_go_through_numbers_that_make_edits_and_through_images_and_parameters():
    of_edits = jax.jit(jax.grad(loss))(differentiable()).edits[0].scale
    of_number = jax.grad(lambda scale: loss(differentiable(head=scale)))(0.75)
    assert float(of_number) == pytest.approx(float(of_edits), rel=1e-4)
    above, below = (float(loss(differentiable(), 1 + step)) for step in (0.01, -0.01))
    assert (above - below) / 0.02 == pytest.approx(float(jax.grad(loss, argnums=1)(differentiable(), 1.0)), rel=0.05, abs=2e-5)

    images = views(SIZES["equal"])

    def of_params(values, remat):
        out = DUSt3R(SMALL, remat=remat).apply({"params": values}, *images, capture="decoder.1.mlp", edits=differentiable())
        return jnp.mean(out["decoder.1.mlp"][0] ** 2) + jnp.mean(out.pred2["pts3d"] ** 2)

    usual, again = (jax.jit(jax.grad(functools.partial(of_params, remat=remat)))(small_params()) for remat in (False, True))
    for (path, one), other in zip(jax.tree_util.tree_leaves_with_path(usual), jax.tree.leaves(again), strict=True):
        assert np.isfinite(one).all(), path
        # The bias of keys has none but rounding.
        assert np.linalg.norm(one - other) <= 1e-4 * np.linalg.norm(one) + 1e-4, path


def test_a_batch_of_edits_is_each_by_itself():
    def edits(scale, vector):
        return Edits((Edit("decoder.0.cross_attn.heads:2", 1, scale=scale),)) + u3d.steer("decoder.0.mlp", vector, tokens=[3])

    def last(edits):
        return small()(*views(SIZES["equal"]), capture="decoder.*.mlp", head=False, edits=edits)

    scales, vectors = np.array([0, 0.5, -1], np.float32), numbers(3, TINY.dec_embed_dim)
    by_numbers = jax.vmap(lambda scale, vector: last(edits(scale, vector)))(scales, vectors)
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *(edits(*both) for both in zip(scales, vectors, strict=True)))
    as_pytree = jax.vmap(last)(stacked)
    for number, one in enumerate(last(edits(*both)) for both in zip(scales, vectors, strict=True)):
        for together in (by_numbers, as_pytree):
            assert_same(BackboneOutput({name: tuple(x[number] for x in together[name]) for name in together}, one.image_sizes), one)
    assert apart(one, last(neutral(edits(1.0, vectors[0]))))["decoder.1.mlp", 0] > 0.01


def test_images_may_be_traced_while_they_are_edited():
    def encoded(view1, view2):
        return small()(view1, view2, capture="encoder.norm", head=False, edits=u3d.skip("encoder.0.mlp"))["encoder.norm"][0]

    np.testing.assert_allclose(jax.jit(encoded)(*views()), encoded(*views()), atol=1e-5)


SAME_PROGRAM = {
    "heads": [u3d.knock_out(f"{FIRST}.heads", 2, heads=heads) for heads in ([0], [1], [1, 2])],
    "tokens_and_vectors": [u3d.steer(FIRST, numbers(*shape), 1, tokens=tokens) for shape, tokens in (((48,), [1]), ((2, 48), [0, 5]))],
    "keys": [u3d.block_attention(FIRST, 1, keys=keys) for keys in ([0], [2, 4, 5])],
    "pairs": [u3d.block_attention(FIRST, pairs=pairs) for pairs in ([(0, 1)], [(2, 3), (5, 1)])],
    "numbers": [Edits((Edit(FIRST, 2, scale=scale),)) for scale in (0, 0.5, np.float64(2), jnp.float32(3), np.ones(1))],
    "knocked_out_or_steered": [u3d.knock_out(FIRST, 2, tokens=[0]), u3d.steer(FIRST, 2.0, 2, tokens=[4, 5])],
    "once_or_twice": [u3d.skip(FIRST, 1), u3d.skip(FIRST, 1) + u3d.steer(f"{FIRST}.update", 1.0, 1)],
}
ANOTHER_PROGRAM = [
    (None, FIRST),
    (u3d.skip(FIRST), FIRST),
    (u3d.knock_out(f"{FIRST}.heads"), FIRST),
    (u3d.skip(FIRST, 2), FIRST),
    (u3d.skip(FIRST, tokens=[0]), FIRST),
    (u3d.skip(FIRST), f"{FIRST}.update"),
]


def programs_run(runs):
    """How many programs are compiled for these (edits, capture)."""
    backbones._apply.clear_cache()
    for edits, capture in runs:
        model()(*views(SIZES["equal"]), capture=capture, head=False, edits=edits)
    return backbones._apply._cache_size()


@pytest.mark.parametrize("what", SAME_PROGRAM)
def test_other_places_and_numbers_run_the_same_program(what):
    assert programs_run([(edits, FIRST) for edits in SAME_PROGRAM[what]]) == 1


def test_other_sites_views_kinds_of_places_and_captures_are_other_programs():
    assert programs_run(ANOTHER_PROGRAM) == len(ANOTHER_PROGRAM)


def traced(edits, capture, head=False):
    def forward(values):
        return DUSt3R(TINY).apply({"params": values}, *views(SIZES["equal"]), capture=capture, head=head, edits=edits)

    return str(jax.make_jaxpr(forward)(params()))


def test_without_edits_and_with_edits_behind_all_that_is_needed_the_program_is_the_same():
    assert traced(None, "*", head=True) == traced(Edits(), "*", head=True)
    behind = u3d.knock_out("decoder.0.cross_attn.heads") + u3d.steer("decoder.norm", 3.0) + u3d.skip("decoder.2.mlp")
    behind += u3d.block_attention("decoder.0.cross_attn", keys=[0])
    assert traced(None, "decoder.0.self_attn") == traced(behind, "decoder.0.self_attn")
    assert traced(None, "decoder.0.cross_attn") != traced(behind, "decoder.0.cross_attn")
