"""Training probes on tokens kept from a frozen backbone's passes: its step, its validation and its results.

    training sets ─▶ backbone, once ─▶ a few tokens and the truth: kept ─▶ steps on batches of those

The backbone never changes, and what is kept of a set takes a few kilobytes per layer. The backbone therefore runs once over each set, not
at every step. A step takes the sets at its positions in the endless sequence, modulo the number of sets kept.
"""

import abc
import contextlib
import dataclasses
import functools
import logging
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from und3rstand_jax.checkpoint.format import read_checkpoint_info
from und3rstand_jax.checkpoint.trees import flatten
from und3rstand_jax.data.example import assemble
from und3rstand_jax.data.loader import Delivery, Feed, Sources, held_out, open_sources, training_batches, validation_batches
from und3rstand_jax.data.records import Batch, Shape, things_of
from und3rstand_jax.data.specification import SYNTHETIC, parse_data, scenes_of
from und3rstand_jax.data.synthetic.config import SyntheticConfig
from und3rstand_jax.loading import load_backbone
from und3rstand_jax.model.backbone import random_backbone
from und3rstand_jax.model.config import ModelConfig
from und3rstand_jax.model.families import backbone_module
from und3rstand_jax.model.module import MultiViewModel
from und3rstand_jax.model.output import BackboneOutput
from und3rstand_jax.model.stack import Params
from und3rstand_jax.probes.rows import CONSTANT, RowConfig
from und3rstand_jax.support.errors import OptionError
from und3rstand_jax.support.pieces import Pieces
from und3rstand_jax.support.progress import progress_bar
from und3rstand_jax.support.text import JsonObject, printable
from und3rstand_jax.train.config_file import option_values
from und3rstand_jax.train.kept_options import EpipolarOptions, PoseOptions
from und3rstand_jax.train.options import CHANGEABLE
from und3rstand_jax.train.run.processes import is_first
from und3rstand_jax.train.step.data_parallel import Program, joined, parallel, replicate, split, total
from und3rstand_jax.train.step.kept_step import Kept, KeptState, Reading, initial_kept_state, kept_errors, kept_step
from und3rstand_jax.train.step.probe_step import trunk_params
from und3rstand_jax.train.task import Errors, Step, Task, completed, open_feeds, recipe_of

TOKENS = "tokens"
"""Subfolder of the run's folder for what is kept while it trains."""

_DRAW = 2  # stream of a set's random numbers; 0 and 1 are for its views' colours

_NOT_KEPT = (
    *("steps", "batch_size", "learning_rate", "final_learning_rate", "warmup_steps", "beta1", "beta2", "weight_decay"),
    "hidden",
)
"""Options that do not change what is kept."""

_logger = logging.getLogger(__name__)


class BothKept(NamedTuple):
    """What is kept of the training sets and of the held-out sets."""

    train: Kept
    val: Kept


