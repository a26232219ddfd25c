"""What a training run trains, and what all kinds of runs have in common: from options to everything static.

`probes_task.ProbesTask` trains probes on a frozen backbone, `kept_task.KeptTask` probes on tokens kept from one, and
`backbone_task.BackboneTask` the backbone itself. The loop (`und3rstand_jax.train.run.loop`) runs each of them through `Task`. Creating a
task resolves every default and loads nothing.
"""

import abc
import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Generic, NamedTuple, Protocol, TypeVar, runtime_checkable

import jax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from und3rstand_jax.data.example import assemble
from und3rstand_jax.data.loader import Feed, Sources
from und3rstand_jax.data.records import Batch, Shape
from und3rstand_jax.data.specification import SYNTHETIC, parse_data, scenes_of
from und3rstand_jax.model.config import ModelConfig
from und3rstand_jax.model.module import MultiViewModel
from und3rstand_jax.model.stack import Params
from und3rstand_jax.support.errors import OptionError
from und3rstand_jax.support.option_values import check_seed, parse_image_size
from und3rstand_jax.train.options import BackboneOptions, Options, RunOptions
from und3rstand_jax.train.step.loops import ExampleOf
from und3rstand_jax.train.step.optimizer import Loss, Recipe

VIEWS_PER_DEVICE = 8
"""Views per device and micro-batch at the default batch size: four pairs."""


@runtime_checkable
class RunState(Protocol):
    """The state that a step passes to the next one, as seen from outside: the arrays that loop, logs and validation read."""

    @property
    def step(self) -> jax.Array:
        """Steps done."""
        ...

    @property
    def params(self) -> Params:
        """The parameters that are trained."""
        ...

    @property
    def frozen_at(self) -> dict[str, ArrayLike]:
        """For each stack, the step at which each of its rows was frozen; −1 while it trains."""
        ...


T = TypeVar("T")
State = TypeVar("State", bound=RunState)

Losses = Mapping[str, Loss]
"""Losses of each stack over the whole batch, every entry (L,)."""

Step = Callable[[State, Params, Batch], tuple[State, Losses]]
Errors = Callable[[Params, Params, Batch], dict[str, Float[Array, "_L B V"]]]


@dataclasses.dataclass(frozen=True)
class Task(abc.ABC, Generic[State]):
    """Everything static about a run. Losses, errors and `frozen_at` come in stacks of rows, named and ordered by `rows`.

    Attributes:
        options: complete options, with every default that depends on something else filled in.
        module: the backbone, with the run's dtype and attention.
        recipe: how parameters are updated.
        feed: the training sets of views.
        val_feed: the held-out sets, all of them on every host.
        pairs_at_once: number of sets in one micro-batch on one device.
        source: converted checkpoint of the backbone to probe or to start from; None if nothing is loaded.
    """

    options: RunOptions
    module: MultiViewModel
    recipe: Recipe
    feed: Feed
    val_feed: Feed
    pairs_at_once: int
    source: Path | None

    @property
    @abc.abstractmethod
    def rows(self) -> Mapping[str, tuple[str, ...]]:
        """Name of each stack -> what its rows belong to, as logs call it: layer ids, or the model's head."""

    @property
    @abc.abstractmethod
    def order(self) -> tuple[str, ...]:
        """Everything that the rows belong to, in the order used in logs."""

    @property
    @abc.abstractmethod
    def identity(self) -> dict[str, object]:
        """What must be the same, besides the options, for a run's checkpoints to be resumed; plain values."""

    @abc.abstractmethod
    def description(self) -> str:
        """What is trained, for the first line of a run's log."""

    @abc.abstractmethod
    def initial_state(self) -> State:
        """The state before the first step, with `step`, `params` and `frozen_at`."""

    @abc.abstractmethod
    def fixed(self) -> Params:
        """Parameters that every step reads and none changes."""

    @abc.abstractmethod
    def step(self, shape: Shape) -> Step[State]:
        """(state, fixed, batch) -> (next state, losses) of one device, for batches of this shape."""

    @abc.abstractmethod
    def errors(self) -> Errors:
        """(params, fixed, batch) -> errors of every row and set, each stack (L, B, V), where V is the number of names in `measured`."""

    @abc.abstractmethod
    def finish(self, state: State, step: int, val_sources: Sources) -> str:
        """Writes the results of a finished run, from the state after `step` steps (NumPy arrays), and returns a summary to print."""

    @property
    def measured(self) -> tuple[str, ...]:
        """The names of a set's errors: one for each view, unless a task overrides this."""
        return tuple(f"view{view}" for view in range(1, self.val_feed.views + 1))

    def done(self) -> str | None:
        """The summary of a run that is already finished, with nothing left to do; None for any other."""
        return None

    def example_of(self, shape: Shape) -> ExampleOf:
        """Makes examples of training batches."""
        scenes = scenes_of(self.feed.specs)
        return functools.partial(assemble, seed=self.options.seed, shape=shape, scenes=scenes, colour_jitter=self.options.augment)

    def val_example_of(self) -> ExampleOf:
        """Makes examples of held-out batches."""
        scenes = scenes_of(self.val_feed.specs)
        return functools.partial(assemble, seed=self.options.seed, shape=self.val_feed.shapes[0], scenes=scenes, colour_jitter=False)

    def by_row(self, stacks: Mapping[str, T]) -> dict[str, T]:
        """The rows of all stacks, keyed by what they belong to, in the order used in logs."""
        found = {
            name: jax.tree.map(lambda leaf, index=index: leaf[index], stacks[stack])
            for stack, names in self.rows.items()
            for index, name in enumerate(names)
        }
        return {name: found[name] for name in self.order}


