"""VGGT in PyTorch (Wang et al., CVPR 2025), without its track head.

Images are (B, S, 3, H, W) in [0, 1]. Parameters carry the original's names. Written from the facts of the architecture, without sight
of the JAX model; its yardstick is `tests/golden`.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from tests.torch_reference.backbone import Rope
from tests.torch_reference.edits import Edit
from tests.torch_reference.vggt_blocks import Block, Visit, Visitor, exact, rope_tables
from tests.torch_reference.vggt_config import VGGTConfig
from tests.torch_reference.vggt_heads import CameraHead, DPTHead, cameras

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ENCODER_EPSILON, EPSILON = 1e-6, 1e-5


class VGGTOutput(NamedTuple):
    """`activations[layer]` is (B, S, tokens, channels), of the camera head (B, S, channels), of the DPT heads (B, S, channels, rows,
    columns); the rest as the original calls it."""

    activations: dict[str, Tensor]
    pose_enc: Float[Tensor, "B S 9"]
    extrinsic: Float[Tensor, "B S 3 4"]
    intrinsic: Float[Tensor, "B S 3 3"]
    depth: Float[Tensor, "B S H W 1"]
    depth_conf: Float[Tensor, "B S H W"]
    world_points: Float[Tensor, "B S H W 3"]
    world_points_conf: Float[Tensor, "B S H W"]


class PatchEmbed(nn.Module):
    """One linear map per patch."""

    def __init__(self, patch_size: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch_size, stride=patch_size)

    def forward(self, images: Float[Tensor, "F 3 H W"]) -> Float[Tensor, "F N C"]:
        return self.proj(images).flatten(2).transpose(1, 2)


class Encoder(nn.Module):
    """DINOv2 with registers, frame by frame."""

    def __init__(self, config: VGGTConfig, attention: str) -> None:
        super().__init__()
        width, self.grid = config.embed_dim, config.img_size // config.patch_size
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.grid**2, width))
        self.register_tokens = nn.Parameter(torch.zeros(1, config.num_register_tokens, width))
        self.mask_token = nn.Parameter(torch.zeros(1, width))  # of DINOv2's training; the forward pass never reads it
        self.patch_embed = PatchEmbed(config.patch_size, width)
        self.blocks = nn.ModuleList(
            Block(width, config.encoder_heads, ENCODER_EPSILON, False, attention) for _ in range(config.encoder_depth)
        )
        self.norm = nn.LayerNorm(width, eps=ENCODER_EPSILON)

    def forward(self, images: Float[Tensor, "B S 3 H W"], grid: tuple[int, int], visit: Visit) -> Float[Tensor, "B S N C"]:
        """The normed patch tokens, without cls and registers."""
        scenes = images.shape[:2]
        patches = visit("patch_embed", self.patch_embed(images.flatten(0, 1)).unflatten(0, scenes))
        of_cls, of_patches = self._position(grid)
        specials = torch.cat((self.cls_token + of_cls, self.register_tokens), 1)[None].expand(*scenes, -1, -1)
        x = visit("encoder.embed", torch.cat((specials.to(patches.dtype), patches + of_patches), 2))
        for i, block in enumerate(self.blocks):
            x = block(x, None, False, visit, f"encoder.{i}")
        return visit("encoder.norm", self.norm(x))[:, :, specials.shape[2] :]

    def _position(self, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """The position embedding of cls, and of a grid of patches: resized from the stored one, unless it is of that size."""
        of_cls, stored = self.pos_embed[:, :1], self.pos_embed[:, 1:]
        if grid == (self.grid, self.grid):
            return of_cls, stored
        image = stored.to(exact(stored)).transpose(1, 2).unflatten(-1, (self.grid, self.grid))
        resized = F.interpolate(image, size=grid, mode="bicubic", antialias=True, align_corners=False)
        return of_cls, resized.flatten(2).transpose(1, 2).to(stored.dtype)


class Aggregator(nn.Module):
    """The encoder, and pairs of blocks that attend within each frame and to all frames in turn."""

    def __init__(self, config: VGGTConfig, attention: str) -> None:
        super().__init__()
        width, self.head_dim = config.embed_dim, config.embed_dim // config.num_heads
        self.camera_token = nn.Parameter(torch.zeros(1, 2, 1, width))
        self.register_token = nn.Parameter(torch.zeros(1, 2, config.num_register_tokens, width))
        self.patch_embed = Encoder(config, attention)
        self.frame_blocks, self.global_blocks = (
            nn.ModuleList(Block(width, config.num_heads, EPSILON, True, attention) for _ in range(config.depth)) for _ in range(2)
        )

    def forward(self, images: Float[Tensor, "B S 3 H W"], grid: tuple[int, int], visit: Visit) -> list[Float[Tensor, "B S P 2C"]]:
        mean, deviation = (torch.tensor(values, dtype=images.dtype, device=images.device)[:, None, None] for values in (MEAN, DEVIATION))
        patches = self.patch_embed((images - mean) / deviation, grid, visit)
        specials = torch.cat((self.camera_token, self.register_token), 2)  # of the first frame and of all others
        specials = torch.cat((specials[:, :1], specials[:, 1:].expand(-1, images.shape[1] - 1, -1, -1)), 1)
        specials = specials.expand(len(images), -1, -1, -1).to(patches.dtype)
        x = visit("aggregator.embed", torch.cat((specials, patches), 2))
        rope: Rope = rope_tables(*grid, specials.shape[2], self.head_dim, x)
        outputs = []
        for i, (frame_block, global_block) in enumerate(zip(self.frame_blocks, self.global_blocks, strict=True)):
            of_frame = frame_block(x, rope, False, visit, f"frame.{i}")
            x = global_block(of_frame, rope, True, visit, f"global.{i}")
            outputs.append(torch.cat((of_frame, x), -1))
        return outputs


class VGGTReference(nn.Module):
    """VGGT with the original's parameter names.

    `attention` is "sdpa" or "plain"; where scores are edited or asked for, an attention is explicit either way. In float64 everything
    is float64. For bfloat16 run it under `torch.autocast`, as the original is: the heads stay in their parameters' type.
    """

    def __init__(self, config: VGGTConfig, attention: str = "sdpa") -> None:
        super().__init__()
        self.config = config
        self.aggregator = Aggregator(config, attention)
        self.camera_head = CameraHead(config, attention)
        self.point_head, self.depth_head = (DPTHead(head, 2 * config.embed_dim) for head in (config.point_head, config.depth_head))

    def forward(
        self,
        images: Float[Tensor, "B S 3 H W"],
        record: bool = True,
        inside: Sequence[str] = (),
        edits: Sequence[Edit] = (),
        arrays: Mapping[str, np.ndarray] | None = None,
    ) -> VGGTOutput:
        """Run all frames; `vggt_blocks.Visitor` says what edits are and what x is inside a step.

        Args:
            images: of one size, a multiple of the patch size.
            record: whether to keep every layer.
            inside: sites inside steps to keep as well, such as global.3.self_attn.scores or .weights.
            edits: in the order in which they act at their site.
            arrays: the shifts that edits name.

        Raises:
            ValueError: there is no such site, or it has no such places.
        """
        unknown = {edit["site"] for edit in edits} - set(self.config.sites) | set(inside) - {*self.config.sites, *self.config.weights}
        if unknown:
            raise ValueError(f"no site {', '.join(map(repr, sorted(unknown)))}")
        visit = Visitor(record, inside, edits, arrays or {})
        size = tuple(images.shape[-2:])
        grid = (size[0] // self.config.patch_size, size[1] // self.config.patch_size)
        outputs = self.aggregator(images, grid, visit)
        with torch.autocast(images.device.type, enabled=False):
            encoding = self.camera_head(outputs[-1][:, :, 0], visit)
            depth, points = (
                head([outputs[i][:, :, self.config.specials :] for i in config.intermediate_layer_idx], grid, size, visit, name)
                for head, config, name in (
                    (self.depth_head, self.config.depth_head, "depth_head"),
                    (self.point_head, self.config.point_head, "point_head"),
                )
            )
        return VGGTOutput(visit.kept, encoding, *cameras(encoding, *size), *depth, *points)


def load_vggt(config: VGGTConfig, state_dict: Mapping[str, np.ndarray | Tensor], attention: str = "sdpa") -> VGGTReference:
    """A model holding `state_dict`, without the cost of an initialisation; torch tensors are shared, not copied. A track head is left out.

    Raises:
        RuntimeError: a name is missing, unexpected, or of another shape.
    """
    with torch.device("meta"):
        model = VGGTReference(config, attention)
    tensors = {name: torch.as_tensor(array) for name, array in state_dict.items() if not name.startswith("track_head.")}
    model.load_state_dict(tensors, assign=True)
    return model.eval()
