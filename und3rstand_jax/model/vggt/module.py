"""VGGT as a pure function of parameters and one or more views (Wang et al., "VGGT: Visual Geometry Grounded Transformer", CVPR 2025)."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from und3rstand_jax.model.affine import SiteEdits
from und3rstand_jax.model.blocks import Arithmetic
from und3rstand_jax.model.head_choice import Head
from und3rstand_jax.model.heads import Pointmap, to_confidence
from und3rstand_jax.model.module import HeadOutputs, MultiViewModel, Traced
from und3rstand_jax.model.output import Cameras, Grids, ImageSizes, ViewTokens
from und3rstand_jax.model.output_modes import Mode
from und3rstand_jax.model.pose_encoding import cameras_of
from und3rstand_jax.model.start import token_grids
from und3rstand_jax.model.vggt.camera import CameraHead
from und3rstand_jax.model.vggt.config import CAMERA, DEPTH, STEPS, VGGTConfig
from und3rstand_jax.model.vggt.dpt import DPTOutput, PositionedDPT
from und3rstand_jax.model.vggt.trunk import Aggregator, Encoder, joined_edits

_CONFIDENCE: Mode = ("exp", 1.0, math.inf)
_PIXELS_TOGETHER = 2**19
"""The most pixels, of all views together, that go through a DPT head at once."""


class VGGT(MultiViewModel):
    """The model; attributes and calls are those of `MultiViewModel`.

    With dtype bfloat16, only matrix products and attention are bfloat16. The residual stream and its captures stay float32, as in the
    original's intended use.
    """

    config: VGGTConfig

    @property
    def stream_dtype(self) -> jnp.dtype:
        """Always float32, because the scale of each branch is."""
        return jnp.dtype(jnp.float32)

    def run_trunk(
        self,
        arithmetic: Arithmetic,
        tokens: tuple[Array, ...],
        grids: Grids,
        missing: set[str],
        edits: SiteEdits,
        since: str | None,
        before: ViewTokens | None,
    ) -> dict[str, Traced]:
        """See `MultiViewModel.run_trunk`."""
        config, joined = self.config, joined_edits(edits)
        x = jnp.stack(tokens, axis=1)
        in_encoder = since is None or since.split(".")[0] in ("patch_embed", "encoder")
        of_encoder = {site for site in missing if site.split(".")[0] in ("patch_embed", "encoder")}
        of_aggregator = missing - of_encoder
        layers: dict[str, Array] = {}
        if in_encoder and since != "encoder.norm" and missing:
            encoder = Encoder(arithmetic, config, self.unroll, self.remat, name="encoder")
            layers = encoder(x, grids[0], of_encoder | {"encoder.norm"} if of_aggregator else of_encoder, joined, since)
            x = layers.get("encoder.norm", x)
        if of_aggregator:
            aggregator = Aggregator(arithmetic, config, self.unroll, self.remat, self.capture_dtype, name="aggregator")
            layers |= aggregator(x, grids[0], of_aggregator, joined, None if in_encoder else since)
        return {site: tuple(values[:, view] for view in range(len(grids))) for site, values in layers.items()}

    def run_heads(self, heads: Sequence[Head], layers: Mapping[str, Traced], sizes: ImageSizes, captured: Collection[str]) -> HeadOutputs:
        """See `MultiViewModel.run_heads`."""
        cameras, inside, maps = None, dict[str, Traced](), [Pointmap() for _ in sizes]
        for head in heads:
            if head.name == CAMERA:
                cameras, of_head = self._cameras(head, layers, sizes)
            else:
                of_views, of_head = self._maps(head, layers, sizes, captured)
                maps = [Pointmap(**(old | new)) for old, new in zip(maps, of_views, strict=True)]  # type: ignore[typeddict-item]
            inside |= {site: of_head[site] for site in captured if site in of_head}
        return HeadOutputs(tuple(maps) if any(maps) else (), cameras, inside)

    def _cameras(self, head: Head, layers: Mapping[str, Traced], sizes: ImageSizes) -> tuple[Cameras, dict[str, Traced]]:
        frame, across = (jnp.stack([tokens[:, 0] for tokens in layers[layer]], axis=1) for layer in head.layers)
        poses = CameraHead(self.config, name=head.part(0))(jnp.concatenate([frame, across], axis=-1))
        inside: dict[str, Traced] = {}
        for k, (encoding, streams) in enumerate(zip(poses.encodings, poses.streams, strict=True)):
            for i in range(self.config.camera_depth):
                inside |= {f"camera.{k}.{i}.{step}": _of_views(streams[step][i]) for step in STEPS}
            inside[f"pose_enc.{k}"] = _of_views(encoding)
        extrinsics, intrinsics = cameras_of(poses.encodings[-1], sizes[0])
        return Cameras(extrinsics, intrinsics, jnp.stack(poses.encodings)), inside

    def _maps(
        self, head: Head, layers: Mapping[str, Traced], sizes: ImageSizes, captured: Collection[str]
    ) -> tuple[list[dict[str, Array]], dict[str, Traced]]:
        config, name, grid = self.config, head.part(0), token_grids(sizes, self.config)[0]
        special = len(config.special_tokens(config.embed))
        outputs = 2 if head.name == DEPTH else 4
        dpt = PositionedDPT(outputs, config.dpt_channels, config.dpt_width, parent=None)
        blank = jnp.zeros((1, 1, 1, 2 * config.embed_dim), jnp.float32)
        params = self.param(name, lambda key: dpt.init(key, *[blank] * 4, size=(config.patch_size,) * 2)["params"])

        def level(pair: int) -> Float[Array, "V B h w C"]:
            both = (jnp.stack(layers[f"{kind}.{pair}.mlp"])[:, :, special:] for kind in ("frame", "global"))
            tokens = jnp.concatenate([*both], axis=-1)
            return tokens.reshape(*tokens.shape[:2], *grid, -1)

        wanted = [site for site in captured if site.startswith(f"{name}.")]

        def of_view(levels: Any) -> tuple[Array, dict[str, Array]]:
            found = cast(DPTOutput, dpt.apply({"params": params}, *levels, size=sizes[0]))
            inside = {f"{name}.level.{k}": x for k, x in enumerate(found.levels)} | {f"{name}.fused": found.fused}
            return found.raw, {site: inside[site] for site in wanted}

        levels = tuple(level(pair) for pair in config.dpt_layers)
        views, batch = levels[0].shape[:2]
        if views * batch * sizes[0][0] * sizes[0][1] <= _PIXELS_TOGETHER:
            # On a CPU the gradient of convolutions is forty times slower within a loop.
            together = of_view(tuple(x.reshape(views * batch, *x.shape[2:]) for x in levels))
            raw, inside = jax.tree.map(lambda x: x.reshape(views, batch, *x.shape[1:]), together)
        else:
            # One view after another: the maps of a view at full resolution take half a gigabyte.
            raw, inside = lax.map(of_view, levels)
        read = _depth if head.name == DEPTH else _points
        found = read(raw)
        return [{key: values[view] for key, values in found.items()} for view in range(views)], {
            site: tuple(values[view] for view in range(views)) for site, values in inside.items()
        }


def _of_views(values: Float[Array, "B V K"]) -> Traced:
    """The values of each view, (B, 1, K), as its one token."""
    return tuple(values[:, view, None] for view in range(values.shape[1]))


def _depth(raw: Float[Array, "V B H W 2"]) -> dict[str, Array]:
    return {"depth": jnp.exp(raw[..., 0]), "depth_conf": to_confidence(raw[..., 1], _CONFIDENCE)}


def _points(raw: Float[Array, "V B H W 4"]) -> dict[str, Array]:
    values = raw[..., :3]
    return {"pts3d": jnp.sign(values) * jnp.expm1(jnp.abs(values)), "conf": to_confidence(raw[..., 3], _CONFIDENCE)}
