"""Names and shapes in the original's state dict for any config, in its order, written down without PyTorch.

`tests/test_original_names.py` compares them with the lists of the published checkpoints and with the PyTorch reference.
"""

from collections.abc import Iterator, Mapping
from typing import Any

Shape = tuple[int, ...]
Named = Iterator[tuple[str, Shape]]

PATCH = 16
MLP_RATIO = 4
LOCAL_FEATURES_RATIO = 4
DPT_WIDTHS = (96, 192, 384, 768)
FUSION_WIDTH = 256
LAST_WIDTH = 128


def original_shapes(config: Mapping[str, Any]) -> dict[str, Shape]:
    """State-dict name -> shape, both names of the tensors that have two; without `head_type` the trunk alone."""
    return dict(_state_dict(config))


def _state_dict(config: Mapping[str, Any]) -> Named:
    encoder, decoder = config["enc_embed_dim"], config["dec_embed_dim"]
    yield "mask_token", (1, 1, decoder)
    yield from _affine("patch_embed.proj", encoder, 3, PATCH, PATCH)
    for block in range(config["enc_depth"]):
        yield from _prefixed(f"enc_blocks.{block}.", _encoder_block(encoder))
    yield from _affine("enc_norm", encoder)
    yield from _affine("decoder_embed", decoder, encoder)
    for stack in ("dec_blocks", "dec_blocks2"):
        for block in range(config["dec_depth"]):
            yield from _prefixed(f"{stack}.{block}.", _decoder_block(decoder))
        if stack == "dec_blocks":
            yield from _affine("dec_norm", decoder)
    for view in (1, 2):
        if config.get("head_type") == "linear":
            yield from _affine(f"downstream_head{view}.proj", 4 * PATCH**2, decoder)
        elif config.get("head_type") in ("dpt", "catmlp+dpt"):
            yield from _prefixed(f"downstream_head{view}.dpt.", _dpt(encoder, decoder))
        if config.get("head_type") == "catmlp+dpt":
            channels = int(config["output_mode"].removeprefix("pts3d+desc")) + config["two_confs"]
            yield from _local_features(f"downstream_head{view}.head_local_features", encoder + decoder, channels * PATCH**2)


def _prefixed(prefix: str, named: Named) -> Named:
    for name, shape in named:
        yield prefix + name, shape


def _affine(name: str, *shape: int) -> Named:
    """A weight, and the bias of its outputs."""
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]


def _encoder_block(width: int) -> Named:
    yield from _affine("norm1", width)
    yield from _self_attention(width)
    yield from _affine("norm2", width)
    yield from _mlp(width)


def _decoder_block(width: int) -> Named:
    yield from _affine("norm1", width)
    yield from _self_attention(width)
    for projection in ("projq", "projk", "projv", "proj"):
        yield from _affine(f"cross_attn.{projection}", width, width)
    yield from _affine("norm2", width)
    yield from _affine("norm3", width)
    yield from _mlp(width)
    yield from _affine("norm_y", width)


def _self_attention(width: int) -> Named:
    yield from _affine("attn.qkv", 3 * width, width)
    yield from _affine("attn.proj", width, width)


def _mlp(width: int) -> Named:
    yield from _affine("mlp.fc1", MLP_RATIO * width, width)
    yield from _affine("mlp.fc2", width, MLP_RATIO * width)


def _local_features(name: str, width: int, outputs: int) -> Named:
    yield from _affine(f"{name}.fc1", LOCAL_FEATURES_RATIO * width, width)
    yield from _affine(f"{name}.fc2", outputs, LOCAL_FEATURES_RATIO * width)


def _dpt(encoder: int, decoder: int) -> Named:
    for name, first in (("layer{}_rn", 1), ("layer_rn.{}", 0)):  # one tensor, two names
        for level, width in enumerate(DPT_WIDTHS, first):
            yield f"scratch.{name.format(level)}.weight", (FUSION_WIDTH, width, 3, 3)
    for level in range(1, 5):
        yield from _affine(f"scratch.refinenet{level}.out_conv", FUSION_WIDTH, FUSION_WIDTH, 1, 1)
        for unit in (1, 2):
            for conv in (1, 2):
                yield from _affine(f"scratch.refinenet{level}.resConfUnit{unit}.conv{conv}", FUSION_WIDTH, FUSION_WIDTH, 3, 3)
    yield from _affine("head.0", LAST_WIDTH, FUSION_WIDTH, 3, 3)
    yield from _affine("head.2", LAST_WIDTH, LAST_WIDTH, 3, 3)
    yield from _affine("head.4", 4, LAST_WIDTH, 1, 1)
    for level, (tokens, width) in enumerate(zip((encoder, decoder, decoder, decoder), DPT_WIDTHS, strict=True)):
        yield from _affine(f"act_postprocess.{level}.0", width, tokens, 1, 1)
        if kernel := {0: 4, 1: 2, 3: 3}.get(level):
            yield from _affine(f"act_postprocess.{level}.1", width, width, kernel, kernel)
