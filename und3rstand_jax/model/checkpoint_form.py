"""What a family says about its PyTorch checkpoints: how to recognise their tensors, and what these show about the architecture.

Names are given without wrappers (`module.`) and, where stated, without the prefix that all names of the checkpoint share. No values are
read.
"""

import abc
import re
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal, NamedTuple

from und3rstand_jax.model.config import ModelConfig
from und3rstand_jax.model.tensor_names import NamedStack, Shape

How = Literal["read", "inferred", "default", "option"]
"""How a fact was found: "read" if names, shapes or config state it, "inferred" if they leave one possibility, "default" if they leave it
open and the documented default was taken, "option" if the caller stated it."""

Evidence = tuple[How, str]
"""How a fact was found, and why it is so."""

Shapes = Mapping[str, Shape]
"""Shape of every tensor of a checkpoint, by its name without the prefix that all names share."""


class Architecture(NamedTuple):
    """What options and tensors say about an architecture.

    Attributes:
        config: the architecture.
        evidence: for every field, how its value was found.
        guesses: the fields that affect results but that nothing states; they are always reported.
    """

    config: ModelConfig
    evidence: Mapping[str, Evidence]
    guesses: tuple[str, ...]


class TensorUses(NamedTuple):
    """What the tensors of a checkpoint are for.

    Attributes:
        stacks: the modules of the tree and their names.
        unused: pattern of names -> why the model never reads them; they are kept for the export.
        second_names: second name -> first name of tensors that a checkpoint may contain under both, or under either.
        title: a description of the model, for one that is not a published model or not complete.
        is_whole: whether it can be a published model.
        facts: (field, value, why) for what follows from the tensors but is not a field of the config.
    """

    stacks: tuple[NamedStack, ...]
    unused: Mapping[str, str]
    second_names: Mapping[str, str]
    title: str
    is_whole: bool
    facts: tuple[tuple[str, str, str], ...] = ()


class CheckpointForm(abc.ABC):
    """What a family's checkpoints look like.

    Attributes:
        anchor: the tensor by whose name they are recognised. If one anchor's name ends with another's, the longer one counts.
        known_as: for messages, the models that can have it.
        stated: the options that every config of such a model states.
        options: all options that its PyTorch class may have.
        depths: the fields of its config that count blocks.
        widths: the fields whose value is at most the length of some tensor's axis.
    """

    anchor: ClassVar[str]
    known_as: ClassVar[tuple[str, ...]]
    stated: ClassVar[frozenset[str]]
    options: ClassVar[frozenset[str]]
    depths: ClassVar[tuple[str, ...]]
    widths: ClassVar[tuple[str, ...]]

    @abc.abstractmethod
    def own_names(self, names: Iterable[str]) -> frozenset[str]:
        """The names, out of these, that belong to a backbone of this family, whatever their prefix."""

    @abc.abstractmethod
    def has_heads(self, names: Iterable[str]) -> bool:
        """Whether tensors with these names belong to heads that are implemented."""

    @abc.abstractmethod
    def of_options(self, options: Mapping[str, Any], where: str, tensors: Shapes) -> Architecture:
        """The architecture that options state; the evidence cites `where` they are stated.

        Raises:
            ConfigError: an option is unknown, or has a value that is not supported. All are listed.
            CheckpointError: the tensors show another architecture.
        """

    @abc.abstractmethod
    def of_shapes(self, tensors: Shapes) -> Architecture | None:
        """The architecture that shapes show, with the published models' values for the rest; None if the heads are another family's.

        Raises:
            CheckpointError: the shapes do not show the architecture.
            ConfigError: the sizes that they show are not a valid architecture.
        """

    @abc.abstractmethod
    def uses(self, config: Any, tensors: Iterable[str]) -> TensorUses:
        """What tensors with these names are for."""


def block_count(stack: str, tensors: Iterable[str]) -> int:
    """How many blocks of a stack (`enc_blocks`) have tensors, by the largest number."""
    pattern = re.compile(re.escape(stack) + r"\.(\d+)\.")
    return 1 + max((int(match[1]) for match in map(pattern.match, tensors) if match), default=-1)
