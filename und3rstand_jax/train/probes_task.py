"""Training probes on a frozen backbone: its step, its validation and its results."""

import dataclasses
import functools
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from typing_extensions import TypedDict

from und3rstand_jax.analysis.evaluate import evaluate_on
from und3rstand_jax.analysis.evaluation_files import METRICS, PLOT, TABLE, format_table, write_results
from und3rstand_jax.checkpoint.format import is_checkpoint, read_checkpoint_info
from und3rstand_jax.convert.model_card import add_results
from und3rstand_jax.data.loader import Sources
from und3rstand_jax.data.records import Shape
from und3rstand_jax.loading import load_backbone, load_backbone_and_probe
from und3rstand_jax.model.config import ModelConfig
from und3rstand_jax.model.families import backbone_module
from und3rstand_jax.model.layer_ids import select_layers
from und3rstand_jax.model.stack import Params
from und3rstand_jax.probes.config import ProbeConfig, probe_config
from und3rstand_jax.support.documents import read_json
from und3rstand_jax.support.errors import OptionError, OutputError
from und3rstand_jax.support.text import printable, strict_json
from und3rstand_jax.train.card import probes_results
from und3rstand_jax.train.config_file import option_values
from und3rstand_jax.train.options import TrainOptions
from und3rstand_jax.train.step.data_parallel import total
from und3rstand_jax.train.step.optimizer import NOT_FROZEN
from und3rstand_jax.train.step.probe_step import ProbesState, initial_state, layer_errors, named_groups, probe_step, trunk_params
from und3rstand_jax.train.task import Errors, Step, Task, completed, open_feeds, recipe_of
from und3rstand_jax.train.trained import write_trained_probes

PROBES = "probes"

_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class ProbesTask(Task[ProbesState]):
    """See `Task`; a row is a probed layer. `probes` is the shape of every probe."""

    options: TrainOptions
    probes: ProbeConfig

    @classmethod
    def create(
        cls, options: TrainOptions, backbone: ModelConfig, devices: int, host: int = 0, hosts: int = 1, source: Path | None = None
    ) -> "ProbesTask":
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
            LayerError: --layers names no layer of this backbone.
        """
        options = completed(options, backbone, devices)
        feeds = open_feeds(options, backbone.patch_size, host, hosts)
        if options.side_by_side < 1:
            raise OptionError(f"--side-by-side must be at least 1; found {options.side_by_side}")
        layers = select_layers(options.layers, backbone.layer_ids)
        shape = options.hidden, options.depth, options.activation, options.norm, options.mlps, options.views
        probes = probe_config(backbone, layers, *shape)
        return cls(
            options=options,
            module=backbone_module(backbone, dtype=jnp.dtype(options.dtype), attention=options.attention),
            recipe=recipe_of(options),
            feed=feeds.train,
            val_feed=feeds.val,
            pairs_at_once=feeds.train.batch_size // (devices * options.accumulate),
            source=source,
            probes=probes,
        )

    @property
    def rows(self) -> Mapping[str, tuple[str, ...]]:
        """The layers of every group."""
        return {name: group.layer_ids for name, group in named_groups(self.probes).items()}

    @property
    def order(self) -> tuple[str, ...]:
        """The probed layers."""
        return self.probes.layer_ids

    @property
    def precision(self) -> lax.Precision:
        """The precision of the probes' matrix products."""
        return lax.Precision[self.options.precision.upper()]

    @property
    def identity(self) -> dict[str, object]:
        """Layers and backbone."""
        assert self.source is not None
        sha256 = read_checkpoint_info(self.source).provenance["backbone"]["sha256"]
        return {"layers": list(self.order), "backbone": repr(self.module.config), "backbone_sha256": sha256}

    def description(self) -> str:
        """The number of layers, and their backbone."""
        span = self.order[0] if len(self.order) == 1 else f"{self.order[0]} … {self.order[-1]}"
        return f"{len(self.order)} layers ({span}) of {self.options.backbone}"

    def initial_state(self) -> ProbesState:
        """Randomly initialised probes."""
        return initial_state(self.probes, self.recipe, self.options.seed)

    def fixed(self) -> Params:
        """The backbone's trunk."""
        assert self.source is not None
        return trunk_params(
            load_backbone(self.source, dtype=self.options.dtype, attention=self.options.attention).params, self.module.config
        )

    def step(self, shape: Shape) -> Step[ProbesState]:
        """All probes at once, each with its own loss."""
        return functools.partial(
            probe_step,
            module=self.module,
            probes=self.probes,
            recipe=self.recipe,
            example_of=self.example_of(shape),
            total=total,
            micro_batches=self.options.accumulate,
            side_by_side=self.options.side_by_side,
            precision=self.precision,
        )

    def errors(self) -> Errors:
        """The shift- and scale-invariant error of every layer, in the ground truth's unit."""
        return functools.partial(
            layer_errors, module=self.module, probes=self.probes, example_of=self.val_example_of(), precision=self.precision
        )

    def finish(self, state: ProbesState, step: int, val_sources: Sources) -> str:
        """Writes `probes/`, loads and evaluates them as any user would, and writes their card, metrics, table and plot."""
        assert self.source is not None
        options, out = self.options, self.options.out
        frozen = {layer: int(np.asarray(at)) + 1 for layer, at in self.by_row(state.frozen_at).items() if at != NOT_FROZEN}
        facts: dict[str, object] = {"step": step, "frozen": frozen, "options": option_values(options)}
        if _results_of(out) == strict_json(facts):
            return printable(f"{out} is finished already: {out / PROBES}, {out / TABLE}, {out / PLOT}")
        write_trained_probes(out / PROBES, self.source, self.probes, state.params, facts, overwrite=True)
        _logger.info("evaluating")
        backbone, probes = load_backbone_and_probe(out / PROBES, dtype=options.dtype, attention=options.attention)
        # On one device, with as many pairs as one device takes at once in training.
        feed = dataclasses.replace(self.val_feed, batch_size=self.pairs_at_once)
        evaluation, unreadable = evaluate_on(backbone, probes, feed, val_sources, options.val_pairs, progress=True)
        card = add_results(out / PROBES, "probes", probes_results(options, step, evaluation))
        write_results(out, evaluation, facts | {"unreadable": unreadable})
        files = map(printable, (f"probes: {out / PROBES}", f"card:   {card}", f"table:  {out / TABLE}", f"plot:   {out / PLOT}"))
        return "\n".join([format_table(evaluation), *files])


class _Results(TypedDict):
    facts: dict[str, Any]


def _results_of(out: Path) -> dict[str, object] | None:
    """The facts in the folder's metrics.json; None unless the folder contains all results."""
    # The card is not checked: a run of an earlier version has none, and metrics.json is written after it.
    if not is_checkpoint(out / PROBES) or not all((out / name).is_file() for name in (METRICS, TABLE, PLOT)):
        return None
    try:
        facts = read_json(out / METRICS, _Results, OutputError)["facts"]
    except OutputError:  # edited, or half written when the run was killed
        return None
    return {name: value for name, value in facts.items() if name != "unreadable"}
