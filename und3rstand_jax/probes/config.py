"""The architecture of a set of probes.

A probe is a small MLP on one token (arXiv 2510.24907, section 3): linear layers, with norms and activations between
them, whose last layer yields the pointmap and confidence of that token's patch. Everything the published description
leaves open is a field here, so that nothing about a probe is assumed silently.
"""

import collections
import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

from und3rstand_jax.model.config import ModelConfig
from und3rstand_jax.model.layer_ids import network_order
from und3rstand_jax.model.output_modes import Mode, mode_faults
from und3rstand_jax.support.errors import ConfigError, LayerError
from und3rstand_jax.support.text import number_text

Step = Literal["linear", "norm", "activation"]

ACTIVATIONS = ("gelu", "gelu_tanh", "relu", "silu", "tanh", "leaky_relu", "identity")
NORMS = ("layernorm", "rmsnorm")
OUTPUT_LAYOUTS = ("channels_first", "channels_last")
CHANNELS = 4  # x, y, z and the raw confidence

# The largest accepted values, far above any probe's: a config may be a stranger's, and its numbers cost memory and time.
_WIDEST, _LONGEST, _MOST_LAYERS, _LARGEST_PATCH, _MOST_VIEWS = 65536, 1000, 10_000, 128, 10_000


@dataclasses.dataclass(frozen=True)
class ProbeGroup:
    """Probes of equal shape: their parameters are stacked along a leading layer axis and mapped with `vmap`.

    `widths` has the token's channels, every hidden width, and the number of outputs: one more entry than there are linear layers.
    `steps` is the MLP in the order in which it runs, for example ("norm", "linear", "activation", "linear").
    `biases` says for each linear layer, and `norm_biases` for each norm, whether it has a bias.

    Raises:
        ConfigError: the fields do not fit each other.
    """

    layer_ids: tuple[str, ...]
    widths: tuple[int, ...]
    steps: tuple[Step, ...]
    biases: tuple[bool, ...]
    norm_biases: tuple[bool, ...] = ()

    def __post_init__(self) -> None:
        if len(self.steps) > _LONGEST or len(self.layer_ids) > _MOST_LAYERS:
            raise ConfigError(
                f"a probe group has at most {_LONGEST} steps and {_MOST_LAYERS} layers; "
                f"found {len(self.steps)} steps and {len(self.layer_ids)} layers"
            )
        if not all(1 <= width <= _WIDEST for width in self.widths):
            raise ConfigError(f"a probe's widths must be 1 to {_WIDEST}; found {number_text(max(self.widths, key=abs))}")
        linears = self.steps.count("linear")
        if linears != len(self.widths) - 1 or linears != len(self.biases) or self.steps.count("norm") != len(self.norm_biases):
            raise ConfigError(f"probe group of {self.layer_ids}: steps {self.steps} do not fit widths {self.widths}, biases or norm biases")


