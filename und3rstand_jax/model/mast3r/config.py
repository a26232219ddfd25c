"""The architecture of a MASt3R backbone: DUSt3R's with a head for local features, which makes a descriptor for every pixel."""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any, ClassVar

from und3rstand_jax.model.dust3r.config import BackboneConfig
from und3rstand_jax.model.dust3r.options import IGNORED, PARSERS, output_mode
from und3rstand_jax.model.head_choice import Head
from und3rstand_jax.model.option_values import Fields, only, read_options
from und3rstand_jax.model.output_modes import Mode, parse_mode
from und3rstand_jax.support.errors import ConfigError
from und3rstand_jax.support.text import number_text

FEATURES = "features"
"""The head for local features: `desc` and `desc_conf`."""

_LARGEST_DESCRIPTOR = 4096


@dataclasses.dataclass(frozen=True)
class MASt3RConfig(BackboneConfig):
    """The architecture of a MASt3R model (Leroy et al., ECCV 2024, section 3): that of a DUSt3R with a DPT head, and descriptors.

    Attributes:
        desc_dim: channels of a descriptor.
        two_confs: whether descriptors have their own confidence; if not, they use that of the points.
        desc_conf_mode: the output activation of that confidence.

    Raises:
        ConfigError: the architecture is not valid. All faults are listed.
    """

    HEAD_TYPES: ClassVar[tuple[str, ...]] = ("catmlp+dpt",)
    FROM_SCRATCH: ClassVar[Mapping[str, Any]] = {**BackboneConfig.FROM_SCRATCH, "head": "catmlp+dpt"}

    head_type: str | None = "catmlp+dpt"
    desc_dim: int = 24
    two_confs: bool = True
    desc_conf_mode: Mode = ("exp", 0.0, math.inf)

    def _other_faults(self) -> list[str]:
        faults = super()._other_faults()
        if self.head_type is None:
            faults.append("a MASt3R has a head; without one the trunk is that of a DUSt3R")
        if not 1 <= self.desc_dim <= _LARGEST_DESCRIPTOR:
            faults.append(f"desc_dim must be 1 to {_LARGEST_DESCRIPTOR}; found {number_text(self.desc_dim)}")
        try:
            parse_mode("conf_mode", self.desc_conf_mode)
        except ValueError as error:
            faults.append(f"desc_conf_mode {self.desc_conf_mode!r} is not supported; expected {error}")
        return faults

    @property
    def pointmap_kind(self) -> str | None:
        """Always DUSt3R's DPT head."""
        return "dpt"

    @property
    def feature_channels(self) -> int:
        """Raw channels of a pixel: the descriptor's and, with `two_confs`, its confidence."""
        return self.desc_dim + self.two_confs

    @property
    def feature_widths(self) -> tuple[int, int, int]:
        """Channels of a token at the local-feature head's input, in its hidden layer, and at its output."""
        width = self.enc_embed_dim + self.dec_embed_dim
        return width, 4 * width, self.feature_channels * self.patch_size**2

    @property
    def heads(self) -> tuple[Head, ...]:
        """DUSt3R's head, and the one for local features; without `two_confs`, `desc_conf` needs both."""
        outputs = ("desc", "desc_conf") if self.two_confs else ("desc",)
        return *super().heads, Head(FEATURES, ("features1", "features2"), ("encoder.norm", "decoder.norm"), outputs)

    @classmethod
    def mast3r_512_metric(cls) -> "MASt3RConfig":
        """`naver/MASt3R_ViTLarge_BaseDecoder_512_catmlpdpt_metric`."""
        return cls()

    @staticmethod
    def describes(options: Mapping[str, Any]) -> bool:
        """Whether options are a MASt3R's."""
        return str(options.get("head_type")).startswith("cat")

    @classmethod
    def from_hub_config(cls, options: Mapping[str, Any]) -> "MASt3RConfig":
        """The config that the hub's `config.json` of a MASt3R describes.

        Raises:
            ConfigError: an option is unknown, or has a value this implementation does not support. All are listed.
        """
        own = {
            "head_type": only(*cls.HEAD_TYPES),
            "output_mode": _descriptors,
            "desc_mode": only("norm"),
            "desc_conf_mode": _desc_conf_mode,
            "two_confs": _two_confs,
        }
        fields = {"two_confs": False, **read_options(options, {**PARSERS, **own}, IGNORED)}
        if "desc_dim" not in fields:
            raise ConfigError("backbone config: a MASt3R's output_mode must say how long its descriptors are (pts3d+desc24)")
        fields.setdefault("desc_conf_mode", fields.get("conf_mode", cls.conf_mode))
        return cls(**fields)

    def to_hub_config(self) -> dict[str, Any]:
        """The options of the hub's `config.json` that rebuild this config (infinities stay floats)."""
        options = super().to_hub_config()
        del options["freeze"]
        own = {
            "desc_conf_mode": list(self.desc_conf_mode),
            "desc_mode": "norm",
            "output_mode": f"pts3d+desc{self.desc_dim}",
            "two_confs": self.two_confs,
        }
        return dict(sorted((options | own).items()))


PUBLISHED = {"naver/MASt3R_ViTLarge_BaseDecoder_512_catmlpdpt_metric": MASt3RConfig.mast3r_512_metric()}
"""The published model: hub id -> architecture."""

OPTION_OF = {"desc_dim": "output_mode"}
"""Fields whose option has another name."""


def _descriptors(option: str, value: Any) -> Fields:
    mode = re.fullmatch(r"pts3d\+desc(\d{1,6})", str(value))
    if mode is None:
        raise ValueError(f"{option} {value!r} is not supported; expected pts3d+desc and the length of a descriptor (pts3d+desc24)")
    return {"desc_dim": int(mode[1])}


def _desc_conf_mode(option: str, value: Any) -> Fields:
    # The original's default: that of the points' confidence.
    return {} if value is None else output_mode("conf_mode")(option, value)


def _two_confs(option: str, value: Any) -> Fields:
    if not isinstance(value, bool):
        raise ValueError(f"{option} must be true or false; found {value!r}")
    return {option: value}