def completed(options: Options, backbone: ModelConfig, devices: int) -> Options:
    """The options with every default that depends on something else filled in.

    Args:
        options: the run's options, as given.
        backbone: the architecture.
        devices: number of devices of all hosts together.

    Raises:
        OptionError: an option cannot be satisfied; the message names it.
    """
    for name in ("steps", "accumulate", "validate_every", "save_every", "log_every", "keep", "val_pairs"):
        if getattr(options, name) < 1:
            raise OptionError(f"--{name.replace('_', '-')} must be at least 1; found {getattr(options, name)}")
    if options.workers < 0:
        raise OptionError(f"--workers must be at least 0; found {options.workers}")
    check_seed(options.seed)
    backbone.check_view_count(options.views)
    micro_batches = devices * options.accumulate
    batch_size = max(1, VIEWS_PER_DEVICE // options.views) * micro_batches if options.batch_size is None else options.batch_size
    if batch_size < 1 or batch_size % micro_batches:
        raise OptionError(
            f"--batch-size {batch_size} cannot be divided among {devices} devices × {options.accumulate} micro-batches (--accumulate): "
            f"give a multiple of {micro_batches}"
        )
    data = options.data or (SYNTHETIC,)
    return dataclasses.replace(
        options,
        data=data,
        val_data=options.val_data or data,
        batch_size=batch_size,
        resolution=options.resolution or (f"{backbone.img_size[1]}x{backbone.img_size[0]}",),
        warmup_steps=options.steps // 10 if options.warmup_steps is None else options.warmup_steps,
    )


class Feeds(NamedTuple):
    """The training pairs, of which every host draws its share, and the held-out pairs.

    Every host validates on all held-out pairs, with its own devices: there are too few to be worth an exchange between hosts.
    """

    train: Feed
    val: Feed


def open_feeds(options: RunOptions, patch_size: int, host: int, hosts: int) -> Feeds:
    """The feeds that completed options define, on host `host` of `hosts`. No file is read.

    Raises:
        OptionError: a source or a resolution cannot be read, or does not suit the patch size.
    """
    assert options.batch_size is not None, "options are completed"
    train = Feed(
        specs=parse_data(options.data, views=options.views),
        shapes=tuple(parse_image_size(text, patch_size, "--resolution") for text in options.resolution),
        batch_size=options.batch_size,
        seed=options.seed,
        crop_jitter=options.augment,
        unreadable=options.unreadable,
        workers=options.workers,
        host=host,
        hosts=hosts,
    )
    val_specs = parse_data(options.val_data, "--val-data", options.views)
    return Feeds(train, dataclasses.replace(train, specs=val_specs, shapes=train.shapes[:1], crop_jitter=False, host=0, hosts=1))


def recipe_of(options: RunOptions) -> Recipe:
    """The recipe by which completed options update parameters.

    Raises:
        OptionError: a number is outside its range.
    """
    assert options.warmup_steps is not None, "options are completed"
    return Recipe(
        options.steps,
        options.warmup_steps,
        options.learning_rate,
        options.final_learning_rate,
        options.beta1,
        options.beta2,
        options.weight_decay,
        options.optimizer if isinstance(options, BackboneOptions) else "adamw",
    )
