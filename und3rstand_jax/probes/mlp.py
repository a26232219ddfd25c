"""The MLP of one probe, on each token alone, and its parameters."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

from und3rstand_jax.model.blocks import gelu
from und3rstand_jax.model.stack import Params
from und3rstand_jax.probes.config import ProbeConfig, ProbeGroup

_ACTIVATIONS = {
    "gelu": gelu,
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
    "leaky_relu": jax.nn.leaky_relu,
    "identity": lambda x: x,
}


def run_mlp(
    params: Params,
    tokens: Float[Array, "T C"],
    group: ProbeGroup,
    config: ProbeConfig,
    precision: lax.Precision = lax.Precision.HIGHEST,
) -> Float[Array, "T O"]:
    """Applies the MLP to each token alone, in float32 whatever the trunk's dtype.

    `precision` is that of its matrix products: exact by default, because GPUs and TPUs would otherwise lower it silently.
    """
    x = tokens.astype(jnp.float32)
    skip = None
    folds = group.steps[:2] == ("norm", "linear") and not config.residual
    linears = norms = 0
    for step in group.steps:
        if step == "linear":
            x = _add(x, skip)
            width_in, width_out = group.widths[linears : linears + 2]
            is_hidden = linears < len(group.widths) - 2
            skip = x if config.residual and is_hidden and width_in == width_out else None
            layer = params[f"linear{linears}"]
            if linears == 0 and folds:
                layer = _folded(params["norm0"], layer, precision)
            x = jnp.matmul(x, layer["kernel"], precision=precision)
            x = _add(x, layer.get("bias"))
            linears += 1
        elif step == "norm":
            norm = params[f"norm{norms}"]
            if config.norm == "layernorm":
                x = x - x.mean(axis=-1, keepdims=True)
            x = x * lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + config.norm_epsilon)
            if norms > 0 or not folds:
                x = _add(x * norm["scale"], norm.get("bias"))
            norms += 1
        else:
            x = _ACTIVATIONS[config.activation](x)
    return x


def _folded(norm: Params, linear: Params, precision: lax.Precision) -> Params:
    """One linear layer on normalised tokens that equals the norm's scale and bias followed by `linear`: (x·s + t)·W = x·(s·W) + t·W.

    The left side needs one more product with all tokens, one in fifteen of a default probe's gradient, only for the gradients of s and t;
    the tokens themselves need no gradient.
    """
    folded = linear | {"kernel": norm["scale"][:, None] * linear["kernel"]}
    if "bias" in norm:
        shift = jnp.matmul(norm["bias"], linear["kernel"], precision=precision)
        folded["bias"] = _add(shift, linear.get("bias"))
    return folded


def _add(x: Float[Array, "*T C"], other: Float[Array, "*#T C"] | None) -> Float[Array, "*T C"]:
    return x if other is None else x + other


def init_group(key: jax.Array, group: ProbeGroup, config: ProbeConfig) -> dict[str, dict[str, Array]]:
    """Fresh parameters: kernels LeCun normal, drawn independently for each probe, biases 0, norm scales 1."""
    lead = (len(group.layer_ids), *([config.view_count] if config.views == "separate" else []))
    kernel_init = nn.initializers.lecun_normal(batch_axis=tuple(range(len(lead))))
    params: dict[str, dict[str, Array]] = {}
    linears = norms = 0
    for step in group.steps:
        if step == "linear":
            width_in, width_out = group.widths[linears : linears + 2]
            key, own = jax.random.split(key)
            params[f"linear{linears}"] = {"kernel": kernel_init(own, (*lead, width_in, width_out), jnp.float32)}
            if group.biases[linears]:
                params[f"linear{linears}"]["bias"] = jnp.zeros((*lead, width_out), jnp.float32)
            linears += 1
        elif step == "norm":
            width = group.widths[linears]
            params[f"norm{norms}"] = {"scale": jnp.ones((*lead, width), jnp.float32)}
            if group.norm_biases[norms]:
                params[f"norm{norms}"]["bias"] = jnp.zeros((*lead, width), jnp.float32)
            norms += 1
    return params
