"""What is measured, in what order, and how long each part may take."""

import dataclasses
from typing import Any

from benchmarks.matmul_rate import Product

PRECISIONS = ("highest", "high", "default")
"""Precisions of the probes' matrix products."""

MINUTES = 6.0
"""The total time for which the limits below are given."""


@dataclasses.dataclass(frozen=True)
class Training:
    """A short training run of the pocket model's probes: `steps` of `batch` pairs out of `pairs`, for each seed.

    `side`, in pixels, is a key of `Sizes.rendered`, so that one program renders for both; `pairs` and `held_out` are multiples of the
    number of pairs in a round there.
    """

    side: int
    steps: int
    batch: int
    pairs: int
    held_out: int
    seeds: int
    layers: str


@dataclasses.dataclass(frozen=True)
class ManyViews:
    """Forward passes of a VGGT with random weights: a case of tests/golden for its sizes, numbers of views, and their (height, width)."""

    case: str
    views: tuple[int, ...]
    shape: tuple[int, int]
    dtypes: tuple[str, ...] = ("bfloat16", "float32")


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How large everything is.

    Attributes:
        case: the model, a case of tests/golden.
        golden: (batch, height, width) of that case's views, at which the forward pass is also timed.
        batches: pairs in a forward pass; the first is the golden case's.
        float32_batches: the batches that run in float32 too, not only in bfloat16; the first does.
        step_batches: pairs in a training step.
        step_shape: (height, width) of its views.
        products: matrix products of the ceilings; None for those of the device's kind.
        copied: bytes of the copy.
        rendered: side in pixels -> pairs in a round.
        rounds: timed runs of each side.
        training: the training run of the pocket model's probes.
        vggt: forward passes of a VGGT.
    """

    case: str
    golden: tuple[int, int, int]
    batches: tuple[int, ...]
    float32_batches: tuple[int, ...]
    step_batches: tuple[int, ...]
    step_shape: tuple[int, int]
    products: tuple[Product, ...] | None
    copied: int
    rendered: dict[int, int]
    rounds: int
    training: Training
    vggt: ManyViews


FULL = Sizes(
    case="full_512_dpt",
    golden=(1, 384, 512),
    batches=(1, 8, 32),
    float32_batches=(1, 8, 32),
    step_batches=(1, 8),
    step_shape=(512, 512),
    products=None,
    copied=2**30,
    rendered={128: 64, 512: 4},
    rounds=10,
    training=Training(side=128, steps=150, batch=8, pairs=512, held_out=64, seeds=3, layers="all"),
    vggt=ManyViews("full_vggt_1b", views=(2, 8), shape=(392, 518)),
)
SMALL = Sizes(
    case="tiny_dpt",
    golden=(2, 64, 96),
    batches=(2, 1),
    float32_batches=(2,),
    step_batches=(2,),
    step_shape=(32, 48),
    products=((256, 256, 256),),
    copied=2**22,
    rendered={32: 2},
    rounds=2,
    training=Training(side=32, steps=4, batch=2, pairs=4, held_out=2, seeds=2, layers="encoder.0.mlp"),
    vggt=ManyViews("tiny_vggt", views=(2,), shape=(28, 42), dtypes=("float32",)),
)


@dataclasses.dataclass(frozen=True)
class Part:
    """One thing to measure.

    Attributes:
        kind: what to measure; the name of the method of `measure.Run` that does it.
        setting: that method's arguments.
        limit: the most seconds, out of `MINUTES`; a part that hangs leaves time for the others.
        batch: parts with one batch size share processes, and the next size gets new ones: neither library gives memory back to the device.
    """

    kind: str
    setting: dict[str, Any]
    limit: float
    batch: int

    @property
    def name(self) -> str:
        """The part's name, for display."""
        return ", ".join([self.kind, *(f"batch {value}" if name == "batch" else str(value) for name, value in self.setting.items())])


def parts(sizes: Sizes) -> list[Part]:
    """All parts, the most valuable first: parts that are not reached before time is up are not measured."""
    first = sizes.batches[0]

    def forward(batch: int, dtype: str, attention: str, limit: float = 130) -> Part:
        return Part("forward", {"batch": batch, "dtype": dtype, "attention": attention}, limit, batch)

    def steps(batch: int, precisions: tuple[str, ...]) -> list[Part]:
        return [Part("step", {"batch": batch, "precision": precision}, 110, batch) for precision in precisions]

    order = [
        Part("machine", {}, 60, first),
        Part("ceilings", {}, 60, first),
        Part("checkpoint", {}, 90, first),
        Part("golden", {"dtype": "float32"}, 150, first),
        forward(first, "float32", "xla"),
        Part("golden", {"dtype": "bfloat16"}, 130, first),
        forward(first, "bfloat16", "xla"),
        *steps(sizes.step_batches[0], ("highest",)),
        forward(first, "bfloat16", "cudnn"),
        *steps(sizes.step_batches[0], ("default", "high")),
        Part("rendering", {}, 60, first),
        Part("training", {}, 150, first),
        # In their own processes: they have twice as many weights.
        *(Part("vggt", {"views": views, "dtype": dtype}, 150, 0) for views in sizes.vggt.views for dtype in sizes.vggt.dtypes),
    ]
    for batch in sizes.batches[1:]:
        order += [forward(batch, "bfloat16", "cudnn"), forward(batch, "bfloat16", "xla")]
        if batch in sizes.step_batches:
            order += steps(batch, ("highest", "default", "high"))
        if batch in sizes.float32_batches:
            order.append(forward(batch, "float32", "xla"))
    return order
