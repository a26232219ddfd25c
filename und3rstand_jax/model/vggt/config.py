"""The architecture of a VGGT backbone: its sizes, and the ids of its layers.

    patch_embed   encoder.embed   encoder.I.self_attn   encoder.I.mlp   encoder.norm                  DINOv2
    aggregator.embed   frame.I.self_attn   frame.I.mlp   global.I.self_attn   global.I.mlp            one stream, in this order
    camera.K.I.self_attn   camera.K.I.mlp   pose_enc.K   depth_head.level.L   depth_head.fused        inside of heads

Heads read frame.I.mlp beside global.I.mlp.
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

_LARGEST = {"embed_dim": 65536, "depth": 1000, "num_heads": 4096, "patch_size": 128, "mlp_ratio": 64, "num_registers": 4096}
_LARGEST |= {"enc_depth": 1000, "enc_num_heads": 4096, "camera_depth": 1000, "camera_num_heads": 4096, "camera_iterations": 100}
_LARGEST |= {"dpt_width": 65536}
_LARGEST_SIDE = 65536


@dataclasses.dataclass(frozen=True)
class VGGTConfig(ModelConfig):
    """The architecture of a VGGT (Wang et al., CVPR 2025, section 3).

    Attributes:
        img_size: (height, width), in pixels, of images with the grid that DINOv2's positions are stored for; a model takes any.
        patch_size: pixels of a patch's side.
        embed_dim: channels of a token, in DINOv2 and in the blocks.
        depth: pairs of a frame block and a global one.
        num_heads: of the attentions of both.
        num_registers: learned tokens that stand between the camera's token and the patches'.
        enc_depth, enc_num_heads: of DINOv2.
        mlp_ratio: channels within an MLP for each of its token's.
        rope_base: of the rotary positions of frame and global blocks.
        camera_depth, camera_num_heads, camera_iterations: blocks of the camera head, their heads, and how often they refine the cameras.
        dpt_width: channels in which a DPT head fuses its levels.
        dpt_channels: channels of its four levels.
        dpt_layers: the pairs that it reads.
        head_names: the heads that there are, of "camera", "depth", "points".

    Raises:
        ConfigError: no model has this architecture. All faults are listed.
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
            f"{name} is at most {_LARGEST[name]}; found {number_text(value)}" for name, value in sizes.items() if value > _LARGEST[name]
        ]
        if not faults:
            faults += self._other_faults()
        if faults:
            raise ConfigError("backbone config: " + listed(faults, "; ", 20, 400))

    def _other_faults(self) -> list[str]:
        faults = []
        if not all(self.patch_size <= side <= _LARGEST_SIDE and side % self.patch_size == 0 for side in self.img_size):
            found = ", ".join(map(number_text, self.img_size))
            faults.append(f"the sides of img_size are multiples of {self.patch_size} up to {_LARGEST_SIDE} pixels; found {found}")
        for width, count, parts, why in (
            (self.embed_dim, self.num_heads, 4, "2-D RoPE splits every head's channels in four"),
            (self.embed_dim, self.enc_num_heads, 1, "each head has as many channels"),
            (2 * self.embed_dim, self.camera_num_heads, 1, "each of the camera's heads has as many channels"),
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
            faults.append(f"dpt_layers are four pairs of 0 to {self.depth - 1} in their order; found {list(self.dpt_layers)}")
        if unknown := [name for name in self.head_names if name not in self.HEADS]:
            faults.append(f"head_names are of {', '.join(self.HEADS)}; found {listed(map(repr, unknown))}")
        elif list(self.head_names) != [name for name in self.HEADS if name in self.head_names]:
            faults.append(f"head_names stand in the order {', '.join(self.HEADS)}, each once; found {', '.join(self.head_names)}")
        return faults

    @classmethod
    def from_scratch(cls, options: Mapping[str, Any]) -> "VGGTConfig":
        """A small model with heads for cameras and points; of the options, `dec_…` are those of the pairs, `dec_width` of all tokens.

        Raises:
            OptionError: the image size is none of this model's.
            ConfigError: no model has this architecture.
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
        """As the original's loader does."""
        return "vggt"

    @property
    def depth_mode(self) -> Mode:
        """DUSt3R's, in which probes read points, so that theirs compare; VGGT's own heads have activations of their own."""
        return ("exp", -math.inf, math.inf)

    @property
    def conf_mode(self) -> Mode:
        """DUSt3R's, which is VGGT's own too."""
        return ("exp", 1.0, math.inf)

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The pairs: within a frame block a view reads itself, within a global one all views."""
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
        """The parts of the parameter tree that are no head's."""
        return ("encoder", "aggregator")

    @property
    def layer_ids(self) -> tuple[str, ...]:
        """Every layer id of this backbone, in network order."""
        encoder = (f"encoder.{i}.{step}" for i in range(self.enc_depth) for step in STEPS)
        return ("patch_embed", "encoder.embed", *encoder, "encoder.norm", self.embed, *self.all_layers)

    @property
    def inside_heads(self) -> dict[str, str]:
        """Ids of what can be captured inside of heads -> the head."""
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
        """Heads of the attentions of the stack that a layer belongs to."""
        return self.enc_num_heads if layer_id.startswith("encoder.") else self.num_heads

    def reads(self, layer_id: str) -> Reads:
        """Global blocks read all views."""
        return "all" if layer_id.startswith("global.") else "own"

    def special_tokens(self, layer_id: str) -> tuple[str, ...]:
        """DINOv2's class token and registers, which no block after it sees; then VGGT's token of the camera and registers."""
        if layer_id == "patch_embed":
            return ()
        first = "class" if layer_id.startswith("encoder.") else "camera"
        return (first, *(f"register{i}" for i in range(self.num_registers)))

    def check_view_count(self, count: int) -> None:
        """Any number from one on.

        Raises:
            OptionError: there is none.
        """
        if count < 1:
            raise OptionError(f"this model takes one view or more; found {count}")

    def check_sizes(self, sizes: Sequence[tuple[int, int]]) -> None:
        """All views are of one size.

        Raises:
            ImageError: they are not.
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
        """The options that rebuild this config: those of the hub's `config.json`, and what differs from what these imply."""
        height, width = self.img_size
        options: dict[str, Any] = {"embed_dim": self.embed_dim, "img_size": height if height == width else [height, width]}
        options |= {"patch_size": self.patch_size}
        options |= {option: False for name, option in ENABLE.items() if name not in self.head_names}
        # The depth first: it says which pairs the DPT heads would read.
        implied = self.from_hub_config({**options, "depth": self.depth})
        options |= {} if self.depth == type(self).depth else {"depth": self.depth}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value != getattr(implied, field.name):
                options[field.name] = list(value) if isinstance(value, tuple) else value
        return options


PUBLISHED = {"facebook/VGGT-1B": VGGTConfig(), "facebook/VGGT-1B-Commercial": VGGTConfig()}
"""The published models: hub id -> architecture. The second is the first, trained again for use under another licence."""
