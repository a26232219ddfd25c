"""Which architecture a backbone has: one that exists, or one made from options."""

import dataclasses
from pathlib import Path
from typing import Any

from und3rstand_jax.checkpoint.format import is_checkpoint, read_checkpoint_info
from und3rstand_jax.loading import converted_checkpoint
from und3rstand_jax.model.dust3r.config import BackboneConfig
from und3rstand_jax.model.families import FAMILIES, published_config
from und3rstand_jax.support.errors import CheckpointError, OptionError
from und3rstand_jax.support.option_values import parse_image_size
from und3rstand_jax.train.options import BackboneOptions

_FROM_SCRATCH = {
    "enc_depth": 4, "enc_width": 192, "enc_heads": 3, "dec_depth": 8, "dec_width": 128, "dec_heads": 4, "mlp_ratio": 3,
    "head": "linear", "image_size": "128x128",
}  # fmt: skip

_FIELDS = {
    "enc_width": "enc_embed_dim", "enc_heads": "enc_num_heads", "dec_width": "dec_embed_dim", "dec_heads": "dec_num_heads",
    "head": "head_type", "image_size": "img_size",
}  # fmt: skip


def backbone_config(source: str) -> BackboneConfig:
    """The architecture of a backbone; that of a published one is known without its weights.

    Raises:
        CheckpointError: the source cannot be read, or holds no backbone.
    """
    published = published_config(source)
    if published is not None and not Path(source).exists():
        return published
    return config_of(Path(source) if is_checkpoint(source) else converted_checkpoint(source))


def config_of(folder: Path, option: str = "--backbone") -> BackboneConfig:
    """The architecture of a converted checkpoint's backbone.

    Raises:
        CheckpointError: it holds none; the message names the option that the checkpoint was given to.
    """
    config = read_checkpoint_info(folder).backbone
    if config is None:
        raise CheckpointError(f"{folder} holds probes but no backbone; {option} takes a checkpoint with a backbone")
    return config


def starting_point(options: BackboneOptions) -> tuple[BackboneConfig, Path | None]:
    """The architecture to train, and the converted checkpoint to start from, or None for random parameters.

    Raises:
        OptionError: the options contradict each other.
        CheckpointError: --start cannot be read, or holds no backbone.
        ConfigError: no model has this architecture.
    """
    given = {name: value for name in _FROM_SCRATCH if (value := getattr(options, name)) is not None}
    if options.start is not None:
        if given:
            named = ", ".join(f"--{name.replace('_', '-')}" for name in given)
            raise OptionError(f"{named} cannot be combined with --start: the architecture is that of {options.start}")
        source = converted_checkpoint(options.start)
        return _taking(config_of(source, "--start"), options.views), source
    if options.fresh_confidence:
        raise OptionError("--fresh-confidence requires --start: a model from scratch has no confidence to reset")
    chosen: dict[str, Any] = {_FIELDS.get(name, name): value for name, value in (_FROM_SCRATCH | given).items()}
    chosen["img_size"] = parse_image_size(chosen["img_size"], BackboneConfig.patch_size, "--image-size")
    family = next(family for family in FAMILIES if chosen["head_type"] in family.config.HEAD_TYPES)
    return _taking(family.config(**chosen), options.views), None


def _taking(config: BackboneConfig, views: int) -> BackboneConfig:
    """The architecture, which takes any number of views where it is trained on more than it takes."""
    return config if config.max_views is None or views <= config.max_views else dataclasses.replace(config, max_views=None)
