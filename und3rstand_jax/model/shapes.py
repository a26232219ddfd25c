"""The shapes of a backbone's parameters, from its config alone: known before anything is read, without tracing the model."""

from collections.abc import Iterator

from und3rstand_jax.model.config import BackboneConfig
from und3rstand_jax.model.heads import DPTHead

Shape = tuple[int, ...]


def backbone_shapes(config: BackboneConfig) -> dict[str, Shape]:
    """Path (`decoder/norm/scale`) -> shape of every leaf of `DUSt3R(config)`'s parameter tree, its heads included."""
    enc, dec, patch = config.enc_embed_dim, config.dec_embed_dim, config.patch_size
    block = [*_block(dec, config.mlp_ratio), *_norm("norm_y", dec), *_norm("norm3", dec)]
    for name in ("projq", "projk", "projv", "proj"):
        block += _kernel(f"cross_attn/{name}", dec, dec)
    tree = {
        "encoder": [
            *_kernel("patch_embed", patch, patch, 3, enc),
            *((f"blocks/{path}", (config.enc_depth, *shape)) for path, shape in _block(enc, config.mlp_ratio)),
            *_norm("norm", enc),
        ],
        "decoder": [
            *_kernel("embed", enc, dec),
            *((f"blocks{view}/{path}", (config.dec_depth, *shape)) for view in (1, 2) for path, shape in block),
            *_norm("norm", dec),
        ],
    }
    if config.head_type is not None:
        linear = [*_kernel("proj", dec, 4 * patch**2)]
        head = linear if config.head_type == "linear" else [*_dpt_head((enc, dec, dec, dec))]
        tree |= {"head1": head, "head2": head}
    return {f"{part}/{path}": shape for part, leaves in tree.items() for path, shape in leaves}


def _kernel(path: str, *shape: int) -> Iterator[tuple[str, Shape]]:
    """A matrix or convolution, with a bias for every output."""
    yield f"{path}/kernel", shape
    yield f"{path}/bias", shape[-1:]


def _norm(path: str, width: int) -> Iterator[tuple[str, Shape]]:
    yield f"{path}/scale", (width,)
    yield f"{path}/bias", (width,)


def _block(width: int, mlp_ratio: int) -> Iterator[tuple[str, Shape]]:
    """What the blocks of encoder and decoder have in common."""
    yield from _norm("norm1", width)
    yield from _kernel("attn/qkv", width, 3 * width)
    yield from _kernel("attn/proj", width, width)
    yield from _norm("norm2", width)
    yield from _kernel("mlp/fc1", width, mlp_ratio * width)
    yield from _kernel("mlp/fc2", mlp_ratio * width, width)


def _dpt_head(inputs: tuple[int, int, int, int]) -> Iterator[tuple[str, Shape]]:
    fused, last = DPTHead.width, DPTHead.last_width
    for k, (width_in, width) in enumerate(zip(inputs, DPTHead.level_widths, strict=True), start=1):
        yield from _kernel(f"project{k}", width_in, width)
        if k in (1, 2):
            yield f"resample{k}/kernel", (width, 8 >> k, 8 >> k, width)
            yield f"resample{k}/bias", (width,)
        elif k == 4:
            yield from _kernel("resample4", 3, 3, width, width)
        yield f"level{k}/kernel", (3, 3, width, fused)
        for unit in (1, 2) if k < 4 else (2,):
            for conv in (1, 2):
                yield from _kernel(f"fusion{k}/unit{unit}/conv{conv}", 3, 3, fused, fused)
        yield from _kernel(f"fusion{k}/out", fused, fused)
    yield from _kernel("conv1", 3, 3, fused, last)
    yield from _kernel("conv2", 3, 3, last, last)
    yield from _kernel("out", last, DPTHead.out_channels)
