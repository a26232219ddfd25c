"""DUSt3R's two heads and MASt3R's in PyTorch, and the output activations that probes share with them.

A head turns one view's tokens into four channels a pixel (x, y, z and the raw confidence); DPT is Ranftl et al.,
"Vision Transformers for Dense Prediction", ICCV 2021.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

Prediction = dict[str, Tensor]
"""`pts3d` (B, H, W, 3) in view 1's camera frame and `conf` (B, H, W); of MASt3R also `desc` (B, H, W, D) and `desc_conf` (B, H, W)."""
Mode = Sequence[Any]

CHANNELS = 4
DPT_WIDTHS = (96, 192, 384, 768)
FUSION_WIDTH = 256
LAST_WIDTH = 128
SMALLEST_NORM = 1e-8


def pointmap(xyz: Float[Tensor, "*b 3"], depth_mode: Mode) -> Float[Tensor, "*b 3"]:
    """Points from raw coordinates: the direction is kept, the distance d becomes expm1(d), d² or stays."""
    if depth_mode[0] == "linear":
        return xyz
    distance = xyz.norm(dim=-1, keepdim=True)
    new_distance = {"exp": torch.expm1, "square": torch.square}[depth_mode[0]](distance)
    return xyz / distance.clamp(min=SMALLEST_NORM) * new_distance


def confidence(raw: Tensor, conf_mode: Mode) -> Tensor:
    """Confidence from its raw channel, between the mode's two bounds."""
    name, low, high = conf_mode
    if name == "exp":
        return low + raw.exp().clamp(max=high - low)
    return {"sigmoid": torch.sigmoid}[name](raw) * (high - low) + low


def prediction(image: Float[Tensor, "B C H W"], depth_mode: Mode, conf_mode: Mode) -> Prediction:
    """Pointmap of the first three channels, and confidence of the fourth where there is one."""
    channels_last = image.permute(0, 2, 3, 1)
    pred = {"pts3d": pointmap(channels_last[..., :3], depth_mode)}
    if channels_last.shape[-1] == CHANNELS:
        pred["conf"] = confidence(channels_last[..., 3], conf_mode)
    return pred


class LinearHead(nn.Module):
    """One linear layer from a token of the last decoder layer to its patch of pixels."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.modes = (config["depth_mode"], config["conf_mode"])
        self.patch_size = config.get("patch_size", 16)
        self.proj = nn.Linear(config["dec_embed_dim"], CHANNELS * self.patch_size**2)

    def forward(self, layers: Sequence[Tensor], grid: tuple[int, int]) -> Prediction:
        patches = self.proj(layers[-1].to(self.proj.weight.dtype))
        image = F.pixel_shuffle(patches.transpose(1, 2).unflatten(-1, grid), self.patch_size)
        return prediction(image, *self.modes)


class ResidualUnit(nn.Module):
    """Pre-activation residual unit of two 3×3 convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(FUSION_WIDTH, FUSION_WIDTH, 3, padding=1)
        self.conv2 = nn.Conv2d(FUSION_WIDTH, FUSION_WIDTH, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.conv1(F.relu(x))))


class Fusion(nn.Module):
    """Adds a finer level to the coarser ones and doubles the resolution.

    The coarsest has one input; its `resConfUnit1` is in the original's state dict and never used.
    """

    def __init__(self) -> None:
        super().__init__()
        self.out_conv = nn.Conv2d(FUSION_WIDTH, FUSION_WIDTH, 1)
        self.resConfUnit1 = ResidualUnit()
        self.resConfUnit2 = ResidualUnit()

    def forward(self, coarse: Tensor, fine: Tensor | None = None) -> Tensor:
        fused = coarse if fine is None else coarse + self.resConfUnit1(fine)
        return self.out_conv(double(self.resConfUnit2(fused)))


def double(image: Tensor) -> Tensor:
    """Bilinear resizing to twice the size, corners on corners."""
    return F.interpolate(image, scale_factor=2, mode="bilinear", align_corners=True)


class Scratch(nn.Module):
    """Convolutions that bring the four levels to one width, and their fusions."""

    def __init__(self) -> None:
        super().__init__()
        for level, width in enumerate(DPT_WIDTHS, start=1):
            setattr(self, f"layer{level}_rn", nn.Conv2d(width, FUSION_WIDTH, 3, padding=1, bias=False))
        # The original registers the four a second time: one tensor, two names.
        self.layer_rn = nn.ModuleList([self.layer1_rn, self.layer2_rn, self.layer3_rn, self.layer4_rn])
        self.refinenet1, self.refinenet2, self.refinenet3, self.refinenet4 = (Fusion() for _ in DPT_WIDTHS)

    def forward(self, levels: Sequence[Float[Tensor, "B C H W"]]) -> Float[Tensor, "B 256 H2 W2"]:
        fine1, fine2, fine3, coarsest = (conv(level) for conv, level in zip(self.layer_rn, levels, strict=True))
        # Level 4 was rounded up to a whole size where level 3's is odd.
        path = self.refinenet4(coarsest)[..., : fine3.shape[-2], : fine3.shape[-1]]
        return self.refinenet1(self.refinenet2(self.refinenet3(path, fine3), fine2), fine1)


