"""Probes in PyTorch: one MLP a layer, on each token alone, to the pointmap of that token's patch (arXiv 2510.24907, section 3)."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tests.torch_reference.heads import Prediction, prediction
from und3rstand_jax.probes.config import ProbeConfig, ProbeGroup

ACTIVATIONS = {
    "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU(approximate="tanh"),
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "leaky_relu": nn.LeakyReLU,
    "identity": nn.Identity,
}


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + epsilon) · weight (+ bias)."""

    def __init__(self, width: int, eps: float, bias: bool) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        y = x / torch.sqrt((x * x).mean(-1, keepdim=True) + self.eps) * self.weight
        return y if self.bias is None else y + self.bias


NORMS = {"layernorm": nn.LayerNorm, "rmsnorm": RMSNorm}


class ProbeMLP(nn.Sequential):
    """The steps of one probe in their order, with an optional skip around hidden linear layers of equal widths.

    A skip spans the linear layer and the norms and activations between it and the next linear layer.
    """

    def __init__(self, group: ProbeGroup, config: ProbeConfig) -> None:
        super().__init__(*_modules(group, config))
        self.residual = config.residual

    def forward(self, x: Float[Tensor, "B N C"]) -> Float[Tensor, "B N K"]:
        """Outputs of every token's patch, not yet an image."""
        before_linear, blocks = self._blocks()
        for module in before_linear:
            x = module(x)
        for i, block in enumerate(blocks):
            y = x
            for module in block:
                y = module(y)
            hidden_and_equal = i < len(blocks) - 1 and block[0].in_features == block[0].out_features
            x = x + y if self.residual and hidden_and_equal else y
        return x

    def _blocks(self) -> tuple[list[nn.Module], list[list[nn.Module]]]:
        """What comes before the first linear layer, and every linear layer with what follows it."""
        starts = [i for i, module in enumerate(self) if isinstance(module, nn.Linear)]
        modules = list(self)
        return modules[: starts[0]], [modules[a:b] for a, b in zip(starts, [*starts[1:], len(modules)], strict=True)]


def _modules(group: ProbeGroup, config: ProbeConfig) -> list[nn.Module]:
    modules: list[nn.Module] = []
    biases, norm_biases, widths = iter(group.biases), iter(group.norm_biases), iter(group.widths)
    width = next(widths)
    for step in group.steps:
        if step == "linear":
            modules.append(nn.Linear(width, width := next(widths), bias=next(biases)))
        elif step == "norm":
            modules.append(NORMS[config.norm](width, eps=config.norm_epsilon, bias=next(norm_biases)))
        else:
            modules.append(ACTIVATIONS[config.activation]())
    return modules


def patches_to_image(patches: Float[Tensor, "B N K"], grid: tuple[int, int], patch_size: int, layout: str) -> Float[Tensor, "B C H W"]:
    """Puts every token's outputs in its place in the image."""
    h, w = grid
    split = (-1, patch_size, patch_size) if layout == "channels_first" else (patch_size, patch_size, -1)
    tiles = patches.unflatten(1, (h, w)).unflatten(-1, split)
    order = (0, 3, 1, 4, 2, 5) if layout == "channels_first" else (0, 5, 1, 3, 2, 4)
    return tiles.permute(order).flatten(4, 5).flatten(2, 3)


class ProbeReference(nn.Module):
    """A set of probes. Parameters are named `probes.K.STEP.weight`, K counting `config.layer_ids` and STEP the MLP's
    steps, or `probes.K.view1.STEP.weight` and `probes.K.view2.STEP.weight` where each view has its own MLP.
    """

    def __init__(self, config: ProbeConfig) -> None:
        super().__init__()
        self.config = config
        groups = {layer: group for group in config.groups for layer in group.layer_ids}
        self.probes = nn.ModuleList(self._probe(groups[layer]) for layer in config.layer_ids)

    def _probe(self, group: ProbeGroup) -> nn.Module:
        if self.config.views == "shared":
            return ProbeMLP(group, self.config)
        return nn.ModuleDict({view: ProbeMLP(group, self.config) for view in ("view1", "view2")})

    def forward(
        self, features: Mapping[str, tuple[Tensor, Tensor]], image_sizes: tuple[tuple[int, int], tuple[int, int]]
    ) -> list[tuple[Prediction, Prediction]]:
        """Predictions of both views, in the order of `config.layer_ids`; without a confidence channel no `conf`.

        Args:
            features: layer id to the tokens (B, N, C) of view 1 and view 2.
            image_sizes: (height, width) of each view in pixels.
        """
        outputs = []
        for layer, probe in zip(self.config.layer_ids, self.probes, strict=True):
            mlps = (probe, probe) if self.config.views == "shared" else (probe["view1"], probe["view2"])
            pred1, pred2 = (self._decode(*view) for view in zip(mlps, features[layer], image_sizes, strict=True))
            outputs.append((pred1, pred2))
        return outputs

    def _decode(self, mlp: nn.Module, tokens: Tensor, image_size: tuple[int, int]) -> Prediction:
        p = self.config.patch_size
        grid = (image_size[0] // p, image_size[1] // p)
        image = patches_to_image(mlp(tokens), grid, p, self.config.output_layout)
        return prediction(image, self.config.depth_mode, self.config.conf_mode)
