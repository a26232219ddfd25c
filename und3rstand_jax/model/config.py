"""The architecture of a DUSt3R backbone, and how published checkpoints describe it.

The hub's `config.json` and the `args.model` string of a `.pth` file hold the same keyword arguments; both are read into one
frozen `BackboneConfig`. An option that this implementation does not have is refused by name, never ignored.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

from und3rstand_jax.model.args_string import parse_args_string
from und3rstand_jax.model.layer_ids import layer_ids
from und3rstand_jax.model.output_modes import OUTPUT_MODES, Mode, mode_faults, parse_mode
from und3rstand_jax.support.errors import ConfigError
from und3rstand_jax.support.text import listed, number_text

HEAD_TYPES = ("linear", "dpt")

# The largest that is accepted, far above any model's: a config may be a stranger's, and costs memory and time as it says.
_LARGEST = {"embed_dim": 65536, "depth": 1000, "num_heads": 4096, "patch_size": 128, "mlp_ratio": 64}
_SIZES = {
    **{f"{side}_{field}": _LARGEST[field] for side in ("enc", "dec") for field in ("embed_dim", "depth", "num_heads")},
    **{field: _LARGEST[field] for field in ("patch_size", "mlp_ratio")},
}
LARGEST_SIDE = 65536
"""Pixels of an image's side."""
_PATCH_EMBEDDINGS = ("PatchEmbedDust3R", "ManyAR_PatchEmbed", "PatchEmbed")
_OTHER_OPTIONS = ("img_size", "head_type", *OUTPUT_MODES, "pos_embed", "patch_embed_cls", "output_mode", "norm_im2_in_dec")
# Options that change nothing here: training state, or what the original itself ignores when it loads for use.
_IGNORED = {"freeze", "landscape_only", "mask_ratio", "two_confs", "desc_conf_mode", "desc_mode"}


