"""Training of probes as one writes it in PyTorch: hooks on the frozen backbone, a loop over the probes, an AdamW for each.

Written from the published facts (DUSt3R's loss and recipe: Wang et al., CVPR 2024, section 3.3 and supplementary) without use of
our own loss or step. A pair is a `und3rstand_jax.data.records.ViewSet` whose arrays are tensors; images go to the backbone as (B, 3, H, W).
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, MutableMapping
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from tests.torch_reference.backbone import DUSt3RReference
from tests.torch_reference.heads import Prediction
from tests.torch_reference.probes import ProbeReference
from und3rstand_jax.data.records import View, ViewSet
from und3rstand_jax.probes.config import ProbeConfig

CONFIDENCE_WEIGHT = 0.2
LEAST_SCALE = 1e-8
DECODER_STEPS = ("self_attn", "cross_attn", "mlp")

Both = tuple[Tensor, Tensor]
Features = MutableMapping[str, Both]
"""Layer id to the tokens (B, N, C) of view 1 and view 2."""


class PairLoss(NamedTuple):
    """A batch's loss, and of each view the two means that it is made of."""

    total: Tensor
    view1: Tensor
    view2: Tensor
    regression1: Tensor
    regression2: Tensor


class PairTruth(NamedTuple):
    """Both views' true points in the frame of view 1's camera, jointly normalised and 0 where invalid; and what is valid."""

    points: tuple[Float[Tensor, "B H W 3"], Float[Tensor, "B H W 3"]]
    valid: tuple[Bool[Tensor, "B H W"], Bool[Tensor, "B H W"]]


def images(pair: ViewSet, dtype: torch.dtype = torch.float32) -> Both:
    """8-bit RGB (B, H, W, 3) as the backbone's (B, 3, H, W) in [-1, 1]."""
    one, two = ((view.image.to(dtype) / 255 - 0.5).div(0.5).permute(0, 3, 1, 2) for view in pair)
    return one, two


def pair_truth(pair: ViewSet) -> PairTruth:
    """What every probe's predictions for this batch are compared with."""
    to_camera1 = torch.linalg.inv(pair[0].cam2world)
    valid = (_valid(pair[0]), _valid(pair[1]))
    points = (_points(pair[0], to_camera1, valid[0]), _points(pair[1], to_camera1, valid[1]))
    return PairTruth(_jointly_normalised(points, valid), valid)


def pair_loss(pred1: Prediction, pred2: Prediction, truth: PairTruth) -> PairLoss:
    """The confidence-weighted loss: per view the mean over the batch's valid pixels of conf·ℓ − 0.2·log conf, added up.

    ℓ is the distance of predicted and true point after each side was divided by its mean distance to the origin over the valid
    pixels of both views of its pair.
    """
    points = _jointly_normalised((pred1["pts3d"], pred2["pts3d"]), truth.valid)
    losses, regressions = [], []
    for ours, true, conf, valid in zip(points, truth.points, (pred1["conf"], pred2["conf"]), truth.valid, strict=True):
        distance = (ours - true).norm(dim=-1)
        weighted = conf * distance - CONFIDENCE_WEIGHT * conf.log()
        losses.append(_mean_over(valid, weighted))
        regressions.append(_mean_over(valid, distance))
    return PairLoss(losses[0] + losses[1], *losses, *regressions)


def learning_rate(step: int, steps: int, warmup_steps: int, peak: float, final: float) -> float:
    """Of update `step`, counted from 0: (step + 1)/warmup of the peak, and then half a cosine from the peak down to the final one."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / (steps - warmup_steps)
    return final + (peak - final) * (1 + math.cos(math.pi * progress)) / 2


def adamw(
    probe: nn.Module, lr: float = 1e-4, betas: tuple[float, float] = (0.9, 0.95), weight_decay: float = 0.05, fused: bool = False
) -> torch.optim.AdamW:
    """DUSt3R's optimiser: weight decay on matrices alone."""
    parameters = list(probe.parameters())
    decayed, others = [p for p in parameters if p.ndim > 1], [p for p in parameters if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=fused)


@dataclasses.dataclass
class TrainedProbe:
    """A layer's probe, which is a `ProbeReference` of that one layer, and its optimiser."""

    probe: ProbeReference
    optimizer: torch.optim.AdamW


