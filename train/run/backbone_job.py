"""Training a backbone: from scratch, or on from a checkpoint."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from train.data.loader import Sources
from train.data.records import Shape
from train.run.backbone_ending import finish_backbone
from train.run.checkpoints import Checkpoints
from train.run.folder import TRAINS
from train.run.fresh_confidence import with_fresh_confidence
from train.setup import BackboneSetup
from train.step.backbone_step import MODEL, BackboneState, backbone_errors, backbone_step, initial_backbone_state
from train.step.data_parallel import first, total
from und3rstand_jax.checkpoint import read_checkpoint_info
from und3rstand_jax.layers import HEAD
from und3rstand_jax.loading import load_backbone

TRAINS_BACKBONE = "a backbone"


class BackboneJob:
    """See `train.run.job.Job`. There is one row: the model's own head."""

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