@dataclasses.dataclass(frozen=True)
class BackboneConfig:
    """The architecture of a DUSt3R model (Wang et al., CVPR 2024, section 3 and its supplementary).

    `img_size` is (height, width) of the training images and only a record: the model takes any multiples of the patch size.
    `head_type` is None for a trunk without a head (CroCo, or a checkpoint whose head is not known).

    Raises:
        ConfigError: no model has this architecture. All faults are listed.
    """

    img_size: tuple[int, int] = (512, 512)
    patch_size: int = 16
    enc_embed_dim: int = 1024
    enc_depth: int = 24
    enc_num_heads: int = 16
    dec_embed_dim: int = 768
    dec_depth: int = 12
    dec_num_heads: int = 12
    mlp_ratio: int = 4
    rope_base: float = 100.0
    head_type: str | None = "dpt"
    depth_mode: Mode = ("exp", -math.inf, math.inf)
    conf_mode: Mode = ("exp", 1.0, math.inf)

    def __post_init__(self) -> None:
        sizes = {name: getattr(self, name) for name in _SIZES}
        complaints = [f"{name} must be at least 1; found {value}" for name, value in sizes.items() if value < 1]
        complaints += [
            f"{name} is at most {_SIZES[name]}; found {number_text(value)}" for name, value in sizes.items() if value > _SIZES[name]
        ]
        if not all(1 <= side <= LARGEST_SIDE for side in self.img_size):
            found = ", ".join(map(number_text, self.img_size))
            complaints.append(f"the sides of img_size are 1 to {LARGEST_SIDE} pixels; found {found}")
        for side in ("enc", "dec"):
            dim, heads = getattr(self, f"{side}_embed_dim"), getattr(self, f"{side}_num_heads")
            if not complaints and dim % (4 * heads):
                complaints.append(
                    f"{side}_embed_dim {dim} must be a multiple of 4·{side}_num_heads = {4 * heads}: "
                    "2-D RoPE splits every head's channels in four"
                )
        if self.head_type is not None and self.head_type not in HEAD_TYPES:
            complaints.append(f"head_type {self.head_type!r} is not one of {', '.join(HEAD_TYPES)}")
        if self.head_type == "dpt" and self.dec_depth % 4:
            complaints.append(f"dec_depth {self.dec_depth} must be a multiple of 4 for the DPT head, which reads 0, 1/2, 3/4 and 1 of it")
        if self.head_type == "dpt" and self.patch_size != 16:
            complaints.append(f"patch_size {self.patch_size} is not supported with the DPT head, which enlarges tokens 16 times")
        if not 1 < self.rope_base < math.inf:
            complaints.append(f"RoPE's base must be a finite number above 1; found {self.rope_base:g}")
        complaints += mode_faults(self)
        if complaints:
            raise ConfigError("backbone config: " + listed(complaints, "; ", 20, 400))

    @property
    def layer_ids(self) -> tuple[str, ...]:
        """Every layer id of this backbone, in network order."""
        return layer_ids(self.enc_depth, self.dec_depth)

    def layer_width(self, layer_id: str) -> int:
        """Number of channels of a layer's tokens."""
        return self.enc_embed_dim if layer_id.startswith("encoder.") else self.dec_embed_dim

    @classmethod
    def dust3r_224_linear(cls) -> "BackboneConfig":
        """`naver/DUSt3R_ViTLarge_BaseDecoder_224_linear`."""
        return cls(img_size=(224, 224), head_type="linear")

    @classmethod
    def dust3r_512_linear(cls) -> "BackboneConfig":
        """`naver/DUSt3R_ViTLarge_BaseDecoder_512_linear`."""
        return cls(img_size=(512, 512), head_type="linear")

    @classmethod
    def dust3r_512_dpt(cls) -> "BackboneConfig":
        """`naver/DUSt3R_ViTLarge_BaseDecoder_512_dpt`, the backbone of the published probes."""
        return cls(img_size=(512, 512), head_type="dpt")

    @classmethod
    def from_hub_config(cls, options: Mapping[str, Any]) -> "BackboneConfig":
        """The config that the hub's `config.json` of a DUSt3R or CroCo model describes.

        Raises:
            ConfigError: an option is unknown, or has a value this implementation does not support. All are listed.
        """
        fields: dict[str, Any] = {"head_type": None}
        complaints = []
        for option, value in options.items():
            if option in _SIZES:
                if not _is_count(value):
                    complaints.append(f"{option} must be a positive integer; found {value!r}")
                else:
                    fields[option] = int(value)
            elif option == "img_size":
                size = (value, value) if _is_count(value) else value
                if isinstance(size, tuple | list) and len(size) == 2 and all(_is_count(side) for side in size):
                    fields[option] = tuple(size)
                else:
                    complaints.append(f"img_size must be one or two positive integers; found {value!r}")
            elif option == "head_type":
                # A head we do not know (MASt3R's catmlp+dpt) leaves the trunk usable; the converter says so.
                fields[option] = value if value in HEAD_TYPES else None
                if value is not None and not isinstance(value, str):
                    complaints.append(f"head_type must be a name; found {value!r}")
            elif option in OUTPUT_MODES:
                try:
                    fields[option] = parse_mode(option, value)
                except ValueError as error:
                    complaints.append(f"{option} {value!r} is not supported; expected {error}")
            elif option == "pos_embed":
                rope = re.fullmatch(r"RoPE(\d+(?:\.\d+)?)", str(value))
                if rope is None:
                    complaints.append(f"pos_embed {value!r} is not supported; expected RoPE followed by its base (RoPE100)")
                else:
                    fields["rope_base"] = float(rope[1])
            elif option == "patch_embed_cls":
                if value not in _PATCH_EMBEDDINGS:
                    complaints.append(f"patch_embed_cls {value!r} is not supported; expected one of {', '.join(_PATCH_EMBEDDINGS)}")
            elif option == "output_mode":
                # MASt3R's pts3d+desc24 belongs to its own head, which is set aside as a whole.
                if value != "pts3d" and options.get("head_type", "linear") in HEAD_TYPES:
                    complaints.append(f"output_mode {value!r} is not supported; expected pts3d")
            elif option == "norm_im2_in_dec":
                if value is not True:
                    complaints.append(f"norm_im2_in_dec {value!r} is not supported; expected True")
            elif option not in _IGNORED:
                complaints.append(f"option {option!r} (= {value!r}) is not known to this implementation")
        if complaints:
            raise ConfigError("backbone config: " + listed(complaints, "; ", 20, 400))
        return cls(**fields)

    @classmethod
    def from_args_string(cls, call: str) -> "BackboneConfig":
        """The config in a `.pth` file's `args.model`: a Python call such as `AsymmetricCroCo3DStereo(enc_depth=24, …)`.

        The string is parsed and never evaluated: only literals, `inf` and their negations are accepted.

        Raises:
            ConfigError: the string is not such a call, or an option is not supported.
        """
        return cls.from_hub_config(parse_args_string(call)[1])

    @staticmethod
    def known_options() -> frozenset[str]:
        """The options that `from_hub_config` understands."""
        return frozenset({*_SIZES, *_IGNORED, *_OTHER_OPTIONS})

    def to_hub_config(self) -> dict[str, Any]:
        """The options of the hub's `config.json` that rebuild this config (infinities stay floats)."""
        return {
            "conf_mode": list(self.conf_mode),
            "dec_depth": self.dec_depth,
            "dec_embed_dim": self.dec_embed_dim,
            "dec_num_heads": self.dec_num_heads,
            "depth_mode": list(self.depth_mode),
            "enc_depth": self.enc_depth,
            "enc_embed_dim": self.enc_embed_dim,
            "enc_num_heads": self.enc_num_heads,
            "freeze": "none",
            **({"head_type": self.head_type} if self.head_type else {}),
            "img_size": list(self.img_size),
            "landscape_only": False,
            "output_mode": "pts3d",
            "patch_embed_cls": "PatchEmbedDust3R",
            "pos_embed": f"RoPE{int(self.rope_base) if self.rope_base == int(self.rope_base) else self.rope_base}",
            # The original takes these two as well, but its own configs leave them at their defaults.
            **({} if self.patch_size == BackboneConfig.patch_size else {"patch_size": self.patch_size}),
            **({} if self.mlp_ratio == BackboneConfig.mlp_ratio else {"mlp_ratio": self.mlp_ratio}),
        }


PUBLISHED = {
    "DUSt3R_ViTLarge_BaseDecoder_224_linear": BackboneConfig.dust3r_224_linear(),
    "DUSt3R_ViTLarge_BaseDecoder_512_linear": BackboneConfig.dust3r_512_linear(),
    "DUSt3R_ViTLarge_BaseDecoder_512_dpt": BackboneConfig.dust3r_512_dpt(),
}
"""The published models: name on the hub, below `naver/` -> architecture."""


def _is_count(value: Any) -> bool:
    is_whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    return is_whole and not isinstance(value, bool) and value > 0
