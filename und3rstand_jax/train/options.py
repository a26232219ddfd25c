"""Every option of a training run: the command line, the config file and the record that a run writes are all made of this.

Every option of training a backbone.
"""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro

Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]


Several = Annotated[tuple[str, ...], tyro.conf.UseAppendAction]


PUBLISHED_BACKBONE = "naver/DUSt3R_ViTLarge_BaseDecoder_512_dpt"


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """What every run has, whatever it trains."""

    data: Annotated[Several, tyro.conf.arg(metavar="[WEIGHT*]SOURCE")] = ()
    """synthetic[:overlap=LOW-HIGH,baseline=LOW-HIGH], co3d:DIR, blendedmvs:DIR or pairs:DIR; may be repeated. Default: synthetic."""
    val_data: Annotated[Several, tyro.conf.arg(metavar="[WEIGHT*]SOURCE")] = ()
    """What is validated on, always on pairs held out of training; by default as --data."""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("run")
    """Folder of the run, on the first of several hosts; the others write there only what they could not read."""
    config: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """YAML or JSON file of options by these names; the command line goes before it. A run writes its own to DIR/config.yaml."""

    steps: int = 10_000
    """Updates."""
    batch_size: int | None = None
    """Pairs a step, over all devices; by default 4 for each device."""
    accumulate: int = 1
    """Parts a device takes its pairs of a step in, one after the other; the result is that of one part, the memory a part's."""
    resolution: Annotated[Several, tyro.conf.arg(metavar="WxH")] = ()
    """Size of both views in pixels, multiples of 16; of several each batch has one, validation the first. Default: the backbone's."""
    augment: bool = True
    """DUSt3R's augmentation in training: random crops (of files) and colours."""

    learning_rate: float = 1e-4
    """The optimiser's, after warm-up."""
    final_learning_rate: float = 1e-6
    """At the end of the cosine."""
    warmup_steps: int | None = None
    """Steps of linear warm-up; by default a tenth of --steps."""
    beta1: float = 0.9
    """AdamW's."""
    beta2: float = 0.95
    """AdamW's."""
    weight_decay: float = 0.05
    """Of matrices only."""
    seed: int = 0
    """Of parameters, scenes, order of pairs and augmentation."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """What the backbone computes in; heads, probes, loss and optimiser are float32 always."""
    attention: Literal["auto", "per_head", "xla", "cudnn"] = "auto"
    """How the backbone's attention is computed; cudnn needs an NVIDIA GPU and bfloat16."""

    validate_every: int = 500
    """Steps between validations."""
    val_pairs: int = 64
    """Pairs of a validation, and of the evaluation at the end."""
    save_every: int = 500
    """Steps between checkpoints."""
    keep: int = 2
    """Newest checkpoints to keep, beside the best."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl and points of TensorBoard: means over the steps since the last."""
    export: Literal["last", "best"] = "last"
    """What the run ends with: the last parameters, or those of the checkpoint with the least validation error (over all layers)."""
    workers: int = 2
    """Processes that read files, on each host."""
    unreadable: Literal["skip", "fail"] = "skip"
    """What a pair does whose files cannot be read: it is replaced by another, counted and reported, or it ends the run."""

    distributed: Flag = False
    """This is one of several processes, one a host (TPU pods and Slurm tell JAX all it needs to know)."""
    coordinator: Annotated[str | None, tyro.conf.arg(metavar="HOST:PORT")] = None
    """Where process 0 listens, where JAX cannot find out by itself; with --processes and --process."""
    processes: int | None = None
    """How many processes there are."""
    process: int | None = None
    """Which of them this is, from 0."""
    overwrite: Flag = False
    """Replace the run in DIR instead of going on with it."""
    debug: Flag = False
    """Show the traceback of an error."""


