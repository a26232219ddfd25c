"""Which backbone a run is about: one that exists, or one made from options."""

from pathlib import Path
from typing import Any

from und3rstand_jax.checkpoint.format import is_checkpoint, read_checkpoint_info
from und3rstand_jax.loading import converted_checkpoint
from und3rstand_jax.model.config import BackboneConfig
from und3rstand_jax.support.errors import UserError
from und3rstand_jax.support.option_values import parse_image_size
from und3rstand_jax.train.options import BackboneOptions

_PUBLISHED = {
    "DUSt3R_ViTLarge_BaseDecoder_224_linear": BackboneConfig.dust3r_224_linear,
    "DUSt3R_ViTLarge_BaseDecoder_512_linear": BackboneConfig.dust3r_512_linear,
    "DUSt3R_ViTLarge_BaseDecoder_512_dpt": BackboneConfig.dust3r_512_dpt,
}


def backbone_config(source: str) -> BackboneConfig:
    """The architecture of a backbone, of a published one without its weights.

    Raises:
        UserError: the source cannot be read, or holds no backbone.
    """
    published = _PUBLISHED.get(source.removeprefix("naver/"))
    if published is not None and not Path(source).exists():
        return published()
    return config_of(converted_checkpoint(source) if not is_checkpoint(source) else Path(source))


def config_of(folder: Path, option: str = "--backbone") -> BackboneConfig:
    """The architecture of a converted checkpoint's backbone.

    Raises:
        UserError: it holds none.
    """
    config = read_checkpoint_info(folder).backbone
    if config is None:
        raise UserError(f"{folder} holds probes and no backbone; {option} takes a checkpoint with one")
    return config


_FROM_SCRATCH = {
    "enc_depth": 4, "enc_width": 192, "enc_heads": 3, "dec_depth": 8, "dec_width": 128, "dec_heads": 4, "mlp_ratio": 3, "head": "linear",
}  # fmt: skip


_FIELDS = {"enc_width": "enc_embed_dim", "enc_heads": "enc_num_heads", "dec_width": "dec_embed_dim", "dec_heads": "dec_num_heads"} | {
    "head": "head_type"
}


def check_start(options: BackboneOptions) -> None:
    """Refuses options that say twice, or nowhere, what a run begins with; asks for nothing to be loaded.

    Raises:
        UserError: see there.
    """
    given = _given(options)
    if options.start is not None and given:
        named = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise UserError(f"{named} cannot be chosen with --start: the architecture is that of {options.start}")
    if options.start is None and options.fresh_confidence:
        raise UserError("--fresh-confidence goes with --start: a model from scratch has no confidence to replace")


def architecture(options: BackboneOptions) -> BackboneConfig:
    """The architecture that the options ask for, from scratch.

    Raises:
        UserError: no model is made like that.
    """
    given = _given(options)
    size = parse_image_size(given.pop("image_size", "128x128"), BackboneConfig.patch_size, "--image-size")
    fields: dict[str, Any] = {_FIELDS.get(name, name): value for name, value in (_FROM_SCRATCH | given).items()}
    return BackboneConfig(img_size=size, **fields)


def _given(options: BackboneOptions) -> dict[str, Any]:
    return {name: value for name in (*_FROM_SCRATCH, "image_size") if (value := getattr(options, name)) is not None}
