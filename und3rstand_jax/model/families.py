"""The families of models that are implemented: for each, everything that a config alone does not say.

A family is a folder beside this file (`dust3r`, `mast3r`) and an entry of `FAMILIES`. Its config's class tells whose a backbone is; nobody
else asks for a family by its name.
"""

import dataclasses
import functools
import re
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NotRequired

from typing_extensions import TypedDict

from und3rstand_jax.model.args_string import parse_args_string
from und3rstand_jax.model.config import ModelConfig
from und3rstand_jax.model.dust3r import names as dust3r_tensors
from und3rstand_jax.model.dust3r import options
from und3rstand_jax.model.dust3r.config import PUBLISHED, BackboneConfig
from und3rstand_jax.model.dust3r.module import DUSt3R
from und3rstand_jax.model.dust3r.shapes import dust3r_shapes
from und3rstand_jax.model.mast3r import config as mast3r
from und3rstand_jax.model.mast3r import names as mast3r_tensors
from und3rstand_jax.model.mast3r.module import MASt3R
from und3rstand_jax.model.module import MultiViewModel
from und3rstand_jax.model.output_modes import Mode, StoredMode
from und3rstand_jax.model.tensor_names import Leaf, NamedStack, Shape, leaves_of
from und3rstand_jax.model.vggt.config import VGGTConfig
from und3rstand_jax.model.vggt.module import VGGT
from und3rstand_jax.support.errors import ConfigError


@dataclasses.dataclass(frozen=True, eq=False)
class Family:
    """One family of models.

    Attributes:
        name: in the `config.json` of converted checkpoints.
        title: for people to read.
        config: the class of its configs.
        module: the class of its models.
        names: from a config, and the blocks of PyTorch that fill view 2's decoder, to the table of names.
        shapes: from a config to the shape of every leaf of the tree.
        head_fields: from the names and shapes of all tensors of view 1's head in PyTorch to the fields that they show, None where the
            head is not one of this family's.
        describes: whether options are of this family; the last family takes what no other does.
        refusal: from the names of tensors, of options and of the class in PyTorch to why a model of this family is not implemented; None
            where nothing speaks against it.
        options: that the class in PyTorch may have.
        published: name on the hub, below `naver/` -> architecture.
        option_of: field -> option in PyTorch, where it has another name.
        unseen: fields that change results and that no tensor shows.
    """

    name: str
    title: str
    config: type[ModelConfig]
    module: type[MultiViewModel]
    names: Callable[[Any, str], tuple[NamedStack, ...]]
    shapes: Callable[[Any], dict[str, Shape]]
    head_fields: Callable[[Mapping[str, Shape]], dict[str, Any] | None]
    describes: Callable[[Mapping[str, Any]], bool]
    refusal: Callable[[Iterable[str]], str | None]
    options: frozenset[str]
    published: Mapping[str, ModelConfig]
    option_of: Mapping[str, str]
    unseen: tuple[str, ...]

    @functools.cached_property
    def stored(self) -> Any:
        """What the backbone's entry in a `config.json` must hold: the fields of the config, as strict JSON has them."""
        hints = typing.get_type_hints(self.config)
        fields: dict[str, Any] = {}
        for field in dataclasses.fields(self.config):
            kind = StoredMode if hints[field.name] == Mode else hints[field.name]
            # Checkpoints of earlier versions lack what came later.
            fields[field.name] = NotRequired[kind] if field.metadata.get("came_later") else kind
        return TypedDict("Backbone", fields)  # type: ignore[operator]


