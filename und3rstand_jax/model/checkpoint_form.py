"""What a family says of its checkpoints in PyTorch: how their tensors are told from others', and what they show of the architecture.

Names are those without wrappers (`module.`) and, where it says so, without what the checkpoint puts before all of them. No values are
read.
"""

import abc
import re
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal, NamedTuple

from und3rstand_jax.model.config import ModelConfig
from und3rstand_jax.model.tensor_names import NamedStack, Shape

How = Literal["read", "inferred", "default", "option"]
"""How a fact was found: "read" where names, shapes or config state it, "inferred" where they leave one reading, "default" where they leave
it open and the documented default was taken, "option" where the caller stated it."""

Evidence = tuple[How, str]
"""How a fact was found, and why it is so."""

Shapes = Mapping[str, Shape]
"""Shape of every tensor of a checkpoint, by its name without what stands before all of them."""


class Architecture(NamedTuple):
    """What options and tensors say of an architecture.

    Attributes:
        config: the architecture.
        evidence: of every field.
        guesses: the fields that change results and that nothing said; to be reported even when nobody asked.
    """

    config: ModelConfig
    evidence: Mapping[str, Evidence]
    guesses: tuple[str, ...]


class TensorUses(NamedTuple):
    """What the tensors of a checkpoint are there for.

    Attributes:
        stacks: the modules of the tree and their names.
        unused: pattern of names -> why the model never reads them; they are kept for the export.
        second_names: second name -> first name of tensors that a checkpoint may hold under both, or under either.
        title: what the model is if it is no published one, or no whole one.
        is_whole: whether it can be a published one.
        facts: (field, value, why) of what follows from the tensors and is no field of the config.
    """

    stacks: tuple[NamedStack, ...]
    unused: Mapping[str, str]
    second_names: Mapping[str, str]
    title: str
    is_whole: bool
    facts: tuple[tuple[str, str, str], ...] = ()


class CheckpointForm(abc.ABC):
    """How a family's checkpoints look.

    Attributes:
        anchor: the tensor by whose name they are known. Of two whose names end alike the longer counts.
        known_as: for messages, what models can have it.
        stated: the options that every config of such a model states.
        options: all options that its class in PyTorch may have.
        depths: the fields of its config that count blocks.
        widths: the fields that an axis of a tensor is at least as long as.
    """

    anchor: ClassVar[str]
    known_as: ClassVar[tuple[str, ...]]
    stated: ClassVar[frozenset[str]]
    options: ClassVar[frozenset[str]]
    depths: ClassVar[tuple[str, ...]]
    widths: ClassVar[tuple[str, ...]]

    @abc.abstractmethod
    def own_names(self, names: Iterable[str]) -> frozenset[str]:
        """Those of these names that are a backbone's of this family, whatever stands before them."""

    @abc.abstractmethod
    def has_heads(self, names: Iterable[str]) -> bool:
        """Whether tensors of these names belong to heads that are implemented."""

    @abc.abstractmethod
    def of_options(self, options: Mapping[str, Any], where: str, tensors: Shapes) -> Architecture:
        """The architecture that options state; `where` they stand is said in the evidence.

        Raises:
            ConfigError: an option is unknown, or has a value that is not supported. All are listed.
            CheckpointError: the tensors show another architecture.
        """

    @abc.abstractmethod
    def of_shapes(self, tensors: Shapes) -> Architecture | None:
        """Without options, what shapes show, and the published models' values for the rest; None where the heads are another family's.

        Raises:
            CheckpointError: they do not show it.
            ConfigError: no model has the sizes that they show.
        """

    @abc.abstractmethod
    def uses(self, config: Any, tensors: Iterable[str]) -> TensorUses:
        """What tensors of these names are there for."""


def block_count(stack: str, tensors: Iterable[str]) -> int:
    """How many blocks of a stack (`enc_blocks`) have tensors, by the largest number."""
    pattern = re.compile(re.escape(stack) + r"\.(\d+)\.")
    return 1 + max((int(match[1]) for match in map(pattern.match, tensors) if match), default=-1)
