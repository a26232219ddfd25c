"""DUSt3R as a pure function of its parameters and two or more views (Wang et al., CVPR 2024, section 3.1)."""

from collections.abc import Collection, Iterable, Mapping, Sequence

from flax import linen as nn
from jaxtyping import Array, Float

from und3rstand_jax.model.affine import SiteEdits
from und3rstand_jax.model.blocks import Arithmetic
from und3rstand_jax.model.dust3r.config import BackboneConfig
from und3rstand_jax.model.dust3r.trunk import Decoder, Encoder
from und3rstand_jax.model.head_choice import Head
from und3rstand_jax.model.heads import DPTHead, LinearHead, Pointmap, to_pointmap
from und3rstand_jax.model.module import HeadOutputs, MultiViewModel, Traced
from und3rstand_jax.model.output import Grids, ImageSizes, ViewTokens
from und3rstand_jax.model.start import token_grids


class DUSt3R(MultiViewModel):
    """The model; attributes and calls are those of `MultiViewModel`."""

    config: BackboneConfig

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
        layers: dict[str, Traced] = {}
        needs_decoder = any(site.startswith("decoder.") for site in missing)
        in_decoder = since is not None and since.startswith("decoder.")
        if missing and not in_decoder and since != "encoder.norm":
            encoder = Encoder(arithmetic, self.config, self.unroll, self.remat, name="encoder")
            layers = encoder(tokens, grids, missing | {"encoder.norm"} if needs_decoder else missing, edits, since)
        if needs_decoder:
            decoder = Decoder(arithmetic, self.config, self.unroll, self.remat, name="decoder")
            encoded = layers.get("encoder.norm", tokens)
            layers |= decoder(encoded, grids, missing, edits, since if in_decoder else None, before)
        return layers

    def run_heads(self, heads: Sequence[Head], layers: Mapping[str, Traced], sizes: ImageSizes, captured: Collection[str]) -> HeadOutputs:
        """See `MultiViewModel.run_heads`."""
        if not heads:
            return HeadOutputs()
        grids = token_grids(sizes, self.config)
        modules: dict[str, nn.Module] = {}
        return HeadOutputs(tuple(self.predict(heads, layers, grids, view, modules) for view in range(len(grids))))

    def predict(
        self, heads: Iterable[Head], layers: Mapping[str, Traced], grids: Grids, view: int, modules: dict[str, nn.Module]
    ) -> Pointmap:
        """A view's predictions by its heads: the first view's own heads, or those that all others share.

        Args:
            heads: the heads to run, out of the config's.
            layers: at least those that they read.
            grids: (rows, columns) of each view's tokens.
            view: from 0.
            modules: those made for earlier views, by name; new ones are added.
        """
        prediction = Pointmap()
        for head in heads:
            name = head.part(view)
            if name not in modules:
                modules[name] = self.head_module(head, name)
            maps = (layers[layer][view].reshape(-1, *grids[view], self.config.layer_width(layer)) for layer in head.layers)
            prediction |= self.read_head(head, modules[name](*maps))
        return prediction

    def head_module(self, head: Head, name: str) -> nn.Module:
        """The network of one of the config's heads, under this name; a family with further heads overrides this."""
        config = self.config
        return DPTHead(name=name) if config.pointmap_kind == "dpt" else LinearHead(config.patch_size, name=name)

    def read_head(self, head: Head, raw: Float[Array, "B H W K"]) -> Pointmap:
        """Converts a head's raw channels to what it adds to a prediction."""
        return to_pointmap(raw, self.config.depth_mode, self.config.conf_mode)