DUST3R = Family(
    name="dust3r",
    title="DUSt3R",
    config=BackboneConfig,
    module=DUSt3R,
    names=dust3r_tensors.dust3r_names,
    shapes=dust3r_shapes,
    head_fields=dust3r_tensors.head_fields,
    describes=lambda options: True,
    refusal=lambda names: None,
    options=options.IGNORED.union(options.PARSERS, {"output_mode"}),
    published=PUBLISHED,
    option_of=options.OPTION_OF,
    unseen=("enc_num_heads", "dec_num_heads", "rope_base", "depth_mode", "conf_mode"),
)
MAST3R = Family(
    name="mast3r",
    title="MASt3R",
    config=mast3r.MASt3RConfig,
    module=MASt3R,
    names=mast3r_tensors.mast3r_names,
    shapes=mast3r_tensors.mast3r_shapes,
    head_fields=mast3r_tensors.head_fields,
    describes=mast3r.MASt3RConfig.describes,
    refusal=mast3r_tensors.refusal,
    options=frozenset({"desc_mode", "desc_conf_mode", "two_confs"}),
    published=mast3r.PUBLISHED,
    option_of=options.OPTION_OF | mast3r.OPTION_OF,
    unseen=(*DUST3R.unseen, "two_confs", "desc_conf_mode"),
)
VGGT_FAMILY = Family(
    name="vggt",
    title="VGGT",
    config=VGGTConfig,
    module=VGGT,
    names=lambda config, second_decoder: (),
    shapes=lambda config: {},
    head_fields=lambda tensors: None,
    describes=lambda options: False,
    refusal=lambda names: None,
    options=frozenset(),
    published={},
    option_of={},
    unseen=(),
)

FAMILIES = (VGGT_FAMILY, MAST3R, DUST3R)
"""The last takes what no other does."""

UNNAMED = DUST3R
"""That of a converted checkpoint whose backbone names none: checkpoints of the first versions, and all that those can read."""

PUBLISHED_BACKBONES: Mapping[str, ModelConfig] = {name: config for family in FAMILIES for name, config in family.published.items()}
"""All published models: name on the hub, below `naver/` -> architecture."""

KNOWN_OPTIONS = frozenset().union(*(family.options for family in FAMILIES))
"""The options in PyTorch that a backbone of any family may have."""


def family_of(config: ModelConfig) -> Family:
    """The family of a backbone with this config."""
    return next(family for family in FAMILIES if type(config) is family.config)


def config_of_options(stated: Mapping[str, Any] | str) -> ModelConfig:
    """The config that the hub's `config.json` states, or the model's call in a `.pth` file's args, which is parsed and never evaluated.

    Raises:
        ConfigError: an option is unknown, or has a value that is not supported.
    """
    name, options = parse_args_string(stated) if isinstance(stated, str) else ("", stated)
    refuse([name, *options, *(value for value in options.values() if isinstance(value, str))])
    family = next(family for family in FAMILIES if family.describes(options))
    return family.config.from_hub_config(options)


def knows_heads(names: Iterable[str]) -> bool:
    """Whether a family has the heads that tensors of these names belong to."""
    found = (re.fullmatch(r"(?:.*\.)?downstream_head1\.(.+)", name) for name in names)
    head = {match[1]: () for match in found if match}
    return any(family.head_fields(head) is not None for family in FAMILIES)


def refuse(names: Iterable[str]) -> None:
    """Refuses a model that a family knows and this implementation does not have.

    Args:
        names: of its tensors, or of its options and its class.

    Raises:
        ConfigError: the message names it.
    """
    names = tuple(names)
    for family in FAMILIES:
        if reason := family.refusal(names):
            raise ConfigError(f"backbone: {reason}")


def backbone_module(config: ModelConfig, **attributes: Any) -> MultiViewModel:
    """The model of a config; the attributes are those of `MultiViewModel`."""
    return family_of(config).module(config, **attributes)


def backbone_shapes(config: ModelConfig) -> dict[str, Shape]:
    """Path (`decoder/norm/scale`) -> shape of every leaf of a backbone's parameter tree, its heads included."""
    return family_of(config).shapes(config)


def backbone_leaves(config: ModelConfig, prefix: str = "", second_decoder: str = "dec_blocks2") -> dict[str, Leaf]:
    """Every leaf of the backbone's parameter tree and its source tensors.

    Args:
        config: the architecture.
        prefix: what the checkpoint puts before every name (`module.`).
        second_decoder: the blocks that fill view 2's decoder; `dec_blocks` in a CroCo checkpoint, which has one.
    """
    return leaves_of(family_of(config).names(config, second_decoder), prefix)
