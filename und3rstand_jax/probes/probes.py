"""Pointmap probes: one small MLP a layer, on each token alone (arXiv 2510.24907, section 3).

A probe is written for one layer (`run_probe`) and mapped over the layers of a group, whose parameters are stacked. A
probe sees a single token, so what it reads must be in that token: it cannot solve the task itself.
"""

import dataclasses
import functools
import zlib
from collections.abc import Sequence
from typing import Literal, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

from und3rstand_jax.model.blocks import gelu
from und3rstand_jax.model.heads import Pointmap, shuffle_pixels, to_pointmap
from und3rstand_jax.model.output import BackboneOutput, ImageSizes, ViewTokens, pair
from und3rstand_jax.model.stack import Params
from und3rstand_jax.probes.config import ProbeConfig, ProbeGroup
from und3rstand_jax.support.errors import LayerError, OptionError

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

    The parameters of group g are `group{g}/linear{i}` and `group{g}/norm{j}`, stacked over its layers and, if each view
    has its own MLP, over the two views.
    """

    config: ProbeConfig

    @nn.compact
    def __call__(self, features: BackboneOutput) -> tuple[tuple[Pointmap, Pointmap], ...]:
        """Pointmaps of both views from every probed layer, in network order; both in view 1's frame.

        Args:
            features: a forward pass that captured at least the probed layers.

        Raises:
            LayerError: a probed layer was not captured.
            OptionError: `features` is not the model's output.
        """
        if not hasattr(features, "image_sizes"):
            raise OptionError(f"probes take the model's output itself, which holds the images' sizes; found {type(features).__name__}")
        missing = [layer for layer in self.config.layer_ids if layer not in features]
        if missing:
            raise LayerError(f"these layers have a probe and were not captured: {', '.join(missing)}; pass them as capture")
        found: dict[str, tuple[Pointmap, Pointmap]] = {}
        for index, group in enumerate(self.config.groups):
            params = self.param(f"group{index}", init_group, group, self.config.views)
            views = pair(jnp.stack([features[layer][view] for layer in group.layer_ids]) for view in (0, 1))
            preds = read_group(params, views, features.image_sizes, group, self.config)
            for i, layer in enumerate(group.layer_ids):
                found[layer] = jax.tree.map(lambda leaf, i=i: leaf[i], preds)
        return tuple(found[layer] for layer in self.config.layer_ids)


def read_group(
    params: Params,
    views: Sequence[Float[Array, "L B _ C"]],
    image_sizes: ImageSizes,
    group: ProbeGroup,
    config: ProbeConfig,
    precision: lax.Precision = lax.Precision.HIGHEST,
) -> tuple[Pointmap, Pointmap]:
    """Pointmaps of both views from L layers' tokens, every array with a leading layer axis.

    The names of the group's layers are not used: with L = 1 it reads the tokens of any one layer.
    """
    p = config.patch_size

    def decode(outputs: Float[Array, "L B N O"], image_size: tuple[int, int]) -> Pointmap:
        maps = outputs.reshape(-1, image_size[0] // p, image_size[1] // p, outputs.shape[-1])
        pred = to_pointmap(shuffle_pixels(maps, p, config.output_layout), config.depth_mode, config.conf_mode)
        return jax.tree.map(lambda leaf: leaf.reshape(*outputs.shape[:2], *leaf.shape[1:]), pred)

    return pair(map(decode, run_group(params, views, group, config, precision), image_sizes))


def run_group(
    params: Params,
    views: Sequence[Float[Array, "L B _ C"]],
    group: ProbeGroup,
    config: ProbeConfig,
    precision: lax.Precision = lax.Precision.HIGHEST,
) -> tuple[Float[Array, "L B N1 O"], Float[Array, "L B N2 O"]]:
    """The raw outputs of a group's probes on both views."""
    probe = jax.vmap(lambda weights, tokens: run_probe(weights, tokens, group, config, precision))
    if config.views == "separate":
        return pair(probe(jax.tree.map(lambda leaf, view=view: leaf[:, view], params), tokens) for view, tokens in enumerate(views))
    together = probe(params, jnp.concatenate(views, axis=2))
    return pair(jnp.split(together, [views[0].shape[2]], axis=2))


