"""The table that maps VGGT's parameters to the names of its PyTorch state dict."""

from und3rstand_jax.model.tensor_names import NamedStack, Row
from und3rstand_jax.model.vggt.config import CAMERA, DEPTH, POINTS, VGGTConfig

ENCODER = "aggregator.patch_embed."
HEADS = {CAMERA: "camera_head", DEPTH: "depth_head", POINTS: "point_head"}
"""Head -> the name under which its parameters are, in PyTorch and in the tree."""

UNUSED = {
    r"aggregator\.patch_embed\.mask_token": "used in DINOv2's pre-training only",
    r"track_head\..*": "tracking of points is not implemented",
}
"""Tensors of the published checkpoints that the forward pass never reads; kept for the export."""

_TRUNK: tuple[Row, ...] = (
    ("encoder/patch_embed", f"{ENCODER}patch_embed.proj", "conv"),
    ("encoder/tokens/class_token", f"{ENCODER}cls_token", "token"),
    ("encoder/tokens/registers", f"{ENCODER}register_tokens", "tokens"),
    ("encoder/tokens/positions", f"{ENCODER}pos_embed", "tokens"),
    ("encoder/norm", f"{ENCODER}norm", "norm"),
    ("aggregator/tokens/camera", "aggregator.camera_token", "tokens of two kinds"),
    ("aggregator/tokens/registers", "aggregator.register_token", "tokens of two kinds"),
)
_BLOCK: tuple[Row, ...] = (
    ("norm1", "norm1", "norm"),
    ("attn/qkv", "attn.qkv", "linear"),
    ("attn/proj", "attn.proj", "linear"),
    ("scale1", "ls1", "layer scale"),
    ("norm2", "norm2", "norm"),
    ("mlp/fc1", "mlp.fc1", "linear"),
    ("mlp/fc2", "mlp.fc2", "linear"),
    ("scale2", "ls2", "layer scale"),
)
_NORMED_BLOCK: tuple[Row, ...] = (*_BLOCK, ("attn/q_norm", "attn.q_norm", "norm"), ("attn/k_norm", "attn.k_norm", "norm"))
_CAMERA_HEAD: tuple[Row, ...] = (
    ("empty_pose", "empty_pose_tokens", "token"),
    ("token_norm", "token_norm", "norm"),
    ("norm", "trunk_norm", "norm"),
    ("embed_pose", "embed_pose", "linear"),
    ("modulation", "poseLN_modulation.1", "linear"),
    ("pose/fc1", "pose_branch.fc1", "linear"),
    ("pose/fc2", "pose_branch.fc2", "linear"),
)
_DPT_HEAD: tuple[Row, ...] = (
    ("norm", "norm", "norm"),
    *((f"project{k}", f"projects.{k - 1}", "conv 1x1") for k in (1, 2, 3, 4)),
    *((f"resample{k}", f"resize_layers.{k - 1}", "conv transposed") for k in (1, 2)),
    ("resample4", "resize_layers.3", "conv"),
    *((f"level{k}", f"scratch.layer{k}_rn", "conv without bias") for k in (1, 2, 3, 4)),
    *(
        (f"fusion{k}/unit{u}/conv{c}", f"scratch.refinenet{k}.resConfUnit{u}.conv{c}", "conv")
        for k, u, c in ((k, u, c) for k in (1, 2, 3, 4) for u in (1, 2) for c in (1, 2))
        if (k, u) != (4, 1)  # the coarsest fusion has one input
    ),
    *((f"fusion{k}/out", f"scratch.refinenet{k}.out_conv", "conv 1x1") for k in (1, 2, 3, 4)),
    ("conv1", "scratch.output_conv1", "conv"),
    ("conv2", "scratch.output_conv2.0", "conv"),
    ("out", "scratch.output_conv2.2", "conv 1x1"),
)


def vggt_names(config: VGGTConfig) -> tuple[NamedStack, ...]:
    """Every module of the backbone and its name."""
    stacks = [
        NamedStack("", "", 0, _TRUNK),
        NamedStack("encoder/blocks/", ENCODER + "blocks.{i}.", config.enc_depth, _BLOCK),
        NamedStack("aggregator/frame/", "aggregator.frame_blocks.{i}.", config.depth, _NORMED_BLOCK),
        NamedStack("aggregator/global/", "aggregator.global_blocks.{i}.", config.depth, _NORMED_BLOCK),
    ]
    if CAMERA in config.head_names:
        stacks.append(NamedStack("camera_head/", "camera_head.", 0, _CAMERA_HEAD))
        stacks.append(NamedStack("camera_head/blocks/", "camera_head.trunk.{i}.", config.camera_depth, _BLOCK))
    stacks += [NamedStack(f"{HEADS[name]}/", f"{HEADS[name]}.", 0, _DPT_HEAD) for name in (DEPTH, POINTS) if name in config.head_names]
    return tuple(stacks)
