"""VGGT's camera head and its DPT heads in PyTorch, and what pose encodings mean."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from tests.torch_reference.vggt_blocks import Block, Visit, exact
from tests.torch_reference.vggt_config import DPTConfig, VGGTConfig

EPSILON = 1e-5
MODULATION_EPSILON = 1e-6
POSITION_SHARE = 0.1
LAST_WIDTH = 32


class _Squeezed:
    """A visit of camera tokens, one a frame: (B, S, C) outside, (B, S, 1, C) in the blocks."""

    def __init__(self, visit: Visit) -> None:
        self.visit = visit
        self.needs_scores = visit.needs_scores

    def __call__(self, site: str, x: Tensor) -> Tensor:
        is_layer = site.endswith((".self_attn", ".mlp"))
        return self.visit(site, x.squeeze(2)).unsqueeze(2) if is_layer else x


class PoseBranch(nn.Module):
    """From a camera token to the change of its pose."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, width // 2)
        self.fc2 = nn.Linear(width // 2, 9)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class CameraHead(nn.Module):
    """Pose encodings from camera tokens, refined in a few iterations."""

    def __init__(self, config: VGGTConfig, attention: str) -> None:
        super().__init__()
        width = 2 * config.embed_dim
        self.iterations = config.camera_iterations
        self.empty_pose_tokens = nn.Parameter(torch.zeros(1, 1, 9))
        self.trunk = nn.ModuleList(Block(width, config.camera_heads, EPSILON, False, attention) for _ in range(config.camera_depth))
        self.token_norm = nn.LayerNorm(width, eps=EPSILON)
        self.trunk_norm = nn.LayerNorm(width, eps=EPSILON)
        self.embed_pose = nn.Linear(9, width)
        self.poseLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 3 * width))
        self.pose_branch = PoseBranch(width)

    def forward(self, tokens: Float[Tensor, "B S C"], visit: Visit) -> Float[Tensor, "B S 9"]:
        """The last iteration's; the others' are shown to `visit`."""
        x = self.token_norm(tokens.to(self.token_norm.weight.dtype))
        normed = F.layer_norm(x, x.shape[-1:], eps=MODULATION_EPSILON)
        raw = None
        for k in range(self.iterations):
            previous = self.empty_pose_tokens.expand(*x.shape[:2], -1) if raw is None else raw.detach()
            shift, scale, gate = self.poseLN_modulation(self.embed_pose(previous)).chunk(3, -1)
            y = (x + gate * (normed * (1 + scale) + shift)).unsqueeze(2)
            for i, block in enumerate(self.trunk):
                y = block(y, None, True, _Squeezed(visit), f"camera.{k}.{i}")
            delta = self.pose_branch(self.trunk_norm(y.squeeze(2)))
            raw = delta if raw is None else raw + delta
            encoding = visit(f"pose_enc.{k}", torch.cat((raw[..., :7], raw[..., 7:].relu()), -1))
        return encoding


def cameras(encoding: Float[Tensor, "*B 9"], height: int, width: int) -> tuple[Float[Tensor, "*B 3 4"], Float[Tensor, "*B 3 3"]]:
    """Extrinsics, camera from world, and intrinsics in pixels."""
    t, quaternion, field = encoding.split((3, 4, 2), -1)
    x, y, z, w = quaternion.unbind(-1)
    s = 2 / quaternion.square().sum(-1)
    rotation = [1 - s * (y * y + z * z), s * (x * y - z * w), s * (x * z + y * w)]
    rotation += [s * (x * y + z * w), 1 - s * (x * x + z * z), s * (y * z - x * w)]
    rotation += [s * (x * z - y * w), s * (y * z + x * w), 1 - s * (x * x + y * y)]
    fy, fx = ((side / 2) / (angle / 2).tan() for side, angle in zip((height, width), field.unbind(-1), strict=True))
    zero, one = torch.zeros_like(fx), torch.ones_like(fx)
    intrinsics = [fx, zero, one * (width / 2), zero, fy, one * (height / 2), zero, zero, one]
    return torch.cat((torch.stack(rotation, -1).unflatten(-1, (3, 3)), t[..., None]), -1), torch.stack(intrinsics, -1).unflatten(-1, (3, 3))


def bilinear(image: Tensor, size: Sequence[int]) -> Tensor:
    """Resized with corners on corners."""
    return F.interpolate(image, size=tuple(size), mode="bilinear", align_corners=True)