@dataclasses.dataclass(frozen=True)
class KeptTask(Task[KeptState], abc.ABC):
    """See `Task`; a row is a probed layer, or CONSTANT.

    `feed` and `val_feed` only number the sets; `sets_feed` and `val_sets_feed` define their contents. `reading` defines the probes.
    """

    NAME: ClassVar[str]
    """Name of the probes, and of the result's subfolder in the run's folder."""
    KEPT: ClassVar[str]
    """Name of the kept ground truth in files."""

    options: EpipolarOptions | PoseOptions
    reading: Reading
    sets_feed: Feed
    val_sets_feed: Feed

    @classmethod
    @abc.abstractmethod
    def reading_of(cls, options: Any, backbone: ModelConfig, size: Shape) -> Reading:
        """The probes that completed options ask for, for views of this size.

        Raises:
            OptionError: an option cannot be satisfied.
            LayerError: `layers` names no layer, or one that these probes cannot read.
        """

    @classmethod
    def default_layers(cls, backbone: ModelConfig) -> str:
        """The default of the option `layers`."""
        return "all"

    @classmethod
    def create(
        cls,
        options: EpipolarOptions | PoseOptions,
        backbone: ModelConfig,
        devices: int,
        host: int = 0,
        hosts: int = 1,
        source: Path | None = None,
    ) -> "KeptTask":
        """Resolves everything that the options leave open.

        Args:
            options: the run's options, as given.
            backbone: the architecture.
            devices: number of devices of all hosts together.
            host: index of this host.
            hosts: number of hosts.
            source: see `Task`.

        Raises:
            OptionError: an option cannot be satisfied; the message names it.
            LayerError: the option `layers` names no layer of this backbone, or one that these probes cannot read.
        """
        if options.layers is None:
            options = dataclasses.replace(options, layers=cls.default_layers(backbone))
        options = completed(options, backbone, devices)
        for name in ("pairs", "correspondences", "at_once"):
            if getattr(options, name, 1) < 1:
                raise OptionError(f"{name} must be at least 1; found {getattr(options, name)}")
        if len(options.resolution) > 1 or options.accumulate > 1:
            raise OptionError(
                f"{cls.NAME} probes are trained at one resolution and without micro-batches, since the backbone runs beforehand; "
                f"found {', '.join(options.resolution)} and accumulate {options.accumulate}"
            )
        feeds = open_feeds(options, backbone.patch_size, host, hosts)
        # Every host keeps all sets, and runs as many at once as its own devices take.
        at_once = options.at_once * jax.local_device_count()
        whole = functools.partial(dataclasses.replace, batch_size=at_once, host=0, hosts=1)
        numbers = parse_data((SYNTHETIC,), views=options.views)
        return cls(
            options=options,
            module=backbone_module(backbone, dtype=jnp.dtype(options.dtype), attention=options.attention),
            recipe=recipe_of(options),
            feed=dataclasses.replace(feeds.train, specs=numbers),
            val_feed=dataclasses.replace(feeds.val, specs=numbers),
            pairs_at_once=feeds.train.batch_size // devices,
            source=source,
            reading=cls.reading_of(options, backbone, feeds.val.shapes[0]),
            sets_feed=whole(feeds.train),
            val_sets_feed=whole(feeds.val),
        )

    @property
    def probes(self) -> RowConfig:
        """The rows."""
        return self.reading.config

    @property
    def rows(self) -> Mapping[str, tuple[str, ...]]:
        """The layers of every group, and CONSTANT."""
        return self.probes.rows

    @property
    def order(self) -> tuple[str, ...]:
        """The probed layers, and CONSTANT."""
        return (*self.probes.layer_ids, CONSTANT)

    @property
    def identity(self) -> dict[str, object]:
        """Layers and backbone."""
        assert self.source is not None
        sha256 = read_checkpoint_info(self.source).provenance["backbone"]["sha256"]
        return {"layers": list(self.order), "backbone": repr(self.module.config), "backbone_sha256": sha256}

    @property
    def question(self) -> JsonObject:
        """Everything that the trained parameters depend on, as plain values."""
        # With two views, their number is left out, as in runs of earlier versions.
        left_out = {"out", *CHANGEABLE, "validate_every", *(("views",) if self.options.views == 2 else ())}
        return self.identity | {name: value for name, value in option_values(self.options).items() if name not in left_out}

    def description(self) -> str:
        """The number of layers, and their backbone."""
        layers, fresh = self.probes.layer_ids, self.options.fresh
        drawn = "" if fresh is None else f" with weights drawn from seed {fresh}"
        return f"{self.NAME} probes of {len(layers)} layers ({layers[0]} … {layers[-1]}) of {self.options.backbone}{drawn}"

    def initial_state(self) -> KeptState:
        """Fresh probes."""
        return initial_kept_state(self.reading, self.recipe, self.kept.train, self.options.seed)

    def fixed(self) -> Params:
        """What is kept of all sets: "train" and "val", each `Kept`."""
        return self.kept._asdict()

    def step(self, shape: Shape) -> Step[KeptState]:
        """All probes at once, each with its own loss."""
        step = functools.partial(kept_step, reading=self.reading, recipe=self.recipe, total=total)
        return lambda state, kept, batch: step(state, kept["train"], batch)

    def errors(self) -> Errors:
        """The errors that `reading` defines."""
        errors = functools.partial(kept_errors, reading=self.reading)
        return lambda params, kept, batch: errors(params, kept["val"], batch)

    def finish(self, state: KeptState, step: int, val_sources: Sources) -> str:
        """Writes the probes' parameters, and removes the kept sets that they were trained on."""
        out = self.options.out
        Pieces(out / self.NAME, self.question).write(self.NAME, flatten(state.params))
        self._pieces.remove()
        return f"{self.NAME} probes: {printable(out / self.NAME)}"

    def finished(self) -> dict[str, np.ndarray] | None:
        """The parameters that a finished run with these options wrote, by path; None if there is no such run."""
        return Pieces(self.options.out / self.NAME, self.question).read(self.NAME)

    @property
    def _pieces(self) -> Pieces:
        held = {"val_data": list(self.options.val_data), "val_pairs": self.options.val_pairs}
        return Pieces(self.options.out / TOKENS, {name: value for name, value in self.question.items() if name not in _NOT_KEPT} | held)

    @functools.cached_property
    def kept(self) -> BothKept:
        """What is kept of all sets. The first process saves it in the run's folder, batch by batch."""
        assert self.source is not None
        options = self.options
        if options.fresh is None:
            params = load_backbone(self.source, dtype=options.dtype, attention=options.attention).params
        else:
            params = random_backbone(self.module.config, options.fresh).params
        trunk = replicate(trunk_params(params, self.module.config))
        del params
        train_sources = open_sources(self.sets_feed.specs, "train")
        val_sources = open_sources(self.val_sets_feed.specs, "val")
        places = held_out(self.val_sets_feed, val_sources, options.val_pairs)
        train = self._kept("training", self.sets_feed, trunk, training_batches(self.sets_feed, train_sources, 0), options.pairs)
        return BothKept(
            train,
            self._kept("held-out", self.val_sets_feed, trunk, validation_batches(self.val_sets_feed, val_sources, places), len(places)),
        )

    def _kept(self, what: str, feed: Feed, trunk: Params, deliveries: Generator[Delivery, None, None], count: int) -> Kept:
        """What is kept of the first `count` sets. Batches read back are still drawn, which costs nothing for rendered scenes."""
        scenes, pieces = scenes_of(feed.specs), self._pieces if is_first() else None
        program = _program(self.module, self.reading, feed.shapes[0], scenes, feed.crop_jitter)
        seed = replicate(jnp.uint32(self.options.seed))
        parts: list[dict[str, np.ndarray]] = []
        title = f"tokens of {what} {things_of(feed.views)}"
        thing = "pair" if feed.views == 2 else "set"
        with contextlib.closing(deliveries), progress_bar(title, count, thing, is_first()) as advance:
            for low in range(0, count, feed.batch_size):
                delivery = next(deliveries)
                for source, reason in delivery.skipped:
                    _logger.warning("%s: %s; another %s takes its place", source, reason, thing)
                name = f"{what} {range(low, low + feed.batch_size)}"
                part = None if pieces is None else pieces.read(name)
                if part is None:
                    part = flatten(self._named(program(trunk, seed, split(delivery.batch))))
                    if pieces is not None:
                        pieces.write(name, part)
                parts.append(part)
                advance(min(feed.batch_size, count - low))
        whole = {name: jnp.asarray(np.concatenate([part[name] for part in parts])[:count]) for name in parts[0]}
        tokens = {name: jnp.moveaxis(whole[f"{TOKENS}/{name}"], 0, 1) for name in self.probes.rows}
        kind = self.reading.kind
        return Kept(tokens, kind(*(whole[f"{self.KEPT}/{name}"] for name in kind._fields)))

    def _named(self, kept: Kept) -> dict[str, dict[str, Any]]:
        """The results of all devices, with the sets along the first axis."""
        tokens = {name: np.moveaxis(np.asarray(values), 1, 0) for name, values in joined(kept.tokens, axis=1).items()}
        return {TOKENS: tokens, self.KEPT: joined(kept.truth, axis=0)._asdict()}


@functools.cache
def _program(
    module: MultiViewModel, reading: Reading, shape: Shape, scenes: SyntheticConfig | None, colour_jitter: bool
) -> Program[[Params, Array, Batch], Kept]:
    """(trunk, seed, batch) -> Kept, on every device. Cached, so that a control on the same architecture does not compile it again."""

    def keep(trunk: Params, seed: Array, batch: Batch) -> Kept:
        example = assemble(batch, seed, shape, scenes, colour_jitter)
        layers = reading.config.layer_ids
        output = cast(BackboneOutput, module.apply({"params": trunk}, *example.images, capture=layers, head=False))
        keys = jax.vmap(lambda position: jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), position), _DRAW))(batch.position)
        return reading.keep(output, example, keys)

    return parallel(keep)
