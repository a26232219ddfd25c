"""The names of a model's steps in studies, whatever its family: by the part of their ids that differs, and in words."""

from typing import NamedTuple

from und3rstand_jax.model.config import ModelConfig

_WORDS = {"self_attn": "self-attention", "cross_attn": "cross-attention", "mlp": "MLP"}


class Kinds(NamedTuple):
    """The kinds of step that every block has: `self_attn`, or `frame.self_attn` in blocks with several stacks.

    Attributes:
        steps: in the order of a block's steps.
        own: the attention that reads a view's own tokens.
        across: the attention that reads other views' tokens.
    """

    steps: tuple[str, ...]
    own: str
    across: str

    @property
    def attentions(self) -> tuple[str, str]:
        """Both kinds of attention, the one between the views first."""
        return self.across, self.own


def stacks_of(config: ModelConfig) -> tuple[str, ...]:
    """The stacks that a block's steps belong to."""
    return tuple(dict.fromkeys(step.split(".")[0] for step in config.blocks[0].steps))


def kind_of(layer_id: str, config: ModelConfig) -> str:
    """The kind of a step of a block."""
    stack, _, step = layer_id.split(".")
    return step if len(stacks_of(config)) == 1 else f"{stack}.{step}"


def kinds_of(config: ModelConfig) -> Kinds:
    """All kinds."""
    block = config.blocks[0]
    return Kinds(tuple(kind_of(step, config) for step in block.steps), kind_of(block.own, config), kind_of(block.across, config))


def steps_of(kind: str, config: ModelConfig) -> tuple[str, ...]:
    """The layer ids of all steps of a kind, block by block."""
    place = kinds_of(config).steps.index(kind)
    return tuple(block.steps[place] for block in config.blocks)


def block_of(layer_id: str) -> int:
    """The number of the block that a step is in."""
    return int(layer_id.split(".")[1])


def words_of(kind: str) -> str:
    """A kind of step in words: cross-attention, the MLP of a stack as "frame MLP", its attention as "frame attention"."""
    stack, _, step = kind.rpartition(".")
    if not stack:
        return _WORDS[step]
    return f"{stack} {'attention' if step.endswith('_attn') else _WORDS[step]}"


def block_words(config: ModelConfig) -> str:
    """What one block is called."""
    stacks = stacks_of(config)
    return f"{stacks[0]} block" if len(stacks) == 1 else "block pair"


def blocks_words(config: ModelConfig) -> str:
    """What all blocks are called, whether each view has its own or all share them."""
    stacks = stacks_of(config)
    return f"the {stacks[0]}s" if len(stacks) == 1 else f"the {' and '.join(stacks)} blocks"


def whose_words(config: ModelConfig) -> str:
    """The same as a possessive."""
    stacks = stacks_of(config)
    return f"the {stacks[0]}'s" if len(stacks) == 1 else f"{blocks_words(config)}'"


def pattern_of(kind: str, config: ModelConfig, part: str) -> str:
    """The pattern that matches a part of all steps of a kind: `decoder.*.cross_attn.heads`."""
    stack, _, step = steps_of(kind, config)[0].split(".")
    return f"{stack}.*.{step}.{part}"
