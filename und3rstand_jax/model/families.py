"""The implemented families of models: for each, everything that a config alone does not say.

A family is a folder beside this file (`dust3r`, `mast3r`, `vggt`) and an entry in `FAMILIES`. The class of its config determines the family
of a backbone; no other code refers to a family by its name.
"""

import dataclasses
import functools
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, NotRequired

from typing_extensions import TypedDict

from und3rstand_jax.model.args_string import parse_args_string
from und3rstand_jax.model.checkpoint_form import CheckpointForm
from und3rstand_jax.model.config import ModelConfig
from und3rstand_jax.model.dust3r import names as dust3r_tensors
from und3rstand_jax.model.dust3r.checkpoint import DUSt3RForm
from und3rstand_jax.model.dust3r.config import PUBLISHED, BackboneConfig
from und3rstand_jax.model.dust3r.module import DUSt3R
from und3rstand_jax.model.dust3r.shapes import dust3r_shapes
from und3rstand_jax.model.mast3r import config as mast3r
from und3rstand_jax.model.mast3r import names as mast3r_tensors
from und3rstand_jax.model.mast3r.checkpoint import MASt3RForm
from und3rstand_jax.model.mast3r.module import MASt3R
from und3rstand_jax.model.module import MultiViewModel
from und3rstand_jax.model.output_modes import Mode, StoredMode
from und3rstand_jax.model.tensor_names import Leaf, NamedStack, Shape, leaves_of
from und3rstand_jax.model.vggt import config as vggt
from und3rstand_jax.model.vggt.checkpoint import VGGTForm
from und3rstand_jax.model.vggt.module import VGGT
from und3rstand_jax.model.vggt.names import vggt_names
from und3rstand_jax.model.vggt.shapes import vggt_shapes
from und3rstand_jax.support.errors import CheckpointError, ConfigError
from und3rstand_jax.support.text import listed


@dataclasses.dataclass(frozen=True, eq=False)
class Family:
    """One family of models.

    Attributes:
        name: the family's name in the `config.json` of converted checkpoints.
        config: the class of its configs.
        module: the class of its models.
        names: maps a config to the table of names.
        shapes: maps a config to the shape of every leaf of the tree.
        form: what its checkpoints look like.
        describes: whether options belong to this family. Among families whose checkpoints are recognised by the same tensor, the last takes
            what no other does.
        refusal: maps the names of tensors, of options and of the PyTorch class to the reason why such a model of this family is not
            implemented; None if there is no reason.
        published: hub id -> architecture.
    """

    name: str
    config: type[ModelConfig]
    module: type[MultiViewModel]
    names: Callable[[Any], tuple[NamedStack, ...]]
    shapes: Callable[[Any], dict[str, Shape]]
    form: CheckpointForm
    describes: Callable[[Mapping[str, Any]], bool]
    published: Mapping[str, ModelConfig]
    refusal: Callable[[Iterable[str]], str | None] = lambda names: None

    @functools.cached_property
    def stored(self) -> Any:
        """The type of the backbone's entry in a `config.json`: the fields of the config, in strict JSON."""
        hints = typing.get_type_hints(self.config)
        fields: dict[str, Any] = {}
        for field in dataclasses.fields(self.config):
            kind = StoredMode if hints[field.name] == Mode else hints[field.name]
            # Checkpoints of earlier versions lack the fields that were added later.
            fields[field.name] = NotRequired[kind] if field.metadata.get("came_later") else kind
        return TypedDict("Backbone", fields)  # type: ignore[operator]


DUST3R = Family(
    name="dust3r",
    config=BackboneConfig,
    module=DUSt3R,
    names=dust3r_tensors.dust3r_names,
    shapes=dust3r_shapes,
    form=DUSt3RForm(),
    describes=lambda options: True,
    published=PUBLISHED,
)
MAST3R = Family(
    name="mast3r",
    config=mast3r.MASt3RConfig,
    module=MASt3R,
    names=mast3r_tensors.mast3r_names,
    shapes=mast3r_tensors.mast3r_shapes,
    form=MASt3RForm(),
    describes=mast3r.MASt3RConfig.describes,
    published=mast3r.PUBLISHED,
    refusal=mast3r_tensors.refusal,
)
VGGT_FAMILY = Family(
    name="vggt",
    config=vggt.VGGTConfig,
    module=VGGT,
    names=vggt_names,
    shapes=vggt_shapes,
    form=VGGTForm(),
    describes=lambda options: VGGTForm.stated <= options.keys(),
    published=vggt.PUBLISHED,
)

FAMILIES = (VGGT_FAMILY, MAST3R, DUST3R)
"""The last takes what no other does."""

