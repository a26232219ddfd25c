"""Pointmap probes: one small MLP per layer, on each token alone (arXiv 2510.24907, section 3).

A probe is written for one layer (`read_layer`) and mapped over the layers of a group, whose parameters are stacked. A
probe sees a single token, so what it reads must be in that token: it cannot solve the task itself.
"""

import dataclasses
import functools
import itertools
import zlib
from collections.abc import Sequence
from typing import cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float, Shaped

from und3rstand_jax.model.heads import Planes, Pointmap, shuffle_pixels, split_axis, to_planes, to_pointmap
from und3rstand_jax.model.output import BackboneOutput, ImageSizes, ViewTokens
from und3rstand_jax.model.stack import Params
from und3rstand_jax.probes.config import ProbeConfig, ProbeGroup
from und3rstand_jax.probes.mlp import init_group, run_mlp
from und3rstand_jax.support.errors import LayerError, OptionError


class PointmapProbes(nn.Module):
    """A set of probes.

    The parameters of group g are `group{g}/linear{i}` and `group{g}/norm{j}`, stacked over its layers and, if each view
    has its own MLP, over the views.
    """

    config: ProbeConfig

    @nn.compact
    def __call__(self, features: BackboneOutput) -> tuple[tuple[Pointmap, ...], ...]:
        """Pointmaps of every view from every probed layer, in network order; all in view 1's frame.

        Args:
            features: a forward pass that captured at least the probed layers.

        Raises:
            LayerError: a probed layer was not captured.
            OptionError: `features` is not the model's output, or has more views than there are MLPs.
        """
        if not hasattr(features, "image_sizes"):
            raise OptionError(f"probes take the model's output itself, which has the image sizes; found {type(features).__name__}")
        missing = [layer for layer in self.config.layer_ids if layer not in features]
        if missing:
            raise LayerError(f"these layers have a probe but were not captured: {', '.join(missing)}; pass them as capture")
        found: dict[str, tuple[Pointmap, ...]] = {}
        for index, group in enumerate(self.config.groups):
            params = self.param(f"group{index}", init_group, group, self.config)
            views = tuple(
                jnp.stack([features.patches(layer)[view] for layer in group.layer_ids]) for view in range(len(features.image_sizes))
            )
            preds = read_group(params, views, features.image_sizes, group, self.config)
            for i, layer in enumerate(group.layer_ids):
                found[layer] = jax.tree.map(lambda leaf, i=i: leaf[i], preds)
        return tuple(found[layer] for layer in self.config.layer_ids)


def read_group(
    params: Params, views: Sequence[Float[Array, "L B _ C"]], image_sizes: ImageSizes, group: ProbeGroup, config: ProbeConfig
) -> tuple[Pointmap, ...]:
    """`read_layer` for L layers at once, every array with a leading layer axis."""
    return jax.vmap(lambda weights, *tokens: read_layer(weights, tokens, image_sizes, group, config))(params, *views)


