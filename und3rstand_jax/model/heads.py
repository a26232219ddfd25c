"""From tokens to pointmaps: DUSt3R's heads, the pixel shuffle that the probes share, and the output activations.

A head turns tokens into raw channels for each pixel. The linear head reads one layer. The DPT head (Ranftl et al., "Vision Transformers
for Dense Prediction", ICCV 2021) lays out four layers as images at four scales and fuses them from coarse to fine. `to_pointmap` turns
raw channels into a pointmap and its confidence (DUSt3R, Wang et al., CVPR 2024, section 3.2).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float, Shaped

from und3rstand_jax.model.output_modes import Mode

EXACT = lax.Precision.HIGHEST
"""The precision of all heads, which always compute in float32."""

_ALMOST_NO_SQUARE = 1e-30


class LinearHead(nn.Module):
    """One linear layer from a token to four raw channels for each pixel of its patch. Always float32."""

    patch_size: int

    @nn.compact
    def __call__(self, tokens: Float[Array, "B h w C"]) -> Float[Array, "B {self.patch_size}*h {self.patch_size}*w 4"]:
        """(B, h, w, C) to (B, patch·h, patch·w, 4)."""
        outputs = nn.Dense(4 * self.patch_size**2, precision=EXACT, name="proj")(tokens.astype(jnp.float32))
        return shuffle_pixels(outputs, self.patch_size, "channels_first")


def shuffle_pixels(outputs: Float[Array, "B h w O"], patch_size: int, layout: str) -> Float[Array, "B {patch_size}*h {patch_size}*w K"]:
    """Lays each token's O = K·patch² outputs out as its patch of K channels.

    `layout` is "channels_first" (output channel·patch² + row·patch + column, DUSt3R's own) or "channels_last"
    ((row·patch + column)·K + channel).
    """
    batch, height, width, _ = outputs.shape
    p = patch_size
    if layout == "channels_first":
        patches = jnp.transpose(outputs.reshape(batch, height, width, -1, p, p), (0, 1, 4, 2, 5, 3))
    else:
        patches = jnp.swapaxes(outputs.reshape(batch, height, width, p, p, -1), 2, 3)
    return patches.reshape(batch, height * p, width * p, -1)


class DPTHead(nn.Module):
    """Four token maps of one view to four raw channels for each pixel. Always float32."""

    level_widths: tuple[int, int, int, int] = (96, 192, 384, 768)
    width: int = 256
    last_width: int = 128
    out_channels: int = 4

    @nn.compact
    def __call__(self, *levels: Float[Array, "B h w _"]) -> Float[Array, "B 16*h 16*w {self.out_channels}"]:
        """Fuses four token maps (B, h, w, C), given in network order, from late and coarse to early and fine."""
        fused = None
        for k in (4, 3, 2, 1):
            # The token map of level k at 4, 2, 1 or 1/2 times its size.
            width = self.level_widths[k - 1]
            level = conv1(width, f"project{k}")(levels[k - 1].astype(jnp.float32))
            if k in (1, 2):
                level = Enlarge(width, factor=8 >> k, name=f"resample{k}")(level)
            elif k == 4:
                # PyTorch pads both sides; XLA's SAME would pad an even size on one side only.
                level = nn.Conv(width, (3, 3), strides=2, padding=((1, 1), (1, 1)), precision=EXACT, name="resample4")(level)
            level = conv3(self.width, f"level{k}", bias=False)(level)
            if fused is not None:
                # Odd sizes: halving rounds up and doubling overshoots by one.
                fused = fused[:, : level.shape[1], : level.shape[2]]
            fused = Fusion(self.width, name=f"fusion{k}")(level, fused)
        x = conv3(self.last_width, "conv1")(fused)
        x = conv3(self.last_width, "conv2")(double_size(x))
        return conv1(self.out_channels, "out")(nn.relu(x))


class Enlarge(nn.Module):
    """Transposed convolution whose stride is its kernel: one matrix product per pixel, laid out as a patch."""

    features: int
    factor: int

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B {self.factor}*H {self.factor}*W {self.features}"]:
        """(B, H, W, C) to (B, factor·H, factor·W, features)."""
        batch, height, width, channels = x.shape
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (channels, self.factor, self.factor, self.features), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        patches = jnp.einsum("bhwc,cijf->bhiwjf", x, kernel, precision=EXACT)
        return patches.reshape(batch, height * self.factor, width * self.factor, self.features) + bias


class Fusion(nn.Module):
    """Adds a finer level to the coarser result and enlarges the sum."""

    width: int
    skip_relu: bool = False

    @nn.compact
    def __call__(
        self, level: Float[Array, "B H W C"], coarser: Float[Array, "B H W C"] | None, size: tuple[int, int] | None = None
    ) -> Float[Array, "B _h _w C"]:
        """Enlarges to `size`, (height, width), by default twice the level's. `coarser` is None at the coarsest level."""
        x = level if coarser is None else coarser + ResidualUnit(self.width, self.skip_relu, name="unit1")(level)
        x = ResidualUnit(self.width, self.skip_relu, name="unit2")(x)
        # A 1×1 convolution commutes with interpolation; before it, it costs a quarter.
        return resize_aligned(conv1(self.width, "out")(x), size or (2 * level.shape[1], 2 * level.shape[2]))


class ResidualUnit(nn.Module):
    """x + conv(relu(conv(relu(x))))."""

    width: int
    skip_relu: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        """The skip carries x itself (DUSt3R) or, with `skip_relu`, relu(x) (VGGT)."""
        kept = nn.relu(x) if self.skip_relu else x
        return kept + conv3(self.width, "conv2")(nn.relu(conv3(self.width, "conv1")(nn.relu(x))))


def double_size(x: Float[Array, "B H W C"]) -> Float[Array, "B 2*H 2*W C"]:
    """`resize_aligned` to twice the size."""
    return resize_aligned(x, (2 * x.shape[1], 2 * x.shape[2]))


def resize_aligned(x: Float[Array, "B _H _W C"], size: tuple[int, int]) -> Float[Array, "B _h _w C"]:
    """Bilinear interpolation to (height, width) with corners aligned (which `jax.image.resize` does not offer)."""
    for axis, count in ((1, size[0]), (2, size[1])):
        length = x.shape[axis]
        source = np.arange(count) * (length - 1) / max(count - 1, 1)
        low = np.floor(source).astype(np.int32)
        high = np.minimum(low + 1, length - 1)
        weight = np.expand_dims((source - low).astype(np.float32), tuple(range(1, x.ndim - axis)))
        x = jnp.take(x, low, axis) * (1 - weight) + jnp.take(x, high, axis) * weight
    return x


def conv3(features: int, name: str, bias: bool = True) -> nn.Conv:
    """A 3×3 convolution, padded as PyTorch pads."""
    return nn.Conv(features, (3, 3), padding=((1, 1), (1, 1)), use_bias=bias, precision=EXACT, name=name)


def conv1(features: int, name: str) -> nn.Dense:
    """A 1×1 convolution."""
    return nn.Dense(features, precision=EXACT, name=name)


class Pointmap(TypedDict, total=False):
    """What a network predicts for every pixel of a view: a 3D point, and its confidence in it.

    `pts3d` (B, H, W, 3) is in the frame of view 1's camera (x right, y down, z forward) for every view, in the
    network's own unit of length. `conf` (B, H, W) is absent if a probe yields none.

    Models with local features (MASt3R) add `desc` (B, H, W, D), a unit-length descriptor that is similar for pixels of both views that
    show the same point, and `desc_conf` (B, H, W), the confidence in it. Models with a depth head (VGGT) add `depth`
    (B, H, W), along the axis of the view's own camera, and `depth_conf`.
    """

    pts3d: Float[Array, "B H W 3"]
    conf: Float[Array, "B H W"]
    desc: Float[Array, "B H W D"]
    desc_conf: Float[Array, "B H W"]
    depth: Float[Array, "B H W"]
    depth_conf: Float[Array, "B H W"]


Plane = Float[Array, "B ..."]
"""One number for every pixel; the pixels may be in any order and shape."""


class Planes(NamedTuple):
    """A pointmap as one array per coordinate. `conf` is None if a probe yields none.

    Losses are computed on these: arithmetic on a last axis of three is several times slower on CPUs, and its gradient more so.
    """

    x: Plane
    y: Plane
    z: Plane
    conf: Plane | None

    @property
    def points(self) -> tuple[Plane, Plane, Plane]:
        """The coordinates alone."""
        return self.x, self.y, self.z


def split_axis(values: Shaped[Array, "..."], axis: int) -> list[Shaped[Array, "..."]]:
    """The entries along an axis, without that axis.

    Uses `lax.split`, whose gradient is one concatenation. The gradient of indexing is a sum of padded arrays and takes three times as long.
    """
    return [part.squeeze(axis) for part in lax.split(values, [1] * values.shape[axis], axis)]


def length(x: Float[Array, "*P"], y: Float[Array, "*P"], z: Float[Array, "*P"]) -> Float[Array, "*P"]:
    """The length of each vector, whose derivative at 0 is 0."""
    squared = x * x + y * y + z * z
    # The square root has no derivative at 0: both branches of the outer `where` must be differentiable there. NaN is not 0.
    nonzero = squared != 0
    # XLA may compute the square once for each `where`, and round a difference of equal numbers to 0 in one of them alone: what stands in
    # for 0 must be as good as 0.
    return jnp.where(nonzero, jnp.sqrt(jnp.where(nonzero, squared, _ALMOST_NO_SQUARE)), 0.0)


def planes_of(pointmap: Pointmap) -> Planes:
    """The planes of a pointmap, each (B, H, W)."""
    x, y, z = split_axis(pointmap["pts3d"], 3)
    return Planes(x, y, z, pointmap.get("conf"))


def to_pointmap(raw: Float[Array, "B H W K"], depth_mode: Mode, conf_mode: Mode) -> Pointmap:
    """The pointmap of K = 4 raw channels x, y, z and confidence, or of K = 3 without confidence. Computed in float32."""
    planes = to_planes(split_axis(raw, 3), depth_mode, conf_mode)
    points = jnp.stack(planes.points, axis=-1)
    return Pointmap(pts3d=points) if planes.conf is None else Pointmap(pts3d=points, conf=planes.conf)


def to_planes(raw: Sequence[Plane], depth_mode: Mode, conf_mode: Mode) -> Planes:
    """`to_pointmap` for channels given as separate arrays."""
    x, y, z, *rest = (channel.astype(jnp.float32) for channel in raw)
    if depth_mode[0] != "linear":
        distance = length(x, y, z)
        factor = (jnp.expm1(distance) if depth_mode[0] == "exp" else distance**2) / jnp.maximum(distance, 1e-8)
        x, y, z = x * factor, y * factor, z * factor
    if not rest:
        return Planes(x, y, z, None)
    return Planes(x, y, z, to_confidence(rest[0], conf_mode))


def to_confidence(raw: Plane, mode: Mode) -> Plane:
    """The confidence of raw channels."""
    name, low, high = mode
    if name == "sigmoid":
        return (high - low) * jax.nn.sigmoid(raw) + low
    # The bound is applied before the exponential: after it, an overflow would make the gradient NaN.
    return low + jnp.exp(jnp.minimum(raw, math.log(high - low) if high < math.inf else math.inf))
