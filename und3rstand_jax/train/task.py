"""From options to everything a run is made of; what is left to a default is decided here, and nothing is loaded."""

import dataclasses
from typing import Any, Literal, TypeVar

import jax.numpy as jnp
from jax import lax

from und3rstand_jax.data.loader import Feed
from und3rstand_jax.data.records import Shape
from und3rstand_jax.data.specification import SYNTHETIC, parse_data, scenes_of
from und3rstand_jax.model.config import BackboneConfig
from und3rstand_jax.model.dust3r import DUSt3R
from und3rstand_jax.model.layer_ids import select_layers
from und3rstand_jax.probes.config import ProbeConfig, probe_config
from und3rstand_jax.support.errors import UserError
from und3rstand_jax.support.option_values import parse_image_size
from und3rstand_jax.train.options import BackboneOptions, RunOptions, TrainOptions
from und3rstand_jax.train.step.backbone_step import BackboneTask
from und3rstand_jax.train.step.optimizer import Recipe
from und3rstand_jax.train.step.probe_step import ProbeTask

PAIRS_PER_DEVICE = 4


Options = TypeVar("Options", bound=RunOptions)


@dataclasses.dataclass(frozen=True)
class Setup:
    """What every run is made of: options, architecture, recipe, where pairs come from, and how many of them a device takes at once."""

    options: RunOptions
    backbone: BackboneConfig
    recipe: Recipe
    feed: Feed
    val_feed: Feed
    pairs_at_once: int

    @property
    def module(self) -> DUSt3R:
        """The backbone in the arithmetic of the run."""
        return DUSt3R(self.backbone, dtype=jnp.dtype(self.options.dtype), attention=self.options.attention)


@dataclasses.dataclass(frozen=True)
class ProbesSetup(Setup):
    """A run that trains probes on a frozen backbone."""

    options: TrainOptions
    probes: ProbeConfig

    @property
    def val_task(self) -> ProbeTask:
        """The same probes on batches of held-out pairs."""
        return dataclasses.replace(self.task(self.val_feed.shapes[0]), scenes=scenes_of(self.val_feed.specs), colour_jitter=False)

    def task(self, shape: Shape) -> ProbeTask:
        """The step for batches of this shape."""
        options = self.options
        return ProbeTask(
            module=self.module,
            probes=self.probes,
            recipe=self.recipe,
            shape=shape,
            scenes=scenes_of(self.feed.specs),
            colour_jitter=options.augment,
            seed=options.seed,
            accumulate=options.accumulate,
            side_by_side=options.side_by_side,
            precision=lax.Precision[options.precision.upper()],
        )


@dataclasses.dataclass(frozen=True)
class BackboneSetup(Setup):
    """A run that trains the backbone itself."""

    options: BackboneOptions

    @property
    def val_task(self) -> BackboneTask:
        """The same model on batches of held-out pairs."""
        return dataclasses.replace(self.task(self.val_feed.shapes[0]), scenes=scenes_of(self.val_feed.specs), colour_jitter=False)

    def task(self, shape: Shape) -> BackboneTask:
        """The step for batches of this shape."""
        return BackboneTask(
            module=self.module,
            recipe=self.recipe,
            shape=shape,
            scenes=scenes_of(self.feed.specs),
            colour_jitter=self.options.augment,
            seed=self.options.seed,
            accumulate=self.options.accumulate,
        )


def set_up(options: TrainOptions, backbone: BackboneConfig, devices: int, host: int = 0, hosts: int = 1) -> ProbesSetup:
    """Decides all that options leave open for a run that trains probes.

    Args:
        options: as given.
        backbone: what is probed.
        devices: of all hosts together.
        host: which one this is.
        hosts: how many there are.

    Raises:
        UserError: an option cannot be met; the message names it.
    """
    options = _completed(options, backbone, devices)
    if options.side_by_side < 1:
        raise UserError(f"--side-by-side must be at least 1; found {options.side_by_side}")
    layers = select_layers(options.layers, backbone.layer_ids)
    probes = probe_config(backbone, layers, options.hidden, options.depth, options.activation, options.norm, options.views)
    return ProbesSetup(**_shared(options, backbone, devices, host, hosts), probes=probes)


def set_up_backbone(options: BackboneOptions, backbone: BackboneConfig, devices: int, host: int = 0, hosts: int = 1) -> BackboneSetup:
    """Decides all that options leave open for a run that trains a backbone; arguments and errors as of `set_up`."""
    if backbone.head_type is None:
        raise UserError("a backbone without a head (a trunk such as CroCo's) gives no pointmaps to train on; take one with a head")
    return BackboneSetup(**_shared(_completed(options, backbone, devices), backbone, devices, host, hosts, options.optimizer))


def _shared(
    options: RunOptions, backbone: BackboneConfig, devices: int, host: int, hosts: int, optimizer: Literal["adamw", "muon"] = "adamw"
) -> dict[str, Any]:
    """The fields of `Setup`, from complete options."""
    assert options.batch_size is not None and options.warmup_steps is not None
    feed = Feed(
        specs=parse_data(options.data),
        shapes=tuple(parse_image_size(text, backbone.patch_size, "--resolution") for text in options.resolution),
        batch_size=options.batch_size,
        seed=options.seed,
        crop_jitter=options.augment,
        unreadable=options.unreadable,
        workers=options.workers,
        host=host,
        hosts=hosts,
    )
    _check_batch(options, devices)
    # Every host validates on all pairs, with its own devices: a few pairs are not worth an exchange between hosts.
    val_feed = dataclasses.replace(
        feed, specs=parse_data(options.val_data, "--val-data"), shapes=feed.shapes[:1], crop_jitter=False, host=0, hosts=1
    )
    recipe = Recipe(
        options.steps,
        options.warmup_steps,
        options.learning_rate,
        options.final_learning_rate,
        options.beta1,
        options.beta2,
        options.weight_decay,
        optimizer,
    )
    return {
        "options": options,
        "backbone": backbone,
        "recipe": recipe,
        "feed": feed,
        "val_feed": val_feed,
        "pairs_at_once": options.batch_size // (devices * options.accumulate),
    }


def _completed(options: Options, backbone: BackboneConfig, devices: int) -> Options:
    """The same options with every default that depends on something else filled in."""
    if options.steps < 1:
        raise UserError(f"--steps must be at least 1; found {options.steps}")
    data = options.data or (SYNTHETIC,)
    return dataclasses.replace(
        options,
        data=data,
        val_data=options.val_data or data,
        batch_size=PAIRS_PER_DEVICE * devices * options.accumulate if options.batch_size is None else options.batch_size,
        resolution=options.resolution or (f"{backbone.img_size[1]}x{backbone.img_size[0]}",),
        warmup_steps=options.steps // 10 if options.warmup_steps is None else options.warmup_steps,
    )


def _check_batch(options: RunOptions, devices: int) -> None:
    parts = devices * options.accumulate
    for name in ("accumulate", "validate_every", "save_every", "log_every", "keep", "val_pairs"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1; found {getattr(options, name)}")
    if not 0 <= options.seed < 2**32:
        raise UserError(f"--seed must be at least 0 and below 2^32; found {options.seed}")
    if options.workers < 0:
        raise UserError(f"--workers must be at least 0; found {options.workers}")
    if options.batch_size is None or options.batch_size < 1 or options.batch_size % parts:
        raise UserError(
            f"--batch-size {options.batch_size} does not divide among {devices} devices × {options.accumulate} parts (--accumulate): "
            f"take a multiple of {parts}"
        )
