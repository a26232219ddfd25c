"""Training the backbone itself: its step, its validation and its results."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import DictKey

from und3rstand_jax.checkpoint.format import read_checkpoint_info
from und3rstand_jax.checkpoint.parts import read_part
from und3rstand_jax.convert.model_card import add_results
from und3rstand_jax.data.loader import Sources
from und3rstand_jax.data.records import Shape
from und3rstand_jax.loading import load_backbone
from und3rstand_jax.model.config import ModelConfig
from und3rstand_jax.model.families import backbone_module
from und3rstand_jax.model.head_choice import POINTMAP, choose_heads
from und3rstand_jax.model.layer_ids import HEAD
from und3rstand_jax.model.stack import Params
from und3rstand_jax.support.errors import ConfigError
from und3rstand_jax.support.files import replace_text
from und3rstand_jax.support.text import listed, printable, to_json
from und3rstand_jax.train.card import backbone_results
from und3rstand_jax.train.config_file import option_values
from und3rstand_jax.train.learning_curve import LOG, plot_curve, read_curve
from und3rstand_jax.train.options import BackboneOptions
from und3rstand_jax.train.step.backbone_step import MODEL, BackboneState, backbone_errors, backbone_step, initial_backbone_state
from und3rstand_jax.train.step.data_parallel import total
from und3rstand_jax.train.step.model_loss import trained_heads
from und3rstand_jax.train.task import Errors, Step, Task, completed, open_feeds, recipe_of
from und3rstand_jax.train.trained import write_trained_backbone

BACKBONE, METRICS, PLOT = "backbone", "metrics.json", "learning_curve.png"


@dataclasses.dataclass(frozen=True)
class BackboneTask(Task[BackboneState]):
    """See `Task`; there is one row, the model's own head."""

    options: BackboneOptions

    @classmethod
    def create(
        cls, options: BackboneOptions, backbone: ModelConfig, devices: int, host: int = 0, hosts: int = 1, source: Path | None = None
    ) -> "BackboneTask":
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
            ConfigError: the architecture has no head.
        """
        if not backbone.heads:
            raise ConfigError("a backbone without a head (a trunk such as CroCo's) has no pointmaps to train on; use one with a head")
        options = completed(options, backbone, devices)
        feeds = open_feeds(options, backbone.patch_size, host, hosts)
        return cls(
            options=options,
            module=backbone_module(backbone, dtype=jnp.dtype(options.dtype), attention=options.attention),
            recipe=recipe_of(options),
            feed=feeds.train,
            val_feed=feeds.val,
            pairs_at_once=feeds.train.batch_size // (devices * options.accumulate),
            source=source,
        )

    @property
    def rows(self) -> Mapping[str, tuple[str, ...]]:
        """The model's head."""
        return {MODEL: (HEAD,)}

    @property
    def order(self) -> tuple[str, ...]:
        """The model's head."""
        return (HEAD,)

    @property
    def identity(self) -> dict[str, object]:
        """Architecture and initial parameters."""
        started = None if self.source is None else read_checkpoint_info(self.source).provenance["backbone"]["sha256"]
        return {"backbone": repr(self.module.config), "start_sha256": started}

    def description(self) -> str:
        """The model's size, and what training starts from."""
        config = self.module.config
        count = sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(self._random_params)))
        start = "random parameters" if self.source is None else str(self.options.start)
        untrained = listed(head.name for head in config.heads if head not in trained_heads(config))
        kept = f"; its heads for {untrained} stay unchanged: the loss has no term for them" if untrained else ""
        encoder = sum(layer.startswith("encoder.") and layer.endswith(".mlp") for layer in config.layer_ids)
        return f"a backbone of {count / 1e6:.2f} M parameters ({encoder} + {len(config.blocks)} blocks) from {start}{kept}"

    def initial_state(self) -> BackboneState:
        """The checkpoint's parameters, or random ones."""
        if self.source is None:
            return jax.jit(lambda: initial_backbone_state(self._trained(self._random_params()), self.recipe))()
        params = self._trained(load_backbone(self.source, attention=self.options.attention).params)
        if self.options.fresh_confidence:
            params = with_fresh_confidence(params, self.module.config)
        return initial_backbone_state(jax.tree.map(jnp.asarray, params), self.recipe)

    def _trained(self, params: Params) -> Params:
        """Without the heads that the loss does not read: weight decay would shrink them, step by step."""
        return {name: part for name, part in params.items() if name not in self._untrained}

    def _with_untrained(self, params: Params) -> Params:
        """The whole tree: what was trained, and those heads as they were."""
        if not self._untrained:
            return params
        if self.source is None:
            first = jax.jit(lambda: {name: part for name, part in self._random_params().items() if name in self._untrained})()
        else:
            # On the host: the device may have no room for a second model.
            first = read_part(self.source, read_checkpoint_info(self.source), "backbone")
        return {**params, **{name: first[name] for name in sorted(self._untrained)}}

    @property
    def _untrained(self) -> frozenset[str]:
        config = self.module.config
        return frozenset(part for head in config.heads if head not in trained_heads(config) for part in head.parts)

    def _random_params(self) -> Params:
        patch = self.module.config.patch_size
        image = jnp.zeros((1, patch, patch, 3), jnp.float32)
        return self.module.init(jax.random.key(self.options.seed), image, image)["params"]

    def fixed(self) -> Params:
        """Nothing: the step reads only the parameters that it trains."""
        return {}

    def step(self, shape: Shape) -> Step[BackboneState]:
        """Trunk and heads."""
        step = functools.partial(
            backbone_step,
            module=self.module,
            recipe=self.recipe,
            example_of=self.example_of(shape),
            total=total,
            micro_batches=self.options.accumulate,
        )
        return lambda state, _, batch: step(state, batch)

    def errors(self) -> Errors:
        """The normalised point error."""
        errors = functools.partial(backbone_errors, module=self.module, example_of=self.val_example_of())
        return lambda params, _, batch: errors(params, batch)

    def finish(self, state: BackboneState, step: int, val_sources: Sources) -> str:
        """Writes `backbone/` and its card, `metrics.json` and `learning_curve.png`."""
        options, out = self.options, self.options.out
        curve = read_curve(out / LOG)
        # Every run ends with a validation, and the best checkpoint is one that was validated.
        errors = dict(curve.validations).get(step)
        facts: dict[str, object] = {
            "step": step,
            "pairs": step * self.feed.batch_size,
            "options": option_values(options),
            "errors": errors,
        }
        write_trained_backbone(out / BACKBONE, self.module.config, self._with_untrained(state.params), facts, self.source, overwrite=True)
        card = add_results(out / BACKBONE, "backbone", backbone_results(options, step, errors, self.val_feed.things))
        replace_text(out / METRICS, to_json(facts))
        plot_curve(out / PLOT, curve, self.feed.batch_size)
        figures = "not measured" if errors is None else ", ".join(f"view {name[4:]} {error:.4f}" for name, error in errors.items())
        return (
            f"normalised point error on {options.val_pairs} held-out {self.val_feed.things} after step {step}: {figures}\n"
            f"backbone:       {printable(out / BACKBONE)}\ncard:           {printable(card)}\nlearning curve: {printable(out / PLOT)}\n"
            f"to export it in PyTorch's layout: python -m convert --repo {printable(out / BACKBONE)} --to-torch DIR"
        )


def with_fresh_confidence(params: Params, config: ModelConfig) -> Params:
    """The same parameters, but with a raw confidence of 0 (in DUSt3R's mode, a confidence of 2) in every pixel of all views.

    While distances exceed the weight of the loss's confidence term, 0.2, the loss drives confidence to its bound of 1. Once the
    exponential underflows there is no gradient left, and confidence stays there even if distances shrink later.
    """
    parts = [part for head in choose_heads(POINTMAP, config) for part in head.parts]
    replaced = []

    def fresh(path: tuple[DictKey, ...], leaf: np.ndarray | jax.Array) -> np.ndarray | jax.Array:
        part, last = (key.key for key in path[:2])
        if part not in parts or last not in ("proj", "out"):  # the last layer of the linear and of the DPT head
            return leaf
        replaced.append(path)
        # All heads' outputs are laid out channel first (x, y, z, confidence), a patch's pixels within.
        channels = leaf.reshape(*leaf.shape[:-1], 4, -1)
        return jnp.asarray(channels).at[..., 3, :].set(0).reshape(leaf.shape)

    params = jax.tree_util.tree_map_with_path(fresh, params)
    assert len(replaced) == 2 * len(parts), replaced  # kernel and bias of each head
    return params
