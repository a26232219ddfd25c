"""VGGT's DPT heads: four layers of one view as images at four scales, fused from coarse to fine into a map over its pixels.

After Ranftl et al. (ICCV 2021). Specific to VGGT (Wang et al., CVPR 2025): one norm for all levels, positions added to the maps, a
residual unit whose skip carries relu(x), and bilinear resizing with aligned corners to the next level's exact size. Always float32.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from und3rstand_jax.model.heads import EXACT, Enlarge, Fusion, conv1, conv3, resize_aligned
from und3rstand_jax.model.vggt.config import DPT_LAST_WIDTH

Map = Float[Array, "B h w C"]
_POSITION_BASE = 100.0
_POSITION_SCALE = 0.1


class DPTOutput(NamedTuple):
    """Raw channels of every pixel, and the intermediate maps: the four levels before fusion and the fused map."""

    raw: Float[Array, "B H W K"]
    levels: tuple[Float[Array, "B _h _w _C"], ...]
    fused: Float[Array, "B _h _w C"]


class PositionedDPT(nn.Module):
    """A head with `channels` outputs per pixel.

    Attributes:
        channels: number of outputs, the raw confidence last.
        level_widths: channels of the levels, finest first.
        width: channels of the fused maps.
    """

    channels: int
    level_widths: tuple[int, int, int, int]
    width: int

    @nn.compact
    def __call__(self, *maps: Float[Array, "B h w C"], size: tuple[int, int]) -> DPTOutput:
        """Fuses four token maps, given in network order, from late and coarse to early and fine, into raw channels of a `size` image."""
        norm = nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, name="norm")
        levels = []
        for k, (tokens, width) in enumerate(zip(maps, self.level_widths, strict=True), start=1):
            x = conv1(width, f"project{k}")(norm(tokens.astype(jnp.float32)))
            x = _with_positions(x, size)
            if k in (1, 2):
                x = Enlarge(width, factor=8 >> k, name=f"resample{k}")(x)
            elif k == 4:
                # PyTorch pads both sides; XLA's SAME would pad an even size on one side only.
                x = nn.Conv(width, (3, 3), strides=2, padding=((1, 1), (1, 1)), precision=EXACT, name="resample4")(x)
            levels.append(x)
        fused = None
        for k in (4, 3, 2, 1):
            level = conv3(self.width, f"level{k}", bias=False)(levels[k - 1])
            finer = _size(levels[k - 2]) if k > 1 else (2 * level.shape[1], 2 * level.shape[2])
            fused = Fusion(self.width, skip_relu=True, name=f"fusion{k}")(level, fused, finer)
        fused = conv3(self.width // 2, "conv1")(fused)
        x = _with_positions(resize_aligned(fused, size), size)
        x = nn.relu(conv3(DPT_LAST_WIDTH, "conv2")(x))
        return DPTOutput(conv1(self.channels, "out")(x), tuple(levels), fused)


def _size(x: Map) -> tuple[int, int]:
    return x.shape[1], x.shape[2]


def _with_positions(x: Map, size: tuple[int, int]) -> Map:
    of_x, of_y = positions(x.shape[1], x.shape[2], x.shape[3], size)
    return x + of_x + of_y


def positions(height: int, width: int, channels: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Sines and cosines of a pixel's place, times 0.1: of x, (1, width, channels), in the first half of the channels; of y, (height, 1,
    channels), in the second.

    x and y run between the centres of the outermost pixels of an image of this (height, width), whose half diagonal is 1. They are separate
    because their sum over an image of 518×518 would be a constant of 137 MB in the program.
    """
    ratio = size[1] / size[0]
    spans = ratio / np.sqrt(ratio**2 + 1), 1 / np.sqrt(ratio**2 + 1)
    # In float64, as in the original, and rounded once.
    frequencies = _POSITION_BASE ** -(np.arange(channels // 4) / (channels // 4))

    def along(count: int, span: float) -> np.ndarray:
        places = np.linspace(-span * (count - 1) / count, span * (count - 1) / count, count)[:, None] * frequencies
        return (np.concatenate([np.sin(places), np.cos(places)], axis=-1) * _POSITION_SCALE).astype(np.float32)

    half = channels // 2
    of_x, of_y = along(width, spans[0]), along(height, spans[1])
    return np.pad(of_x, ((0, 0), (0, half)))[None], np.pad(of_y, ((0, 0), (half, 0)))[:, None]
