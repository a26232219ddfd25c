"""A backbone's architecture: that of an existing model, or one built from options."""

from collections.abc import Iterable
from pathlib import Path

from und3rstand_jax.checkpoint.format import read_checkpoint_info
from und3rstand_jax.loading import converted_checkpoint, known_config
from und3rstand_jax.model.config import ModelConfig
from und3rstand_jax.model.families import FAMILIES, UNNAMED, Family
from und3rstand_jax.support.errors import CheckpointError, OptionError
from und3rstand_jax.train.options import BackboneOptions


def backbone_config(source: str) -> ModelConfig:
    """The architecture of a backbone. For a published one, no weights are needed.

    Raises:
        CheckpointError: the source cannot be read, or contains no backbone.
    """
    known = known_config(source)
    return config_of(converted_checkpoint(source)) if known is None else known


def config_of(folder: Path, option: str = "--backbone") -> ModelConfig:
    """The architecture of a converted checkpoint's backbone.

    Raises:
        CheckpointError: it contains no backbone; the message names the option that the checkpoint was given to.
    """
    config = read_checkpoint_info(folder).backbone
    if config is None:
        raise CheckpointError(f"{folder} contains probes but no backbone; {option} takes a checkpoint with a backbone")
    return config


def starting_point(options: BackboneOptions) -> tuple[ModelConfig, Path | None]:
    """The architecture to train, and the converted checkpoint to start from, or None for random parameters.

    Raises:
        OptionError: the options contradict each other.
        CheckpointError: --start cannot be read, or contains no backbone.
        ConfigError: no model has this architecture.
    """
    sizes = dict.fromkeys(name for family in (UNNAMED, *FAMILIES) for name in family.config.FROM_SCRATCH)
    given = {name: value for name in (*sizes, "family") if (value := getattr(options, name)) is not None}
    if options.start is not None:
        if given:
            raise OptionError(f"{_named(given)} cannot be combined with --start: the architecture is that of {options.start}")
        source = converted_checkpoint(options.start)
        return config_of(source, "--start").trained_on(options.views), source
    if options.fresh_confidence:
        raise OptionError("--fresh-confidence requires --start: a model from scratch has no confidence to reset")
    family = _family(options)
    defaults = family.config.FROM_SCRATCH
    if foreign := [name for name in given if name not in (*defaults, "family")]:
        raise OptionError(f"a {family.name} does not take {_named(foreign)}; its options are {_named(defaults)}")
    chosen = {name: given.get(name, default) for name, default in defaults.items()}
    return family.config.from_scratch(chosen).trained_on(options.views), None


def _family(options: BackboneOptions) -> Family:
    """The family that --family names, or else the one that has the head that --head names."""
    if options.family is not None:
        return next(family for family in FAMILIES if family.name == options.family)
    return next((family for family in FAMILIES if options.head in family.config.HEAD_TYPES), UNNAMED)


def _named(options: Iterable[str]) -> str:
    return ", ".join(f"--{name.replace('_', '-')}" for name in options)
