"""VGGT's trunk: DINOv2 for each view, then pairs of blocks, one within each view and one over all views.

    images ─▶ Encoder ─▶ encoder.norm ─▶ Aggregator ─▶ global.I.mlp

All views have one size and go through as one array (B, V, P, C). Both modules run from their entry point as far as the needed sites
require, and return at least those sites.
"""

import functools
from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from und3rstand_jax.model.affine import Affine, Numbers, SiteEdits, apply_affine, neutral_like
from und3rstand_jax.model.attention import rotation
from und3rstand_jax.model.block_sites import BlockSites
from und3rstand_jax.model.blocks import Arithmetic, run_block
from und3rstand_jax.model.layer_ids import stack_positions
from und3rstand_jax.model.output import Grid
from und3rstand_jax.model.sites import with_insides
from und3rstand_jax.model.stack import BlockEdits, Params, Run, Streams, block_edits, plan_runs, run_stack, stack_entry, stacked
from und3rstand_jax.model.vggt.blocks import Pair, ScaledBlock
from und3rstand_jax.model.vggt.config import KINDS, STEPS, VGGTConfig

Images: TypeAlias = Float[Array, "B V H W 3"]
Layers: TypeAlias = dict[str, Float[Array, "B V ..."]]

_PAIR = "pair"
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and deviation of RGB in [0, 1] (ImageNet's), with which DINOv2 was trained."""


class Encoder(nn.Module):
    """DINOv2 (Oquab et al., 2024) with registers; only its patch tokens go on to the aggregator."""

    arithmetic: Arithmetic
    config: VGGTConfig
    unroll: bool
    remat: bool

    @nn.compact
    def __call__(self, inputs: Float[Array, "B V ..."], grid: Grid, needed: Collection[str], edits: SiteEdits, since: str | None) -> Layers:
        """Runs all views as far as the needed sites (`patch_embed` and ids `encoder.…`) require, and returns those.

        Args:
            inputs: images (B, V, H, W, 3) in [-1, 1], or the views' tokens after the layer `since`.
            grid: (rows, columns) of a view's patches.
            needed: sites after `since`.
            edits: of sites after `since`.
            since: `patch_embed` or a layer `encoder.…`, or None to begin with the images.
        """
        config, arithmetic = self.config, self.arithmetic
        layers: Layers = {}
        x = inputs
        if since is None:
            x = layers["patch_embed"] = _edited(edits, "patch_embed", PatchEmbedding(arithmetic, config, name="patch_embed")(x))
        if since in (None, "patch_embed"):
            if set(needed) <= {"patch_embed"}:
                return layers
            x = layers["encoder.embed"] = _edited(edits, "encoder.embed", EncoderTokens(config, name="tokens")(x, grid))
        special = len(config.special_tokens("encoder.embed"))
        block = ScaledBlock(
            arithmetic, config.enc_num_heads, config.mlp_ratio, epsilon=1e-6, scale=1.0, special_tokens=special, parent=None
        )
        token = jnp.zeros((1, 1, 1, config.embed_dim), jnp.float32)
        blocks = self.param("blocks", stacked(lambda key: block.init(key, token, None, BlockSites()), config.enc_depth))

        def run_all(params: Params, streams: Streams, before: Streams, run: Run, edits: BlockEdits) -> dict[str, Streams]:
            return {site: (x,) for site, x in run_block(block, params, streams[0], None, sites=run.sites(edits, 0)).items()}

        positions, last = stack_positions("encoder", needed), (config.enc_depth - 1, "mlp")
        if "encoder.norm" in needed and since != "encoder.{}.{}".format(*last):
            positions.add(last)
        of_blocks = block_edits("encoder", edits)
        runs = plan_runs(
            with_insides(STEPS, {site for _, site in positions}), config.enc_depth, positions, of_blocks, stack_entry(since, STEPS)
        )
        kept = run_stack(run_all, blocks, (x,), runs, self.unroll, of_blocks, remat=self.remat)
        layers |= {f"encoder.{index}.{site}": streams[0] for (index, site), streams in kept.items()}
        if "encoder.norm" in needed:
            norm = arithmetic.layer_norm("norm", dtype=jnp.float32)
            layers["encoder.norm"] = _edited(edits, "encoder.norm", norm(kept.get(last, (x,))[0]))
        return layers


class PatchEmbedding(nn.Module):
    """One linear map of a patch's pixels."""

    arithmetic: Arithmetic
    config: VGGTConfig

    @nn.compact
    def __call__(self, images: Images) -> Float[Array, "B V N C"]:
        """Images in [-1, 1] to tokens."""
        width, patch = self.config.embed_dim, self.config.patch_size
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (patch, patch, 3, width), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (width,), jnp.float32)
        normed = ((images.astype(jnp.float32) * 0.5 + 0.5) - jnp.asarray(_MEAN)) / jnp.asarray(_STD)
        batch, views, height, wide, _ = images.shape
        patches = normed.reshape(batch, views, height // patch, patch, wide // patch, patch, 3).swapaxes(3, 4)
        rows = patches.reshape(batch, views, -1, patch * patch * 3).astype(self.arithmetic.dtype)
        flat = jnp.asarray(kernel, self.arithmetic.dtype).reshape(-1, width)
        tokens = jnp.matmul(rows, flat, precision=self.arithmetic.precision, preferred_element_type=jnp.float32)
        return tokens + bias


class EncoderTokens(nn.Module):
    """DINOv2's positions, class token and registers."""

    config: VGGTConfig

    @nn.compact
    def __call__(self, patches: Float[Array, "B V N C"], grid: Grid) -> Float[Array, "B V P C"]:
        """The class token, the registers, which have no position, and the patches."""
        config = self.config
        stored = (config.img_size[0] // config.patch_size, config.img_size[1] // config.patch_size)
        small = nn.initializers.normal(0.02)
        class_token = self.param("class_token", small, (config.embed_dim,), jnp.float32)
        registers = self.param("registers", small, (config.num_registers, config.embed_dim), jnp.float32)
        positions = self.param("positions", small, (1 + stored[0] * stored[1], config.embed_dim), jnp.float32)
        of_patches = positions[1:]
        if grid != stored:
            maps = of_patches.reshape(*stored, -1)
            of_patches = jax.image.resize(maps, (*grid, maps.shape[-1]), "cubic", antialias=True).reshape(-1, maps.shape[-1])
        special = jnp.concatenate([(class_token + positions[0])[None], registers])
        return _in_front(jnp.broadcast_to(special, (*patches.shape[:2], *special.shape)), patches + of_patches)


class Aggregator(nn.Module):
    """VGGT's special tokens, which distinguish the first view from all others, and the pairs of blocks."""

    arithmetic: Arithmetic
    config: VGGTConfig
    unroll: bool
    remat: bool
    capture_dtype: DTypeLike | None

    @nn.compact
    def __call__(self, tokens: Float[Array, "B V P C"], grid: Grid, needed: Collection[str], edits: SiteEdits, since: str | None) -> Layers:
        """Runs all views as far as the needed sites (`aggregator.embed`, ids `frame.…` and `global.…`) require, and returns those.

        Args:
            tokens: of `encoder.norm`, or those after the layer `since`.
            grid: (rows, columns) of a view's patches.
            needed: sites after `since`.
            edits: of sites after `since`.
            since: `aggregator.embed` or a layer of the blocks, or None to begin with the encoder's tokens.
        """
        config = self.config
        layers: Layers = {}
        x, special = tokens, len(config.special_tokens(config.embed))
        if since is None:
            x = layers[config.embed] = _edited(edits, config.embed, SpecialTokens(config, name="tokens")(tokens[:, :, special:]))
        head_dim = config.embed_dim // config.num_heads
        turns = rotation(grid, head_dim, config.rope_base, special)
        pair = Pair(self.arithmetic, config, parent=None)
        token, origin = jnp.zeros((1, 1, 1, config.embed_dim), jnp.float32), rotation((1, 1), head_dim, config.rope_base)

        def init(kind: str, key: Array) -> Mapping[str, Any]:
            return pair.block(kind, parent=None).init(key, token, origin, BlockSites(until=f"{kind}.{STEPS[-1]}"))

        pairs = {kind: self.param(kind, stacked(functools.partial(init, kind), config.depth)) for kind in KINDS}

        def run_all(params: Params, streams: Streams, before: Streams, run: Run, edits: BlockEdits) -> dict[str, Streams]:
            return {site: (x,) for site, x in run_block(pair, params, streams[0], turns, sites=run.sites(edits, 0)).items()}

        steps = tuple(f"{kind}.{step}" for kind in KINDS for step in STEPS)
        positions = stack_positions(_PAIR, map(_in_pairs, needed))
        of_blocks = block_edits(_PAIR, {_in_pairs(site): affines for site, affines in edits.items()})
        inside = with_insides(steps, {site for _, site in positions})
        entry = stack_entry(None if since is None else _in_pairs(since), steps)
        runs = plan_runs(inside, config.depth, positions, of_blocks, entry)
        kept = run_stack(run_all, pairs, (x,), runs, self.unroll, of_blocks, remat=self.remat, capture_dtype=self.capture_dtype)
        for (index, site), streams in kept.items():
            kind, step = site.split(".", 1)
            layers[f"{kind}.{index}.{step}"] = streams[0]
        return layers


class SpecialTokens(nn.Module):
    """Puts a camera token and registers before each view's patches: one set for the first view, another for all others."""

    config: VGGTConfig

    @nn.compact
    def __call__(self, patches: Float[Array, "B V N C"]) -> Float[Array, "B V P C"]:
        """The camera token, the registers and the patches."""
        small, width = nn.initializers.normal(1e-6), self.config.embed_dim
        camera = self.param("camera", small, (2, 1, width), jnp.float32)
        registers = self.param("registers", small, (2, self.config.num_registers, width), jnp.float32)
        of_views = jnp.concatenate([camera, registers], axis=1)[np.minimum(np.arange(patches.shape[1]), 1)]
        return _in_front(jnp.broadcast_to(of_views, (patches.shape[0], *of_views.shape)), patches)


def joined_edits(edits: SiteEdits) -> SiteEdits:
    """The edits of each site as edits of one stream: numbers with an axis of views after the batch axis, (1 or B, V, …)."""
    return {site: (_joined(views),) for site, views in edits.items() if any(affine is not None for affine in views)}


def _joined(views: Sequence[Affine | None]) -> Affine:
    some = next(affine for affine in views if affine is not None)
    every = [affine or neutral_like(some) for affine in views]

    def stack(parts: Sequence[Numbers]) -> Array:
        shape = np.broadcast_shapes(*(part.shape for part in parts))
        return jnp.stack([jnp.broadcast_to(part, shape) for part in parts], axis=1)

    return Affine(stack([affine.scale for affine in every]), stack([affine.shift for affine in every]))


def _edited(edits: SiteEdits, layer_id: str, x: Float[Array, "B V N C"]) -> Float[Array, "B V N C"]:
    """A layer's tokens after its edit, if it has one."""
    (affine,) = edits.get(layer_id, (None,))
    return x if affine is None else apply_affine(affine, x)


def _in_front(special: Float[Array, "B V S C"], patches: Float[Array, "B V N C"]) -> Float[Array, "B V P C"]:
    """Each view's special tokens, then its patches: P = S + N."""
    return jnp.concatenate([special, patches], axis=2)


def _in_pairs(site: str) -> str:
    """`frame.3.mlp` as a step of a stack of pairs, `pair.3.frame.mlp`; other ids as they are."""
    kind, *rest = site.split(".", 2)
    return f"{_PAIR}.{rest[0]}.{kind}.{rest[1]}" if kind in KINDS and len(rest) == 2 else site
