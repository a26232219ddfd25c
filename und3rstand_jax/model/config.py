"""What every family's config says about its model: layers, attentions, heads and tokens.

Code that handles models of any family relies on this alone: which layers exist and in what order, where views meet, and what a pass takes
and returns.
"""

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

from und3rstand_jax.model.head_choice import Head
from und3rstand_jax.model.output_modes import Mode
from und3rstand_jax.model.preprocessing import Preprocessing
from und3rstand_jax.support.errors import ImageError

Reads = Literal["own", "others", "all"]
"""Whose tokens a view's attention reads: its own, those of all other views, or those of all views, including its own.

The tokens of several views are concatenated, view by view.
"""

Grid = tuple[int, int]
"""(rows, columns) of a view's patches."""


class Block(NamedTuple):
    """One block of the part in which views meet.

    Attributes:
        name: the block's name in tables and figures.
        own: the step whose attention reads a view's own tokens.
        across: the step whose attention reads other views' tokens.
        steps: all of its layers, in network order.
    """

    name: str
    own: str
    across: str
    steps: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class ModelConfig(abc.ABC):
    """The architecture of a model; each family's config class is a frozen dataclass derived from this one."""

    FROM_SCRATCH: ClassVar[Mapping[str, Any]] = {}
    """The options of `python -m train backbone` that define a model from scratch, with their defaults."""
    HEAD_TYPES: ClassVar[tuple[str, ...]] = ()
    """The values of the option `head`; empty if there is no such option."""

    @property
    @abc.abstractmethod
    def img_size(self) -> tuple[int, int]:
        """(height, width) of the training images; a model takes others too."""

    @property
    @abc.abstractmethod
    def patch_size(self) -> int:
        """The side of a patch in pixels; image sides are multiples of it."""

    @property
    @abc.abstractmethod
    def mlp_ratio(self) -> int:
        """An MLP's hidden channels per token channel."""

    @property
    def preprocessing(self) -> Preprocessing:
        """How photos are resized and cropped for the model by default."""
        return "probe"

    @property
    @abc.abstractmethod
    def depth_mode(self) -> Mode:
        """How raw channels become points; probes decode theirs in the same way."""

    @property
    @abc.abstractmethod
    def conf_mode(self) -> Mode:
        """How a raw channel becomes a confidence; probes decode theirs in the same way."""

    @property
    @abc.abstractmethod
    def layer_ids(self) -> tuple[str, ...]:
        """Every layer id, in network order."""

    @property
    @abc.abstractmethod
    def blocks(self) -> tuple[Block, ...]:
        """The blocks of the part in which views meet, in network order; `all` stands for their layers."""

    @property
    @abc.abstractmethod
    def embed(self) -> str:
        """The layer that the first of these blocks reads."""

    @property
    @abc.abstractmethod
    def heads(self) -> tuple[Head, ...]:
        """The heads, in the order of their outputs in predictions; empty for a trunk."""

    @property
    @abc.abstractmethod
    def trunk(self) -> tuple[str, ...]:
        """The parts of the parameter tree that belong to no head."""

    @classmethod
    @abc.abstractmethod
    def from_hub_config(cls, options: Mapping[str, Any]) -> "ModelConfig":
        """The config that the options of the PyTorch class describe.

        Raises:
            ConfigError: an option is unknown, or has a value this implementation does not support. All are listed.
        """

    @abc.abstractmethod
    def to_hub_config(self) -> dict[str, Any]:
        """The options of the hub's `config.json` that rebuild this config (infinities stay floats)."""

    @abc.abstractmethod
    def layer_width(self, layer_id: str) -> int:
        """Number of channels of a layer's tokens."""

    @abc.abstractmethod
    def head_count(self, layer_id: str) -> int:
        """Number of attention heads in the stack that a layer belongs to."""

    @abc.abstractmethod
    def reads(self, layer_id: str) -> Reads:
        """Whose tokens the attention of this step reads."""

    @abc.abstractmethod
    def check_view_count(self, count: int) -> None:
        """Refuses this number of views if the model does not take it.

        Raises:
            OptionError: the model takes fewer or more.
        """

    @classmethod
    @abc.abstractmethod
    def from_scratch(cls, options: Mapping[str, Any]) -> "ModelConfig":
        """The architecture that options of training define; all options of FROM_SCRATCH are given.

        Raises:
            OptionError: the image size is malformed, or a side is not a multiple of the patch size.
            ConfigError: the architecture is not valid.
        """

    def trained_on(self, views: int) -> "ModelConfig":
        """The architecture after training on sets of this many views."""
        return self

    def check_sizes(self, sizes: Sequence[tuple[int, int]]) -> None:  # noqa: B027 (most models take any)
        """Refuses images of these (height, width), which must be multiples of the patch size, if the model does not take them.

        Raises:
            ImageError: the model does not take them together.
        """

    def special_tokens(self, layer_id: str) -> tuple[str, ...]:
        """The names of a layer's special tokens, which precede its patch tokens."""
        return ()

    def token_count(self, layer_id: str, grid: Grid) -> int:
        """Number of a view's tokens in a layer: the special ones, then one for each patch, row by row."""
        return len(self.special_tokens(layer_id)) + grid[0] * grid[1]

    @property
    def inside_heads(self) -> Mapping[str, str]:
        """Id of each site inside a head, in the order in which they are computed -> that head's name."""
        return {}

    def before_block(self, layer_id: str) -> str | None:
        """The layer before the block that a layer is in the middle of, if the rest of the block reads it too; else None."""
        return None

    @property
    def all_layers(self) -> tuple[str, ...]:
        """The layers that `all` stands for: the residual stream after every step of the blocks in which views meet."""
        return tuple(step for block in self.blocks for step in block.steps)

    @property
    def readings(self) -> tuple[tuple[str, ...], ...]:
        """For each place in the blocks, the layers that a head attached there reads together; the last one names the place."""
        return tuple((layer,) for layer in (self.embed, *self.all_layers))

    @property
    def last_norm(self) -> str | None:
        """The norm after all blocks, which heads read instead of the last block's stream; None if norms are parts of the heads."""
        return None

    @property
    def block_width(self) -> int:
        """Channels of a token in these blocks."""
        return self.layer_width(self.embed)

    @property
    def block_heads(self) -> int:
        """Heads of each attention in these blocks."""
        return self.head_count(self.blocks[0].own)

    def attention_keys(self, layer_id: str, grids: Sequence[Grid], view: int) -> int:
        """How many tokens each of a view's tokens attends to in this step; `view` is counted from 0."""
        counts = [self.token_count(layer_id, grid) for grid in grids]
        reads = self.reads(layer_id)
        return counts[view] if reads == "own" else sum(counts) - (counts[view] if reads == "others" else 0)


def same_size(sizes: Sequence[tuple[int, int]]) -> None:
    """Refuses images of different sizes.

    Raises:
        ImageError: the sizes differ; the message lists them and says what to do.
    """
    if len(set(sizes)) > 1:
        found = ", ".join(f"view{number} {height}×{width}" for number, (height, width) in enumerate(sizes, start=1))
        raise ImageError(f"this model takes views of one size; found {found}: pad or crop them to one (load_images does)")
