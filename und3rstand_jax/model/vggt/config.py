"""The architecture of a VGGT backbone: its sizes, and the ids of its layers.

    patch_embed   encoder.embed   encoder.I.self_attn   encoder.I.mlp   encoder.norm                  DINOv2
    aggregator.embed   frame.I.self_attn   frame.I.mlp   global.I.self_attn   global.I.mlp            one stream, in this order
    camera.K.I.self_attn   camera.K.I.mlp   pose_enc.K   depth_head.level.L   depth_head.fused        inside heads

Heads read frame.I.mlp concatenated with global.I.mlp.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from und3rstand_jax.model.config import Block, ModelConfig, Reads, same_size
from und3rstand_jax.model.head_choice import Head
from und3rstand_jax.model.output_modes import Mode
from und3rstand_jax.model.preprocessing import Preprocessing
from und3rstand_jax.model.vggt.options import ENABLE, assumed, read
from und3rstand_jax.support.errors import ConfigError, OptionError
from und3rstand_jax.support.option_values import parse_image_size
from und3rstand_jax.support.text import listed, number_text

STEPS = ("self_attn", "mlp")
KINDS = ("frame", "global")
CAMERA, DEPTH, POINTS = "camera", "depth", "points"
DPT_LAST_WIDTH = 32
"""Channels before a DPT head's last convolution."""

_LARGEST = {"embed_dim": 65536, "depth": 1000, "num_heads": 4096, "patch_size": 128, "mlp_ratio": 64, "num_registers": 4096}
_LARGEST |= {"enc_depth": 1000, "enc_num_heads": 4096, "camera_depth": 1000, "camera_num_heads": 4096, "camera_iterations": 100}
_LARGEST |= {"dpt_width": 65536}
_LARGEST_SIDE = 65536


