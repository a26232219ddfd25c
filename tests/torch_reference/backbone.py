"""DUSt3R in PyTorch (Wang et al., CVPR 2024, section 3.1; CroCo v2 for the blocks and RoPE).

Tokens are (B, N, C), N = h·w row-major; images (B, 3, H, W) in [-1, 1]. Parameters carry the original's names.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from tests.torch_reference.heads import DPTAndFeatures, DPTHead, LinearHead, Prediction

LAYER_NORM_EPSILON = 1e-6
MLP_RATIO = 4

Views = tuple[Tensor, Tensor]
Rope = tuple[Tensor, Tensor]
"""cos and sin of the rotation of every token's head channels, each (N, D)."""


Keep = Callable[[str, Views], None]


class ReferenceOutput(NamedTuple):
    """`activations[layer]` is (tokens of view 1, tokens of view 2); predictions are in view 1's frame, None without head."""

    activations: dict[str, Views]
    pred1: Prediction | None
    pred2: Prediction | None


def rope_tables(h: int, w: int, head_dim: int, base: float, like: Tensor) -> Rope:
    """Rotations of an h×w token grid: the first half of a head's channels turns with y, the second with x.

    Angles are rounded to float32, as the original's are whatever the model's precision.
    """
    half = head_dim // 2
    frequencies = 1.0 / base ** (torch.arange(0, half, 2, dtype=torch.float32, device=like.device) / half)
    y, x = torch.meshgrid(torch.arange(h, device=like.device), torch.arange(w, device=like.device), indexing="ij")
    position = torch.stack((y.flatten(), x.flatten()), -1).float()  # (N, 2)
    angle = position[:, :, None, None] * frequencies  # (N, 2, 1, D/4)
    angle = angle.expand(-1, -1, 2, -1).flatten(1).to(torch.promote_types(like.dtype, torch.float32))
    return angle.cos().to(like.dtype), angle.sin().to(like.dtype)


def rotate(t: Float[Tensor, "B heads N D"], rope: Rope) -> Float[Tensor, "B heads N D"]:
    """RoPE: each half (a, b) of the channels becomes (a·cos − b·sin, b·cos + a·sin)."""
    cos, sin = rope
    a, b = t.unflatten(-1, (2, 2, -1)).unbind(-2)
    return t * cos + torch.stack((-b, a), -2).flatten(-3) * sin


def plain_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Explicit attention, as the original computes it: the (B, heads, N, M) weights exist in memory."""
    weights = (q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5
    return weights.softmax(-1) @ v


ATTENTION: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "plain": plain_attention,
    "sdpa": F.scaled_dot_product_attention,
}


def layer_norm(width: int) -> nn.LayerNorm:
    """LayerNorm with the epsilon DUSt3R uses everywhere."""
    return nn.LayerNorm(width, eps=LAYER_NORM_EPSILON)


def split_heads(tokens: Tensor, heads: int) -> Tensor:
    """(B, N, heads·D) to (B, heads, N, D)."""
    return tokens.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(t: Tensor) -> Tensor:
    """(B, heads, N, D) to (B, N, heads·D)."""
    return t.transpose(1, 2).flatten(2)


class PatchEmbed(nn.Module):
    """Image to tokens: one linear map per patch."""

    def __init__(self, patch_size: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch_size, stride=patch_size)

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B N C"]:
        return self.proj(image).flatten(2).transpose(1, 2)


class SelfAttention(nn.Module):
    """Attention of a view's tokens to each other, with RoPE on queries and keys."""

    def __init__(self, width: int, heads: int, attention: str) -> None:
        super().__init__()
        self.heads = heads
        self.attend = ATTENTION[attention]
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, rope: Rope) -> Tensor:
        q, k, v = (split_heads(part, self.heads) for part in self.qkv(x).chunk(3, -1))
        return self.proj(merge_heads(self.attend(rotate(q, rope), rotate(k, rope), v)))


class CrossAttention(nn.Module):
    """Attention of one view's tokens to the other's; queries and keys carry their own view's positions."""

    def __init__(self, width: int, heads: int, attention: str) -> None:
        super().__init__()
        self.heads = heads
        self.attend = ATTENTION[attention]
        self.projq = nn.Linear(width, width)
        self.projk = nn.Linear(width, width)
        self.projv = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, y: Tensor, rope_x: Rope, rope_y: Rope) -> Tensor:
        q = rotate(split_heads(self.projq(x), self.heads), rope_x)
        k = rotate(split_heads(self.projk(y), self.heads), rope_y)
        return self.proj(merge_heads(self.attend(q, k, split_heads(self.projv(y), self.heads))))