def levels_from_tokens(token_widths: Sequence[int]) -> nn.ModuleList:
    """Maps from token grids to levels at 4, 2, 1 and 1/2 times the grid's resolution."""
    one, two, three, four = (nn.Conv2d(tokens, width, 1) for tokens, width in zip(token_widths, DPT_WIDTHS, strict=True))
    width1, width2, _, width4 = DPT_WIDTHS
    return nn.ModuleList(
        [
            nn.Sequential(one, nn.ConvTranspose2d(width1, width1, 4, stride=4)),
            nn.Sequential(two, nn.ConvTranspose2d(width2, width2, 2, stride=2)),
            nn.Sequential(three),
            nn.Sequential(four, nn.Conv2d(width4, width4, 3, stride=2, padding=1)),
        ]
    )


class Upsample(nn.Module):
    """`double` as a module; without parameters, it holds a place in the head's numbering."""

    def forward(self, image: Tensor) -> Tensor:
        return double(image)


class DPT(nn.Module):
    """DPT from four token grids to an image of `CHANNELS` at the input's resolution."""

    def __init__(self, token_widths: Sequence[int]) -> None:
        super().__init__()
        self.scratch = Scratch()
        self.head = nn.Sequential(
            nn.Conv2d(FUSION_WIDTH, LAST_WIDTH, 3, padding=1),
            Upsample(),
            nn.Conv2d(LAST_WIDTH, LAST_WIDTH, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(LAST_WIDTH, CHANNELS, 1),
        )
        self.act_postprocess = levels_from_tokens(token_widths)

    def forward(self, grids: Sequence[Float[Tensor, "B C h w"]]) -> Float[Tensor, "B 4 H W"]:
        levels = [to_level(grid) for to_level, grid in zip(self.act_postprocess, grids, strict=True)]
        return self.head(self.scratch(levels))


class DPTHead(nn.Module):
    """DPT on the encoder's output and on the decoder's at half, three quarters and the whole of its depth."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.modes = (config["depth_mode"], config["conf_mode"])
        depth, dec_width = config["dec_depth"], config["dec_embed_dim"]
        self.hooks = (0, depth // 2, depth * 3 // 4, depth)
        self.dpt = DPT((config["enc_embed_dim"], dec_width, dec_width, dec_width))

    def forward(self, layers: Sequence[Tensor], grid: tuple[int, int]) -> Prediction:
        dtype = self.dpt.head[0].weight.dtype
        grids = [layers[i].to(dtype).transpose(1, 2).unflatten(-1, grid) for i in self.hooks]
        return prediction(self.dpt(grids), *self.modes)


class LocalFeatures(nn.Module):
    """A token as the encoder and as the decoder leave it, through an MLP, to the raw channels of its patch."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, outputs)

    def forward(self, tokens: Float[Tensor, "B N C"]) -> Float[Tensor, "B N O"]:
        return self.fc2(F.gelu(self.fc1(tokens)))


class DPTAndFeatures(DPTHead):
    """MASt3R's: the DPT head, and local features for every pixel."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        self.patch_size = config.get("patch_size", 16)
        self.channels = int(config["output_mode"].removeprefix("pts3d+desc"))
        self.own_confidence = config.get("two_confs", False)
        self.desc_conf_mode = config.get("desc_conf_mode", config["conf_mode"])
        outputs = (self.channels + self.own_confidence) * self.patch_size**2
        self.head_local_features = LocalFeatures(config["enc_embed_dim"] + config["dec_embed_dim"], outputs)

    def forward(self, layers: Sequence[Tensor], grid: tuple[int, int]) -> Prediction:
        points = super().forward(layers, grid)
        dtype = self.head_local_features.fc1.weight.dtype
        raw = self.head_local_features(torch.cat([layers[0].to(dtype), layers[-1].to(dtype)], dim=-1))
        image = F.pixel_shuffle(raw.transpose(1, 2).unflatten(-1, grid), self.patch_size).permute(0, 2, 3, 1)
        features = image[..., : self.channels]
        desc_conf = confidence(image[..., -1], self.desc_conf_mode) if self.own_confidence else points["conf"]
        return points | {"desc": features / features.norm(dim=-1, keepdim=True), "desc_conf": desc_conf}