@dataclasses.dataclass(frozen=True)
class TrainOptions(RunOptions):
    """Trains a probe for every chosen layer of a frozen DUSt3R, all at once, and says how well each layer can be read.

    Other commands: python -m train backbone | two-views | inspect | evaluate | plan (each with its own --help).
    Interrupted, by Ctrl-C, SIGTERM or worse, the same command goes on where the last checkpoint is.
    """

    layers: Annotated[str, tyro.conf.arg(metavar="PATTERNS")] = "all"
    """Layers to probe: ids or shell-style patterns, comma-separated ('decoder.*.mlp,encoder.norm'). all: the decoder's three a block."""
    backbone: Annotated[str, tyro.conf.arg(metavar="SOURCE")] = PUBLISHED_BACKBONE
    """Hub id, PyTorch folder or file, or converted checkpoint; its own probes, if any, are left alone."""

    hidden: int | None = None
    """Width of a probe's hidden layers; by default that of its tokens."""
    depth: int = 5
    """Linear layers of a probe."""
    activation: str = "gelu"
    """Between them: gelu, gelu_tanh, relu, silu, tanh or leaky_relu."""
    norm: Literal["layernorm", "rmsnorm", "none"] = "layernorm"
    """What a probe's tokens go through first."""
    views: Literal["shared", "separate"] = "shared"
    """Whether one MLP reads both views of a layer, or each view has its own."""
    precision: Literal["highest", "high", "default"] = "highest"
    """Of the probes' matrix products, where a GPU or TPU has several."""
    side_by_side: int = 1
    """Layers whose probes are computed at once (the largest divisor of their number up to this): more memory, larger products."""


NOT_PART_OF_A_RUN = ("out", "config", "distributed", "coordinator", "processes", "process", "overwrite", "debug")
"""Options that say where and how a run is started, not what it is."""


CHANGEABLE = (
    "validate_every",
    "save_every",
    "keep",
    "log_every",
    "export",
    "workers",
    "val_data",
    "val_pairs",
    "side_by_side",
    "unreadable",
)
"""Options that may change when a run is resumed: none of them has a part in what the probes become."""


@dataclasses.dataclass(frozen=True)
class BackboneOptions(RunOptions):
    """Trains a DUSt3R itself, trunk and heads: from scratch, or on from a checkpoint with --start.

    The loop is that of the probes, with the same data, loss, checkpoints and devices. The run ends with DIR/backbone, a converted
    checkpoint; python -m convert --to-torch writes it in PyTorch's layout.
    Interrupted, by Ctrl-C, SIGTERM or worse, the same command goes on where the last checkpoint is.
    """

    start: Annotated[str | None, tyro.conf.arg(metavar="SOURCE")] = None
    """Hub id, PyTorch folder or file, or converted checkpoint to go on from; the options of the architecture are then the checkpoint's."""
    fresh_confidence: bool = False
    """Begin with a confidence of 2 in every pixel in place of the checkpoint's: one that has sunk to its bound has no gradient left."""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("backbone_run")
    """Folder of the run, on the first of several hosts; the others write there only what they could not read."""

    image_size: Annotated[str | None, tyro.conf.arg(metavar="WxH")] = None
    """Size of the images it is made for, in pixels, multiples of 16; 128x128 from scratch."""
    enc_depth: int | None = None
    """Encoder blocks; 4 from scratch."""
    enc_width: int | None = None
    """Channels of the encoder's tokens; 192 from scratch."""
    enc_heads: int | None = None
    """Heads of its attention; 3 from scratch."""
    dec_depth: int | None = None
    """Decoder blocks of each view; 8 from scratch."""
    dec_width: int | None = None
    """Channels of the decoder's tokens; 128 from scratch."""
    dec_heads: int | None = None
    """Heads of its attention; 4 from scratch."""
    mlp_ratio: int | None = None
    """Hidden channels of a block's MLP for each of its tokens' channels; 3 from scratch."""
    head: Literal["linear", "dpt"] | None = None
    """What turns tokens into pointmaps; linear from scratch."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """Muon takes the blocks' matrices and leaves the rest to AdamW."""