UNNAMED = DUST3R
"""The family of a converted checkpoint whose backbone names none: those of the first versions, and all that those versions can read."""

_KNOWN = [name for family in reversed(FAMILIES) for name in family.form.known_as]
KNOWN_BACKBONES = f"{', '.join(_KNOWN[:-1])} or {_KNOWN[-1]}"
"""What a checkpoint may contain, for messages."""

KNOWN_ANCHORS = " or ".join(dict.fromkeys(family.form.anchor for family in reversed(FAMILIES)))
"""The tensors by which they are recognised, for messages."""


class FoundBackbone(NamedTuple):
    """A backbone among tensors.

    Attributes:
        prefix: the prefix of every name.
        families: the families with this anchor.
    """

    prefix: str
    families: tuple[Family, ...]


def find_backbone(names: Iterable[str]) -> FoundBackbone | None:
    """The backbone among tensors with these names, given without wrappers; None if there is none.

    Raises:
        CheckpointError: there are several.
    """
    anchors = sorted({family.form.anchor for family in FAMILIES}, key=len, reverse=True)
    found: dict[str, tuple[str, str]] = {}
    for name in names:
        # Whole components: another model's pos_patch_embed is no second backbone. The longest: one anchor may end as another.
        anchor = next((anchor for anchor in anchors if f".{name}".endswith(f".{anchor}")), None)
        if anchor is not None:
            found[name] = (name.removesuffix(anchor), anchor)
    if len(found) > 1:
        prefixes = listed(repr(found[name][0]) for name in sorted(found))
        raise CheckpointError(
            f"found {len(found)} backbones in one checkpoint, under the prefixes {prefixes}; expected one: choose it with --key PREFIX"
        )
    if not found:
        return None
    ((prefix, anchor),) = found.values()
    return FoundBackbone(prefix, tuple(family for family in FAMILIES if family.form.anchor == anchor))


def own_names(names: Iterable[str]) -> frozenset[str]:
    """The names, out of these given without wrappers, that belong to a backbone of any family."""
    names = tuple(names)
    return frozenset().union(*(family.form.own_names(names) for family in FAMILIES))


def known_options(config: ModelConfig) -> frozenset[str]:
    """The PyTorch options of all families whose checkpoints have the same anchor as those of a backbone with this config."""
    anchor = family_of(config).form.anchor
    return frozenset().union(*(family.form.options for family in FAMILIES if family.form.anchor == anchor))


def published_config(source: str) -> ModelConfig | None:
    """The architecture of a published model, by its hub id or its name alone; None for any other."""
    every = {name: config for family in FAMILIES for name, config in family.published.items()}
    return every.get(source) or next((config for name, config in every.items() if name.partition("/")[2] == source), None)


def published_name(config: ModelConfig) -> str | None:
    """The name, without the owner, of the first published model with this architecture; None if there is none."""
    return next((name.partition("/")[2] for name, known in family_of(config).published.items() if config == known), None)


def family_of(config: ModelConfig) -> Family:
    """The family of a backbone with this config."""
    return next(family for family in FAMILIES if type(config) is family.config)


def config_of_options(stated: Mapping[str, Any] | str) -> ModelConfig:
    """The config stated by the hub's `config.json`, or by the model's call in a `.pth` file's args, which is parsed and never evaluated.

    Raises:
        ConfigError: the call cannot be parsed, the model is not implemented, or an option is unknown or has an unsupported value.
    """
    options, family = options_of(stated, FAMILIES)
    return family.config.from_hub_config(options)


def options_of(stated: Mapping[str, Any] | str, families: tuple[Family, ...]) -> tuple[Mapping[str, Any], Family]:
    """The options that a config or a call states, and which of the families they belong to.

    Raises:
        ConfigError: the call cannot be parsed, or describes a model that is not implemented.
    """
    name, options = parse_args_string(stated) if isinstance(stated, str) else ("", stated)
    refuse([name, *options, *(value for value in options.values() if isinstance(value, str))])
    return options, next((family for family in families if family.describes(options)), families[-1])


def knows_heads(names: Iterable[str]) -> bool:
    """Whether any family has the heads that tensors with these names belong to."""
    names = tuple(names)
    return any(family.form.has_heads(names) for family in FAMILIES)


def refuse(names: Iterable[str]) -> None:
    """Refuses a model that belongs to a known family but is not implemented here.

    Args:
        names: those of its tensors, or of its options and its class.

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


def backbone_leaves(config: ModelConfig) -> dict[str, Leaf]:
    """Every leaf of the backbone's parameter tree and its source tensors, whose names have no prefix."""
    return leaves_of(family_of(config).names(config))
