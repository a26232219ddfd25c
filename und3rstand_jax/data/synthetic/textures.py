"""Colours of surfaces, as functions of the point: patterns and noise at several scales.

Noise is a function of the 3-D point, so it continues across edges. Patterns are drawn in the coordinate plane to which a surface is most
nearly parallel. Both fade where a pixel cannot resolve them, which is the only way in which a colour depends on the view.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray, UInt32

from und3rstand_jax.data.synthetic.intersect import Reals, Vector, each
from und3rstand_jax.data.synthetic.scene import span, uniform

OCTAVES, LACUNARITY = 5, 2.6
"""Layers of noise, and the ratio of each one's frequency to that of the one before."""

PLAIN, STRIPES, CHECKS, TILES = range(4)
"""Patterns."""

_PRIMES = (0x8DA6B343, 0xD8163841, 0xCB1AB31F)
"""Odd numbers that scatter a lattice's coordinates over 32 bits."""


class Paint(NamedTuple):
    """Two colours (RGB reflectances) of each of N surfaces, which its texture mixes."""

    first: Float[Array, "3 N"]
    second: Float[Array, "3 N"]


class Texture(NamedTuple):
    """How surfaces, or the pixels that show them, mix their two colours.

    A pattern has a period along each of its axes, in metres. The second colour takes up the fraction `duty` of it, and every other row is
    shifted by the fraction `shift` of it. Tiles differ in brightness by up to `tone`. Noise of weight `grain` is added: it starts at the
    frequency `coarse` (1/m), and each octave's amplitude is `gain` times that of the one before. `salt` makes one surface's noise differ
    from another's.
    """

    pattern: Reals
    period_u: Reals
    period_v: Reals
    duty: Reals
    shift: Reals
    tone: Reals
    grain: Reals
    coarse: Reals
    gain: Reals
    salt: UInt32[Array, "..."]


class Footprint(NamedTuple):
    """What a pixel covers of a surface, in metres: its width along the pattern's axes, and its mean width."""

    u: Reals
    v: Reals
    mean: Reals


def sample_textures(key: PRNGKeyArray, count: int) -> tuple[Paint, Texture]:
    """For `count` surfaces, the last of which is the sky: a fifth plain, a fifth cloudy, the rest patterned with a little noise."""
    salt_key, key = jax.random.split(key)
    u = uniform(key, (18, count))
    sky, kind = jnp.arange(count) == count - 1, jnp.floor(u[0] * 5)
    cloudy = sky | (kind == 4)
    pattern = jnp.where(cloudy, PLAIN, kind)
    tiles, plain = pattern == TILES, (pattern == PLAIN) & ~cloudy
    first, other = _colors(u[1:4]), _colors(u[4:7])
    # Half of the second colours are a darker shade of the first.
    second = jnp.where(u[7] < 0.5, first * span(u[8], 0.35, 0.75), other)
    first, second = jnp.where(sky, jnp.array([[0.25], [0.45], [0.85]], jnp.float32), first), jnp.where(sky, 0.9, second)
    size = span(u[9] ** 2, 0.06, 0.6)
    texture = Texture(
        pattern=pattern,
        period_u=size * jnp.where(tiles, span(u[10], 1, 3), 1.0),
        period_v=size,
        duty=jnp.where(tiles, span(u[11], 0.03, 0.1), span(u[11], 0.3, 0.7)),
        shift=jnp.where(tiles & (u[12] < 0.6), jnp.float32(0.5), 0.0),
        tone=jnp.where(tiles, span(u[13], 0.0, 0.6), 0.0),
        grain=jnp.where(cloudy, span(u[14], 0.5, 1.2), jnp.where(plain, span(u[14], 0.02, 0.12), span(u[14], 0.05, 0.5))),
        coarse=span(u[15], 0.7, 2.2),
        gain=span(u[16], 0.6, 1.0),
        salt=jax.random.bits(salt_key, (count,), jnp.uint32),
    )
    return Paint(first, second), texture


def _colors(u: Float[Array, "3 N"]) -> Float[Array, "3 N"]:
    """Reflectances between 0.03 and 0.85: of any hue, more often pale than vivid."""
    hue = jnp.clip(jnp.abs((6 * u[0] + jnp.array([[3.0], [1.0], [5.0]], jnp.float32)) % 6 - 3) - 1, 0, 1)
    saturation = span(u[1] ** 2, 0.03, 0.8)
    return span(u[2], 0.2, 0.85) * (1 - saturation * (1 - hue))


