"""DUSt3R as a pure function of its parameters and two views (Wang et al., CVPR 2024).

    (params, view1, view2) -> (pointmaps, activations)

`DUSt3R(config).apply({"params": params}, view1, view2, capture=…, head=…)` runs exactly as far as the captured layers
and the heads need; `capture` and `head` are static under `jit`.
"""

from collections.abc import Collection, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

from und3rstand_jax.attention import AttentionImplementation
from und3rstand_jax.blocks import DecoderBlock, EncoderBlock
from und3rstand_jax.config import BackboneConfig
from und3rstand_jax.dpt import DPTHead, head_depths
from und3rstand_jax.errors import UserError
from und3rstand_jax.layers import DECODER_STEPS, ENCODER_STEPS, select_layers
from und3rstand_jax.linear_head import LinearHead
from und3rstand_jax.output import BackboneOutput, ViewTokens
from und3rstand_jax.pointmap import Pointmap, to_pointmap
from und3rstand_jax.rope import Rotation, grid_positions, rotation
from und3rstand_jax.stack import Position, Streams, plan_runs, run_stack
from und3rstand_jax.views import as_view

Layers = dict[str, ViewTokens]


class DUSt3R(nn.Module):
    """The model. Its parameter tree has one leading layer axis for each stack of equal blocks.

    Attributes:
        config: the architecture.
        dtype: what the trunk computes in and its activations come in, float32 or bfloat16; heads are float32 always.
        precision: of the trunk's matrix products. By default exact for float32, which GPUs and TPUs would otherwise
            lower to TF32 or bfloat16 without a word.
        attention: how attention is computed, see `und3rstand_jax.attention.attend`.
        unroll: write the stacks out instead of scanning them. Slow to compile; XLA's cost analysis counts a loop's
            body once, so its figures are right only without loops.
    """

    config: BackboneConfig
    dtype: Any = jnp.float32
    precision: lax.Precision | None = None
    attention: AttentionImplementation = "auto"
    unroll: bool = False

    @nn.compact
    def __call__(
        self,
        view1: Float[Array, "B H1 W1 3"],
        view2: Float[Array, "B H2 W2 3"],
        capture: str | Iterable[str] = (),
        head: bool = True,
    ) -> BackboneOutput:
        """Runs both views through the model.

        Args:
            view1, view2: RGB in [-1, 1], (B, H, W, 3) or (B, 3, H, W); sides are multiples of 16, the views' sizes may
                differ.
            capture: layer patterns, see `und3rstand_jax.layers`; the output holds exactly the layers they match.
            head: whether to run the heads.

        Returns:
            The captured layers' tokens and, with `head`, both pointmaps in view 1's frame.

        Raises:
            UserError: a pattern matches no layer, a view is no image batch, or there is no head to run.
        """
        config = self.config
        if head and config.head_type is None:
            raise UserError("this backbone has no head (a trunk such as CroCo's); call it with head=False")
        views = (as_view(view1, config.patch_size, "view1"), as_view(view2, config.patch_size, "view2"))
        if views[0].shape[0] != views[1].shape[0]:
            raise UserError(f"view1 holds {views[0].shape[0]} images and view2 {views[1].shape[0]}; pairs need as many of each")
        captured = select_layers(capture, config.layer_ids)
        needed = {*captured, *(head_layers(config) if head else ())}
        if self.is_initializing():
            needed = set(config.layer_ids)

        sizes = tuple(view.shape[1:3] for view in views)
        grids = tuple((height // config.patch_size, width // config.patch_size) for height, width in sizes)
        layers = self._encode(views, grids, needed)
        layers |= self._decode(layers.get("encoder.norm"), grids, needed)
        pred1, pred2 = self._heads(layers, grids) if head else (None, None)
        return BackboneOutput({layer: layers[layer] for layer in captured}, sizes, pred1, pred2)

    def _encode(self, views: Streams, grids: tuple[tuple[int, int], ...], needed: Collection[str]) -> Layers:
        """Both views through the one encoder; as a single batch where their sizes allow it."""
        config = self.config
        needs_norm = "encoder.norm" in needed or any(layer.startswith("decoder.") for layer in needed)
        positions = _positions("encoder", needed)
        if needs_norm:
            positions.add((config.enc_depth - 1, "mlp"))
        if not positions:
            return {}
        together = views[0].shape == views[1].shape
        streams = (jnp.concatenate(views),) if together else views
        rotations = self._rotations(grids[:1] if together else grids, config.enc_embed_dim // config.enc_num_heads)
        block = EncoderBlock(**self._arithmetic, num_heads=config.enc_num_heads, mlp_ratio=config.mlp_ratio, parent=None)
        width = (1, 1, config.enc_embed_dim)
        params = self._stack("encoder_blocks", config.enc_depth, lambda key: block.init(key, jnp.zeros(width), _identity(rotations[0])))

        def run_block(params: Any, streams: Streams, until: str) -> dict[str, Streams]:
            steps = [block.apply({"params": params}, x, turn, until) for x, turn in zip(streams, rotations, strict=True)]
            return {step: tuple(s[step] for s in steps) for step in steps[0]}

        patch_embed = nn.Conv(
            config.enc_embed_dim,
            (config.patch_size,) * 2,
            strides=config.patch_size,
            padding="VALID",
            name="patch_embed",
            **self._exactness,
        )
        tokens = tuple(patch_embed(x.astype(self.dtype)).reshape(x.shape[0], -1, config.enc_embed_dim) for x in streams)
        runs = plan_runs(ENCODER_STEPS, config.enc_depth, positions)
        kept = run_stack(run_block, params, tokens, runs, self.unroll)
        layers = {f"encoder.{i}.{step}": value for (i, step), value in kept.items()}
        if needs_norm:
            norm = self._norm("encoder_norm")
            layers["encoder.norm"] = tuple(norm(x) for x in kept[config.enc_depth - 1, "mlp"])
        return {layer: tuple(jnp.split(value[0], 2)) if together else value for layer, value in layers.items()}

    def _decode(self, encoded: ViewTokens | None, grids: tuple[tuple[int, int], ...], needed: Collection[str]) -> Layers:
        """Both views through their own decoder blocks, each block reading both as they were before it."""
        config = self.config
        if not any(layer.startswith("decoder.") for layer in needed):
            return {}
        embed = nn.Dense(config.dec_embed_dim, name="decoder_embed", **self._exactness)
        layers: Layers = {"decoder.embed": tuple(embed(tokens) for tokens in encoded)}
        positions = _positions("decoder", needed)
        if "decoder.norm" in needed:
            positions.add((config.dec_depth - 1, "mlp"))
        if not positions:
            return layers
        rotations = self._rotations(grids, config.dec_embed_dim // config.dec_num_heads)
        block = DecoderBlock(**self._arithmetic, num_heads=config.dec_num_heads, mlp_ratio=config.mlp_ratio, parent=None)
        tokens = jnp.zeros((1, 1, config.dec_embed_dim))
        turn = _identity(rotations[0])
        params = tuple(
            self._stack(f"decoder_blocks{view}", config.dec_depth, lambda key: block.init(key, tokens, tokens, turn, turn))
            for view in (1, 2)
        )

        def run_block(params: Any, streams: Streams, until: str) -> dict[str, Streams]:
            (x1, x2), (turn1, turn2) = streams, rotations
            steps1 = block.apply({"params": params[0]}, x1, x2, turn1, turn2, until)
            steps2 = block.apply({"params": params[1]}, x2, x1, turn2, turn1, until)
            return {step: (steps1[step], steps2[step]) for step in steps1}

        runs = plan_runs(DECODER_STEPS, config.dec_depth, positions)
        kept = run_stack(run_block, params, layers["decoder.embed"], runs, self.unroll)
        layers |= {f"decoder.{i}.{step}": value for (i, step), value in kept.items()}
        if "decoder.norm" in needed:
            norm = self._norm("decoder_norm")
            layers["decoder.norm"] = tuple(norm(x) for x in kept[config.dec_depth - 1, "mlp"])
        return layers

    def _heads(self, layers: Layers, grids: tuple[tuple[int, int], ...]) -> tuple[Pointmap, ...]:
        """Each view's own head on its token maps."""
        config = self.config
        preds = []
        for view, grid in enumerate(grids):
            maps = tuple(layers[layer][view].reshape(-1, *grid, config.layer_width(layer)) for layer in head_layers(config))
            name = f"head{view + 1}"
            raw = DPTHead(name=name)(maps) if config.head_type == "dpt" else LinearHead(config.patch_size, name=name)(*maps)
            preds.append(to_pointmap(raw, config.depth_mode, config.conf_mode))
        return tuple(preds)

    def _stack(self, name: str, depth: int, init: Any) -> Any:
        """The parameters of `depth` equal blocks, every leaf with a leading layer axis."""
        return self.param(name, lambda key: jax.vmap(init)(jax.random.split(key, depth))["params"])

    def _norm(self, name: str) -> nn.LayerNorm:
        return nn.LayerNorm(epsilon=1e-6, use_fast_variance=False, dtype=self.dtype, name=name)

    def _rotations(self, grids: tuple[tuple[int, int], ...], head_dim: int) -> tuple[Rotation, ...]:
        return tuple(rotation(grid_positions(*grid), head_dim, self.config.rope_base) for grid in grids)

    @property
    def _exactness(self) -> dict[str, Any]:
        exact = lax.Precision.HIGHEST if self.dtype == jnp.float32 else lax.Precision.DEFAULT
        return {"dtype": self.dtype, "precision": exact if self.precision is None else self.precision}

    @property
    def _arithmetic(self) -> dict[str, Any]:
        return {**self._exactness, "attention": self.attention}


def head_layers(config: BackboneConfig) -> tuple[str, ...]:
    """The layers a head reads, in its order."""
    if config.head_type == "linear":
        return ("decoder.norm",)
    _, half, three_quarters, _ = head_depths(config.dec_depth)
    return "encoder.norm", f"decoder.{half - 1}.mlp", f"decoder.{three_quarters - 1}.mlp", "decoder.norm"


def _positions(stack: str, needed: Collection[str]) -> set[Position]:
    """Places in one stack among the needed layers (`decoder.norm` and `decoder.embed` lie outside it)."""
    parts = (layer.split(".") for layer in needed)
    return {(int(part[1]), part[2]) for part in parts if part[0] == stack and len(part) == 3}


def _identity(turn: Rotation) -> Rotation:
    """A rotation for the single token that parameters are initialised on."""
    return tuple(table[:1] for table in turn)
