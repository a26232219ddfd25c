"""GELU against its definition in float64 and against PyTorch."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.with_torch import needs_torch
from und3rstand_jax.model.blocks import gelu

pytestmark = pytest.mark.optimised

X = np.linspace(-12, 12, 4801)
DEFINITION = np.array([x * 0.5 * (1 + math.erf(x / math.sqrt(2))) for x in X])
SLOPE = np.array([0.5 * (1 + math.erf(x / math.sqrt(2))) + x * math.exp(-x * x / 2) / math.sqrt(2 * math.pi) for x in X])


def test_it_is_the_definition_to_float32_rounding_and_so_is_its_derivative():
    x = jnp.asarray(X, jnp.float32)
    # x carries a rounding of its own, up to 5e-7 here.
    assert np.max(np.abs(gelu(x) - DEFINITION)) < 1e-6
    assert np.max(np.abs(jax.vmap(jax.grad(gelu))(x) - SLOPE)) < 1e-6


@needs_torch
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_it_differs_from_pytorch_by_no_more_than_a_rounding(dtype):
    import torch

    ours = gelu(jnp.asarray(X, dtype))
    theirs = torch.nn.functional.gelu(torch.tensor(X, dtype=getattr(torch, dtype.__name__)))
    assert ours.dtype == dtype
    theirs = theirs.float().numpy()
    # One unit in the last place, or, where 1 + erf cancels, one of the 1's.
    tolerance = np.maximum(np.abs(theirs) * float(jnp.finfo(dtype).eps), 12 * float(jnp.finfo(jnp.float32).eps))
    assert np.all(np.abs(np.asarray(ours, np.float32) - theirs) <= tolerance)
