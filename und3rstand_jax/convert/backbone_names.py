"""The table that maps DUSt3R's parameters to the names of its PyTorch state dict.

A row is (JAX module path, PyTorch module name, kind); the kind gives the leaves and their layouts. `{i}` in a name stands for the
block: such rows are stacks over the blocks.
"""

from und3rstand_jax.convert.mapping import CONV, CONV_1X1, CONV_TRANSPOSED, LINEAR, VECTOR, Layout, Leaf
from und3rstand_jax.model.config import BackboneConfig

Row = tuple[str, str, str]

_KINDS: dict[str, dict[str, tuple[str, Layout]]] = {
    "linear": {"kernel": ("weight", LINEAR), "bias": ("bias", VECTOR)},
    "norm": {"scale": ("weight", VECTOR), "bias": ("bias", VECTOR)},
    "conv": {"kernel": ("weight", CONV), "bias": ("bias", VECTOR)},
    "conv without bias": {"kernel": ("weight", CONV)},
    "conv 1x1": {"kernel": ("weight", CONV_1X1), "bias": ("bias", VECTOR)},
    "conv transposed": {"kernel": ("weight", CONV_TRANSPOSED), "bias": ("bias", VECTOR)},
}

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

UNUSED_PATTERNS = {
    r"mask_token": "used in CroCo's pre-training only",
    r"downstream_head[12]\.dpt\.scratch\.refinenet4\.resConfUnit1\..*": "the coarsest fusion has one input",
    r"prediction_head\..*": "CroCo's pixel reconstruction",
}
"""Tensors of known checkpoints that the forward pass never reads; kept for the export."""

UNKNOWN_HEAD = r"downstream_head[12]\..*"
"""The heads of a checkpoint whose head type is not implemented (MASt3R); set aside whole, kept for the export."""


def backbone_leaves(config: BackboneConfig, prefix: str = "", second_decoder: str = "dec_blocks2") -> dict[str, Leaf]:
    """Every leaf of the backbone's parameter tree and its source tensors.

    Args:
        config: the architecture.
        prefix: what the checkpoint puts before every name (`module.`).
        second_decoder: the blocks that fill view 2's decoder; `dec_blocks` in a CroCo checkpoint, which has one.
    """
    stacks = (
        ("", "", 0, _TRUNK),
        ("encoder/blocks/", "enc_blocks.{i}.", config.enc_depth, _ENCODER_BLOCK),
        ("decoder/blocks1/", "dec_blocks.{i}.", config.dec_depth, _DECODER_BLOCK),
        ("decoder/blocks2/", f"{second_decoder}.{{i}}.", config.dec_depth, _DECODER_BLOCK),
        ("head1/", "downstream_head1.", 0, _HEADS[config.head_type]),
        ("head2/", "downstream_head2.", 0, _HEADS[config.head_type]),
    )
    leaves = {}
    for path, stem, depth, rows in stacks:
        for module, name, kind in rows:
            for part, (suffix, layout) in _KINDS[kind].items():
                names = tuple(f"{prefix}{stem.format(i=i)}{name}.{suffix}" for i in range(depth or 1))
                leaves[f"{path}{module}/{part}"] = Leaf(names, layout, (depth,) if depth else ())
    return leaves


def second_names(prefix: str = "") -> dict[str, str]:
    """Second name -> first name of the tensors that a DPT checkpoint holds under two names."""
    return {
        f"{prefix}downstream_head{v}.dpt.scratch.layer_rn.{k - 1}.weight": f"{prefix}downstream_head{v}.dpt.scratch.layer{k}_rn.weight"
        for v in (1, 2)
        for k in (1, 2, 3, 4)
    }
