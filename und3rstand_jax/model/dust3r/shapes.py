"""The shapes of a DUSt3R's parameters, from its config alone: known before anything is read, without tracing the model."""

from collections.abc import Iterator

from und3rstand_jax.model.dust3r.config import BackboneConfig
from und3rstand_jax.model.heads import DPTHead
from und3rstand_jax.model.tensor_names import Shape


def dust3r_shapes(config: BackboneConfig) -> dict[str, Shape]:
    """Path (`decoder/norm/scale`) -> shape of every leaf of `DUSt3R(config)`'s parameter tree, its head included."""
    enc, dec, patch = config.enc_embed_dim, config.dec_embed_dim, config.patch_size
    block = [*_block(dec, config.mlp_ratio), *_norm("norm_y", dec), *_norm("norm3", dec)]
    for name in ("projq", "projk", "projv", "proj"):
        block += kernel_shapes(f"cross_attn/{name}", dec, dec)
    tree = {
        "encoder": [
            *kernel_shapes("patch_embed", patch, patch, 3, enc),
            *((f"blocks/{path}", (config.enc_depth, *shape)) for path, shape in _block(enc, config.mlp_ratio)),
            *_norm("norm", enc),
        ],
        "decoder": [
            *kernel_shapes("embed", enc, dec),
            *((f"blocks{view}/{path}", (config.dec_depth, *shape)) for view in (1, 2) for path, shape in block),
            *_norm("norm", dec),
        ],
    }
    if config.pointmap_kind is not None:
        linear = [*kernel_shapes("proj", dec, 4 * patch**2)]
        head = linear if config.pointmap_kind == "linear" else [*_dpt_head((enc, dec, dec, dec))]
        tree |= {"head1": head, "head2": head}
    return {f"{part}/{path}": shape for part, leaves in tree.items() for path, shape in leaves}


def kernel_shapes(path: str, *shape: int) -> Iterator[tuple[str, Shape]]:
    """A matrix or convolution, with a bias for every output."""
    yield f"{path}/kernel", shape
    yield f"{path}/bias", shape[-1:]


def _norm(path: str, width: int) -> Iterator[tuple[str, Shape]]:
    yield f"{path}/scale", (width,)
    yield f"{path}/bias", (width,)


def _block(width: int, mlp_ratio: int) -> Iterator[tuple[str, Shape]]:
    """What the blocks of encoder and decoder have in common."""
    yield from _norm("norm1", width)
    yield from kernel_shapes("attn/qkv", width, 3 * width)
    yield from kernel_shapes("attn/proj", width, width)
    yield from _norm("norm2", width)
    yield from kernel_shapes("mlp/fc1", width, mlp_ratio * width)
    yield from kernel_shapes("mlp/fc2", mlp_ratio * width, width)


def _dpt_head(inputs: tuple[int, int, int, int]) -> Iterator[tuple[str, Shape]]:
    fused, last = DPTHead.width, DPTHead.last_width
    for k, (width_in, width) in enumerate(zip(inputs, DPTHead.level_widths, strict=True), start=1):
        yield from kernel_shapes(f"project{k}", width_in, width)
        if k in (1, 2):
            yield f"resample{k}/kernel", (width, 8 >> k, 8 >> k, width)
            yield f"resample{k}/bias", (width,)
        elif k == 4:
            yield from kernel_shapes("resample4", 3, 3, width, width)
        yield f"level{k}/kernel", (3, 3, width, fused)
        for unit in (1, 2) if k < 4 else (2,):
            for conv in (1, 2):
                yield from kernel_shapes(f"fusion{k}/unit{unit}/conv{conv}", 3, 3, fused, fused)
        yield from kernel_shapes(f"fusion{k}/out", fused, fused)
    yield from kernel_shapes("conv1", 3, 3, fused, last)
    yield from kernel_shapes("conv2", 3, 3, last, last)
    yield from kernel_shapes("out", last, DPTHead.out_channels)
