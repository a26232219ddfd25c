"""What is neither captured nor needed by a head is not computed and takes no memory: by XLA's own analysis of the compiled program."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from und3rstand_jax.model.dust3r.config import BackboneConfig
from und3rstand_jax.model.dust3r.module import DUSt3R
from und3rstand_jax.model.site_edits import resolve_edits

CONFIG = BackboneConfig(
    img_size=(96, 96), enc_embed_dim=64, enc_depth=2, enc_num_heads=2, dec_embed_dim=64, dec_depth=6, dec_num_heads=2, head_type="linear"
)
VIEW = jax.ShapeDtypeStruct((1, 96, 96, 3), np.float32)
TOKENS = 36
STREAM = 2 * TOKENS * 64 * 4  # bytes of one layer's tokens of both views


@functools.cache
def compiled(capture, head=False, depth=6, unroll=True, edits=None, **options):
    """XLA counts the body of a loop once: without loops, its flops are those of the program."""
    return jax.jit(forward(capture, head, depth, unroll, **options)).lower(*inputs(depth, edits)).compile()


def forward(capture, head=False, depth=6, unroll=True, **options):
    """The model as a function of `inputs`."""
    module = DUSt3R(dataclasses.replace(CONFIG, dec_depth=depth), unroll=unroll, **options)
    return lambda params, a, b, edits: module.apply({"params": params}, a, b, capture=capture, head=head, edits=edits)


def inputs(depth=6, edits=None):
    """Parameters, images and the numbers of edits, as shapes."""
    config = dataclasses.replace(CONFIG, dec_depth=depth)
    params = jax.eval_shape(DUSt3R(config).init, jax.random.key(0), *(np.zeros(VIEW.shape, np.float32),) * 2)["params"]
    numbers = resolve_edits(edits, config, ((6, 6), (6, 6)), 1)
    return params, VIEW, VIEW, jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), numbers)


def flops(*args, **kwargs):
    return compiled(*args, **kwargs).cost_analysis()["flops"]


def block_flops(until="mlp"):
    """One decoder block on both views, by hand: products only."""
    dim, n = 64, TOKENS
    attention = 2 * (2 * n * dim * 3 * dim + 4 * n * n * dim + 2 * n * dim * dim)
    steps = {"self_attn": attention, "cross_attn": 2 * (4 * 2 * n * dim * dim + 4 * n * n * dim), "mlp": 2 * 2 * 2 * n * dim * 4 * dim}
    names = list(steps)
    return sum(steps[name] for name in names[: names.index(until) + 1])


@pytest.mark.slow
def test_capturing_one_layer_costs_what_a_model_that_ends_there_costs():
    assert flops("decoder.2.mlp") == flops("decoder.2.mlp", depth=3)
    # Softmax, GELU and norms come on top of the products.
    assert flops("decoder.5.mlp") - flops("decoder.2.mlp") == pytest.approx(3 * block_flops(), rel=0.1)


@pytest.mark.parametrize("step", ["self_attn", "cross_attn"])
def test_the_rest_of_the_last_block_is_not_computed(step):
    saved = flops("decoder.0.mlp") - flops(f"decoder.0.{step}")
    assert saved > 0.9 * (block_flops() - block_flops(step))


@pytest.mark.slow
def test_an_encoder_layer_costs_no_decoder():
    assert flops("encoder.0.mlp") < flops("encoder.1.mlp") < flops("encoder.norm") < flops("decoder.embed") < flops("decoder.0.self_attn")
    encoder_block = flops("encoder.1.mlp") - flops("encoder.0.mlp")
    assert encoder_block == pytest.approx(2 * (2 * TOKENS * 64 * 12 * 64 + 4 * TOKENS**2 * 64), rel=0.15)


@pytest.mark.slow
def test_a_head_costs_no_capture_and_a_capture_no_head():
    assert flops("all", head=True) == pytest.approx(flops((), head=True), rel=1e-3)
    assert flops("decoder.norm") < flops((), head=True)


@pytest.mark.slow
def test_memory_is_that_of_the_captured_layers():
    one, three, every = (compiled(capture, unroll=False).memory_analysis() for capture in ("decoder.2.mlp", "decoder.2.*", "all"))
    pointers = 1024  # the output tuple's own table
    assert one.output_size_in_bytes == pytest.approx(STREAM, abs=pointers)
    assert three.output_size_in_bytes == pytest.approx(3 * STREAM, abs=pointers)
    assert every.output_size_in_bytes == pytest.approx(18 * STREAM, abs=pointers)
    shallow = compiled("decoder.2.mlp", depth=3, unroll=False).memory_analysis()
    assert one.temp_size_in_bytes <= shallow.temp_size_in_bytes + pointers
    # On its way to the output a captured layer is held at most once more.
    assert every.temp_size_in_bytes - one.temp_size_in_bytes <= 18 * STREAM
