"""Only what is edited pays for it: by XLA's own analysis of the compiled program, and by the attention that a program for a GPU holds."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax import export

import und3rstand_jax as u3d
from tests.test_compiled_cost import CONFIG, TOKENS, compiled, forward, inputs
from tests.test_cuda_lowering import KERNEL, has_cudnn  # noqa: F401
from und3rstand_jax.model.edits import Edit, Edits

DEPTH = 2
HEADS, WIDTH = CONFIG.dec_num_heads, CONFIG.dec_embed_dim
SCORES = HEADS * TOKENS * TOKENS  # of one attention of one view
LAST = f"decoder.{DEPTH - 1}.mlp"
ATTENTIONS = 2 * (CONFIG.enc_depth + 2 * DEPTH)  # of both views

NEUTRAL_HEADS = Edits((Edit("*.heads", heads=[0]),))


def scores_of(site, view="both"):
    return Edits((Edit(f"{site}.scores", view),))


@functools.cache
def flops(edits=None):
    """With attention written out: of a loop over heads one would be counted."""
    return compiled(LAST, depth=DEPTH, edits=edits, attention="xla").cost_analysis()["flops"]


def test_edited_scores_cost_a_few_operations_a_score_in_the_attention_that_they_are_of():
    """A product and a sum are two; the XLA of jax 0.12 counts four."""
    of_a_view, of_all = scores_of("decoder.0.cross_attn", 1), scores_of("decoder.*_attn")
    one, every = (flops(edits) - flops() for edits in (of_a_view, of_all))
    assert 2 * SCORES <= 1.01 * one <= 1.02 * 4 * SCORES
    assert every == pytest.approx(2 * DEPTH * 2 * one, rel=0.01)


def test_edits_of_all_heads_cost_a_few_operations_a_value():
    extra = flops(NEUTRAL_HEADS) - flops()
    assert 0 <= extra <= 4 * ATTENTIONS * TOKENS * WIDTH
    assert flops(NEUTRAL_HEADS) <= 1.01 * flops()


@pytest.mark.slow
def test_edits_take_no_memory_but_their_own_and_that_of_a_block_that_is_run_by_itself():
    plain, heads, of_one, all_scores = (
        compiled("decoder.5.mlp", unroll=False, edits=edits).memory_analysis()
        for edits in (None, NEUTRAL_HEADS, scores_of("decoder.2.cross_attn"), scores_of("*_attn"))
    )
    numbers = heads.argument_size_in_bytes - plain.argument_size_in_bytes
    assert 0 < numbers <= 8 * ATTENTIONS * 3 * HEADS * 6  # scale and shift of each head of the deeper model
    assert heads.temp_size_in_bytes <= plain.temp_size_in_bytes + 2 * numbers + 1024
    # A block with edits of its own is no longer one of a loop: its weights are sliced out of the stack.
    weights = 2 * 4 * (3 * WIDTH**2 + 5 * WIDTH**2 + 8 * WIDTH**2 + 20 * WIDTH)
    assert of_one.temp_size_in_bytes <= plain.temp_size_in_bytes + weights + 4 * 2 * 4 * SCORES
    # Where all are edited, the blocks are one loop again.
    assert all_scores.temp_size_in_bytes <= plain.temp_size_in_bytes + 4 * 2 * 4 * SCORES


def fused(edits):
    """The attentions that cuDNN computes in a bfloat16 program for an NVIDIA GPU."""
    run, allowed = jax.jit(forward(LAST, depth=DEPTH, dtype=jnp.bfloat16)), [export.DisabledSafetyCheck.custom_call(KERNEL)]
    return export.export(run, platforms=["cuda"], disabled_checks=allowed)(*inputs(DEPTH, edits)).mlir_module().count(KERNEL)


@pytest.mark.usefixtures("has_cudnn")
@pytest.mark.parametrize(
    ("edits", "left"),
    [
        (None, 10),
        (NEUTRAL_HEADS + u3d.skip("decoder.0.cross_attn") + u3d.steer("decoder.*", 1.0), 10),
        (scores_of("decoder.0.cross_attn", 1), 9),
        (scores_of("decoder.0.cross_attn") + scores_of("decoder.1.self_attn", 2) + NEUTRAL_HEADS, 7),
        (scores_of("encoder.0.self_attn", 1), 9),  # both views go through the encoder as one batch
        (scores_of("*_attn"), 0),
    ],
    ids=["none", "others", "one_view", "three", "encoder", "all"],
)
def test_on_an_nvidia_gpu_cudnn_computes_every_attention_whose_scores_are_not_edited(edits, left):
    assert fused(edits) == left
