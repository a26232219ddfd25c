"""Colour jitter against Pillow's enhancers and the standard library's HSV."""

import colorsys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance

from und3rstand_jax.data.example import brightness, contrast, hue, jitter_colours, saturation

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 10, 3)).astype(np.uint8)
RGB = jnp.asarray(PIXELS / 255, jnp.float32)


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.4])
@pytest.mark.parametrize(
    ("ours", "enhancer"), [(brightness, ImageEnhance.Brightness), (contrast, ImageEnhance.Contrast), (saturation, ImageEnhance.Color)]
)
def test_each_change_is_pillows(ours, enhancer, factor):
    theirs = np.asarray(enhancer(Image.fromarray(PIXELS)).enhance(factor)) / 255
    # Pillow rounds the luma and the result to 8 bits.
    assert np.abs(np.asarray(ours(RGB, factor)) - theirs).max() < 2 / 255


@pytest.mark.parametrize("shift", [-0.1, 0.07, 0.5])
def test_hue_turns_as_in_hsv(shift):
    def turned(rgb):
        h, s, v = colorsys.rgb_to_hsv(*rgb)
        return colorsys.hsv_to_rgb((h + shift) % 1, s, v)

    expected = np.apply_along_axis(turned, -1, np.asarray(RGB, np.float64))
    assert np.abs(np.asarray(hue(RGB, shift)) - expected).max() < 1e-5


def test_hue_leaves_greys_alone():
    grey = jnp.full((2, 2, 3), 0.3)
    assert np.array_equal(hue(grey, jnp.float32(0.1)), grey)


def test_jitter_is_the_keys_stays_in_range_and_reaches_every_order():
    image = RGB * 2 - 1
    jitter = jax.jit(lambda keys: jax.lax.map(lambda key: jitter_colours(key, image), keys))
    keys = jax.random.split(jax.random.key(1), 64)
    first, again = jitter(keys), jitter(keys)
    assert np.array_equal(first, again)
    assert np.abs(first).max() <= 1.0
    change = np.abs(np.asarray(first) - np.asarray(image)).mean(axis=(1, 2, 3))
    assert change.min() > 0.005 and change.mean() == pytest.approx(0.2, abs=0.1)
    assert len({round(float(value), 5) for value in change}) == 64