class MLP(nn.Module):
    """Two linear layers with an exact GELU between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, MLP_RATIO * width)
        self.fc2 = nn.Linear(MLP_RATIO * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class EncoderBlock(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, heads: int, attention: str) -> None:
        super().__init__()
        self.norm1 = layer_norm(width)
        self.attn = SelfAttention(width, heads, attention)
        self.norm2 = layer_norm(width)
        self.mlp = MLP(width)
        # Places for hooks on the residual stream, which is no module's output otherwise.
        self.after_self_attn, self.after_mlp = nn.Identity(), nn.Identity()

    def forward(self, x: Tensor, rope: Rope) -> tuple[Tensor, Tensor]:
        """The residual stream after the attention and after the MLP."""
        after_self = self.after_self_attn(x + self.attn(self.norm1(x), rope))
        return after_self, self.after_mlp(after_self + self.mlp(self.norm2(after_self)))


class DecoderBlock(nn.Module):
    """Pre-norm block that also attends to the other view."""

    def __init__(self, width: int, heads: int, attention: str) -> None:
        super().__init__()
        self.norm1 = layer_norm(width)
        self.attn = SelfAttention(width, heads, attention)
        self.cross_attn = CrossAttention(width, heads, attention)
        self.norm2 = layer_norm(width)
        self.norm3 = layer_norm(width)
        self.mlp = MLP(width)
        self.norm_y = layer_norm(width)
        self.after_self_attn, self.after_cross_attn, self.after_mlp = nn.Identity(), nn.Identity(), nn.Identity()

    def forward(self, x: Tensor, y: Tensor, rope_x: Rope, rope_y: Rope) -> tuple[Tensor, Tensor, Tensor]:
        """The residual stream of x after self-attention, cross-attention to y, and the MLP."""
        after_self = self.after_self_attn(x + self.attn(self.norm1(x), rope_x))
        after_cross = self.after_cross_attn(after_self + self.cross_attn(self.norm2(after_self), self.norm_y(y), rope_x, rope_y))
        return after_self, after_cross, self.after_mlp(after_cross + self.mlp(self.norm3(after_cross)))


HEADS = {"linear": LinearHead, "dpt": DPTHead, "catmlp+dpt": DPTAndFeatures}


class DUSt3RReference(nn.Module):
    """DUSt3R with the original's parameter names; `config` is the dict of the hub's config.json.

    Without a `head_type` it is the trunk alone. `attention` is "plain" (as the original) or "sdpa".
    For a trunk in bfloat16 convert the module and then `downstream_head1` and `downstream_head2` back to float32:
    a head casts what it reads to its own precision.
    """

    def __init__(self, config: Mapping[str, Any], attention: str = "plain") -> None:
        super().__init__()
        enc_dim, self.enc_heads, enc_depth = (config[f"enc_{key}"] for key in ("embed_dim", "num_heads", "depth"))
        dec_dim, self.dec_heads, dec_depth = (config[f"dec_{key}"] for key in ("embed_dim", "num_heads", "depth"))
        self.patch_size = config.get("patch_size", 16)
        self.rope_base = float(config["pos_embed"].removeprefix("RoPE"))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dec_dim))  # of CroCo's pre-training; the forward pass never reads it
        self.patch_embed = PatchEmbed(self.patch_size, enc_dim)
        self.enc_blocks = nn.ModuleList(EncoderBlock(enc_dim, self.enc_heads, attention) for _ in range(enc_depth))
        self.enc_norm = layer_norm(enc_dim)
        self.decoder_embed = nn.Linear(enc_dim, dec_dim)
        self.dec_blocks = nn.ModuleList(DecoderBlock(dec_dim, self.dec_heads, attention) for _ in range(dec_depth))
        self.dec_norm = layer_norm(dec_dim)
        self.dec_blocks2 = nn.ModuleList(DecoderBlock(dec_dim, self.dec_heads, attention) for _ in range(dec_depth))
        if config.get("head_type") is not None:
            self.downstream_head1 = HEADS[config["head_type"]](config)
            self.downstream_head2 = HEADS[config["head_type"]](config)

    def forward(self, view1: Float[Tensor, "B 3 H1 W1"], view2: Float[Tensor, "B 3 H2 W2"], record: bool = True) -> ReferenceOutput:
        """Run both views; with `record`, return the residual stream of both views after every step of the trunk."""
        activations: dict[str, Views] = {}
        keep = activations.__setitem__ if record else _discard
        grid1, grid2 = (self._grid(view) for view in (view1, view2))
        encoded1, encoded2 = self._encode(view1, view2, keep)
        outputs1, outputs2 = self._decode((encoded1, encoded2), (grid1, grid2), keep)
        pred1 = pred2 = None
        if hasattr(self, "downstream_head1"):
            pred1 = self.downstream_head1([encoded1, *outputs1], grid1)
            pred2 = self.downstream_head2([encoded2, *outputs2], grid2)
        return ReferenceOutput(activations, pred1, pred2)

    def _grid(self, view: Tensor) -> tuple[int, int]:
        return view.shape[-2] // self.patch_size, view.shape[-1] // self.patch_size

    def _rope(self, grid: tuple[int, int], tokens: Tensor, heads: int) -> Rope:
        return rope_tables(*grid, tokens.shape[-1] // heads, self.rope_base, tokens)

    def _encode(self, view1: Tensor, view2: Tensor, keep: Keep) -> Views:
        """Both views through the shared encoder: as one batch where their sizes agree, as two where they do not."""
        batches = [torch.cat((view1, view2))] if view1.shape == view2.shape else [view1, view2]
        streams = [self.patch_embed(batch) for batch in batches]
        ropes = [self._rope(self._grid(batch), tokens, self.enc_heads) for batch, tokens in zip(batches, streams, strict=True)]
        keep("patch_embed", _per_view(streams))
        for i, block in enumerate(self.enc_blocks):
            after_attention, streams = zip(*(block(x, rope) for x, rope in zip(streams, ropes, strict=True)), strict=True)
            keep(f"encoder.{i}.self_attn", _per_view(after_attention))
            keep(f"encoder.{i}.mlp", _per_view(streams))
        encoded = _per_view([self.enc_norm(x) for x in streams])
        keep("encoder.norm", encoded)
        return encoded

    def _decode(self, encoded: Views, grids: tuple[tuple[int, int], ...], keep: Keep) -> tuple[list[Tensor], list[Tensor]]:
        """Outputs of every pair of decoder blocks, view by view; the last pair's after `dec_norm`."""
        x1, x2 = (self.decoder_embed(tokens) for tokens in encoded)
        rope1, rope2 = (self._rope(grid, x1, self.dec_heads) for grid in grids)
        keep("decoder.embed", (x1, x2))
        outputs1, outputs2 = [], []
        for i, (block1, block2) in enumerate(zip(self.dec_blocks, self.dec_blocks2, strict=True)):
            # Both blocks read both streams as they were before this pair.
            steps1, steps2 = block1(x1, x2, rope1, rope2), block2(x2, x1, rope2, rope1)
            for step, views in zip(("self_attn", "cross_attn", "mlp"), zip(steps1, steps2, strict=True), strict=True):
                keep(f"decoder.{i}.{step}", views)
            x1, x2 = steps1[-1], steps2[-1]
            outputs1.append(x1)
            outputs2.append(x2)
        outputs1[-1], outputs2[-1] = self.dec_norm(x1), self.dec_norm(x2)
        keep("decoder.norm", (outputs1[-1], outputs2[-1]))
        return outputs1, outputs2


