"""Every option of a training run. These dataclasses define the command line, the config file and the record that a run writes.

The text under a field is its help. Nothing here imports JAX, so that `--help` is fast.
"""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import tyro

from und3rstand_jax.support.option_kinds import Flag, Real, Several, Whole
from und3rstand_jax.support.option_values import AttentionImplementation, Dtype

PUBLISHED_BACKBONE = "naver/DUSt3R_ViTLarge_BaseDecoder_512_dpt"


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """Options that all training runs share, whatever they train."""

    data: Annotated[Several, tyro.conf.arg(metavar="[WEIGHT*]SOURCE", help_behavior_hint="(default: synthetic; repeatable)")] = ()
    """Training data: synthetic[:overlap=LOW-HIGH,baseline=LOW-HIGH], co3d:DIR, blendedmvs:DIR or pairs:DIR. Repeated, \
sources are mixed in proportion to their weights."""
    val_data: Annotated[Several, tyro.conf.arg(metavar="[WEIGHT*]SOURCE", help_behavior_hint="(default: as --data; repeatable)")] = ()
    """Validation data; only held-out pairs are used."""
    views: Whole = 2
    """Views in a set, the same in all data: 2 for pairs. More needs a backbone that takes that many; train backbone trains such a one."""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("run")
    """Output folder of the run, on the first host. Other hosts write only their list of unreadable pairs there."""
    config: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(optional)")] = None
    """YAML or JSON file with options under these names. The command line takes precedence. Each run saves its own as DIR/config.yaml."""

    steps: Whole = 10_000
    """Number of optimiser steps."""
    batch_size: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="(default: 8 views per device and micro-batch)")] = None
    """Pairs, or sets of more views, per step, over all devices."""
    accumulate: Whole = 1
    """Micro-batches per step on each device. The result is the same, but activations take the memory of one micro-batch only."""
    resolution: Annotated[Several, tyro.conf.arg(metavar="WxH", help_behavior_hint="(default: the backbone's; repeatable)")] = ()
    """Image size of all views in pixels, multiples of the patch size (16, or 14 for a VGGT). Repeated, one \
size is drawn per batch; validation uses the first."""
    augment: bool = True
    """Augment training images as DUSt3R does: random crops (of files only) and colour jitter."""

    learning_rate: Real = 1e-4
    """Peak learning rate, reached after warm-up."""
    final_learning_rate: Real = 1e-6
    """Learning rate at the end of the cosine schedule."""
    warmup_steps: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="(default: a tenth of --steps)")] = None
    """Steps of linear warm-up."""
    beta1: Real = 0.9
    """AdamW's decay rate of the first moment."""
    beta2: Real = 0.95
    """AdamW's decay rate of the second moment."""
    weight_decay: Real = 0.05
    """Weight decay, applied to matrices only, not to biases and norms."""
    seed: Whole = 0
    """Random seed of the initial parameters, synthetic scenes, the order of pairs, and augmentation."""

    dtype: Dtype = "float32"
    """Data type of the backbone's computation. Heads, probes, loss and optimiser always use float32."""
    attention: AttentionImplementation = "auto"
    """Implementation of the backbone's attention; cudnn requires an NVIDIA GPU and bfloat16, in which auto takes it."""

    validate_every: Whole = 500
    """Steps between validations."""
    val_pairs: Whole = 64
    """Number of held-out pairs (or sets) for validation, and for the evaluation at the end."""
    save_every: Whole = 500
    """Steps between checkpoints."""
    keep: Whole = 2
    """Number of most recent checkpoints to keep, besides the best one."""
    log_every: Whole = 10
    """Steps between entries in metrics.jsonl and TensorBoard; each entry is the mean over the steps since the one before."""
    export: Literal["last", "best"] = "last"
    """Parameters to export at the end: those of the last step, or those of the checkpoint with the lowest mean validation error."""
    workers: Whole = 2
    """Processes that read files, on each host; 0 reads in the training process."""
    unreadable: Literal["skip", "fail"] = "skip"
    """What to do about a pair whose files cannot be read: skip takes another pair in its place and reports it, fail ends the run."""

    distributed: Flag = False
    """Run as one of several processes, one per host, that find each other by themselves (TPU pods, Slurm)."""
    coordinator: Annotated[str | None, tyro.conf.arg(metavar="HOST:PORT", help_behavior_hint="(optional)")] = None
    """Address of process 0, if the processes cannot find each other by themselves. Requires --processes and --process."""
    processes: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="(required with --coordinator)")] = None
    """Total number of processes."""
    process: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="(required with --coordinator)")] = None
    """Number of this process, from 0."""
    overwrite: Flag = False
    """Replace the run in DIR instead of resuming it."""
    quiet: Flag = False
    """Print results only: no messages and no progress bars. Warnings and errors stay on stderr."""
    json: Flag = False
    """Print the result as one JSON document on stdout in place of text."""
    debug: Flag = False
    """Show the traceback of an error."""


