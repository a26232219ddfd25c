"""The shapes of the modules that the families share, as (path, shape) of every leaf."""

from collections.abc import Iterator, Sequence

from und3rstand_jax.model.tensor_names import Shape


def kernel_shapes(path: str, *shape: int) -> Iterator[tuple[str, Shape]]:
    """A matrix or convolution, with a bias for every output."""
    yield f"{path}/kernel", shape
    yield f"{path}/bias", shape[-1:]


def norm_shapes(path: str, width: int) -> Iterator[tuple[str, Shape]]:
    """A layer norm."""
    yield f"{path}/scale", (width,)
    yield f"{path}/bias", (width,)


def block_shapes(width: int, mlp_ratio: int) -> Iterator[tuple[str, Shape]]:
    """What every block has: self-attention and an MLP, with a norm before each."""
    yield from norm_shapes("norm1", width)
    yield from kernel_shapes("attn/qkv", width, 3 * width)
    yield from kernel_shapes("attn/proj", width, width)
    yield from norm_shapes("norm2", width)
    yield from kernel_shapes("mlp/fc1", width, mlp_ratio * width)
    yield from kernel_shapes("mlp/fc2", mlp_ratio * width, width)


def dpt_shapes(inputs: Sequence[int], levels: Sequence[int], width: int, last: tuple[int, int, int]) -> Iterator[tuple[str, Shape]]:
    """A DPT head (Ranftl et al., ICCV 2021).

    Args:
        inputs: channels of the tokens that each of its four levels reads.
        levels: channels of the levels.
        width: channels of the fused maps.
        last: channels after each of the last three convolutions.
    """
    for k, (width_in, level) in enumerate(zip(inputs, levels, strict=True), start=1):
        yield from kernel_shapes(f"project{k}", width_in, level)
        if k in (1, 2):
            yield f"resample{k}/kernel", (level, 8 >> k, 8 >> k, level)
            yield f"resample{k}/bias", (level,)
        elif k == 4:
            yield from kernel_shapes("resample4", 3, 3, level, level)
        yield f"level{k}/kernel", (3, 3, level, width)
        for unit in (1, 2) if k < 4 else (2,):
            for conv in (1, 2):
                yield from kernel_shapes(f"fusion{k}/unit{unit}/conv{conv}", 3, 3, width, width)
        yield from kernel_shapes(f"fusion{k}/out", width, width)
    yield from kernel_shapes("conv1", 3, 3, width, last[0])
    yield from kernel_shapes("conv2", 3, 3, last[0], last[1])
    yield from kernel_shapes("out", last[1], last[2])
