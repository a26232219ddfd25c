"""Which attention a program for an NVIDIA GPU holds; it is lowered here, and needs no GPU."""

import jax
import jax.numpy as jnp
import pytest
from jax import export
from jax._src.cudnn import fused_attention_stablehlo as cudnn

from und3rstand_jax.model.attention import attend

KERNEL = "__cudnn$fmhaSoftmax"


def lowered(platform, dtype, implementation="auto", head_dim=64):
    """The program of one attention, as text."""
    heads = jax.ShapeDtypeStruct((2, 128, 4, head_dim), dtype)
    attention = jax.jit(lambda q, k, v: attend(q, k, v, implementation, jax.lax.Precision.HIGHEST))
    allowed = [export.DisabledSafetyCheck.custom_call(KERNEL)]
    return export.export(attention, platforms=[platform], disabled_checks=allowed)(heads, heads, heads).mlir_module()


@pytest.fixture
def has_cudnn(monkeypatch):
    """This process believes that it has the cuDNN of a machine with a GPU: JAX asks for it while it traces."""
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91900)


def test_in_half_precision_auto_takes_cudnn_on_an_nvidia_gpu_and_there_alone(has_cudnn):
    assert KERNEL in lowered("cuda", jnp.bfloat16)
    assert KERNEL in lowered("cuda", jnp.float16)
    assert KERNEL not in lowered("cuda", jnp.float32)
    for platform in ("cpu", "tpu"):
        assert KERNEL not in lowered(platform, jnp.bfloat16)
    assert KERNEL not in lowered("cuda", jnp.bfloat16, "xla")


def test_where_cudnn_has_no_kernel_auto_takes_xla(has_cudnn):
    text = lowered("cuda", jnp.bfloat16, head_dim=36)  # cuDNN wants a multiple of 8
    assert KERNEL not in text and "dot_general" in text


def test_without_cudnn_auto_takes_xla(monkeypatch):
    def not_detected():
        raise RuntimeError("cuDNN is not detected.")

    monkeypatch.setattr(cudnn, "check_cudnn_version", not_detected)
    assert KERNEL not in lowered("cuda", jnp.bfloat16)
