"""Pointmap probes: one small MLP a layer, on each token alone (arXiv 2510.24907, section 3).

A probe is written for one layer (`run_probe`) and mapped over the layers of a group, whose parameters are stacked. A
probe sees a single token, so what it reads out is in that token: it cannot solve the task itself.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

from und3rstand_jax.errors import UserError
from und3rstand_jax.gelu import gelu
from und3rstand_jax.linear_head import shuffle_pixels
from und3rstand_jax.output import BackboneOutput, ImageSizes, pair
from und3rstand_jax.pointmap import Pointmap, to_pointmap
from und3rstand_jax.probe_config import ProbeConfig, ProbeGroup

_ACTIVATIONS = {
    "gelu": gelu,
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
    "leaky_relu": jax.nn.leaky_relu,
    "identity": lambda x: x,
}


class PointmapProbes(nn.Module):
    """A set of probes.

    The leaves of group g are `group{g}/linear{i}` and `group{g}/norm{j}`, stacked over its layers and, where each view
    has its own MLP, over the two views.
    """

    config: ProbeConfig

    @nn.compact
    def __call__(self, features: BackboneOutput) -> tuple[tuple[Pointmap, Pointmap], ...]:
        """Pointmaps of both views from every probed layer, in network order; both in view 1's frame.

        Args:
            features: a forward pass that captured at least the probed layers.

        Raises:
            UserError: a probed layer was not captured.
        """
        if not hasattr(features, "image_sizes"):
            raise UserError(f"probes take the model's output itself, which knows the images' sizes; found {type(features).__name__}")
        missing = [layer for layer in self.config.layer_ids if layer not in features]
        if missing:
            raise UserError(f"these layers have a probe and were not captured: {', '.join(missing)}; pass them as capture")
        found: dict[str, tuple[Pointmap, Pointmap]] = {}
        for index, group in enumerate(self.config.groups):
            params = self.param(f"group{index}", init_group, group, self.config.views)
            views = [jnp.stack([features[layer][view] for layer in group.layer_ids]) for view in (0, 1)]
            preds = read_group(params, views, features.image_sizes, group, self.config)
            for i, layer in enumerate(group.layer_ids):
                found[layer] = jax.tree.map(lambda leaf, i=i: leaf[i], preds)
        return tuple(found[layer] for layer in self.config.layer_ids)


def read_group(
    params: Any,
    views: Sequence[Float[Array, "L B N C"]],
    image_sizes: ImageSizes,
    group: ProbeGroup,
    config: ProbeConfig,
    precision: lax.Precision = lax.Precision.HIGHEST,
) -> tuple[Pointmap, Pointmap]:
    """Pointmaps of both views from L layers' tokens, every array with a leading layer axis.

    The layers' names play no part: a single layer's weights and tokens with L = 1 do as well.
    """
    outputs = run_group(params, views, group, config, precision)
    return pair(_decode(output, size, config) for output, size in zip(outputs, image_sizes, strict=True))


def _decode(outputs: Float[Array, "L B N O"], image_size: tuple[int, int], config: ProbeConfig) -> Pointmap:
    """Each token's outputs laid out as its patch of the pointmap."""
    p = config.patch_size
    maps = outputs.reshape(-1, image_size[0] // p, image_size[1] // p, outputs.shape[-1])
    pred = to_pointmap(shuffle_pixels(maps, p, config.output_layout), config.depth_mode, config.conf_mode)
    return jax.tree.map(lambda leaf: leaf.reshape(*outputs.shape[:2], *leaf.shape[1:]), pred)


def run_group(
    params: Any,
    views: Sequence[Float[Array, "L B N C"]],
    group: ProbeGroup,
    config: ProbeConfig,
    precision: lax.Precision = lax.Precision.HIGHEST,
) -> list[Float[Array, "L B N O"]]:
    """The raw outputs of a group's probes on both views."""
    probe = jax.vmap(lambda weights, tokens: run_probe(weights, tokens, group, config, precision))
    if config.views == "separate":
        return [probe(jax.tree.map(lambda leaf, view=view: leaf[:, view], params), tokens) for view, tokens in enumerate(views)]
    together = probe(params, jnp.concatenate(views, axis=2))
    return jnp.split(together, [views[0].shape[2]], axis=2)


def run_probe(
    params: Mapping[str, Any],
    tokens: Float[Array, "*B C"],
    group: ProbeGroup,
    config: ProbeConfig,
    precision: lax.Precision = lax.Precision.HIGHEST,
) -> Float[Array, "*B O"]:
    """One probe's MLP on tokens, each alone, in float32 whatever the trunk computed in.

    `precision` is of its matrix products: exact by default, which GPUs and TPUs would otherwise lower without a word.
    """
    x = tokens.astype(jnp.float32)
    skip = None
    linears = norms = 0
    for step in group.steps:
        if step == "linear":
            x = _add(x, skip)
            width_in, width_out = group.widths[linears : linears + 2]
            is_hidden = linears < len(group.widths) - 2
            skip = x if config.residual and is_hidden and width_in == width_out else None
            layer = params[f"linear{linears}"]
            x = jnp.matmul(x, layer["kernel"], precision=precision)
            x = _add(x, layer.get("bias"))
            linears += 1
        elif step == "norm":
            x = _normalise(x, params[f"norm{norms}"], config)
            norms += 1
        else:
            x = _ACTIVATIONS[config.activation](x)
    return x


def _add(x: Array, other: Array | None) -> Array:
    return x if other is None else x + other


def _normalise(x: Array, params: Mapping[str, Array], config: ProbeConfig) -> Array:
    if config.norm == "layernorm":
        x = x - x.mean(axis=-1, keepdims=True)
    x = x * lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + config.norm_epsilon)
    return _add(x * params["scale"], params.get("bias"))


def init_group(key: jax.Array, group: ProbeGroup, views: str) -> dict[str, dict[str, Array]]:
    """Fresh parameters: kernels LeCun normal, each probe drawn on its own, biases 0, norm scales 1."""
    lead = (len(group.layer_ids), 2) if views == "separate" else (len(group.layer_ids),)
    kernel_init = nn.initializers.lecun_normal(batch_axis=tuple(range(len(lead))))
    params: dict[str, dict[str, Array]] = {}
    linears = norms = 0
    for step in group.steps:
        if step == "linear":
            width_in, width_out = group.widths[linears : linears + 2]
            key, own = jax.random.split(key)
            params[f"linear{linears}"] = {"kernel": kernel_init(own, (*lead, width_in, width_out), jnp.float32)}
            if group.biases[linears]:
                params[f"linear{linears}"]["bias"] = jnp.zeros((*lead, width_out))
            linears += 1
        elif step == "norm":
            width = group.widths[linears]
            params[f"norm{norms}"] = {"scale": jnp.ones((*lead, width))}
            if group.norm_biases[norms]:
                params[f"norm{norms}"]["bias"] = jnp.zeros((*lead, width))
            norms += 1
    return params


def probe_shapes(config: ProbeConfig) -> dict[str, Any]:
    """Shapes of the parameter tree, without computing it."""
    key = jax.random.key(0)
    return {f"group{i}": jax.eval_shape(lambda k, g=g: init_group(k, g, config.views), key) for i, g in enumerate(config.groups)}
