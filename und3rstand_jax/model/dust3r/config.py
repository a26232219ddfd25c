"""The architecture of a DUSt3R backbone, and how published checkpoints describe it."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

from und3rstand_jax.model.config import Block, ModelConfig, Reads
from und3rstand_jax.model.dust3r.options import FROM_SCRATCH, IGNORED, PARSERS, SCRATCH_FIELDS, SIZES
from und3rstand_jax.model.head_choice import POINTMAP, Head
from und3rstand_jax.model.layer_ids import DECODER_STEPS, layer_ids
from und3rstand_jax.model.option_values import only, read_options
from und3rstand_jax.model.output_modes import Mode, mode_faults
from und3rstand_jax.support.errors import ConfigError, OptionError
from und3rstand_jax.support.option_values import parse_image_size
from und3rstand_jax.support.text import listed, number_text

# The largest accepted values, far above any model's: a config may be a stranger's, and its numbers cost memory and time.
_LARGEST = {"embed_dim": 65536, "depth": 1000, "num_heads": 4096, "patch_size": 128, "mlp_ratio": 64}
LARGEST_SIDE = 65536
"""Pixels of an image's side."""

LEAST_VIEWS = 2
"""Cross-attention reads other views."""


@dataclasses.dataclass(frozen=True)
class BackboneConfig(ModelConfig):
    """The architecture of a DUSt3R model (Wang et al., CVPR 2024, section 3 and its supplementary).

    `img_size` is (height, width) of the training images and only a record: the model takes any multiples of the patch size.
    `head_type` is None for a trunk without a head (CroCo, or a checkpoint whose head is not known).
    `max_views` is the largest number of views that a call takes, None for any number. A DUSt3R takes two. One that is trained on larger
    sets sends every view after the first through the second decoder and its heads, and each view's tokens attend to those of all others, as
    in MV-DUSt3R (Tang et al., CVPR 2025).

    Each config class stands for a family of models; `und3rstand_jax.model.families` lists what belongs to it.

    Raises:
        ConfigError: the architecture is not valid. All faults are listed.
    """

    HEAD_TYPES: ClassVar[tuple[str, ...]] = ("linear", "dpt")
    FROM_SCRATCH: ClassVar[Mapping[str, Any]] = FROM_SCRATCH

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
    # Not in the repr, by which runs of earlier versions identify a model.
    max_views: int | None = dataclasses.field(default=2, repr=False, metadata={"came_later": True})

    def __post_init__(self) -> None:
        sizes = {name: getattr(self, name) for name in SIZES}
        complaints = [f"{name} must be at least 1; found {value}" for name, value in sizes.items() if value < 1]
        limits = {name: _LARGEST[name.removeprefix("enc_").removeprefix("dec_")] for name in SIZES}
        complaints += [
            f"{name} must be at most {limits[name]}; found {number_text(value)}" for name, value in sizes.items() if value > limits[name]
        ]
        if not all(1 <= side <= LARGEST_SIDE for side in self.img_size):
            found = ", ".join(map(number_text, self.img_size))
            complaints.append(f"the sides of img_size must be 1 to {LARGEST_SIDE} pixels; found {found}")
        for side in ("enc", "dec"):
            dim, heads = getattr(self, f"{side}_embed_dim"), getattr(self, f"{side}_num_heads")
            if not complaints and dim % (4 * heads):
                complaints.append(
                    f"{side}_embed_dim {dim} must be a multiple of 4·{side}_num_heads = {4 * heads}: "
                    "2-D RoPE splits every head's channels in four"
                )
        if self.head_type is not None and self.head_type not in self.HEAD_TYPES:
            complaints.append(f"head_type {self.head_type!r} is not one of {', '.join(self.HEAD_TYPES)}")
        if self.pointmap_kind == "dpt" and self.dec_depth % 4:
            complaints.append(f"dec_depth {self.dec_depth} must be a multiple of 4 for the DPT head, which reads 0, 1/2, 3/4 and 1 of it")
        if self.pointmap_kind == "dpt" and self.patch_size != 16:
            complaints.append(f"patch_size {self.patch_size} is not supported with the DPT head, which enlarges tokens 16 times")
        if not 1 < self.rope_base < math.inf:
            complaints.append(f"RoPE's base must be a finite number above 1; found {self.rope_base:g}")
        if self.max_views is not None and self.max_views < LEAST_VIEWS:
            complaints.append(f"max_views must be {LEAST_VIEWS} or more, or None for any number; found {number_text(self.max_views)}")
        complaints += self._other_faults()
        if complaints:
            raise ConfigError("backbone config: " + listed(complaints, "; ", 20, 400))

    def _other_faults(self) -> list[str]:
        """Further faults; a family adds those of its own fields."""
        return mode_faults(self)

    @property
    def pointmap_kind(self) -> str | None:
        """The kind of head that makes pointmaps, "linear" or "dpt"; None for a trunk."""
        return self.head_type

    @property
    def heads(self) -> tuple[Head, ...]:
        """The heads of each view; none for a trunk."""
        if self.pointmap_kind is None:
            return ()
        last = "decoder.norm"
        if self.pointmap_kind == "linear":
            return (Head(POINTMAP, ("head1", "head2"), (last,), ("pts3d", "conf")),)
        # Of [encoder, block 1, …, block dec_depth], a DPT head reads 0, 1/2, 3/4 and all of the depth.
        middle = (f"decoder.{depth - 1}.mlp" for depth in (self.dec_depth // 2, 3 * self.dec_depth // 4))
        return (Head(POINTMAP, ("head1", "head2"), ("encoder.norm", *middle, last), ("pts3d", "conf")),)

    def check_view_count(self, count: int) -> None:
        """Refuses this number of views if the model does not take it.

        Raises:
            OptionError: the model takes fewer or more.
        """
        if self.max_views == LEAST_VIEWS and count != LEAST_VIEWS:
            remedy = "give two, or a model that was trained on more (python -m train backbone --views N)"
            raise OptionError(f"this model takes two views; found {count}: {remedy}")
        if count < LEAST_VIEWS or (self.max_views is not None and count > self.max_views):
            most = "more" if self.max_views is None else f"up to {self.max_views}"
            raise OptionError(f"this model takes two views or {most}; found {count}")

    @property
    def layer_ids(self) -> tuple[str, ...]:
        """Every layer id of this backbone, in network order."""
        return layer_ids(self.enc_depth, self.dec_depth)

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The decoder's blocks."""
        names = (f"decoder.{i}" for i in range(self.dec_depth))
        return tuple(
            Block(name, f"{name}.self_attn", f"{name}.cross_attn", tuple(f"{name}.{step}" for step in DECODER_STEPS)) for name in names
        )

    @property
    def embed(self) -> str:
        """The layer that the decoder's first block reads."""
        return "decoder.embed"

    @property
    def last_norm(self) -> str | None:
        """The layer that every head reads last."""
        return "decoder.norm"

    @property
    def trunk(self) -> tuple[str, ...]:
        """The parts of the parameter tree that belong to no head."""
        return ("encoder", "decoder")

    def layer_width(self, layer_id: str) -> int:
        """Number of channels of a layer's tokens."""
        return self.enc_embed_dim if layer_id.startswith("encoder.") else self.dec_embed_dim

    def head_count(self, layer_id: str) -> int:
        """Number of attention heads in the stack that a layer belongs to."""
        return self.enc_num_heads if layer_id.startswith("encoder.") else self.dec_num_heads

    def reads(self, layer_id: str) -> Reads:
        """Cross-attention reads the other views' tokens."""
        return "others" if layer_id.endswith("cross_attn") else "own"

    def before_block(self, layer_id: str) -> str | None:
        """The layer before the decoder block that a layer is in the middle of, which the other views' cross-attention reads; else None."""
        stack, *place = layer_id.split(".")
        if stack != "decoder" or len(place) < 2 or place[1] == DECODER_STEPS[-1]:
            return None
        return f"decoder.{int(place[0]) - 1}.mlp" if int(place[0]) else self.embed

    @classmethod
    def from_scratch(cls, options: Mapping[str, Any]) -> "BackboneConfig":
        """The architecture that options of training define; all options of FROM_SCRATCH are given.

        Raises:
            OptionError: the image size is malformed, or a side is not a multiple of the patch size.
            ConfigError: the architecture is not valid.
        """
        size = parse_image_size(options["image_size"], cls.patch_size, "--image-size")
        return cls(**{SCRATCH_FIELDS.get(name, name): value for name, value in {**options, "image_size": size}.items()})

    def trained_on(self, views: int) -> "BackboneConfig":
        """A model that is trained on more views than it takes then takes any number."""
        return self if self.max_views is None or views <= self.max_views else dataclasses.replace(self, max_views=None)

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

        A head of another type is left out: the trunk is usable without it.

        Raises:
            ConfigError: an option is unknown, or has a value this implementation does not support. All are listed.
        """
        is_known = options.get("head_type", "linear") in cls.HEAD_TYPES
        # The output of a head that is left out does not matter.
        parsers = {**PARSERS, "output_mode": only("pts3d") if is_known else lambda *_: {}}
        fields = {"head_type": None, **read_options(options, parsers, IGNORED)}
        return cls(**fields if is_known else {**fields, "head_type": None})

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
    "naver/DUSt3R_ViTLarge_BaseDecoder_224_linear": BackboneConfig.dust3r_224_linear(),
    "naver/DUSt3R_ViTLarge_BaseDecoder_512_linear": BackboneConfig.dust3r_512_linear(),
    "naver/DUSt3R_ViTLarge_BaseDecoder_512_dpt": BackboneConfig.dust3r_512_dpt(),
}
"""The published models: hub id -> architecture."""