@dataclasses.dataclass(frozen=True)
class VGGTConfig(ModelConfig):
    """The architecture of a VGGT (Wang et al., CVPR 2025, section 3).

    Attributes:
        img_size: (height, width), in pixels, of images with the grid of DINOv2's stored positions; a model takes other sizes too.
        patch_size: the side of a patch in pixels.
        embed_dim: channels of a token, in DINOv2 and in the blocks.
        depth: number of pairs of a frame block and a global block.
        num_heads: attention heads of both.
        num_registers: learned tokens between the camera token and the patch tokens.
        enc_depth, enc_num_heads: DINOv2's blocks and attention heads.
        mlp_ratio: an MLP's hidden channels per token channel.
        rope_base: base of the rotary positions of frame and global blocks.
        camera_depth, camera_num_heads, camera_iterations: the camera head's blocks, attention heads and refinement iterations.
        dpt_width: channels of a DPT head's fused maps.
        dpt_channels: channels of its four levels.
        dpt_layers: the pairs that it reads.
        head_names: the heads of the model, out of "camera", "depth", "points", in this order.

    Raises:
        ConfigError: the architecture is not valid. All faults are listed.
    """

    HEADS: ClassVar[tuple[str, ...]] = (CAMERA, DEPTH, POINTS)
    FROM_SCRATCH: ClassVar[Mapping[str, Any]] = {
        "enc_depth": 3, "enc_heads": 3, "dec_depth": 4, "dec_width": 192, "dec_heads": 6, "mlp_ratio": 3, "image_size": "112x112",
    }  # fmt: skip

    img_size: tuple[int, int] = (518, 518)
    patch_size: int = 14
    embed_dim: int = 1024
    depth: int = 24
    num_heads: int = 16
    num_registers: int = 4
    enc_depth: int = 24
    enc_num_heads: int = 16
    mlp_ratio: int = 4
    rope_base: float = 100.0
    camera_depth: int = 4
    camera_num_heads: int = 16
    camera_iterations: int = 4
    dpt_width: int = 256
    dpt_channels: tuple[int, int, int, int] = (256, 512, 1024, 1024)
    dpt_layers: tuple[int, int, int, int] = (4, 11, 17, 23)
    head_names: tuple[str, ...] = HEADS

    def __post_init__(self) -> None:
        sizes = {name: getattr(self, name) for name in _LARGEST}
        faults = [f"{name} must be at least 1; found {value}" for name, value in sizes.items() if value < 1]
        faults += [
            f"{name} must be at most {_LARGEST[name]}; found {number_text(value)}"
            for name, value in sizes.items()
            if value > _LARGEST[name]
        ]
        if not faults:
            faults += self._other_faults()
        if faults:
            raise ConfigError("backbone config: " + listed(faults, "; ", 20, 400))

    def _other_faults(self) -> list[str]:
        faults = []
        if not all(self.patch_size <= side <= _LARGEST_SIDE and side % self.patch_size == 0 for side in self.img_size):
            found = ", ".join(map(number_text, self.img_size))
            faults.append(f"the sides of img_size must be multiples of {self.patch_size} up to {_LARGEST_SIDE} pixels; found {found}")
        for width, count, parts, why in (
            (self.embed_dim, self.num_heads, 4, "2-D RoPE splits every head's channels in four"),
            (self.embed_dim, self.enc_num_heads, 1, "all heads have equally many channels"),
            (2 * self.embed_dim, self.camera_num_heads, 1, "all heads of the camera have equally many channels"),
        ):
            if width % (parts * count):
                faults.append(f"a width of {width} must be a multiple of {parts * count}: {why}")
        if not 1 < self.rope_base < math.inf:
            faults.append(f"RoPE's base must be a finite number above 1; found {self.rope_base:g}")
        if any(channels < 4 or channels % 4 or channels > _LARGEST["dpt_width"] for channels in (*self.dpt_channels, self.dpt_width // 2)):
            faults.append(
                "dpt_channels, and half of dpt_width, must be multiples of 4: half of a position's channels are sines, half cosines"
            )
        if any(not 0 <= layer < self.depth for layer in self.dpt_layers) or list(self.dpt_layers) != sorted(self.dpt_layers):
            faults.append(f"dpt_layers must be four pairs from 0 to {self.depth - 1} in ascending order; found {list(self.dpt_layers)}")
        if unknown := [name for name in self.head_names if name not in self.HEADS]:
            faults.append(f"head_names must be out of {', '.join(self.HEADS)}; found {listed(map(repr, unknown))}")
        elif list(self.head_names) != [name for name in self.HEADS if name in self.head_names]:
            faults.append(f"head_names must be in the order {', '.join(self.HEADS)}, none twice; found {', '.join(self.head_names)}")
        return faults

    @classmethod
    def from_scratch(cls, options: Mapping[str, Any]) -> "VGGTConfig":
        """A small model with heads for cameras and points. The options `dec_…` apply to the pairs, `dec_width` to all tokens.

        Raises:
            OptionError: the image size is malformed, or a side is not a multiple of the patch size.
            ConfigError: the architecture is not valid.
        """
        depth = options["dec_depth"]
        return cls(
            img_size=parse_image_size(options["image_size"], cls.patch_size, "--image-size"),
            embed_dim=options["dec_width"],
            depth=depth,
            num_heads=options["dec_heads"],
            enc_depth=options["enc_depth"],
            enc_num_heads=options["enc_heads"],
            mlp_ratio=options["mlp_ratio"],
            camera_depth=2,
            camera_num_heads=options["dec_heads"],
            dpt_width=32,
            dpt_channels=(32, 32, 64, 64),
            # Quarters of the depth.
            dpt_layers=(-(-depth // 4) - 1, -(-depth // 2) - 1, -(-3 * depth // 4) - 1, depth - 1),
            head_names=(CAMERA, POINTS),
        )

    @property
    def preprocessing(self) -> Preprocessing:
        """The preprocessing of the original's loader."""
        return "vggt"

    @property
    def depth_mode(self) -> Mode:
        """DUSt3R's, so that probes of both models are comparable; VGGT's own heads have other activations."""
        return ("exp", -math.inf, math.inf)

    @property
    def conf_mode(self) -> Mode:
        """DUSt3R's, which is also VGGT's own."""
        return ("exp", 1.0, math.inf)

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The pairs: in a frame block a view reads itself, in a global block all views."""
        return tuple(
            Block(
                f"pair.{i}",
                f"frame.{i}.self_attn",
                f"global.{i}.self_attn",
                tuple(f"{kind}.{i}.{step}" for kind in KINDS for step in STEPS),
            )
            for i in range(self.depth)
        )

    @property
    def embed(self) -> str:
        """The layer that the first frame block reads."""
        return "aggregator.embed"

    @property
    def readings(self) -> tuple[tuple[str, ...], ...]:
        """Both streams of each pair up to the last that DPT heads read."""
        return tuple(tuple(f"{kind}.{i}.mlp" for kind in KINDS) for i in range(max(self.dpt_layers) + 1))

    @property
    def trunk(self) -> tuple[str, ...]:
        """The parts of the parameter tree that belong to no head."""
        return ("encoder", "aggregator")

    @property
    def layer_ids(self) -> tuple[str, ...]:
        """Every layer id of this backbone, in network order."""
        encoder = (f"encoder.{i}.{step}" for i in range(self.enc_depth) for step in STEPS)
        return ("patch_embed", "encoder.embed", *encoder, "encoder.norm", self.embed, *self.all_layers)

    @property
    def inside_heads(self) -> dict[str, str]:
        """Id of each site inside a head -> that head's name."""
        iterations = range(self.camera_iterations) if CAMERA in self.head_names else ()
        ids: dict[str, str] = {}
        for k in iterations:
            ids |= {f"camera.{k}.{i}.{step}": CAMERA for i in range(self.camera_depth) for step in STEPS} | {f"pose_enc.{k}": CAMERA}
        for head in self.heads:
            if head.name != CAMERA:
                (part,) = head.parts
                ids |= dict.fromkeys((*(f"{part}.level.{level}" for level in range(4)), f"{part}.fused"), head.name)
        return ids

    @property
    def heads(self) -> tuple[Head, ...]:
        """The heads; all views share each."""
        last, taps = (self.depth - 1,), tuple(dict.fromkeys(self.dpt_layers))

        def pairs(numbers: tuple[int, ...]) -> tuple[str, ...]:
            return tuple(f"{kind}.{i}.mlp" for i in numbers for kind in KINDS)

        every = {
            CAMERA: Head(CAMERA, ("camera_head",), pairs(last), ("cameras",)),
            DEPTH: Head(DEPTH, ("depth_head",), pairs(taps), ("depth", "depth_conf")),
            POINTS: Head(POINTS, ("point_head",), pairs(taps), ("pts3d", "conf")),
        }
        return tuple(every[name] for name in self.head_names)

    def layer_width(self, layer_id: str) -> int:
        """Number of channels of a layer's tokens."""
        return self.embed_dim

    def head_count(self, layer_id: str) -> int:
        """Number of attention heads in the stack that a layer belongs to."""
        return self.enc_num_heads if layer_id.startswith("encoder.") else self.num_heads

    def reads(self, layer_id: str) -> Reads:
        """Global blocks read all views."""
        return "all" if layer_id.startswith("global.") else "own"

    def special_tokens(self, layer_id: str) -> tuple[str, ...]:
        """In DINOv2 its class token and registers, which no later block sees; after it, VGGT's camera token and registers."""
        if layer_id == "patch_embed":
            return ()
        first = "class" if layer_id.startswith("encoder.") else "camera"
        return (first, *(f"register{i}" for i in range(self.num_registers)))

    def check_view_count(self, count: int) -> None:
        """Accepts any number of views from one up.

        Raises:
            OptionError: there is no view.
        """
        if count < 1:
            raise OptionError(f"this model takes one view or more; found {count}")

    def check_sizes(self, sizes: Sequence[tuple[int, int]]) -> None:
        """Refuses views of different sizes.

        Raises:
            ImageError: the sizes differ.
        """
        same_size(sizes)

    @classmethod
    def from_hub_config(cls, options: Mapping[str, Any]) -> "VGGTConfig":
        """The config that options alone describe, with the published model's values for what they leave open.

        Raises:
            ConfigError: an option is unknown, or has a value this implementation does not support. All are listed.
        """
        stated = read(options)
        enabled = [name for name, option in ENABLE.items() if stated.pop(option, True)]
        stated.pop("enable_track", None)
        sizes = {name: stated.get(name, getattr(cls, name)) for name in ("embed_dim", "depth")}
        return cls(**{**assumed(**sizes), "head_names": tuple(enabled), **stated})

    def to_hub_config(self) -> dict[str, Any]:
        """The options that rebuild this config: those of the hub's `config.json`, and every field that differs from what these imply."""
        height, width = self.img_size
        options: dict[str, Any] = {"embed_dim": self.embed_dim, "img_size": height if height == width else [height, width]}
        options |= {"patch_size": self.patch_size}
        options |= {option: False for name, option in ENABLE.items() if name not in self.head_names}
        # The depth first: it determines which pairs the DPT heads would read.
        implied = self.from_hub_config({**options, "depth": self.depth})
        options |= {} if self.depth == type(self).depth else {"depth": self.depth}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value != getattr(implied, field.name):
                options[field.name] = list(value) if isinstance(value, tuple) else value
        return options


PUBLISHED = {"facebook/VGGT-1B": VGGTConfig(), "facebook/VGGT-1B-Commercial": VGGTConfig()}
"""The published models: hub id -> architecture. The second is the first, retrained for use under another licence."""