def single_probes(config: ProbeConfig) -> dict[str, ProbeReference]:
    """Of each layer, in network order, a probe that is a module by itself."""
    groups = {layer: group for group in config.groups for layer in group.layer_ids}
    alone = {layer: dataclasses.replace(groups[layer], layer_ids=(layer,)) for layer in config.layer_ids}
    return {layer: ProbeReference(dataclasses.replace(config, groups=(group,))) for layer, group in alone.items()}


def hook_decoder(model: DUSt3RReference) -> Features:
    """A dict that every forward pass of `model` fills with the tokens of all decoder layers, three a block."""
    features: Features = {}
    for i, blocks in enumerate(zip(model.dec_blocks, model.dec_blocks2, strict=True)):
        for view, block in enumerate(blocks):
            block.register_forward_hook(_collector(features, i, view))
    return features


Loop = Callable[[Mapping[str, TrainedProbe], Features, PairTruth], dict[str, PairLoss]]


def step_after_all_outputs(probes: Mapping[str, TrainedProbe], features: Features, truth: PairTruth) -> dict[str, PairLoss]:
    """All probes' outputs first, as the published probes give them, then for each its loss, gradient and update."""
    outputs = {layer: _output(trained, layer, features[layer], truth) for layer, trained in probes.items()}
    losses = {}
    for layer, trained in probes.items():
        loss = pair_loss(*outputs[layer], truth)
        trained.optimizer.zero_grad()
        loss.total.backward()
        trained.optimizer.step()
        losses[layer] = _detached(loss)
    return losses


def step_probe_by_probe(probes: Mapping[str, TrainedProbe], features: Features, truth: PairTruth) -> dict[str, PairLoss]:
    """The leanest order: one probe's output, loss, gradient and update, and nothing of it is kept when the next one's turn comes."""
    losses = {}
    for layer, trained in probes.items():
        loss = pair_loss(*_output(trained, layer, features.pop(layer), truth), truth)
        loss.total.backward()
        trained.optimizer.step()
        trained.optimizer.zero_grad(set_to_none=True)
        losses[layer] = _detached(loss)
    return losses


def _collector(features: Features, block: int, view: int) -> Callable[..., None]:
    def collect(module: nn.Module, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> None:
        for step, tokens in zip(DECODER_STEPS, outputs, strict=True):
            layer = f"decoder.{block}.{step}"
            features[layer] = (tokens, tokens) if view == 0 else (features[layer][0], tokens)

    return collect


def _output(trained: TrainedProbe, layer: str, tokens: Both, truth: PairTruth) -> tuple[Prediction, Prediction]:
    dtype = next(trained.probe.parameters()).dtype
    size1, size2 = ((valid.shape[1], valid.shape[2]) for valid in truth.valid)
    (output,) = trained.probe({layer: (tokens[0].to(dtype), tokens[1].to(dtype))}, (size1, size2))
    return output


def _detached(loss: PairLoss) -> PairLoss:
    return PairLoss(*(value.detach() for value in loss))


def _valid(view: View) -> Tensor:
    return (view.depth > 0) & view.depth.isfinite()


def _points(view: View, to_camera1: Tensor, valid: Tensor) -> Float[Tensor, "B H W 3"]:
    """Homogeneous pixel → point of its camera → world → camera 1."""
    depth = view.depth.masked_fill(~valid, 0.0)
    rows, columns = (torch.arange(side, dtype=depth.dtype, device=depth.device) for side in depth.shape[1:])
    v, u = torch.meshgrid(rows, columns, indexing="ij")
    rays = torch.stack((u, v, torch.ones_like(u)), -1) @ torch.linalg.inv(view.intrinsics).mT[:, None]
    to_frame = to_camera1 @ view.cam2world
    moved = (rays * depth[..., None]) @ to_frame[:, None, :3, :3].mT + to_frame[:, None, None, :3, 3]
    return moved.masked_fill(~valid[..., None], 0.0)


def _jointly_normalised(points: Both, valid: Both) -> Both:
    """Both views' points over their mean distance to the origin; what is invalid becomes 0."""
    one, two = (p.masked_fill(~mask[..., None], 0.0) for p, mask in zip(points, valid, strict=True))
    distances = one.norm(dim=-1).sum((1, 2)) + two.norm(dim=-1).sum((1, 2))
    count = valid[0].sum((1, 2)) + valid[1].sum((1, 2))
    scale = (distances / (count + 1e-8)).clamp(min=LEAST_SCALE)[:, None, None, None]
    return one / scale, two / scale


def _mean_over(valid: Tensor, values: Tensor) -> Tensor:
    return values.masked_fill(~valid, 0.0).sum() / valid.sum().clamp(min=1)