def with_position(image: Float[Tensor, "F D m n"], ratio: float) -> Float[Tensor, "F D m n"]:
    """A map with sines and cosines of its places added: the first half of the channels of x, the second of y.

    The diagonal of an image of this ratio of width to height has length 2. Computed in float64.
    """
    channels, m, n = image.shape[1:]
    precise = {"dtype": torch.float64, "device": image.device}
    side_y = (ratio**2 + 1) ** -0.5
    quarter = channels // 4
    frequencies = 100.0 ** (-torch.arange(quarter, **precise) / quarter)
    halves = []
    for side, count in ((ratio * side_y, n), (side_y, m)):
        end = side * (count - 1) / count
        angle = torch.linspace(-end, end, count, **precise)[:, None] * frequencies
        halves.append(torch.cat((angle.sin(), angle.cos()), -1).T)
    x, y = halves
    position = torch.cat((x[:, None, :].expand(-1, m, -1), y[:, :, None].expand(-1, -1, n)))
    return image + (POSITION_SHARE * position).to(exact(image)).to(image.dtype)


class ResidualUnit(nn.Module):
    """Two 3×3 convolutions beside a skip that carries relu(x): the original's first ReLU works in place."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = x.relu()
        return x + self.conv2(self.conv1(x).relu())


class Fusion(nn.Module):
    """Adds a finer level to the coarser ones, where there are any, and brings the sum to a size."""

    def __init__(self, width: int, is_coarsest: bool) -> None:
        super().__init__()
        self.out_conv = nn.Conv2d(width, width, 1)
        if not is_coarsest:
            self.resConfUnit1 = ResidualUnit(width)
        self.resConfUnit2 = ResidualUnit(width)

    def forward(self, level: Tensor, coarser: Tensor | None, size: Sequence[int]) -> Tensor:
        fused = level if coarser is None else coarser + self.resConfUnit1(level)
        return self.out_conv(bilinear(self.resConfUnit2(fused), size))


class Scratch(nn.Module):
    """From the four levels to an image of half their width, and the output's convolutions."""

    def __init__(self, config: DPTConfig) -> None:
        super().__init__()
        for level, width in enumerate(config.out_channels, start=1):
            setattr(self, f"layer{level}_rn", nn.Conv2d(width, config.features, 3, padding=1, bias=False))
        for level in (1, 2, 3, 4):
            setattr(self, f"refinenet{level}", Fusion(config.features, is_coarsest=level == 4))
        half = config.features // 2
        self.output_conv1 = nn.Conv2d(config.features, half, 3, padding=1)
        self.output_conv2 = nn.Sequential(nn.Conv2d(half, LAST_WIDTH, 3, padding=1), nn.ReLU(), nn.Conv2d(LAST_WIDTH, config.output_dim, 1))

    def forward(self, levels: Sequence[Float[Tensor, "F C m n"]]) -> Float[Tensor, "F half M N"]:
        widened = [getattr(self, f"layer{k}_rn")(level) for k, level in enumerate(levels, start=1)]
        fused = None
        for k in (4, 3, 2, 1):
            level = widened[k - 1]
            size = widened[k - 2].shape[-2:] if k > 1 else [2 * side for side in level.shape[-2:]]
            fused = getattr(self, f"refinenet{k}")(level, fused, size)
        return self.output_conv1(fused)


class DPTHead(nn.Module):
    """Maps over the pixels from patch tokens of four pairs of blocks: values and, in the last channel, their confidence."""

    def __init__(self, config: DPTConfig, width: int) -> None:
        super().__init__()
        self.activate = {"exp": torch.exp, "inv_log": lambda x: x.sign() * x.abs().expm1()}[config.activation]
        first, second, _, fourth = config.out_channels
        self.norm = nn.LayerNorm(width, eps=EPSILON)
        self.projects = nn.ModuleList(nn.Conv2d(width, channels, 1) for channels in config.out_channels)
        self.resize_layers = nn.ModuleList(
            [
                nn.ConvTranspose2d(first, first, 4, stride=4),
                nn.ConvTranspose2d(second, second, 2, stride=2),
                nn.Identity(),
                nn.Conv2d(fourth, fourth, 3, stride=2, padding=1),
            ]
        )
        self.scratch = Scratch(config)

    def forward(
        self, taps: Sequence[Float[Tensor, "B S N C"]], grid: tuple[int, int], size: tuple[int, int], visit: Visit, name: str
    ) -> tuple[Float[Tensor, "B S H W D"], Float[Tensor, "B S H W"]]:
        scenes, ratio = taps[0].shape[:2], size[1] / size[0]

        def shown(site: str, image: Tensor) -> Tensor:
            return visit(f"{name}.{site}", image.unflatten(0, scenes)).flatten(0, 1)

        levels = []
        for k, (tokens, project, resize) in enumerate(zip(taps, self.projects, self.resize_layers, strict=True)):
            image = self.norm(tokens.to(self.norm.weight.dtype)).flatten(0, 1).transpose(1, 2).unflatten(-1, grid)
            levels.append(shown(f"level.{k}", resize(with_position(project(image), ratio))))
        fused = shown("fused", self.scratch(levels))
        output = self.scratch.output_conv2(with_position(bilinear(fused, size), ratio)).unflatten(0, scenes).permute(0, 1, 3, 4, 2)
        return self.activate(output[..., :-1]), 1 + output[..., -1].exp()
