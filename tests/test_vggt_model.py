"""What must hold of VGGT whatever its weights are."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import und3rstand_jax as u3d
from tests.golden_cases import relative_error
from tests.vggt_golden_models import SMALL, pictures, small, small_params
from und3rstand_jax.model.backbone import Backbone
from und3rstand_jax.model.vggt.module import VGGT

pytestmark = pytest.mark.quick

SIZE, TOKENS, SPECIAL = (28, 42), 11, 5
PARTS = ("mass", "self_attn.weights", "self_attn.weights:1-2#4-7", "self_attn.scores:3#10", "mass:2#0-1")
INSIDE = ("*", "encoder.0.self_attn.mass", "encoder.0.self_attn.weights", *(f"global.*.{part}" for part in PARTS))
LAST = "global.1.mlp"


@functools.cache
def views(count=3):
    """As many of the same views as there are."""
    return pictures(count, SIZE)


@functools.cache
def plain():
    """Three views, with everything that the tests below look at; the stacks are scanned."""
    return jax.device_get(small()(*views(), capture=INSIDE, head=False))


def far(one, other, tolerance=2e-6):
    """(site, view) -> how far two runs are apart, where that is too far."""
    assert one.keys() == other.keys()
    errors = {(site, view): relative_error(x, y) for site in one for view, (x, y) in enumerate(zip(one[site], other[site], strict=True))}
    return {place: error for place, error in errors.items() if not error <= tolerance}


def some(output, *sites):
    return {site: output[site] for site in sites}


def test_views_after_the_first_permute_with_what_comes_out():
    one, two, three = views()
    swapped = jax.device_get(small()(one, three, two, capture=INSIDE, head=False))
    layers = {site: (x, z, y) for site, (x, y, z) in plain().items() if site in SMALL.layer_ids}
    assert far(some(swapped, *layers), layers) == {}
    mass = plain()["global.1.self_attn.mass"]
    order = np.array([0, 2, 1])
    of_swapped = tuple(mass[view][:, :, :, order] for view in order)
    assert far({"mass": swapped["global.1.self_attn.mass"]}, {"mass": of_swapped}) == {}
    # The first is told from the others.
    first = jax.device_get(small()(two, one, three, capture=INSIDE, head=False))
    assert relative_error(first[LAST][1], plain()[LAST][0]) > 1e-3


def test_a_view_that_is_kept_from_all_others_is_as_alone():
    encoded = plain()["encoder.norm"]
    together, alone = (u3d.BackboneOutput({"encoder.norm": encoded[:count]}, (SIZE,) * count) for count in (3, 1))
    edits = u3d.block_attention("global.*.self_attn", view=1, key_views=[2, 3])
    kept = small()(start=together, capture=(LAST, "frame.1.mlp", "global.1.self_attn.mass"), head=False, edits=edits)
    found = small()(start=alone, capture=(LAST, "frame.1.mlp"), head=False)
    for layer in (LAST, "frame.1.mlp"):
        assert relative_error(kept[layer][0], found[layer][0]) < 2e-6
        assert relative_error(plain()[layer][0], found[layer][0]) > 1e-3
    first, second, _ = map(np.asarray, kept["global.1.self_attn.mass"])
    assert (first[..., 1:, :] == 0).all() and (second[..., 1:, :] > 0).any()
    np.testing.assert_allclose(first[..., 0, :].sum(axis=-1), 1, rtol=1e-5)


def test_mass_is_the_sum_of_the_weights():
    for step, read in (("encoder.0.self_attn", 1), ("global.0.self_attn", 3)):
        for weights, mass in zip(plain()[f"{step}.weights"], plain()[f"{step}.mass"], strict=True):
            assert weights.shape == (1, 4, TOKENS, read * TOKENS) and mass.shape == (1, 4, TOKENS, read, 2)
            by_view = weights.reshape(*weights.shape[:3], read, TOKENS)
            sums = np.stack([by_view[..., :SPECIAL].sum(axis=-1), by_view[..., SPECIAL:].sum(axis=-1)], axis=-1)
            np.testing.assert_allclose(mass, sums, atol=1e-6)
            np.testing.assert_allclose(mass.sum(axis=(-1, -2)), 1, rtol=1e-5)


def test_what_is_captured_of_some_heads_and_queries_is_a_part_of_the_whole():
    for view in range(3):
        for i in (0, 1):
            step = f"global.{i}.self_attn"
            whole = plain()[f"{step}.weights"][view]
            np.testing.assert_allclose(plain()[f"{step}.weights:1-2#4-7"][view], whole[:, 1:3, 4:8], atol=1e-6)
            np.testing.assert_allclose(plain()[f"{step}.mass:2#0-1"][view], plain()[f"{step}.mass"][view][:, 2:3, :2], atol=1e-6)
            scores = plain()[f"{step}.scores:3#10"][view]
            assert scores.shape == (1, 1, 1, 3 * TOKENS)
            np.testing.assert_allclose(jax.nn.softmax(scores), whole[:, 3:4, 10:11], atol=1e-6)


@pytest.mark.parametrize(
    "start",
    [
        "frame.0.self_attn",
        *(
            pytest.param(layer, marks=pytest.mark.slow)
            for layer in (
                "patch_embed",
                "encoder.embed",
                "encoder.0.self_attn",
                "encoder.0.mlp",
                "encoder.norm",
                "aggregator.embed",
                "frame.0.mlp",
            )
        ),
        *(pytest.param(layer, marks=pytest.mark.slow) for layer in ("global.0.self_attn", "global.0.mlp", "frame.1.mlp", LAST)),
    ],
)
def test_a_pass_from_any_layer_on_is_the_rest_of_the_whole(start):
    before = u3d.BackboneOutput({start: plain()[start]}, plain().image_sizes)
    following = SMALL.layer_ids[SMALL.layer_ids.index(start) :]
    wanted = [site for site in (*following[:2], LAST) if site in following]
    assert far(dict(small()(start=before, capture=wanted, head=False)), some(plain(), *dict.fromkeys(wanted))) == {}


@pytest.mark.slow
@pytest.mark.parametrize("layer", ["encoder.0.mlp", "frame.0.self_attn", "global.1.self_attn"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_start_layers_are_all_that_heads_need(layer, dtype):
    model = Backbone(VGGT(SMALL, dtype=dtype), small_params())
    whole = model(*views(), capture=LAST)
    before = model(*views(), capture=u3d.start_layers(layer, SMALL), head=False)
    after = model(start=before, capture=LAST)
    # In bfloat16 the residual stream is float32 too, and so are the layers that a pass begins with.
    assert relative_error(after[LAST][1], whole[LAST][1]) < 3e-6
    assert relative_error(after.pointmaps[2]["pts3d"], whole.pointmaps[2]["pts3d"]) < 3e-6
    assert relative_error(after.cameras.pose_encodings, whole.cameras.pose_encodings) < 3e-6
    assert relative_error(after.depth[0], whole.depth[0]) < 3e-6


@pytest.mark.slow
def test_stacks_written_out_give_what_scanned_ones_give():
    unrolled = small(unroll=True)(*views(), capture=("frame.1.mlp", LAST), head=False)
    assert far(dict(unrolled), some(plain(), "frame.1.mlp", LAST)) == {}


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["xla", "per_head"])
def test_attention_is_the_same_however_it_is_computed(attention):
    assert far(dict(small(attention=attention)(*views(), capture=LAST, head=False)), some(plain(), LAST)) == {}


@pytest.mark.slow
def test_a_gradient_that_computes_blocks_again_is_the_same():
    def loss(params, remat):
        output = VGGT(SMALL, remat=remat).apply({"params": params}, *views(2), capture=LAST, head="camera")
        return jnp.sum(output[LAST][0] ** 2) + jnp.sum(output.cameras.extrinsics**2)

    one, other = (jax.jit(jax.grad(functools.partial(loss, remat=remat)))(small_params()) for remat in (False, True))
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(other), strict=True):
        assert np.isfinite(x).all(), path
        assert np.linalg.norm(x - y) <= 1e-4 * np.linalg.norm(x) + 1e-3, path


# What programs hold


def lowered(*, capture=(), head=False, edits=None, count=3, size=SIZE, **options):
    images = [jax.ShapeDtypeStruct((1, *size, 3), np.float32)] * count
    module = VGGT(SMALL, **options)
    forward = jax.jit(lambda params, *views: module.apply({"params": params}, *views, capture=capture, head=head, edits=edits))
    return forward.lower(small_params(), *images)


def shapes_in(program):
    """The shapes of all arrays in a lowered program, without axes of length 1."""
    found = set(re.findall(r"tensor<((?:\d+x)+)[a-z]+\d+>", program.as_text()))
    return {tuple(side for side in map(int, shape.split("x")[:-1]) if side > 1) for shape in found}


# Three views of 2×4 patches: 13 tokens a view, 39 of all.
ODD = (28, 56)


def of_all_heads(program):
    """The shapes with an axis of four heads beside one of the 13 queries of a view, or of all 39, and one of all 39 keys."""
    return {shape for shape in shapes_in(program) if 4 in shape and (shape.count(39) > 1 or {13, 39} <= set(shape))}


def test_scores_of_all_heads_over_all_views_never_exist_together():
    edits = u3d.block_attention("global.*.self_attn", view=1, key_views=[2, 3])
    edits += u3d.block_attention("global.1.self_attn", heads=[1, 3], keys="special")
    program = lowered(capture=(LAST, "global.*.self_attn.mass"), edits=edits, size=ODD)
    assert of_all_heads(program) == set()
    assert (13, 39) in shapes_in(program), "one head's and one view's at a time"
    assert (3, 4, 13, 39) in of_all_heads(lowered(capture="global.1.self_attn.weights", size=ODD)), "which would be seen"


@pytest.mark.slow
def test_what_is_not_asked_for_is_not_computed():
    def flops(**what):
        return lowered(count=1, unroll=True, **what).cost_analysis()["flops"]

    layers = ("frame.0.mlp", "global.0.mlp", "frame.1.mlp", LAST)
    trunk, camera, points, both = (flops(capture=layers, head=head) for head in (False, "camera", "points", ("camera", "points")))
    assert trunk < camera < points < both
    assert both - points == pytest.approx(camera - trunk, rel=0.01)
    assert flops(head="pointmap") == flops(head="points")
    assert flops(capture="encoder.norm") < flops(capture="aggregator.embed,frame.0.self_attn") < flops(capture=LAST) <= trunk
    # What is captured inside of a head runs that head.
    assert flops(capture=(*layers, "pose_enc.1")) == camera


# What comes out


def test_captures_in_another_dtype_are_the_same_numbers_rounded():
    module, params = small(dtype="bfloat16").module, small_params()
    layers = ("encoder.0.mlp", "frame.*", "global.*")

    @jax.jit
    def captured(*images):
        runs = (module.clone(capture_dtype=dtype) for dtype in (None, jnp.bfloat16))
        return [dict(run.apply({"params": params}, *images, capture=layers, head=False)) for run in runs]

    exact, rounded = captured(*views(2))
    assert len(exact) == 9 and exact.keys() == rounded.keys()
    for layer, streams in exact.items():
        of_pairs = layer != "encoder.0.mlp"
        for stream, other in zip(streams, rounded[layer], strict=True):
            assert (stream.dtype, other.dtype) == (jnp.float32, jnp.bfloat16 if of_pairs else jnp.float32)
            np.testing.assert_array_equal(stream.astype(other.dtype), other, err_msg=layer)


def test_special_tokens_and_patches():
    output = plain()
    for layer, count in (("patch_embed", 0), ("encoder.norm", SPECIAL), ("aggregator.embed", SPECIAL), (LAST, SPECIAL)):
        assert [x.shape for x in output.special(layer)] == [(1, count, 64)] * 3
        assert [x.shape for x in output.patches(layer)] == [(1, 6, 64)] * 3
        np.testing.assert_array_equal(np.concatenate([output.special(layer)[1], output.patches(layer)[1]], axis=1), output[layer][1])
    # The patches that DINOv2 made go on, its own special tokens do not: those of views after the first are alike.
    np.testing.assert_array_equal(output.patches("encoder.norm")[1], output.patches("aggregator.embed")[1])
    special = output.special("aggregator.embed")
    np.testing.assert_array_equal(special[1], special[2])
    np.testing.assert_array_equal(special[0][0, 0], small_params()["aggregator"]["tokens"]["camera"][0, 0])
    assert np.abs(special[0] - special[1]).min(axis=-1).max() > 0 and output.cameras is None and output.depth == ()
