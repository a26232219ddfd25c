"""Confidence to begin with again, where training has driven it to its bound.

While distances stay above the 0.2 of the loss's confidence term, the loss lowers confidence towards its bound of 1; once the exponential
underflows it has no gradient left, and it stays there even if distances shrink.

What a run that trains a backbone ends with: the checkpoint, its errors on held-out pairs, and how it learned.

Training a backbone: from scratch, or on from a checkpoint.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from und3rstand_jax.checkpoint.format import read_checkpoint_info
from und3rstand_jax.data.loader import Sources
from und3rstand_jax.data.records import Shape
from und3rstand_jax.loading import load_backbone
from und3rstand_jax.model.layer_ids import HEAD
from und3rstand_jax.support.files import replace_text, strict_json
from und3rstand_jax.train.run.checkpoints import Checkpoints
from und3rstand_jax.train.run.config_file import option_values
from und3rstand_jax.train.run.folder import TRAINS
from und3rstand_jax.train.run.learning_curve import Curve, plot_curve, read_curve
from und3rstand_jax.train.run.metrics_log import JSONL
from und3rstand_jax.train.step.backbone_step import MODEL, BackboneState, backbone_errors, backbone_step, initial_backbone_state
from und3rstand_jax.train.step.data_parallel import first, total
from und3rstand_jax.train.task import BackboneSetup
from und3rstand_jax.train.trained import write_trained_backbone

_HEADS = ("head1", "head2")


_LAST = ("proj", "out")  # of the linear and of the DPT head


_CHANNELS = 4  # x, y, z, confidence


def with_fresh_confidence(params: Any) -> Any:
    """The same parameters, with a raw confidence of 0 (in DUSt3R's mode, a confidence of 2) for every pixel of both views."""

    replaced = []

    def fresh(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        keys = [key.key for key in path]
        if keys[0] not in _HEADS or keys[1] not in _LAST:
            return leaf
        # Outputs are laid out channel first in both heads, a patch's pixels within.
        replaced.append(keys)
        channels = leaf.reshape(*leaf.shape[:-1], _CHANNELS, -1)
        return jnp.asarray(channels).at[..., _CHANNELS - 1, :].set(0).reshape(leaf.shape)

    params = jax.tree_util.tree_map_with_path(fresh, params)
    assert len(replaced) == 2 * len(_HEADS), replaced  # kernel and bias of each
    return params


BACKBONE, METRICS, PLOT = "backbone", "metrics.json", "learning_curve.png"


def finish_backbone(setup: BackboneSetup, source: Path | None, checkpoints: Checkpoints, state: BackboneState) -> None:
    """Writes `backbone/`, `metrics.json` and `learning_curve.png`.

    Args:
        setup: of the run.
        source: the converted checkpoint it went on from.
        checkpoints: to take the best from, where that is asked for.
        state: after the last step; NumPy arrays.
    """
    options, out = setup.options, setup.options.out
    step = int(state.step)
    if options.export == "best" and (best := checkpoints.best()) is not None and best != step:
        state, step = checkpoints.read(best, state).state, best
    curve = read_curve(out / JSONL)
    facts = {"step": step, "pairs": step * (options.batch_size or 0), "options": option_values(options), "errors": _errors_at(curve, step)}
    write_trained_backbone(out / BACKBONE, setup.backbone, state.params, facts, source, overwrite=True)
    replace_text(out / METRICS, json.dumps(strict_json(facts), indent=1, allow_nan=False) + "\n")
    plot_curve(out / PLOT, curve, options.batch_size or 0)
    print(f"normalised point error on {options.val_pairs} held-out pairs after step {step}: {_told(facts['errors'])}")
    print(f"backbone:       {out / BACKBONE}\nlearning curve: {out / PLOT}")
    print(f"in PyTorch's layout: python -m convert --repo {out / BACKBONE} --to-torch DIR")


def _errors_at(curve: Curve, step: int) -> dict[str, float] | None:
    """Of the validation after that step, which every run ends with."""
    return next((errors for at, errors in curve.validations if at == step), None)


def _told(errors: Any) -> str:
    return "not measured" if errors is None else f"view 1 {errors['view1']:.4f}, view 2 {errors['view2']:.4f}"


TRAINS_BACKBONE = "a backbone"


class BackboneJob:
    """See `und3rstand_jax.train.run.job.Job`. There is one row: the model's own head."""

    rows: Mapping[str, tuple[str, ...]] = {MODEL: (HEAD,)}
    order = (HEAD,)

    def __init__(self, setup: BackboneSetup, source: Path | None) -> None:
        """`source` is the converted checkpoint to go on from; None to begin with random parameters."""
        self.setup, self._source = setup, source

    @property
    def identity(self) -> dict[str, Any]:
        """Architecture and beginning."""
        started = None if self._source is None else read_checkpoint_info(self._source).provenance["backbone"]["sha256"]
        return {TRAINS: TRAINS_BACKBONE, "backbone": repr(self.setup.backbone), "start_sha256": started}

    def announcement(self) -> str:
        """Its size, and where it begins."""
        config = self.setup.backbone
        count = sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(self._params)))
        begins = "random parameters" if self._source is None else str(self.setup.options.start)
        return f"a backbone of {count / 1e6:.2f} M parameters ({config.enc_depth} + {config.dec_depth} blocks) from {begins}"

    def initial_state(self) -> BackboneState:
        """The checkpoint's parameters, or random ones."""
        if self._source is None:
            return jax.jit(lambda: initial_backbone_state(self._params(), self.setup.recipe))()
        params = load_backbone(self._source, attention=self.setup.options.attention).params
        if self.setup.options.fresh_confidence:
            params = with_fresh_confidence(params)
        return initial_backbone_state(jax.tree.map(jnp.asarray, params), self.setup.recipe)

    def fixed(self) -> tuple[()]:
        """Nothing is."""
        return ()

    def step(self, shape: Shape) -> Callable[[Any, Any, Any], tuple[Any, Any]]:
        """Trunk and heads."""
        task = self.setup.task(shape)
        return lambda state, _, batch: backbone_step(task, total, state, batch)

    def errors(self) -> Callable[[Any, Any, Any], Any]:
        """The normalised point error."""
        task = self.setup.val_task
        return lambda params, _, batch: backbone_errors(task, params, batch)

    def frozen_at(self, state: BackboneState) -> Mapping[str, np.ndarray]:
        """Of the one row."""
        return {MODEL: np.asarray(first(state.model.frozen_at))[None]}

    def finish(self, sources: Sources, checkpoints: Checkpoints, state: BackboneState) -> None:
        """Checkpoint, figures and learning curve."""
        finish_backbone(self.setup, self._source, checkpoints, state)

    def _params(self) -> Any:
        patch = self.setup.backbone.patch_size
        image = jnp.zeros((1, patch, patch, 3))
        return self.setup.module.init(jax.random.key(self.setup.options.seed), image, image)["params"]