@dataclasses.dataclass(frozen=True)
class TrainOptions(RunOptions):
    """Trains a probe on every chosen layer of a frozen model, all at once, and reports the error of each layer's pointmaps.

    This is what python -m train does without a command. Other commands: backbone | pose | two-views | inspect | evaluate | plan |
    learning-curve (each has its own --help). Also: --version, and --completion bash|zsh|fish, which prints a script of completions for
    that shell.
    A run that was interrupted, by Ctrl-C, SIGTERM or a kill, resumes from its last checkpoint when the same command is given again.
    """

    layers: Annotated[str, tyro.conf.arg(metavar="PATTERNS")] = "all"
    """Layers to probe, as comma-separated ids or shell-style patterns ('decoder.*.mlp,encoder.norm'). all: the layer after every step of \
the blocks in which views meet, which are three for each decoder block of a DUSt3R and four for each pair of blocks of a VGGT."""
    backbone: Annotated[str, tyro.conf.arg(metavar="SOURCE")] = PUBLISHED_BACKBONE
    """Backbone to probe: hub id, PyTorch folder or file, or converted checkpoint. Probes in that checkpoint are ignored."""

    hidden: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="(default: the width of the tokens it reads)")] = None
    """Width of a probe's hidden layers."""
    depth: Whole = 5
    """Number of linear layers in a probe."""
    activation: Annotated[str, tyro.conf.arg(metavar="NAME")] = "gelu"
    """Activation between linear layers: gelu, gelu_tanh, relu, silu, tanh or leaky_relu."""
    norm: Literal["layernorm", "rmsnorm", "none"] = "layernorm"
    """Normalisation of the tokens before the first linear layer."""
    mlps: Literal["shared", "separate"] = "shared"
    """Whether one MLP per layer reads all views (shared), or each view has an MLP of its own (separate)."""
    precision: Literal["highest", "high", "default"] = "highest"
    """Precision of the probes' matrix products, on GPUs and TPUs that offer several."""
    side_by_side: Whole = 1
    """Layers to compute at once, rounded down to a divisor of their number. Higher values mean more memory and larger matrix products."""


@dataclasses.dataclass(frozen=True)
class BackboneOptions(RunOptions):
    """Trains a model itself, trunk and heads: a DUSt3R, MASt3R or VGGT from scratch, or from a checkpoint with --start.

    Data, loss, checkpoints and devices work as they do for probes. The run ends with a converted checkpoint in DIR/backbone, which
    python -m convert --to-torch exports in PyTorch's layout.
    With more than two --views, view 1 of a DUSt3R has the first decoder and heads, all other views share the second, and each view attends
    to all others. The model then takes any number of views, but DUSt3R's own code, which the export is for, takes two. A VGGT always takes
    any number.
    A run that was interrupted, by Ctrl-C, SIGTERM or a kill, resumes from its last checkpoint when the same command is given again.
    """

    start: Annotated[str | None, tyro.conf.arg(metavar="SOURCE", help_behavior_hint="(default: from scratch)")] = None
    """Checkpoint to continue from: hub id, PyTorch folder or file, or converted checkpoint. It determines the architecture."""
    fresh_confidence: bool = False
    """Reset the predicted confidence to 2 in every pixel. A confidence that has dropped to its lower bound of 1 has no gradient."""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("backbone_run")
    """Output folder of the run, on the first host. Other hosts write only their list of unreadable pairs there."""

    family: Annotated[
        Literal["dust3r", "mast3r", "vggt"] | None,
        tyro.conf.arg(
            metavar="{dust3r,mast3r,vggt}", help_behavior_hint="(default: dust3r, or the family that --head implies; not with --start)"
        ),
    ] = None
    """Family of the model. A vggt from scratch has heads for cameras and points."""
    image_size: Annotated[
        str | None, tyro.conf.arg(metavar="WxH", help_behavior_hint="(default: 128x128, for a vggt 112x112; not with --start)")
    ] = None
    """Image size that the model is made for, in pixels, multiples of the patch size: 16, or 14 for a vggt."""
    enc_depth: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="(default: 4, for a vggt 3; not with --start)")] = None
    """Number of encoder blocks."""
    enc_width: Annotated[
        int | None, tyro.conf.arg(metavar="N", help_behavior_hint="(default: 192, no option for a vggt; not with --start)")
    ] = None
    """Channels of the encoder's tokens; in a vggt, all tokens have the same number."""
    enc_heads: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="(default: 3; not with --start)")] = None
    """Attention heads of an encoder block."""
    dec_depth: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="(default: 8, for a vggt 4; not with --start)")] = None
    """Number of decoder blocks for each view; in a vggt, of pairs of a frame block and a global block."""
    dec_width: Annotated[
        int | None,
        tyro.conf.arg(metavar="N", help_behavior_hint="(default: 128, for a vggt 192; not with --start)"),
    ] = None
    """Channels of the decoder's tokens; in a vggt, of all tokens."""
    dec_heads: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="(default: 4, for a vggt 6; not with --start)")] = None
    """Attention heads of a decoder block; in a vggt, of a frame block and of a global block."""
    mlp_ratio: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="(default: 3; not with --start)")] = None
    """Hidden channels of a block's MLP, as a multiple of its tokens' channels."""
    head: Annotated[
        Literal["linear", "dpt", "catmlp+dpt"] | None,
        tyro.conf.arg(
            metavar="{linear,dpt,catmlp+dpt}",
            help_behavior_hint="(default: linear, for a mast3r catmlp+dpt, no option for a vggt; not with --start)",
        ),
    ] = None
    """Head that turns tokens into pointmaps; catmlp+dpt is a MASt3R's, whose descriptors the loss does not train."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """Optimiser. muon updates the matrices of the blocks with Muon and everything else with AdamW."""


Options = TypeVar("Options", bound=RunOptions)
"""Options of probes, or of a backbone."""

NOT_PART_OF_A_RUN = ("out", "config", "distributed", "coordinator", "processes", "process", "overwrite", "quiet", "json", "debug")
"""Options that say where and how a run is started, not what it computes."""

CHANGEABLE = (
    *("validate_every", "save_every", "keep", "log_every", "export", "workers"),
    *("val_data", "val_pairs", "side_by_side", "at_once", "unreadable"),
)
"""Options that may change when a run is resumed: none of them affects the trained parameters."""
