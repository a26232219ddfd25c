"""Tokens as colours: for a layer and a pair, the first three principal components of both views' tokens as red, green and blue."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.figure import Figure

from und3rstand_jax.analysis.studies.study import Setting
from und3rstand_jax.model.config import ModelConfig
from und3rstand_jax.model.images import to_uint8

PAIRS = 3
"""The most pairs that are shown."""

_IN_BLOCKS = 6  # layers shown of the encoder's and the decoder's blocks
_CLIPPED = (2.0, 98.0)  # percentiles of a component that become black and full colour

Colours = Float[np.ndarray, "rows columns 3"]
"""Each token's colour, in [0, 1]."""


def shown_layers(config: ModelConfig) -> tuple[str, ...]:
    """About eight layers from the first to the last; those in blocks are the blocks' ends."""
    before = config.layer_ids[: config.layer_ids.index(config.embed)]
    ends = [layer for layer in before if layer.endswith(".mlp")]
    encoder = [ends[block] for block in sorted({0, len(ends) // 2})]
    depth = len(config.blocks)
    blocks = np.unique(np.linspace(0, depth - 1, min(_IN_BLOCKS - 1, depth)).round().astype(int))
    last = () if config.last_norm is None else (config.last_norm,)
    return (*encoder, before[-1], *(config.blocks[block].steps[-1] for block in blocks), *last)


def colours_of(setting: Setting) -> tuple[list[tuple[UInt8[np.ndarray, "H W 3"], ...]], dict[str, list[tuple[Colours, ...]]]]:
    """Both images of each of the first pairs, and for each layer both views' colours in these pairs."""
    layers, count = shown_layers(setting.backbone.config), min(PAIRS, setting.count)
    images, colours = [], {layer: [] for layer in layers}  # type: tuple[list, dict[str, list]]
    for number in range(count):
        views = [view[number : number + 1] for view in setting.pairs.views]
        images.append(tuple(to_uint8(view[0]) for view in views))
        output = setting.backbone(views[0], views[1], capture=layers, head=False)
        for layer in layers:
            one, two = (np.asarray(tokens[0], np.float64) for tokens in output.patches(layer))
            both = principal_colours(np.concatenate([one, two]))
            parts = both[: len(one)], both[len(one) :]
            colours[layer].append(tuple(part.reshape(*grid, 3) for part, grid in zip(parts, setting.grids, strict=True)))
    return images, colours


def principal_colours(tokens: Float[np.ndarray, "N C"]) -> Float[np.ndarray, "N 3"]:
    """The first three principal components in [0, 1], each stretched from its 2nd to its 98th percentile.

    A component's sign makes its largest deviation from the mean positive; one that does not exist, or is constant, is 0.5.
    """
    centred = tokens - tokens.mean(axis=0)
    u, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    found = np.full((len(tokens), 3), 0.5)
    for index in range(min(3, len(sizes))):
        if sizes[index] <= 1e-9 * max(sizes[0], 1e-30):
            continue
        scores = u[:, index] * sizes[index]
        scores = scores * np.sign(scores[np.argmax(np.abs(scores))])
        low, high = np.percentile(scores, _CLIPPED)
        if high > low:
            found[:, index] = np.clip((scores - low) / (high - low), 0.0, 1.0)
    return found


def colours_figure(images: Sequence[Sequence[np.ndarray]], colours: dict[str, list[tuple[Colours, ...]]]) -> Figure:
    """Rows are layers below the images; columns are pairs and their views."""
    columns = 2 * len(images)
    height, width = images[0][0].shape[:2]
    cell = 1.35
    size = (columns * cell + 1.7, (len(colours) + 1) * cell * height / width + 0.9)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(colours) + 1, columns, squeeze=False)
    for pair, views in enumerate(images):
        for view, image in enumerate(views):
            place = axes[0][2 * pair + view]
            place.imshow(image)
            place.set_title(f"pair {pair}\nview {view + 1}", fontsize=8)
            for row, of_pairs in zip(axes[1:], colours.values(), strict=True):
                row[2 * pair + view].imshow(of_pairs[pair][view], interpolation="nearest", extent=(0, image.shape[1], image.shape[0], 0))
    for row, name in zip(axes, ("image", *colours), strict=True):
        row[0].set_ylabel(name, fontsize=8, rotation=0, ha="right", va="center")
    for place in axes.ravel():
        place.set(xticks=[], yticks=[])
        place.spines[:].set_visible(False)
    figure.suptitle(
        "First three principal components of a layer's tokens, both views of a pair together, as red, green and blue", fontsize=9
    )
    return figure
