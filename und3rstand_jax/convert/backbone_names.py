"""The table that maps DUSt3R's parameters to the names of its PyTorch state dict.

A row is (JAX module path, PyTorch module name, kind); the kind gives the leaves and their layouts. `{i}` in a name
makes the row a stack over the blocks.
"""

from collections.abc import Iterator

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


_ATTENTION: tuple[Row, ...] = (
    ("norm1", "norm1", "norm"),
    ("attn/qkv", "attn.qkv", "linear"),
    ("attn/proj", "attn.proj", "linear"),
)


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


_TRUNK: tuple[Row, ...] = (
    ("encoder/patch_embed", "patch_embed.proj", "conv"),
    ("encoder/norm", "enc_norm", "norm"),
    ("decoder/embed", "decoder_embed", "linear"),
    ("decoder/norm", "dec_norm", "norm"),
)


_LINEAR_HEAD: tuple[Row, ...] = (("proj", "proj", "linear"),)


_DPT_HEAD: tuple[Row, ...] = (
    *((f"project{k}", f"dpt.act_postprocess.{k - 1}.0", "conv 1x1") for k in (1, 2, 3, 4)),
    *((f"resample{k}", f"dpt.act_postprocess.{k - 1}.1", "conv transposed") for k in (1, 2)),
    ("resample4", "dpt.act_postprocess.3.1", "conv"),
    *((f"level{k}", f"dpt.scratch.layer{k}_rn", "conv without bias") for k in (1, 2, 3, 4)),
    *(
        (f"fusion{k}/unit{u}/conv{c}", f"dpt.scratch.refinenet{k}.resConfUnit{u}.conv{c}", "conv")
        for k in (1, 2, 3, 4)
        for u in (1, 2)
        for c in (1, 2)
        if (k, u) != (4, 1)  # the coarsest fusion has one input: its first unit is never used
    ),
    *((f"fusion{k}/out", f"dpt.scratch.refinenet{k}.out_conv", "conv 1x1") for k in (1, 2, 3, 4)),
    ("conv1", "dpt.head.0", "conv"),
    ("conv2", "dpt.head.2", "conv"),
    ("out", "dpt.head.4", "conv 1x1"),
)


_HEADS = {"linear": _LINEAR_HEAD, "dpt": _DPT_HEAD, None: ()}


def backbone_leaves(config: BackboneConfig, prefix: str = "", second_decoder: str = "dec_blocks2") -> dict[str, Leaf]:
    """Every leaf of the backbone's parameter tree and its source tensors.

    Args:
        config: the architecture.
        prefix: what the checkpoint puts before every name (`module.`).
        second_decoder: the blocks that fill view 2's decoder; `dec_blocks` in a CroCo checkpoint, which has one.
    """
    rows = [(*row, 0) for row in _TRUNK]
    rows += [(f"encoder/blocks/{path}", f"enc_blocks.{{i}}.{name}", kind, config.enc_depth) for path, name, kind in _ENCODER_BLOCK]
    for view, blocks in ((1, "dec_blocks"), (2, second_decoder)):
        rows += [(f"decoder/blocks{view}/{path}", f"{blocks}.{{i}}.{name}", kind, config.dec_depth) for path, name, kind in _DECODER_BLOCK]
    for view in (1, 2):
        rows += [(f"head{view}/{path}", f"downstream_head{view}.{name}", kind, 0) for path, name, kind in _HEADS[config.head_type]]
    return {path: leaf for path, name, kind, depth in rows for path, leaf in _leaves(path, prefix + name, kind, depth)}


def _leaves(path: str, name: str, kind: str, depth: int) -> Iterator[tuple[str, Leaf]]:
    for part, (suffix, layout) in _KINDS[kind].items():
        names = tuple(f"{name.format(i=i)}.{suffix}" for i in range(depth)) if depth else (f"{name}.{suffix}",)
        yield f"{path}/{part}", Leaf(names, layout, (depth,) if depth else ())


def second_names(prefix: str = "") -> dict[str, str]:
    """Second name -> first name of the tensors that a DPT checkpoint holds under two names."""
    return {
        f"{head}.dpt.scratch.layer_rn.{k - 1}.weight": f"{head}.dpt.scratch.layer{k}_rn.weight"
        for head in (f"{prefix}downstream_head1", f"{prefix}downstream_head2")
        for k in (1, 2, 3, 4)
    }


UNUSED_PATTERNS = {
    r"mask_token": "used in CroCo's pre-training only",
    r"downstream_head[12]\.dpt\.scratch\.refinenet4\.resConfUnit1\..*": "the coarsest fusion has one input",
    r"prediction_head\..*": "CroCo's pixel reconstruction",
}
"""Tensors of known checkpoints that the forward pass never reads; kept for the way back."""


UNKNOWN_HEAD = r"downstream_head[12]\..*"
"""The heads of a checkpoint whose head type we do not implement (MASt3R); set aside whole, kept for the way back."""
