"""Training epipolar probes on a frozen backbone: what its step, its validation and its results are.

    training pairs ─▶ backbone, once ─▶ averaged tokens, correspondences: kept ─▶ steps on batches of those

A pair's averaged tokens are a few kilobytes a layer, and the backbone never changes: so it runs once over each pair and not at every step.
The pairs of a step are those of its positions in the endless sequence, modulo the number of pairs kept.
"""

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from und3rstand_jax.checkpoint.format import read_checkpoint_info
from und3rstand_jax.checkpoint.trees import flatten
from und3rstand_jax.data.example import assemble
from und3rstand_jax.data.loader import Delivery, Feed, Sources, held_out, open_sources, training_batches, validation_batches
from und3rstand_jax.data.records import Batch, Shape
from und3rstand_jax.data.specification import SYNTHETIC, parse_data, scenes_of
from und3rstand_jax.data.synthetic.config import SyntheticConfig
from und3rstand_jax.geometry.epipolar import SeenPlaces, seen_places
from und3rstand_jax.loading import load_backbone
from und3rstand_jax.model.backbone import random_backbone
from und3rstand_jax.model.config import ModelConfig
from und3rstand_jax.model.families import backbone_module
from und3rstand_jax.model.layer_ids import select_layers
from und3rstand_jax.model.module import MultiViewModel
from und3rstand_jax.model.output import BackboneOutput
from und3rstand_jax.model.stack import Params
from und3rstand_jax.probes.epipolar import CONSTANT, EpipolarConfig, averages, epipolar_config
from und3rstand_jax.support.errors import OptionError
from und3rstand_jax.support.pieces import Pieces
from und3rstand_jax.support.progress import progress_bar
from und3rstand_jax.support.text import JsonObject, printable
from und3rstand_jax.train.config_file import option_values
from und3rstand_jax.train.options import CHANGEABLE, EpipolarOptions
from und3rstand_jax.train.run.processes import is_first
from und3rstand_jax.train.step.data_parallel import Program, joined, parallel, replicate, split, total
from und3rstand_jax.train.step.epipolar_step import EpipolarState, Kept, epipolar_errors, epipolar_step, initial_epipolar_state
from und3rstand_jax.train.step.probe_step import trunk_params
from und3rstand_jax.train.task import Errors, Step, Task, completed, open_feeds, recipe_of

PROBES, TOKENS = "epipolar", "tokens"
"""Folders of the run: of the result, and of what is kept while it trains."""

_DRAW = 2  # of a pair's random numbers: 0 and 1 are its views' colours

_logger = logging.getLogger(__name__)


class BothKept(NamedTuple):
    """Training and held-out pairs'."""

    train: Kept
    val: Kept


