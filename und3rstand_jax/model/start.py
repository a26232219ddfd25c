"""Forward passes that begin at a captured layer, so that everything before an edit is computed only once.

before = backbone(view1, view2, capture=u3d.start_layers("decoder.3.mlp", backbone.config), head=False)
after = backbone(start=before, edits=edits, head=True)
"""

from collections.abc import Collection
from typing import NamedTuple

import jax.numpy as jnp

from und3rstand_jax.model.config import ModelConfig
from und3rstand_jax.model.head_choice import HeadChoice, head_layers
from und3rstand_jax.model.layer_ids import network_order
from und3rstand_jax.model.output import BackboneOutput, Grids, ImageSizes, ViewTokens
from und3rstand_jax.model.sites import parse_site, select_sites
from und3rstand_jax.support.errors import EditError, LayerError


class Start(NamedTuple):
    """Where a pass begins.

    Attributes:
        layer_id: the layer after which it begins.
        layers: every view's tokens of this layer, and of other layers before it.
        image_sizes: (height, width) of every view.
        batch: number of sets of views.
    """

    layer_id: str
    layers: dict[str, ViewTokens]
    image_sizes: ImageSizes
    batch: int

    @property
    def tokens(self) -> ViewTokens:
        """The tokens that the pass begins with."""
        return self.layers[self.layer_id]

    def before_block(self, config: ModelConfig) -> ViewTokens | None:
        """The streams before the block that the pass begins in the middle of, if the block reads them; else None."""
        needed = config.before_block(self.layer_id)
        if needed is None:
            return None
        if needed not in self.layers:
            raise LayerError(
                f"a pass from {self.layer_id} on needs {needed} too, which the other views' cross-attention reads; capture "
                f"{', '.join(start_layers(self.layer_id, config, head=False))}"
            )
        return self.layers[needed]

    def check(self, needed: Collection[str], edited: Collection[str]) -> None:
        """Refuses sites that come before the start.

        Raises:
            LayerError: a needed site is not among the layers given.
            EditError: an edit there would have no effect.
        """
        for site in needed:
            if self._is_before(site) and site not in self.layers:
                raise LayerError(
                    f"{site} comes before the start, {self.layer_id}, and was not captured; captured: {', '.join(self.layers)}; "
                    "begin earlier, or capture what start_layers returns"
                )
        if early := [site for site in edited if site != self.layer_id and self._is_before(site)]:
            raise EditError(f"an edit of {early[0]} comes before the start, {self.layer_id}, and would change nothing; begin earlier")

    def _is_before(self, site: str) -> bool:
        return network_order(parse_site(site).layer_id) <= network_order(self.layer_id)


def as_start(output: BackboneOutput, config: ModelConfig, dtype: jnp.dtype) -> Start:
    """Makes a start from the captures of an earlier pass; the new pass begins after their last layer.

    Raises:
        LayerError: no layer of this model was captured.
        OptionError: the model does not take this many views.
        EditError: the tokens' shape is not that of this model's layers for these image sizes.
    """
    known = set(config.layer_ids)
    layers = {layer: tokens for layer, tokens in output.activations.items() if layer in known}
    if not layers:
        raise LayerError(f"expected a start with a captured layer of this model to begin at; captured: {', '.join(output) or 'none'}")
    config.check_view_count(len(output.image_sizes))
    batch = len(next(iter(layers.values()))[0])
    grids = token_grids(output.image_sizes, config)
    for layer, views in layers.items():
        for number, (tokens, grid) in enumerate(zip(views, grids, strict=True), start=1):
            expected = (batch, config.token_count(layer, grid), config.layer_width(layer))
            if tokens.shape != expected:
                raise EditError(f"start: expected tokens of {layer}, view {number}, of shape {expected}; found {tuple(tokens.shape)}")
    last = max(layers, key=network_order)
    return Start(last, {layer: tuple(jnp.asarray(x, dtype) for x in views) for layer, views in layers.items()}, output.image_sizes, batch)


def start_layers(layer_id: str, config: ModelConfig, head: HeadChoice = True) -> tuple[str, ...]:
    """What to capture so that a later pass can begin after a layer.

    Args:
        layer_id: the layer after which the pass begins; one id, not a pattern.
        config: the backbone's config.
        head: the heads that the pass will run; they may read earlier layers too.

    Raises:
        LayerError: there is no such layer.
        OptionError: there is no such head.
    """
    (site,) = select_sites(layer_id, config)
    place = network_order(site.layer_id)
    before = config.before_block(site.layer_id)
    wanted = {site.layer_id, *((before,) if before else ())}
    read = head_layers(config, head if config.heads else False)
    wanted |= {layer for layer in read if network_order(layer) < place}
    return tuple(layer for layer in config.layer_ids if layer in wanted)


def token_grids(image_sizes: ImageSizes, config: ModelConfig) -> Grids:
    """(rows, columns) of each view's tokens."""
    return tuple((height // config.patch_size, width // config.patch_size) for height, width in image_sizes)
