"""DUSt3R's linear head, and the pixel shuffle it shares with the probes.

The DPT head (Ranftl et al., "Vision Transformers for Dense Prediction", ICCV 2021) as DUSt3R has it.

Four depths of the network are laid out as images of four scales and fused from coarse to fine.
"""

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float


class LinearHead(nn.Module):
    """One linear layer from a token to four raw channels for each pixel of its patch. Always float32."""

    patch_size: int

    @nn.compact
    def __call__(self, tokens: Float[Array, "B h w C"]) -> Float[Array, "B H W 4"]:
        """(B, h, w, C) to (B, patch·h, patch·w, 4)."""
        outputs = nn.Dense(4 * self.patch_size**2, precision=lax.Precision.HIGHEST, name="proj")(tokens.astype(jnp.float32))
        return shuffle_pixels(outputs, self.patch_size, "channels_first")


def shuffle_pixels(outputs: Float[Array, "B h w O"], patch_size: int, layout: str) -> Float[Array, "B H W K"]:
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


Image = Float[Array, "B H W C"]


_EXACT = lax.Precision.HIGHEST


def head_depths(dec_depth: int) -> tuple[int, int, int, int]:
    """Which of [encoder, block 1, …, block dec_depth] the head reads: 0, 1/2, 3/4 and all of the depth."""
    return 0, dec_depth // 2, 3 * dec_depth // 4, dec_depth


class DPTHead(nn.Module):
    """Four token maps of one view to four raw channels a pixel. Always float32."""

    level_widths: tuple[int, int, int, int] = (96, 192, 384, 768)
    width: int = 256
    last_width: int = 128
    out_channels: int = 4

    @nn.compact
    def __call__(self, *levels: Image) -> Float[Array, "B 16h 16w 4"]:
        """Fuses four token maps (B, h, w, C), given in network order, late and coarse ones first."""
        fused = None
        for k in (4, 3, 2, 1):
            level = _conv3(self.width, f"level{k}", bias=False)(self._at_scale(levels[k - 1].astype(jnp.float32), k))
            if fused is not None:
                # Odd sizes: halving rounds up and doubling overshoots by one.
                fused = fused[:, : level.shape[1], : level.shape[2]]
            fused = Fusion(self.width, name=f"fusion{k}")(level, fused)
        x = _conv3(self.last_width, "conv1")(fused)
        x = _conv3(self.last_width, "conv2")(double_size(x))
        return _conv1(self.out_channels, "out")(nn.relu(x))

    def _at_scale(self, tokens: Image, k: int) -> Image:
        """The token map of level k at 4, 2, 1 or 1/2 times its size."""
        width = self.level_widths[k - 1]
        x = _conv1(width, f"project{k}")(tokens)
        if k in (1, 2):
            return Enlarge(width, factor=8 >> k, name=f"resample{k}")(x)
        if k == 4:
            # PyTorch pads both sides; XLA's SAME would pad an even size on one side only.
            return nn.Conv(width, (3, 3), strides=2, padding=((1, 1), (1, 1)), precision=_EXACT, name="resample4")(x)
        return x


class Enlarge(nn.Module):
    """Transposed convolution whose stride is its kernel: one matrix product a pixel, laid out as a patch."""

    features: int
    factor: int

    @nn.compact
    def __call__(self, x: Image) -> Image:
        """(B, H, W, C) to (B, factor·H, factor·W, features)."""
        batch, height, width, channels = x.shape
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (channels, self.factor, self.factor, self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        patches = jnp.einsum("bhwc,cijf->bhiwjf", x, kernel, precision=_EXACT)
        return patches.reshape(batch, height * self.factor, width * self.factor, self.features) + bias


class Fusion(nn.Module):
    """Adds a finer level to the coarser result and doubles its size."""

    width: int

    @nn.compact
    def __call__(self, level: Image, coarser: Image | None) -> Image:
        """`coarser` is None at the coarsest level, which has nothing to add to."""
        x = level if coarser is None else coarser + ResidualUnit(self.width, name="unit1")(level)
        x = ResidualUnit(self.width, name="unit2")(x)
        # A 1×1 convolution commutes with interpolation; before it, it costs a quarter.
        return double_size(_conv1(self.width, "out")(x))


class ResidualUnit(nn.Module):
    """x + conv(relu(conv(relu(x))))."""

    width: int

    @nn.compact
    def __call__(self, x: Image) -> Image:
        """The skip carries x itself, not relu(x)."""
        return x + _conv3(self.width, "conv2")(nn.relu(_conv3(self.width, "conv1")(nn.relu(x))))


def double_size(x: Image) -> Image:
    """Bilinear interpolation to twice the size with corners aligned (which `jax.image.resize` does not offer)."""
    return _double_axis(_double_axis(x, 1), 2)


def _double_axis(x: Image, axis: int) -> Image:
    size = x.shape[axis]
    source = np.arange(2 * size) * (size - 1) / (2 * size - 1)
    low = np.floor(source).astype(np.int32)
    high = np.minimum(low + 1, size - 1)
    shape = [1] * x.ndim
    shape[axis] = 2 * size
    weight = (source - low).astype(np.float32).reshape(shape)
    return jnp.take(x, low, axis) * (1 - weight) + jnp.take(x, high, axis) * weight


def _conv3(features: int, name: str, bias: bool = True) -> nn.Conv:
    return nn.Conv(features, (3, 3), padding=((1, 1), (1, 1)), use_bias=bias, precision=_EXACT, name=name)


def _conv1(features: int, name: str) -> nn.Dense:
    return nn.Dense(features, precision=_EXACT, name=name)
