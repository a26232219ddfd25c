"""Rendered scenes as a list of pairs, to inspect them as what comes from files is."""

import dataclasses
from typing import Literal

import jax
import numpy as np

from train.data.records import Pair, Shape
from train.data.scene_numbers import held_out_scenes, training_scenes
from train.data.synthetic.config import SyntheticConfig
from train.data.synthetic.render import render_pair


@dataclasses.dataclass(frozen=True)
class RenderedPairs:
    """The first scenes of a seed, on the host."""

    scenes: SyntheticConfig
    seed: int
    split: Literal["train", "val"]
    count: int
    shape: Shape
    name: str = "synthetic"
    notes: tuple[str, ...] = ("scenes are rendered as they are needed and never end",)

    def __len__(self) -> int:
        return self.count

    def read(self, index: int) -> Pair:
        """One pair."""
        number = (training_scenes if self.split == "train" else held_out_scenes)()[index]
        return jax.tree.map(np.asarray, _render(self.seed, number, self.shape, self.scenes))

    def pair_name(self, index: int) -> str:
        """How a report calls a pair."""
        return f"scene {index}"

    def fit(self, index: int, pair: Pair, shape: Shape, rng: np.random.Generator | None) -> Pair:
        """Scenes are rendered at the size asked for."""
        return pair


_render = jax.jit(render_pair, static_argnums=(2, 3))