@dataclasses.dataclass(frozen=True)
class EpipolarTask(Task[EpipolarState]):
    """See `Task`; a row is a probed layer, or CONSTANT.

    `feed` and `val_feed` only number the pairs; `pairs_feed` and `val_pairs_feed` say what they are. `probes` is the shape of the probes.
    """

    options: EpipolarOptions
    probes: EpipolarConfig
    pairs_feed: Feed
    val_pairs_feed: Feed

    @classmethod
    def create(
        cls, options: EpipolarOptions, backbone: ModelConfig, devices: int, host: int = 0, hosts: int = 1, source: Path | None = None
    ) -> "EpipolarTask":
        """Decides everything that the options leave open.

        Args:
            options: as they were given.
            backbone: the architecture.
            devices: of all hosts together.
            host: number of this host.
            hosts: how many there are.
            source: see `Task`.

        Raises:
            OptionError: an option cannot be met; the message names it.
            LayerError: the option `layers` names no layer of this backbone.
        """
        options = completed(options, backbone, devices)
        for name in ("pairs", "correspondences", "at_once"):
            if getattr(options, name) < 1:
                raise OptionError(f"{name} must be at least 1; found {getattr(options, name)}")
        if options.views != 2:
            raise OptionError(f"epipolar probes are trained on pairs, whose fundamental matrix they read; found {options.views} views")
        if len(options.resolution) > 1 or options.accumulate > 1:
            raise OptionError(
                "epipolar probes are trained at one resolution and without micro-batches, since the backbone runs beforehand; "
                f"found {', '.join(options.resolution)} and accumulate {options.accumulate}"
            )
        feeds = open_feeds(options, backbone.patch_size, host, hosts)
        # Every host keeps all pairs, and takes as many at once as its devices do.
        at_once = options.at_once * jax.local_device_count()
        whole = functools.partial(dataclasses.replace, batch_size=at_once, host=0, hosts=1)
        numbers = parse_data((SYNTHETIC,))
        return cls(
            options=options,
            module=backbone_module(backbone, dtype=jnp.dtype(options.dtype), attention=options.attention),
            recipe=recipe_of(options),
            feed=dataclasses.replace(feeds.train, specs=numbers),
            val_feed=dataclasses.replace(feeds.val, specs=numbers),
            pairs_at_once=feeds.train.batch_size // devices,
            source=source,
            probes=epipolar_config(backbone, select_layers(options.layers, backbone.layer_ids), options.hidden),
            pairs_feed=whole(feeds.train),
            val_pairs_feed=whole(feeds.val),
        )

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
        """Everything that the trained parameters depend on, in plain values."""
        left_out = {"out", "views", *CHANGEABLE, "validate_every"}  # always two views
        return self.identity | {name: value for name, value in option_values(self.options).items() if name not in left_out}

    def description(self) -> str:
        """How many layers of which backbone."""
        layers, fresh = self.probes.layer_ids, self.options.fresh
        drawn = "" if fresh is None else f" with weights drawn from seed {fresh}"
        return f"epipolar probes of {len(layers)} layers ({layers[0]} … {layers[-1]}) of {self.options.backbone}{drawn}"

    def initial_state(self) -> EpipolarState:
        """Randomly initialised probes."""
        return initial_epipolar_state(self.probes, self.recipe, self.kept.train, self.options.seed)

    def fixed(self) -> Params:
        """The averaged tokens and correspondences of all pairs: "train" and "val", each `Kept`."""
        return self.kept._asdict()

    def step(self, shape: Shape) -> Step[EpipolarState]:
        """All probes at once, each with its own loss."""
        step = functools.partial(epipolar_step, recipe=self.recipe, total=total)
        return lambda state, kept, batch: step(state, kept["train"], batch)

    def errors(self) -> Errors:
        """Mean distance of true places to their epipolar lines, in pixels."""
        errors = functools.partial(epipolar_errors, size=self.val_feed.shapes[0])
        return lambda params, kept, batch: errors(params, kept["val"], batch)

    def finish(self, state: EpipolarState, step: int, val_sources: Sources) -> str:
        """Writes the probes' parameters, and removes what they were trained on."""
        out = self.options.out
        Pieces(out / PROBES, self.question).write(PROBES, flatten(state.params))
        self._pieces.remove()
        return f"epipolar probes: {printable(out / PROBES)}"

    @property
    def _pieces(self) -> Pieces:
        needless = (
            "steps",
            "batch_size",
            "learning_rate",
            "final_learning_rate",
            "warmup_steps",
            "beta1",
            "beta2",
            "weight_decay",
            "hidden",
        )
        pairs = {"val_data": list(self.options.val_data), "val_pairs": self.options.val_pairs}
        return Pieces(self.options.out / TOKENS, {name: value for name, value in self.question.items() if name not in needless} | pairs)

    @functools.cached_property
    def kept(self) -> BothKept:
        """What the backbone makes of all pairs; what is done is kept in the run's folder by the first process."""
        assert self.source is not None
        options = self.options
        if options.fresh is None:
            params = load_backbone(self.source, dtype=options.dtype, attention=options.attention).params
        else:
            params = random_backbone(self.module.config, options.fresh).params
        trunk = replicate(trunk_params(params))
        del params
        train_sources = open_sources(self.pairs_feed.specs, "train")
        val_sources = open_sources(self.val_pairs_feed.specs, "val")
        places = held_out(self.val_pairs_feed, val_sources, options.val_pairs)
        train = self._kept("training", self.pairs_feed, trunk, training_batches(self.pairs_feed, train_sources, 0), options.pairs)
        return BothKept(
            train,
            self._kept("held-out", self.val_pairs_feed, trunk, validation_batches(self.val_pairs_feed, val_sources, places), len(places)),
        )

    def _kept(self, what: str, feed: Feed, trunk: Params, deliveries: Generator[Delivery, None, None], count: int) -> Kept:
        """Of the first `count` pairs. Batches that are read back are drawn all the same, which for rendered scenes costs nothing."""
        scenes, pieces = scenes_of(feed.specs), self._pieces if is_first() else None
        program = _program(self.module, self.probes, feed.shapes[0], scenes, feed.crop_jitter, self.options.correspondences)
        seed = replicate(jnp.uint32(self.options.seed))
        parts: list[dict[str, np.ndarray]] = []
        with contextlib.closing(deliveries), progress_bar(f"tokens of {what} pairs", count, "pair", is_first()) as advance:
            for low in range(0, count, feed.batch_size):
                delivery = next(deliveries)
                for source, reason in delivery.skipped:
                    _logger.info("%s: %s; another pair takes its place", source, reason)
                name = f"{what} {range(low, low + feed.batch_size)}"
                part = None if pieces is None else pieces.read(name)
                if part is None:
                    part = flatten(_named(program(trunk, seed, split(delivery.batch))))
                    if pieces is not None:
                        pieces.write(name, part)
                parts.append(part)
                advance(min(feed.batch_size, count - low))
        whole = {name: jnp.asarray(np.concatenate([part[name] for part in parts])[:count]) for name in parts[0]}
        tokens = {name: jnp.moveaxis(whole[f"tokens/{name}"], 0, 1) for name in self.probes.rows}
        return Kept(tokens, SeenPlaces(*(whole[f"places/{name}"] for name in SeenPlaces._fields)))


def _named(kept: Kept) -> dict[str, dict[str, Any]]:
    """What all devices found, pairs first."""
    tokens = {name: np.moveaxis(np.asarray(values), 1, 0) for name, values in joined(kept.tokens, axis=1).items()}
    return {"tokens": tokens, "places": joined(kept.places, axis=0)._asdict()}


@functools.cache
def _program(
    module: MultiViewModel, config: EpipolarConfig, shape: Shape, scenes: SyntheticConfig | None, colour_jitter: bool, count: int
) -> Program[[Params, Array, Batch], Kept]:
    """(trunk, seed, batch) -> Kept, on every device. Kept itself, so that a control on the same architecture does not compile it again."""

    def keep(trunk: Params, seed: Array, batch: Batch) -> Kept:
        example = assemble(batch, seed, shape, scenes, colour_jitter)
        output = cast(BackboneOutput, module.apply({"params": trunk}, *example.images, capture=config.layer_ids, head=False))
        keys = jax.vmap(lambda position: jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), position), _DRAW))(batch.position)
        return Kept(averages(output, config), seen_places(keys, example.targets, example.intrinsics[1], count))

    return parallel(keep)