def mix(texture: Texture, point: Vector, plane: tuple[Reals, Reals], footprint: Footprint) -> tuple[Reals, Reals]:
    """At points of surfaces, the second colour's fraction and a factor for the brightness.

    `point` is in the solid's frame, `plane` has the two of its coordinates in which patterns are defined; both in metres.
    """
    v = plane[1] / texture.period_v
    row = jnp.floor(v)
    u = plane[0] / texture.period_u + texture.shift * (row % 2)
    width_u, width_v = footprint.u / texture.period_u, footprint.v / texture.period_v
    across, up = coverage(u, texture.duty, width_u), coverage(v, texture.duty, width_v)
    both = across * up
    patterns = jnp.where(texture.pattern == STRIPES, across, across + up - jnp.where(texture.pattern == CHECKS, 2 * both, both))
    tile = lattice(texture.salt ^ _cell(jnp.floor(u), _PRIMES[0]) ^ _cell(row, _PRIMES[1]))
    tone = 1 + texture.tone * tile * _visible(jnp.maximum(width_u, width_v))
    share = jnp.where(texture.pattern == PLAIN, 0.5, patterns)
    scaled = each(lambda p: texture.coarse * p, point)
    noise = fractal_noise(scaled, texture.salt, texture.gain, texture.coarse * footprint.mean)
    return jnp.clip(share + texture.grain * noise, 0, 1), tone


def coverage(x: Reals, duty: Reals, width: Reals) -> Reals:
    """The fraction of [x − width/2, x + width/2] whose fractional part is below `duty`: stripes as a pixel sees them."""

    def below(x: Reals) -> Reals:
        whole = jnp.floor(x)
        return whole * duty + jnp.minimum(x - whole, duty)

    width = jnp.maximum(width, 1e-3)
    return (below(x + width / 2) - below(x - width / 2)) / width


def fractal_noise(point: Vector, salt: UInt32[Array, "..."], gain: Reals, width: Reals) -> Reals:
    """A sum of `value_noise` at frequencies 1, LACUNARITY, … with amplitudes 1, gain, …, without those that pixels of `width`, in the
    point's unit, do not resolve.
    """

    # A loop, for the reason given in intersect.py.
    def add(octave: ArrayLike, carry: tuple[Reals, Reals, Array]) -> tuple[Reals, Reals, Array]:
        total, amplitude, frequency = carry
        octave_salt = salt + jnp.asarray(octave, jnp.uint32) * jnp.uint32(_PRIMES[2])
        noise = value_noise(each(lambda p: p * frequency, point), octave_salt) * _visible(width * frequency)
        return total + amplitude * noise, amplitude * gain, frequency * LACUNARITY

    return lax.fori_loop(0, OCTAVES, add, (jnp.zeros_like(width), jnp.ones_like(gain), jnp.float32(1)))[0]


def _visible(width: Reals) -> Reals:
    """How much of a detail of size 1 remains: all of it for pixels up to half that size, nothing from that size on."""
    return jnp.clip(2 - 2 * width, 0, 1)


def value_noise(point: Vector, salt: UInt32[Array, "..."]) -> Reals:
    """Smooth noise in [−1, 1]: hashes at integer lattice points, interpolated with the weights 3w² − 2w³."""
    corner = each(jnp.floor, point)
    wx, wy, wz = each(lambda p, c: (p - c) ** 2 * (3 - 2 * (p - c)), point, corner)
    low = [_cell(c, prime) for c, prime in zip(corner, _PRIMES, strict=True)]
    (x0, x1), (y0, y1), (z0, z1) = ((start, start + jnp.uint32(prime)) for start, prime in zip(low, _PRIMES, strict=True))

    def line(y: Array, z: Array) -> Reals:
        a, b = lattice(x0 ^ y ^ z ^ salt), lattice(x1 ^ y ^ z ^ salt)
        return a + wx * (b - a)

    def square(z: Array) -> Reals:
        a, b = line(y0, z), line(y1, z)
        return a + wy * (b - a)

    a, b = square(z0), square(z1)
    return a + wz * (b - a)


def lattice(bits: UInt32[Array, "..."]) -> Reals:
    """A hash of integers, in [−1, 1]."""
    bits = (bits ^ (bits >> 15)) * jnp.uint32(0x2C1B3C6D)
    bits = (bits ^ (bits >> 12)) * jnp.uint32(0x297A2D39)
    return lax.bitcast_convert_type(bits ^ (bits >> 15), jnp.int32).astype(jnp.float32) * 2.0**-31


def _cell(whole: Reals, prime: int) -> UInt32[Array, "..."]:
    # Through int32: converting a negative float to uint32 is undefined.
    return lax.bitcast_convert_type(whole.astype(jnp.int32), jnp.uint32) * jnp.uint32(prime)
