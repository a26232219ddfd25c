"""Memory of the training step by XLA's own analysis: beyond parameters and optimiser state only captured tokens grow with the layers."""

import functools

import jax
import pytest

from tests.plain_scenes import render_plain_scenes
from und3rstand_jax.model.dust3r.config import BackboneConfig
from und3rstand_jax.model.layer_ids import paper_layer_ids
from und3rstand_jax.train.options import TrainOptions
from und3rstand_jax.train.plan.memory import compile_step
from und3rstand_jax.train.plan.shapes import intermediates, step_arguments, tree_bytes
from und3rstand_jax.train.probes_task import ProbesTask

CONFIG = BackboneConfig(
    img_size=(96, 96), enc_embed_dim=64, enc_depth=1, enc_num_heads=2, dec_embed_dim=64, dec_depth=12, dec_num_heads=2, head_type="linear"
)
PAIRS = 8
ALLOCATIONS = 64 * 1024  # what buffers' alignment and a few scalars may add


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def analysed():
    """(number of layers, layers side by side) -> (memory analysis, bytes of the state, bytes of the captured tokens)."""
    with pytest.MonkeyPatch.context() as patch:
        render_plain_scenes(patch)

        @functools.cache
        def analyse(layers, side_by_side=1):
            chosen = ",".join(paper_layer_ids(12)[-layers:])
            options = TrainOptions(layers=chosen, steps=100, augment=False, side_by_side=side_by_side)
            task = ProbesTask.create(options, CONFIG, devices=1)
            arguments = step_arguments(task, PAIRS)
            compiled = compile_step(task, arguments, jax.devices()[:1])
            return compiled.memory_analysis(), tree_bytes(arguments.state), tree_bytes(intermediates(task, arguments).tokens)

        yield analyse


def growth_beyond_tokens(fewer, more):
    return (more[0].temp_size_in_bytes - more[2]) - (fewer[0].temp_size_in_bytes - fewer[2])


def test_temporary_memory_grows_with_the_layers_by_their_captured_tokens_alone(analysed):
    one, twelve, every = analysed(1), analysed(12), analysed(36)
    tokens = 2 * PAIRS * 36 * 64 * 4  # bytes a layer: views, pairs, tokens, channels, float32
    assert [found[2] for found in (one, twelve, every)] == [tokens, 12 * tokens, 36 * tokens]
    assert growth_beyond_tokens(twelve, every) <= ALLOCATIONS
    # The loop over one layer is dissolved; that over several works on a copy of the layer whose turn it is, and of its tokens.
    a_layer = one[1] + tokens
    assert growth_beyond_tokens(one, twelve) <= a_layer + ALLOCATIONS
    assert growth_beyond_tokens(one, every) <= a_layer + ALLOCATIONS


@pytest.mark.parametrize("layers", [1, 12, 36])
def test_the_state_is_updated_in_place(analysed, layers):
    analysis, state, _ = analysed(layers)
    assert state == layers * analysed(1)[1] - (layers - 1) * 4  # all but the step's number is the layers'
    assert analysis.alias_size_in_bytes == state
    assert analysis.output_size_in_bytes - state <= 36 * 5 * 4 + 4096  # a loss's five figures, and tables of pointers


def test_layers_side_by_side_take_the_memory_of_as_many(analysed):
    one, four = analysed(36), analysed(36, side_by_side=4)
    more = growth_beyond_tokens(one, four)
    # The bound above is no matter of course: it is broken as soon as four layers are computed at once.
    assert more > one[1] / 36 + ALLOCATIONS
    assert more > one[0].temp_size_in_bytes
