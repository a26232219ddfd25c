"""VGGT's transformer blocks in PyTorch, and how a forward pass is looked into and edited.

Tokens are (B, S, P, C): scenes, frames, a frame's tokens, channels. Parameters carry the original's names.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from tests.torch_reference.backbone import MLP, Rope, rotate
from tests.torch_reference.edits import Edit, dense

ROPE_BASE = 100.0
PARTS = ("scores", "weights", "heads", "update")


class Visit(Protocol):
    """What every named place of a forward pass is shown; the pass goes on with what it returns."""

    def __call__(self, site: str, x: Float[Tensor, "B S ..."]) -> Float[Tensor, "B S ..."]:
        """`x` of all frames at a site, whose name ends in one of PARTS where it is inside a step."""

    def needs_scores(self, step: str) -> bool:
        """Whether an attention has to be computed explicitly."""


class Visitor:
    """Edits x ← scale·x + shift of some frames, and keeps layers, and what is inside steps where that is asked for by name.

    An edit is written as those of DUSt3R (`tests/golden/README.md`), with `view` the number of a frame, from 1, or "all". Of one frame,
    x is (B, tokens, C) in the stream and at `.update`, (B, tokens, H, D) at `.heads` and (B, H, queries, keys) at `.scores`: a frame's
    own queries, and in a global block the keys of all frames, in order.
    """

    def __init__(self, keep_layers: bool, inside: Sequence[str], edits: Sequence[Edit], arrays: Mapping[str, np.ndarray]) -> None:
        self.kept: dict[str, Tensor] = {}
        self._keep_layers = keep_layers
        self._inside = frozenset(inside)
        self._edits = tuple(edits)
        self._arrays = arrays
        self._explicit = {site.rpartition(".")[0] for site in (*inside, *(edit["site"] for edit in edits)) if _part(site) in PARTS[:2]}

    def needs_scores(self, step: str) -> bool:
        return step in self._explicit

    def __call__(self, site: str, x: Tensor) -> Tensor:
        for edit in self._edits:
            if edit["site"] == site:
                x = self._edited(edit, x)
        if site in self._inside or (self._keep_layers and _part(site) not in PARTS):
            self.kept[site] = x
        return x

    def _edited(self, edit: Edit, x: Tensor) -> Tensor:
        frames, view = list(x.unbind(1)), edit["view"]
        if view != "all" and not 1 <= view <= len(frames):
            raise ValueError(f"{edit['site']}: no view {view} among {len(frames)}")
        for i in range(len(frames)) if view == "all" else (view - 1,):
            scale, shift = dense(edit, self._arrays, frames[i])
            frames[i] = scale * frames[i] + shift
        return torch.stack(frames, 1)


def _part(site: str) -> str:
    return site.rpartition(".")[2]


def exact(like: Tensor) -> torch.dtype:
    """What positions and constants are computed in: float32 at least, so that in float64 all of it is float64."""
    return torch.promote_types(like.dtype, torch.float32)


def rope_tables(h: int, w: int, specials: int, head_dim: int, like: Tensor) -> Rope:
    """Rotations of a frame's tokens: none of the special ones, of patches by (y + 1, x + 1). The same for every frame."""
    half = head_dim // 2
    precise = {"dtype": exact(like), "device": like.device}
    frequencies = ROPE_BASE ** (-torch.arange(0, half, 2, **precise) / half)
    y, x = torch.meshgrid(torch.arange(1, h + 1, **precise), torch.arange(1, w + 1, **precise), indexing="ij")
    position = F.pad(torch.stack((y.flatten(), x.flatten()), -1), (0, 0, specials, 0))  # (P, 2)
    angle = (position[:, :, None, None] * frequencies).expand(-1, -1, 2, -1).flatten(1)  # (P, D)
    return angle.cos().to(like.dtype), angle.sin().to(like.dtype)


class Attention(nn.Module):
    """Attention within each frame, or `across` all frames of a scene; queries and keys normed and rotated where the block has it so."""

    def __init__(self, width: int, heads: int, norm_epsilon: float | None, attention: str) -> None:
        super().__init__()
        self.heads = heads
        self.plain = {"plain": True, "sdpa": False}[attention]
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm, self.k_norm = (
            nn.Identity() if norm_epsilon is None else nn.LayerNorm(width // heads, eps=norm_epsilon) for _ in range(2)
        )
        self.proj = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "B S P C"], rope: Rope | None, across: bool, visit: Visit, step: str) -> Float[Tensor, "B S P C"]:
        shape = x.shape[:3]
        tokens = x.flatten(1, 2) if across else x.flatten(0, 1)
        q, k, v = (part.transpose(1, 2) for part in self.qkv(tokens).unflatten(-1, (3, self.heads, -1)).unbind(2))  # (groups, H, T, D)
        q, k = self.q_norm(q), self.k_norm(k)
        if rope is not None:
            cos, sin = (table.repeat(tokens.shape[1] // len(table), 1) for table in rope)
            q, k = rotate(q, (cos, sin)), rotate(k, (cos, sin))
        q, k = q.to(v.dtype), k.to(v.dtype)  # under autocast norms give float32
        if self.plain or visit.needs_scores(step):
            scores = _by_frame((q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5, shape)
            weights = visit(f"{step}.weights", visit(f"{step}.scores", scores).softmax(-1))
            mixed = _by_group(weights, across) @ v
        else:
            mixed = F.scaled_dot_product_attention(q, k, v)
        mixed = mixed.transpose(1, 2).reshape(*shape, self.heads, -1)
        return self.proj(visit(f"{step}.heads", mixed).flatten(-2))


def _by_frame(scores: Float[Tensor, "groups H T M"], shape: tuple[int, ...]) -> Float[Tensor, "B S H P M"]:
    return scores.transpose(1, 2).reshape(*shape, *scores.shape[1::2]).transpose(2, 3)


def _by_group(weights: Float[Tensor, "B S H P M"], across: bool) -> Float[Tensor, "groups H T M"]:
    return weights.transpose(1, 2).flatten(2, 3) if across else weights.flatten(0, 1)


class LayerScale(nn.Module):
    """A factor for every channel of what a step adds."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    """Pre-norm transformer block with LayerScale."""

    def __init__(self, width: int, heads: int, epsilon: float, qk_norm: bool, attention: str) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=epsilon)
        self.attn = Attention(width, heads, epsilon if qk_norm else None, attention)
        self.ls1 = LayerScale(width)
        self.norm2 = nn.LayerNorm(width, eps=epsilon)
        self.mlp = MLP(width)
        self.ls2 = LayerScale(width)

    def forward(self, x: Float[Tensor, "B S P C"], rope: Rope | None, across: bool, visit: Visit, block: str) -> Float[Tensor, "B S P C"]:
        step = f"{block}.self_attn"
        x = visit(step, x + visit(f"{step}.update", self.ls1(self.attn(self.norm1(x), rope, across, visit, step))))
        step = f"{block}.mlp"
        return visit(step, x + visit(f"{step}.update", self.ls2(self.mlp(self.norm2(x)))))
