"""What a caller can state about a conversion: how to reach the hub, and facts about probes that shapes do not show.

The command line uses these dataclasses directly: a field is an option, its docstring the option's help.
"""

import dataclasses
import functools
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from und3rstand_jax.model.layer_ids import select_layers
from und3rstand_jax.model.output_modes import Mode, parse_mode
from und3rstand_jax.support.documents import read_json, read_text
from und3rstand_jax.support.errors import LayerError, OptionError
from und3rstand_jax.support.files import in_home
from und3rstand_jax.support.option_kinds import Flag

TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
"""Where the hub's client looks for a token, in its order."""


@dataclasses.dataclass(frozen=True)
class HubAccess:
    """How the Hugging Face hub is reached. Environment variables of huggingface_hub apply as well."""

    revision: Annotated[str | None, tyro.conf.arg(metavar="REVISION", help_behavior_hint="(default: its main branch)")] = None
    """Branch, tag or commit of the hub repository --repo."""
    token: Annotated[str | None, tyro.conf.arg(metavar="TOKEN", help_behavior_hint="(default: HF_TOKEN, else the hub client's login)")] = (
        dataclasses.field(default=None, repr=False)
    )
    """Access token for gated or private repositories. Every user of this machine can read it in the list of processes: use --token-file,
    the environment variable HF_TOKEN or the client's login (hf auth login) instead."""
    hub_cache: Annotated[str | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="(default: the hub client's cache)")] = None
    """Folder for downloaded files."""
    offline: Flag = False
    """Do not use the network: take files only from the cache."""
    token_file: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: none)")] = None
    """File that holds the access token and nothing else."""

    @functools.cached_property
    def secret(self) -> str | None:
        """The token of --token or --token-file; None leaves it to the hub's client.

        Raises:
            OptionError: both are given, the file cannot be read, or the text cannot be a token. The text is not shown.
        """
        if self.token is not None and self.token_file is not None:
            raise OptionError("--token and --token-file were both given; give one of them")
        text = self.token
        if self.token_file is not None:
            text = read_text(in_home(self.token_file), OptionError, "write the token into it, and nothing else", largest=4096)
        if text is None:
            return None
        token = text.strip()
        if not re.fullmatch("[!-~]+", token):
            fault = "more than a token, which is one word of ASCII characters" if token else "no token"
            raise OptionError(f"{self.token_origin} holds {fault}")
        return token

    @property
    def token_origin(self) -> str:
        """The origin of the token that is sent, for a message; empty if there is none."""
        if self.token is not None or self.token_file is not None:
            return "--token" if self.token_file is None else f"--token-file {self.token_file}"
        variable = next((name for name in TOKEN_VARIABLES if os.environ.get(name)), None)
        if variable is not None:
            return f"{variable} in the environment"
        from huggingface_hub import constants

        return "the hub client's login (hf auth login)" if Path(constants.HF_TOKEN_PATH).exists() else ""


@dataclasses.dataclass(frozen=True)
class ProbeOptions:
    """Facts about probes that shapes do not show. An option overrides the checkpoint's config; what neither states takes a documented
    default. Whatever is used is printed and recorded in the result.
    """

    probe_layers: Annotated[str | None, tyro.conf.arg(metavar="IDS", help_behavior_hint="(default: from names or config)")] = None
    """One layer id for each probe of the checkpoint, comma-separated, in the order in which --inspect lists them."""
    mapping: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: none)")] = None
    """JSON file that assigns tensors to layers; docs/conversion.md describes it."""
    activation: Annotated[str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="(default: from config, else gelu)")] = None
    """Activation between linear layers: gelu, gelu_tanh, relu, silu, tanh, leaky_relu or identity."""
    norm: Annotated[str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="(default: from config, names and biases)")] = None
    """Kind of the norms: layernorm or rmsnorm."""
    norm_epsilon: Annotated[float | None, tyro.conf.arg(metavar="NUMBER", help_behavior_hint="(default: from config, else PyTorch's)")] = (
        None
    )
    """Epsilon of the norms."""
    residual: Annotated[bool | None, tyro.conf.arg(metavar="True|False", help_behavior_hint="(default: from config, else False)")] = None
    """Whether hidden linear layers of equal input and output width have a skip connection."""
    output_layout: Annotated[
        str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="(default: from config, else channels_first)")
    ] = None
    """Order of a probe's outputs: channels_first (channel, row, column, as in DUSt3R's linear head) or channels_last."""
    depth_mode: Annotated[str | None, tyro.conf.arg(metavar="MODE", help_behavior_hint="(default: from config, else the backbone's)")] = (
        None
    )
    """Output activation of points: exp, square or linear."""
    conf_mode: Annotated[str | None, tyro.conf.arg(metavar="MODE", help_behavior_hint="(default: from config, else the backbone's)")] = None
    """Output activation of confidences, with its bounds, such as exp,1,inf."""

    def check(self) -> None:
        """Parses every option, so that a mistake is reported before anything is downloaded.

        Raises:
            OptionError: a value cannot be parsed.
            OSError: the mapping file cannot be read.
        """
        _ = self.layers, self.mapping_content, self.settings

    @property
    def given(self) -> tuple[str, ...]:
        """The fields that are not at their default."""
        return tuple(field.name for field in dataclasses.fields(self) if getattr(self, field.name) != field.default)

    @functools.cached_property
    def layers(self) -> tuple[str, ...]:
        """The ids of `probe_layers`; empty where it is not given."""
        layers = tuple(part.strip() for part in (self.probe_layers or "").split(",") if part.strip())
        if self.probe_layers is not None and not layers:
            raise OptionError(f"--probe-layers {self.probe_layers!r} names no layer; give ids such as decoder.0.mlp, or leave it out")
        return layers

    @functools.cached_property
    def mapping_content(self) -> Mapping[str, Any]:
        """The JSON object in the mapping file; empty where none is given."""
        if self.mapping is None:
            return {}
        return read_json(self.mapping, dict[str, object], OptionError, "correct the --mapping file")

    @functools.cached_property
    def settings(self) -> Mapping[str, object]:
        """The fields of `ProbeConfig` that are given."""
        plain = ("activation", "norm", "norm_epsilon", "residual", "output_layout")
        settings = {field: getattr(self, field) for field in plain}
        settings["depth_mode"] = _mode(self.depth_mode, "depth_mode", (-math.inf, math.inf))
        settings["conf_mode"] = _mode(self.conf_mode, "conf_mode", (1, math.inf))
        return {field: value for field, value in settings.items() if value is not None}


def _mode(text: str | None, output: str, default_bounds: tuple[float, float]) -> Mode | None:
    """`exp` or `exp,1,inf` as an output activation."""
    if text is None:
        return None
    name, *bounds = text.split(",")
    try:
        return parse_mode(output, (name, *(bounds or default_bounds)))
    except ValueError as error:
        option = f"--{output.replace('_', '-')}"
        raise OptionError(f"{option} {text!r} is not supported; expected {error}, as NAME or NAME,LOW,HIGH: exp,1,inf") from None


def unknown_layer(layer: str, available: Sequence[str]) -> list[str]:
    """What is wrong with a layer id, if anything, with the nearest ids."""
    if layer in available:
        return []
    try:
        select_layers(layer, available)
    except LayerError as error:
        return [str(error)]
    return [f"has {layer!r}, a pattern; expected one layer id, such as {available[0]}"]