def read_layer(
    params: Params,
    views: Sequence[Float[Array, "B _ C"]],
    image_sizes: ImageSizes,
    group: ProbeGroup,
    config: ProbeConfig,
    precision: lax.Precision = lax.Precision.HIGHEST,
) -> tuple[Pointmap, ...]:
    """Pointmaps of every view from one layer's tokens, by a probe of the group. The names of the group's layers are not used."""
    p = config.patch_size

    def decode(outputs: Float[Array, "B N O"], image_size: tuple[int, int]) -> Pointmap:
        maps = outputs.reshape(-1, image_size[0] // p, image_size[1] // p, outputs.shape[-1])
        return to_pointmap(shuffle_pixels(maps, p, config.output_layout), config.depth_mode, config.conf_mode)

    return tuple(map(decode, run_probe(params, views, group, config, precision), image_sizes))


def read_planes(
    params: Params,
    views: Sequence[Float[Array, "B _ C"]],
    group: ProbeGroup,
    config: ProbeConfig,
    precision: lax.Precision = lax.Precision.HIGHEST,
) -> tuple[Planes, ...]:
    """As `read_layer`, but with the pixels grouped by token: planes (B, N, p²), as `by_token` lays out an image."""

    def decode(outputs: Float[Array, "B N O"]) -> Planes:
        pixels = config.patch_size**2
        if config.output_layout == "channels_first":
            raw = split_axis(outputs.reshape(*outputs.shape[:2], -1, pixels), 2)
        else:
            raw = split_axis(outputs.reshape(*outputs.shape[:2], pixels, -1), 3)
        return to_planes(raw, config.depth_mode, config.conf_mode)

    return tuple(map(decode, run_probe(params, views, group, config, precision)))


def by_token(image: Shaped[Array, "B H W"], patch_size: int) -> Shaped[Array, "B N {patch_size}*{patch_size}"]:
    """The pixels of an image grouped by token; tokens, and the pixels of each, are in row-major order."""
    batch, height, width = image.shape
    p = patch_size
    return image.reshape(batch, height // p, p, width // p, p).swapaxes(2, 3).reshape(batch, -1, p * p)


def run_probe(
    params: Params,
    views: Sequence[Float[Array, "B _ C"]],
    group: ProbeGroup,
    config: ProbeConfig,
    precision: lax.Precision = lax.Precision.HIGHEST,
) -> tuple[Float[Array, "B _N O"], ...]:
    """The raw outputs of one layer's probe on the tokens of every view.

    Raises:
        OptionError: each view has its own MLP, and there are more views than MLPs.
    """
    # As rows of one matrix: the products of their gradient are a quarter faster than those of an array of three axes.
    rows = [tokens.reshape(-1, tokens.shape[-1]) for tokens in views]
    if config.views == "separate":
        if len(views) > config.view_count:
            raise OptionError(
                f"these probes have an MLP for each of {config.view_count} views; found {len(views)} views: train probes on that many"
            )
        outputs = [run_mlp(jax.tree.map(lambda leaf, i=i: leaf[i], params), own, group, config, precision) for i, own in enumerate(rows)]
    else:
        outputs = jnp.split(run_mlp(params, jnp.concatenate(rows), group, config, precision), _ends(rows))
    return tuple(output.reshape(*tokens.shape[:2], -1) for output, tokens in zip(outputs, views, strict=True))


def _ends(rows: Sequence[Float[Array, "_N C"]]) -> list[int]:
    """Where each but the last of these ends when they are concatenated."""
    return list(itertools.accumulate(map(len, rows)))[:-1]


def probe_shapes(config: ProbeConfig) -> Params:
    """The parameter tree as `jax.ShapeDtypeStruct`s, without computing it."""
    key = jax.random.key(0)
    return {f"group{i}": jax.eval_shape(lambda k, g=g: init_group(k, g, config), key) for i, g in enumerate(config.groups)}


def init_probes(config: ProbeConfig, seed: int) -> Params:
    """Fresh parameters of every probe, stacked. A probe's parameters depend on the seed and its layer's id, not on other layers."""

    def group_params(group: ProbeGroup) -> Params:
        key = jax.random.key(seed)
        keys = [jax.random.fold_in(key, zlib.crc32(layer.encode())) for layer in group.layer_ids]
        alone = ProbeGroup(("",), group.widths, group.steps, group.biases, group.norm_biases)
        return jax.vmap(lambda k: jax.tree.map(lambda leaf: leaf[0], init_group(k, alone, config)))(jnp.stack(keys))

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

    def __call__(self, features: BackboneOutput) -> tuple[tuple[Pointmap, ...], ...]:
        """Pointmaps of every view from every probed layer; see `PointmapProbes.__call__`."""
        return _probe(self.module, self.params, features)

    def read_layer(self, layer_id: str, features: BackboneOutput) -> tuple[Pointmap, ...]:
        """Pointmaps of every view from one probed layer. Reading layer by layer needs the memory of only one.

        Raises:
            LayerError: the layer has no probe, or was not captured.
        """
        if layer_id in self.layer_ids and layer_id not in features:
            captured = ", ".join(features) or "none"
            raise LayerError(f"layer {layer_id} was not captured; captured: {captured}; pass it as capture")
        for index, group in enumerate(self.config.groups):
            if layer_id in group.layer_ids:
                place = group.layer_ids.index(layer_id)
                params = jax.tree.map(lambda leaf, place=place: leaf[place], self.params[f"group{index}"])
                # Under one name for all, layers of equal shape share one compiled program.
                nameless = dataclasses.replace(group, layer_ids=("any",)), dataclasses.replace(self.config, groups=())
                return _read_layer(*nameless, params, features.patches(layer_id), features.image_sizes)
        raise LayerError(f"layer {layer_id} has no probe; the probed layers are {', '.join(self.layer_ids)}")


@functools.partial(jax.jit, static_argnums=0)
def _probe(module: PointmapProbes, params: Params, features: BackboneOutput) -> tuple[tuple[Pointmap, ...], ...]:
    return cast(tuple[tuple[Pointmap, ...], ...], module.apply({"params": params}, features))


@functools.partial(jax.jit, static_argnums=(0, 1, 4))
def _read_layer(
    group: ProbeGroup, config: ProbeConfig, params: Params, tokens: ViewTokens, image_sizes: ImageSizes
) -> tuple[Pointmap, ...]:
    return read_layer(params, tokens, image_sizes, group, config)
