"""The probes that are trained: a small MLP a layer, all of one form (arXiv 2510.24907, section 3)."""

import zlib
from collections.abc import Sequence
from typing import Any, Literal

import jax

from und3rstand_jax.config import BackboneConfig
from und3rstand_jax.errors import UserError
from und3rstand_jax.probe_config import ProbeConfig, ProbeGroup, Step
from und3rstand_jax.probes import init_group

CHANNELS = 4  # x, y, z and the raw confidence


def probe_config(
    backbone: BackboneConfig,
    layers: Sequence[str],
    hidden: int | None = None,
    depth: int = 5,
    activation: str = "gelu",
    norm: Literal["layernorm", "rmsnorm", "none"] = "layernorm",
    views: Literal["shared", "separate"] = "shared",
) -> ProbeConfig:
    """A probe for each of `layers`, which read the backbone's own output activations.

    Args:
        backbone: whose layers are probed; it gives token widths, patch size, depth and confidence modes.
        layers: layer ids.
        hidden: width of the hidden layers; by default the tokens' own.
        depth: linear layers; the paper has five.
        activation: between linear layers.
        norm: what a token goes through first; the scale of the residual stream grows with depth, and a norm takes it out.
        views: whether one MLP reads both views, or each has its own.

    Raises:
        UserError: there are no layers, or no such probe.
    """
    if not layers:
        raise UserError("no layers to probe; --layers takes ids and patterns, 'all' for the paper's")
    if depth < 1 or (hidden is not None and hidden < 1):
        raise UserError(f"a probe needs at least one linear layer and hidden widths of at least 1; found depth {depth}, hidden {hidden}")
    hidden_steps: list[Step] = ["linear", "activation"] * (depth - 1)
    steps: tuple[Step, ...] = (*(["norm"] if norm != "none" else []), *hidden_steps, "linear")  # type: ignore[arg-type]
    groups = []
    for width in dict.fromkeys(backbone.layer_width(layer) for layer in layers):
        widths = (width, *[hidden or width] * (depth - 1), CHANNELS * backbone.patch_size**2)
        ids = tuple(layer for layer in layers if backbone.layer_width(layer) == width)
        groups.append(ProbeGroup(ids, widths, steps, (True,) * depth, (True,) * steps.count("norm")))
    return ProbeConfig(
        groups=tuple(groups),
        views=views,
        activation=activation,
        norm="rmsnorm" if norm == "rmsnorm" else "layernorm",
        patch_size=backbone.patch_size,
        depth_mode=backbone.depth_mode,
        conf_mode=backbone.conf_mode,
    )


def init_probes(config: ProbeConfig, seed: int) -> dict[str, Any]:
    """Fresh parameters of every probe, stacked. A probe's depend on the seed and its layer's id, not on the other layers."""

    def group_params(group: ProbeGroup) -> Any:
        key = jax.random.key(seed)
        keys = [jax.random.fold_in(key, zlib.crc32(layer.encode())) for layer in group.layer_ids]
        alone = ProbeGroup(("",), group.widths, group.steps, group.biases, group.norm_biases)
        return jax.vmap(lambda k: jax.tree.map(lambda leaf: leaf[0], init_group(k, alone, config.views)))(jax.numpy.stack(keys))

    return {f"group{number}": jax.jit(group_params, static_argnums=0)(group) for number, group in enumerate(config.groups)}
