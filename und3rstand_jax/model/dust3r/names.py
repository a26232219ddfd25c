"""The table that maps DUSt3R's parameters to the names of its PyTorch state dict."""

from collections.abc import Iterable, Mapping
from typing import Any

from und3rstand_jax.model.dust3r.config import BackboneConfig
from und3rstand_jax.model.tensor_names import NamedStack, Row, Shape

_TRUNK: tuple[Row, ...] = (
    ("encoder/patch_embed", "patch_embed.proj", "conv"),
    ("encoder/norm", "enc_norm", "norm"),
    ("decoder/embed", "decoder_embed", "linear"),
    ("decoder/norm", "dec_norm", "norm"),
)
_ATTENTION: tuple[Row, ...] = (("norm1", "norm1", "norm"), ("attn/qkv", "attn.qkv", "linear"), ("attn/proj", "attn.proj", "linear"))
_MLP: tuple[Row, ...] = (("mlp/fc1", "mlp.fc1", "linear"), ("mlp/fc2", "mlp.fc2", "linear"))
_ENCODER_BLOCK: tuple[Row, ...] = (*_ATTENTION, ("norm2", "norm2", "norm"), *_MLP)
_DECODER_BLOCK: tuple[Row, ...] = (
    *_ATTENTION,
    ("norm2", "norm2", "norm"),
    ("norm_y", "norm_y", "norm"),
    *((f"cross_attn/{part}", f"cross_attn.{part}", "linear") for part in ("projq", "projk", "projv", "proj")),
    ("norm3", "norm3", "norm"),
    *_MLP,
)
_DPT_HEAD: tuple[Row, ...] = (
    *((f"project{k}", f"dpt.act_postprocess.{k - 1}.0", "conv 1x1") for k in (1, 2, 3, 4)),
    *((f"resample{k}", f"dpt.act_postprocess.{k - 1}.1", "conv transposed") for k in (1, 2)),
    ("resample4", "dpt.act_postprocess.3.1", "conv"),
    *((f"level{k}", f"dpt.scratch.layer{k}_rn", "conv without bias") for k in (1, 2, 3, 4)),
    *(
        (f"fusion{k}/unit{u}/conv{c}", f"dpt.scratch.refinenet{k}.resConfUnit{u}.conv{c}", "conv")
        for k, u, c in ((k, u, c) for k in (1, 2, 3, 4) for u in (1, 2) for c in (1, 2))
        if (k, u) != (4, 1)  # the coarsest fusion has one input: its first unit is never used
    ),
    *((f"fusion{k}/out", f"dpt.scratch.refinenet{k}.out_conv", "conv 1x1") for k in (1, 2, 3, 4)),
    ("conv1", "dpt.head.0", "conv"),
    ("conv2", "dpt.head.2", "conv"),
    ("out", "dpt.head.4", "conv 1x1"),
)
_HEADS: dict[str | None, tuple[Row, ...]] = {"linear": (("proj", "proj", "linear"),), "dpt": _DPT_HEAD, None: ()}

HEAD = "downstream_head"
"""The name of a view's head, without the view's number (1 or 2) at the end."""

UNUSED_PATTERNS = {
    r"mask_token": "used in CroCo's pre-training only",
    r"downstream_head[12]\.dpt\.scratch\.refinenet4\.resConfUnit1\..*": "the coarsest fusion has one input",
    r"prediction_head\..*": "CroCo's pixel reconstruction",
}
"""Tensors of known checkpoints that the forward pass never reads; kept for the export."""

UNKNOWN_HEAD = r"downstream_head[12]\..*"
"""The heads of a checkpoint whose head type is not implemented; set aside whole, kept for the export."""


_HEAD_TYPES = {frozenset({"proj"}): "linear", frozenset({"dpt"}): "dpt"}


def head_fields(tensors: Mapping[str, Shape]) -> dict[str, Any] | None:
    """`head_type` of a head with these tensors; None if it belongs to another family."""
    head_type = _HEAD_TYPES.get(head_modules(tensors))
    return None if head_type is None else {"head_type": head_type}


def head_modules(tensors: Iterable[str]) -> frozenset[str]:
    """The modules directly below a head."""
    return frozenset(name.split(".")[0] for name in tensors)


def dust3r_names(config: BackboneConfig, second_decoder: str = "dec_blocks2") -> tuple[NamedStack, ...]:
    """Every module of the backbone and its name.

    Args:
        config: the architecture.
        second_decoder: the blocks that fill view 2's decoder: `dec_blocks2`, or `dec_blocks` in a CroCo checkpoint, which has only one.
    """
    return (
        NamedStack("", "", 0, _TRUNK),
        NamedStack("encoder/blocks/", "enc_blocks.{i}.", config.enc_depth, _ENCODER_BLOCK),
        NamedStack("decoder/blocks1/", "dec_blocks.{i}.", config.dec_depth, _DECODER_BLOCK),
        NamedStack("decoder/blocks2/", f"{second_decoder}.{{i}}.", config.dec_depth, _DECODER_BLOCK),
        *(NamedStack(f"head{view}/", f"downstream_head{view}.", 0, _HEADS[config.pointmap_kind]) for view in (1, 2)),
    )


def second_names() -> dict[str, str]:
    """Second name -> first name of the tensors that a DPT checkpoint has under two names."""
    return {
        f"{HEAD}{v}.dpt.scratch.layer_rn.{k - 1}.weight": f"{HEAD}{v}.dpt.scratch.layer{k}_rn.weight" for v in (1, 2) for k in (1, 2, 3, 4)
    }
