"""The shapes of a VGGT's parameters, from its config alone: known before anything is read, without tracing the model."""

from collections.abc import Iterator

from und3rstand_jax.model.head_choice import POSE_ENCODING
from und3rstand_jax.model.tensor_names import Shape
from und3rstand_jax.model.tensor_shapes import block_shapes, dpt_shapes, kernel_shapes, norm_shapes
from und3rstand_jax.model.vggt.config import CAMERA, DEPTH, DPT_LAST_WIDTH, KINDS, POINTS, VGGTConfig

_OUTPUTS = {DEPTH: ("depth_head", 2), POINTS: ("point_head", 4)}


def vggt_shapes(config: VGGTConfig) -> dict[str, Shape]:
    """Path (`encoder/norm/scale`) -> shape of every leaf of `VGGT(config)`'s parameter tree, its heads included."""
    width, patch, registers = config.embed_dim, config.patch_size, config.num_registers
    grid = config.img_size[0] // patch * (config.img_size[1] // patch)
    block = [*_scaled_block(width, config.mlp_ratio)]
    normed = [leaf for name in ("q_norm", "k_norm") for leaf in norm_shapes(f"attn/{name}", width // config.num_heads)]
    tree = {
        "encoder": [
            *kernel_shapes("patch_embed", patch, patch, 3, width),
            ("tokens/class_token", (width,)),
            ("tokens/registers", (registers, width)),
            ("tokens/positions", (1 + grid, width)),
            *_stacked("blocks", config.enc_depth, block),
            *norm_shapes("norm", width),
        ],
        "aggregator": [
            ("tokens/camera", (2, 1, width)),
            ("tokens/registers", (2, registers, width)),
            *(leaf for kind in KINDS for leaf in _stacked(kind, config.depth, [*block, *normed])),
        ],
    }
    if CAMERA in config.head_names:
        tree["camera_head"] = [*_camera_head(config)]
    for name, (part, outputs) in _OUTPUTS.items():
        if name in config.head_names:
            fused = config.dpt_width
            last = (fused // 2, DPT_LAST_WIDTH, outputs)
            tree[part] = [*norm_shapes("norm", 2 * width), *dpt_shapes([2 * width] * 4, config.dpt_channels, fused, last)]
    return {f"{part}/{path}": shape for part, leaves in tree.items() for path, shape in leaves}


def _scaled_block(width: int, mlp_ratio: int) -> Iterator[tuple[str, Shape]]:
    yield from block_shapes(width, mlp_ratio)
    for name in ("scale1", "scale2"):
        yield f"{name}/gamma", (width,)


def _stacked(path: str, depth: int, block: list[tuple[str, Shape]]) -> Iterator[tuple[str, Shape]]:
    for leaf, shape in block:
        yield f"{path}/{leaf}", (depth, *shape)


def _camera_head(config: VGGTConfig) -> Iterator[tuple[str, Shape]]:
    width = 2 * config.embed_dim
    yield "empty_pose", (POSE_ENCODING,)
    yield from _stacked("blocks", config.camera_depth, [*_scaled_block(width, config.mlp_ratio)])
    yield from norm_shapes("token_norm", width)
    yield from norm_shapes("norm", width)
    yield from kernel_shapes("embed_pose", POSE_ENCODING, width)
    yield from kernel_shapes("modulation", width, 3 * width)
    yield from kernel_shapes("pose/fc1", width, width // 2)
    yield from kernel_shapes("pose/fc2", width // 2, POSE_ENCODING)