def run_probe(
    params: Params,
    tokens: Float[Array, "*B C"],
    group: ProbeGroup,
    config: ProbeConfig,
    precision: lax.Precision = lax.Precision.HIGHEST,
) -> Float[Array, "*B O"]:
    """One probe's MLP on each token alone, in float32 whatever the trunk computed in.

    `precision` is that of its matrix products: exact by default, because GPUs and TPUs would otherwise lower it silently.
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
            norm = params[f"norm{norms}"]
            if config.norm == "layernorm":
                x = x - x.mean(axis=-1, keepdims=True)
            x = x * lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + config.norm_epsilon)
            x = _add(x * norm["scale"], norm.get("bias"))
            norms += 1
        else:
            x = _ACTIVATIONS[config.activation](x)
    return x


def _add(x: Float[Array, "*B C"], other: Float[Array, "*#B C"] | None) -> Float[Array, "*B C"]:
    return x if other is None else x + other


def init_group(key: jax.Array, group: ProbeGroup, views: Literal["shared", "separate"]) -> dict[str, dict[str, Array]]:
    """Fresh parameters: kernels LeCun normal, drawn independently for each probe, biases 0, norm scales 1."""
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
                params[f"linear{linears}"]["bias"] = jnp.zeros((*lead, width_out), jnp.float32)
            linears += 1
        elif step == "norm":
            width = group.widths[linears]
            params[f"norm{norms}"] = {"scale": jnp.ones((*lead, width), jnp.float32)}
            if group.norm_biases[norms]:
                params[f"norm{norms}"]["bias"] = jnp.zeros((*lead, width), jnp.float32)
            norms += 1
    return params


def probe_shapes(config: ProbeConfig) -> Params:
    """The parameter tree as `jax.ShapeDtypeStruct`s, without computing it."""
    key = jax.random.key(0)
    return {f"group{i}": jax.eval_shape(lambda k, g=g: init_group(k, g, config.views), key) for i, g in enumerate(config.groups)}


def init_probes(config: ProbeConfig, seed: int) -> Params:
    """Fresh parameters of every probe, stacked. A probe's depend on the seed and its layer's id, not on the other layers."""

    def group_params(group: ProbeGroup) -> Params:
        key = jax.random.key(seed)
        keys = [jax.random.fold_in(key, zlib.crc32(layer.encode())) for layer in group.layer_ids]
        alone = ProbeGroup(("",), group.widths, group.steps, group.biases, group.norm_biases)
        return jax.vmap(lambda k: jax.tree.map(lambda leaf: leaf[0], init_group(k, alone, config.views)))(jnp.stack(keys))

    return {f"group{number}": jax.jit(group_params, static_argnums=0)(group) for number, group in enumerate(config.groups)}


@dataclasses.dataclass(frozen=True, eq=False)
class Probes:
    """Pointmap probes bound to their parameters."""

    module: PointmapProbes
    params: Params

    @property
    def config(self) -> ProbeConfig:
        """The architecture."""
        return self.module.config

    @property
    def layer_ids(self) -> tuple[str, ...]:
        """The probed layers, in the order of the outputs."""
        return self.config.layer_ids

    def __call__(self, features: BackboneOutput) -> tuple[tuple[Pointmap, Pointmap], ...]:
        """Pointmaps of both views from every probed layer; see `PointmapProbes.__call__`."""
        return _probe(self.module, self.params, features)

    def read_layer(self, layer_id: str, features: BackboneOutput) -> tuple[Pointmap, Pointmap]:
        """Pointmaps of both views from one probed layer. Layer by layer, all of them need the memory of one.

        Raises:
            LayerError: the layer has no probe, or was not captured.
        """
        if layer_id in self.layer_ids and layer_id not in features:
            captured = ", ".join(features) or "none"
            raise LayerError(f"layer {layer_id} was not captured; captured are: {captured}; pass it as capture")
        for index, group in enumerate(self.config.groups):
            if layer_id in group.layer_ids:
                place = group.layer_ids.index(layer_id)
                params = jax.tree.map(lambda leaf, place=place: leaf[place : place + 1], self.params[f"group{index}"])
                # Under one name for all, layers of equal shape share one compiled program.
                nameless = dataclasses.replace(group, layer_ids=("any",)), dataclasses.replace(self.config, groups=())
                return _read_layer(*nameless, params, features[layer_id], features.image_sizes)
        raise LayerError(f"layer {layer_id} has no probe; probed are {', '.join(self.layer_ids)}")


@functools.partial(jax.jit, static_argnums=0)
def _probe(module: PointmapProbes, params: Params, features: BackboneOutput) -> tuple[tuple[Pointmap, Pointmap], ...]:
    return cast(tuple[tuple[Pointmap, Pointmap], ...], module.apply({"params": params}, features))


@functools.partial(jax.jit, static_argnums=(0, 1, 4))
def _read_layer(
    group: ProbeGroup, config: ProbeConfig, params: Params, tokens: ViewTokens, image_sizes: ImageSizes
) -> tuple[Pointmap, Pointmap]:
    preds = read_group(params, pair(view[None] for view in tokens), image_sizes, group, config)
    return jax.tree.map(lambda leaf: leaf[0], preds)