def _discard(layer: str, views: Views) -> None:
    """Stand-in for recording where nothing is to be kept."""


def _per_view(streams: Sequence[Tensor]) -> Views:
    """Tokens of each view, as views into one tensor where both went through as one batch."""
    view1, view2 = streams if len(streams) == 2 else streams[0].chunk(2)
    return view1, view2


def load_reference(config: Mapping[str, Any], state_dict: Mapping[str, np.ndarray | Tensor], attention: str = "plain") -> DUSt3RReference:
    """A model holding `state_dict`, without the cost of an initialisation; torch tensors are shared, not copied.

    Takes what checkpoints hold: with or without the second names of `layer{k}_rn`, and CroCo's, which have no second
    decoder (it starts as a copy of the first) and may have a `prediction_head` (dropped).

    Raises:
        RuntimeError: a name is missing, unexpected, or of another shape.
    """
    tensors = {name: torch.as_tensor(array) for name, array in state_dict.items() if not name.startswith("prediction_head.")}
    if not any(name.startswith("dec_blocks2.") for name in tensors):
        tensors |= {name.replace("dec_blocks.", "dec_blocks2."): t.clone() for name, t in tensors.items() if name.startswith("dec_blocks.")}
    for name in list(tensors):
        if match := re.fullmatch(r"(.*\.scratch\.)layer(\d)_rn\.weight", name):
            tensors.setdefault(f"{match[1]}layer_rn.{int(match[2]) - 1}.weight", tensors[name])
    with torch.device("meta"):
        model = DUSt3RReference(config, attention)
    model.load_state_dict(tensors, assign=True)
    return model.eval()
