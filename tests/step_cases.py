"""A small backbone, probes on it and made-up pairs: cases for tests of the step, in this process and in others.

`python -m tests.step_cases OUT.npz WAY [COORDINATOR PROCESSES PROCESS]` takes the steps of `take_steps` on all devices of all processes
and writes losses and parameters: run under XLA_FLAGS=--xla_force_host_platform_device_count=N. WAY is pmap or shard_map.
"""

import dataclasses
import functools
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests import quick_programs
from und3rstand_jax.data.example import to_example
from und3rstand_jax.data.records import NOT_RENDERED, Batch, View
from und3rstand_jax.model.dust3r.config import BackboneConfig
from und3rstand_jax.model.dust3r.module import DUSt3R
from und3rstand_jax.probes.config import ProbeConfig, probe_config
from und3rstand_jax.train.step.data_parallel import first, parallel, parallel_by_shard_map, replicate, split, total
from und3rstand_jax.train.step.optimizer import Recipe
from und3rstand_jax.train.step.probe_step import ProbesState, initial_state, probe_step

SHAPE = (32, 48)
PAIRS = 8
LAYERS = ("encoder.norm", "decoder.0.self_attn", "decoder.0.cross_attn", "decoder.0.mlp", "decoder.1.mlp")
CONFIG = BackboneConfig(
    img_size=(32, 48), enc_embed_dim=32, enc_depth=1, enc_num_heads=2, dec_embed_dim=16, dec_depth=2, dec_num_heads=2, head_type=None
)


@dataclasses.dataclass(frozen=True)
class Case:
    """The step on some layers; learning rates large enough to matter within a few steps."""

    layers: tuple[str, ...] = LAYERS
    steps: int = 20
    micro_batches: int = 1
    side_by_side: int = 1
    views: int = 2

    @property
    def probes(self) -> ProbeConfig:
        return probe_config(CONFIG, self.layers, hidden=24, depth=3)

    @property
    def recipe(self) -> Recipe:
        return Recipe(self.steps, 2, learning_rate=3e-3, final_learning_rate=1e-4)

    def initial_state(self, seed: int = 5) -> ProbesState:
        return initial_state(self.probes, self.recipe, seed)

    def step(self, total: Any) -> Any:
        """(state, trunk, batch) -> (state, losses). No scene is rendered, whose program takes long to compile, and no colour changed."""
        return functools.partial(
            probe_step,
            module=DUSt3R(dataclasses.replace(CONFIG, max_views=self.views)),
            probes=self.probes,
            recipe=self.recipe,
            example_of=lambda batch: to_example(batch.views),
            total=total,
            micro_batches=self.micro_batches,
            side_by_side=self.side_by_side,
        )


@functools.cache
def backbone() -> Any:
    """Random parameters, of a size at which activations stay moderate."""
    view = jax.ShapeDtypeStruct((1, *SHAPE, 3), np.float32)
    shapes = jax.eval_shape(functools.partial(DUSt3R(CONFIG).init, head=False), jax.random.key(0), view, view)["params"]
    rng = np.random.default_rng(1)

    def draw(path: Any, leaf: Any) -> np.ndarray:
        if path[-1].key == "scale":
            return np.ones(leaf.shape, np.float32)
        return rng.normal(0, 0.02 if path[-1].key == "bias" else 0.15, leaf.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def batch(step: int, pairs: int = PAIRS, views: int = 2) -> Batch:
    """Made-up pairs, or sets of more views; each view of each set with its own share of invalid pixels."""
    rng = np.random.default_rng((2, step))

    def view() -> View:
        depth = rng.uniform(1, 4, (pairs, *SHAPE)).astype(np.float32)
        depth[rng.random(depth.shape) < np.linspace(0.05, 0.9, pairs)[:, None, None]] = 0
        pose = np.tile(np.eye(4, dtype=np.float32), (pairs, 1, 1))
        pose[:, :3, :3] = np.linalg.qr(rng.normal(size=(pairs, 3, 3)))[0]
        pose[:, :3, 3] = rng.normal(size=(pairs, 3))
        intrinsics = np.tile(np.array([[40.0, 0, 24], [0, 42, 16], [0, 0, 1]], np.float32), (pairs, 1, 1))
        return View(rng.integers(0, 256, (pairs, *SHAPE, 3)).astype(np.uint8), depth, intrinsics, pose)

    return Batch(np.arange(pairs, dtype=np.uint32), np.full(pairs, NOT_RENDERED, np.int32), tuple(view() for _ in range(views)))


WAYS = {"pmap": parallel, "shard_map": parallel_by_shard_map}


def take_steps(case: Case, steps: int = 3, way: str = "pmap") -> tuple[list[Any], Any]:
    """Losses of each step, and the state after the last, on all devices; the whole batch is the same for every layout."""
    program = WAYS[way](case.step(total), donate=(0,))
    trunk = replicate(backbone())
    state = replicate(case.initial_state())
    losses = []
    for step in range(steps):
        local = PAIRS // jax.process_count()
        own = jax.tree.map(lambda leaf, local=local: leaf[jax.process_index() * local :][:local], batch(step))
        state, loss = program(state, trunk, split(own))
        losses.append(first(loss))
    return losses, first(state)


def one_device_step(case: Case) -> Any:
    """The step on one device without parallel machinery."""
    return jax.jit(case.step(lambda tree: tree))


def main() -> None:
    """Takes the steps and writes what came out."""
    out, way, *distributed = sys.argv[1:]
    if distributed:
        jax.distributed.initialize(distributed[0], int(distributed[1]), int(distributed[2]))
    quick_programs.install()
    losses, state = take_steps(Case(), way=way)
    arrays = {f"loss{i}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(losses))}
    arrays |= {f"state{i}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(state))}
    np.savez(out, devices=jnp.asarray(jax.device_count()), **arrays)


if __name__ == "__main__":
    main()
