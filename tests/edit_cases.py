"""A model with random weights to edit, and what tests of edits have in common."""

import dataclasses
import functools
import math

import jax
import numpy as np

from tests.golden_cases import relative_error
from tests.test_attention_weights import SIZES, TINY, params, views
from tests.test_model_properties import outputs
from und3rstand_jax.model.backbone import Backbone
from und3rstand_jax.model.dust3r.module import DUSt3R
from und3rstand_jax.model.edits import Edits

BLOCKED = -math.inf
FIRST = "encoder.0.self_attn"
INSIDE = "*,*.scores,*.weights,*.heads,*.update"
SMALL = dataclasses.replace(TINY, enc_depth=1, dec_depth=2)


@functools.cache
def small_params(left_out=((1,), (2,))):
    """The parameters without some blocks of the encoder and of the decoders."""
    blocks = dict(zip(("encoder", "decoder"), left_out, strict=True))
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: np.delete(leaf, blocks[path[0].key], 0) if path[1].key.startswith("blocks") else leaf, params()
    )


def model(**options):
    return Backbone(DUSt3R(TINY, **options), params())


def small():
    return Backbone(DUSt3R(SMALL), small_params())


def run(edits=None, capture="*", sizes="mixed", head=False, **options):
    return jax.device_get(model(**options)(*views(SIZES[sizes]), capture=capture, head=head, edits=edits))


def neutral(edits):
    """Edits that run the same program and change nothing."""
    numbers = ({"scale": np.ones(np.shape(edit.scale)), "shift": np.zeros(np.shape(edit.shift))} for edit in edits)
    return Edits(tuple(dataclasses.replace(edit, **one) for edit, one in zip(edits, numbers, strict=True)))


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def apart(one, other):
    """(site, view) -> how far two runs are from each other there."""
    one, other = outputs(one), outputs(other)
    return {key: relative_error(one[key], other[key]) for key in one}


@functools.cache
def plain():
    return run(None, INSIDE, head=True)