@dataclasses.dataclass(frozen=True)
class ProbeConfig:
    """A set of probes, at most one per layer.

    `views` is "shared" if one MLP reads all views and "separate" if each of `view_count` views has its own.
    `output_layout` says how a token's outputs form its patch: "channels_first" is channel·p² + row·p + column (DUSt3R's
    linear head), "channels_last" is (row·p + column)·channels + channel. Channels are x, y, z and, if there are
    four, the raw confidence. `residual` adds a skip around every hidden linear layer (with the norms and the
    activation after it) whose two widths are equal.

    Raises:
        ConfigError: the fields do not describe valid probes; the message lists the faults.
    """

    groups: tuple[ProbeGroup, ...]
    views: Literal["shared", "separate"] = "shared"
    activation: str = "gelu"
    norm: str = "layernorm"
    norm_epsilon: float = 1e-5
    residual: bool = False
    output_layout: str = "channels_first"
    patch_size: int = 16
    depth_mode: Mode = ("exp", -math.inf, math.inf)
    conf_mode: Mode = ("exp", 1.0, math.inf)
    view_count: int = 2

    def __post_init__(self) -> None:
        complaints = [
            f"{name} {value!r} is not one of {', '.join(known)}"
            for name, value, known in (
                ("views", self.views, ("shared", "separate")),
                ("activation", self.activation, ACTIVATIONS),
                ("norm", self.norm, NORMS),
                ("output_layout", self.output_layout, OUTPUT_LAYOUTS),
            )
            if value not in known
        ]
        complaints += mode_faults(self)
        if not 1 <= self.patch_size <= _LARGEST_PATCH:
            raise ConfigError(f"probe config: patch_size must be 1 to {_LARGEST_PATCH}; found {number_text(self.patch_size)}")
        if not 1 <= self.view_count <= _MOST_VIEWS:
            raise ConfigError(f"probe config: view_count must be 1 to {_MOST_VIEWS}; found {number_text(self.view_count)}")
        if len(self.groups) > _LONGEST:
            raise ConfigError(f"probe config: there are at most {_LONGEST} groups of probes; found {len(self.groups)}")
        pixels = self.patch_size**2
        for group in self.groups:
            if group.widths[-1] not in (3 * pixels, 4 * pixels):
                complaints.append(
                    f"a probe's last layer must have {4 * pixels} outputs (pointmap and confidence of a patch of {pixels} pixels) "
                    f"or {3 * pixels} (pointmap alone); {group.layer_ids[0]} has {group.widths[-1]}"
                )
        count = collections.Counter(self.layer_ids)
        complaints += [f"layer {layer} has more than one probe" for layer in sorted(layer for layer in count if count[layer] > 1)]
        if complaints:
            raise ConfigError("probe config: " + "; ".join(complaints))

    @property
    def layer_ids(self) -> tuple[str, ...]:
        """The probed layers in network order."""
        return tuple(sorted((layer for group in self.groups for layer in group.layer_ids), key=network_order))


def probe_config(
    backbone: ModelConfig,
    layers: Sequence[str],
    hidden: int | None = None,
    depth: int = 5,
    activation: str = "gelu",
    norm: Literal["layernorm", "rmsnorm", "none"] = "layernorm",
    views: Literal["shared", "separate"] = "shared",
    view_count: int = 2,
) -> ProbeConfig:
    """A probe for each of `layers`, all of the same form; the output activations are the backbone's own.

    Args:
        backbone: config of the probed backbone; determines token widths, patch size, depth and confidence modes.
        layers: layer ids.
        hidden: width of the hidden layers; by default the tokens' own.
        depth: linear layers; the paper has five.
        activation: between linear layers.
        norm: the norm applied to each token first; the scale of the residual stream grows with depth, and a norm removes it.
        views: whether one MLP reads all views, or each view has its own.
        view_count: how many views have their own, in the latter case.

    Raises:
        LayerError: there are no layers.
        ConfigError: the arguments do not describe a valid probe.
    """
    if not layers:
        raise LayerError("no layers to probe; --layers takes ids and patterns, 'all' for the paper's")
    if depth < 1 or (hidden is not None and hidden < 1):
        raise ConfigError(f"a probe needs at least one linear layer and hidden widths of at least 1; found depth {depth}, hidden {hidden}")
    first: tuple[Step, ...] = ("norm",) if norm != "none" else ()
    hidden_steps: tuple[Step, ...] = ("linear", "activation") * (depth - 1)
    steps: tuple[Step, ...] = (*first, *hidden_steps, "linear")
    groups = []
    for width in dict.fromkeys(backbone.layer_width(layer) for layer in layers):
        widths = (width, *[hidden or width] * (depth - 1), CHANNELS * backbone.patch_size**2)
        ids = tuple(layer for layer in layers if backbone.layer_width(layer) == width)
        groups.append(ProbeGroup(ids, widths, steps, (True,) * depth, (True,) * steps.count("norm")))
    return ProbeConfig(
        groups=tuple(groups),
        views=views,
        view_count=view_count if views == "separate" else ProbeConfig.view_count,
        activation=activation,
        norm="rmsnorm" if norm == "rmsnorm" else "layernorm",
        patch_size=backbone.patch_size,
        depth_mode=backbone.depth_mode,
        conf_mode=backbone.conf_mode,
    )
