"""The command line: `python -m convert --repo SOURCE --out DIR`."""

import dataclasses
import functools
import os
import sys
from pathlib import Path
from typing import Annotated

import tyro

from und3rstand_jax.commands.command_line import read_options, run_command, run_process
from und3rstand_jax.commands.streams import show
from und3rstand_jax.convert.options import HubAccess, ProbeOptions
from und3rstand_jax.support.errors import CheckpointError, OptionError
from und3rstand_jax.support.text import printable


@dataclasses.dataclass(frozen=True)
class Options:
    """Converts PyTorch checkpoints of DUSt3R, MASt3R, VGGT and of probes into Flax parameter trees, and back."""

    repo: Annotated[str | None, tyro.conf.arg(metavar="SOURCE", help_behavior_hint="")] = None
    """What to convert: a hub id (owner/name), a folder (config.json and *.safetensors), or a .safetensors, .pth, .pt, .ckpt or .bin
    file. With --to-torch: a converted checkpoint."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="(default: ./NAME-jax for a source called NAME)")] = None
    """Output folder."""
    backbone: Annotated[
        str | None,
        tyro.conf.arg(metavar="SOURCE", help_behavior_hint="(default: in the same files, else the base model of the config or model card)"),
    ] = None
    """Backbone of a probe checkpoint: a hub id, folder, file or converted checkpoint."""
    key: Annotated[str, tyro.conf.arg(metavar="KEY", help_behavior_hint="(default: model, state_dict or model_state_dict, else all)")] = ""
    """Which weights, where --repo holds several: an entry of a .pth file (model_ema, ema.module), or the beginning of the tensors' names
    (dust3r). --inspect lists what is left out."""
    inspect: bool = False
    """Print what would be converted and how each decision was made. Writes nothing."""
    verify: bool = False
    """After writing, read the result back and compare every tensor with the source, bit for bit."""
    to_torch: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")] = None
    """Export the converted checkpoint --repo to this folder, as model.safetensors and config.json."""
    check: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")] = None
    """Verify the converted checkpoint DIR against its digests, and do nothing else. Status 2 if anything is damaged or missing."""
    float16: bool = False
    """With --to-torch: round the exported tensors to float16, for half the size and three significant digits."""
    overwrite: bool = False
    """Replace an earlier result in the output folder."""
    debug: bool = False
    """Show the traceback of an error."""
    hub: Annotated[HubAccess, tyro.conf.arg(name="")] = HubAccess()
    probes: Annotated[ProbeOptions, tyro.conf.arg(name="")] = ProbeOptions()


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit status: 0, or 2 with one line on stderr."""
    words = sys.argv[1:] if argv is None else argv
    options = read_options(Options, "python -m convert", words, config=(tyro.conf.FlagCreatePairsOff,))
    return run_command(lambda: _run(options), options.debug)


def _run(options: Options) -> None:
    if options.check is not None:
        if options != Options(check=options.check, debug=options.debug):
            raise OptionError("--check reads a converted checkpoint and does nothing else; give it alone")
        _check(options.check)
        return
    if options.repo is None:
        raise OptionError("nothing to do: --repo SOURCE converts or exports, --check DIR checks a converted checkpoint")
    if options.to_torch is not None:
        meant = ("repo", "to_torch", "float16", "overwrite", "debug")
        if options != Options(**{field: getattr(options, field) for field in meant}):
            raise OptionError("--to-torch exports a converted checkpoint: it goes with --repo, --float16, --overwrite and --debug only")
        from und3rstand_jax.convert.export import export_checkpoint

        for folder in export_checkpoint(Path(options.repo), options.to_torch, options.overwrite, options.float16):
            show(folder)
        return
    if options.float16:
        raise OptionError("--float16 says how an export is stored; it goes with --to-torch")
    from und3rstand_jax.checkpoint.format import is_checkpoint
    from und3rstand_jax.convert.parts import describe
    from und3rstand_jax.convert.planning import open_plan

    if is_checkpoint(options.repo):
        raise OptionError(f"{options.repo} is converted already; use it as --checkpoint, or export it with --to-torch DIR")
    out = options.out or default_out(options.repo)
    with open_plan(options.repo, options.backbone, options.hub, options.probes, key=options.key) as plan:
        if options.inspect:
            show(describe(plan))
            return
        from und3rstand_jax.convert.writing import convert, verify

        convert(plan, out, options.overwrite, check=functools.partial(verify, plan) if options.verify else None)
    show(out)


def _check(folder: Path) -> None:
    from und3rstand_jax.checkpoint.check import check_checkpoint

    whole, faults = check_checkpoint(folder)
    show("\n".join(map(printable, whole)))
    if faults:
        raise CheckpointError(f"{folder} is not whole: {faults[0]}", *faults[1:])


def default_out(repo: str) -> Path:
    """`./NAME-jax` for a source whose last component is NAME."""
    from und3rstand_jax.convert.sources.layout import TENSOR_SUFFIXES

    name = Path(repo).resolve().name if Path(repo).exists() else repo.rsplit("/", 1)[-1]
    for suffix in TENSOR_SUFFIXES:
        name = name.removesuffix(suffix)
    return Path(f"{name}-jax")


def program() -> None:
    """`main` as a process of its own."""
    # Reading and writing arrays needs no device, and must not depend on one that JAX_PLATFORMS names and this machine lacks.
    os.environ["JAX_PLATFORMS"] = "cpu"
    run_process(main)
