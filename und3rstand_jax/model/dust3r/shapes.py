"""The shapes of a DUSt3R's parameters, from its config alone: known before anything is read, without tracing the model."""

from und3rstand_jax.model.dust3r.config import BackboneConfig
from und3rstand_jax.model.heads import DPTHead
from und3rstand_jax.model.tensor_names import Shape
from und3rstand_jax.model.tensor_shapes import block_shapes, dpt_shapes, kernel_shapes, norm_shapes


def dust3r_shapes(config: BackboneConfig) -> dict[str, Shape]:
    """Path (`decoder/norm/scale`) -> shape of every leaf of `DUSt3R(config)`'s parameter tree, its head included."""
    enc, dec, patch = config.enc_embed_dim, config.dec_embed_dim, config.patch_size
    block = [*block_shapes(dec, config.mlp_ratio), *norm_shapes("norm_y", dec), *norm_shapes("norm3", dec)]
    for name in ("projq", "projk", "projv", "proj"):
        block += kernel_shapes(f"cross_attn/{name}", dec, dec)
    tree = {
        "encoder": [
            *kernel_shapes("patch_embed", patch, patch, 3, enc),
            *((f"blocks/{path}", (config.enc_depth, *shape)) for path, shape in block_shapes(enc, config.mlp_ratio)),
            *norm_shapes("norm", enc),
        ],
        "decoder": [
            *kernel_shapes("embed", enc, dec),
            *((f"blocks{view}/{path}", (config.dec_depth, *shape)) for view in (1, 2) for path, shape in block),
            *norm_shapes("norm", dec),
        ],
    }
    if config.pointmap_kind is not None:
        last = (DPTHead.last_width, DPTHead.last_width, DPTHead.out_channels)
        linear = [*kernel_shapes("proj", dec, 4 * patch**2)]
        head = (
            linear if config.pointmap_kind == "linear" else [*dpt_shapes((enc, dec, dec, dec), DPTHead.level_widths, DPTHead.width, last)]
        )
        tree |= {"head1": head, "head2": head}
    return {f"{part}/{path}": shape for part, leaves in tree.items() for path, shape in leaves}
