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
class PushOptions:
    """What goes up to the Hugging Face hub. The token is the hub client's own: HF_TOKEN, else its login (hf auth login)."""

    push: Annotated[str | None, tyro.conf.arg(metavar="OWNER/NAME", help_behavior_hint="")] = None
    """Upload the converted checkpoint --repo, or what --repo is converted to, to this repository of the hub: in PyTorch's layout and in
    JAX's, with a model card, in one commit. --revision is then its branch. Other files in the repository stay."""
    message: Annotated[str | None, tyro.conf.arg(metavar="TEXT", help_behavior_hint="(default: what is uploaded)")] = None
    """Message of the commit."""
    private: bool = False
    """Make the repository private. One that exists must be private already."""
    license: Annotated[str | None, tyro.conf.arg(metavar="ID", help_behavior_hint="(default: the source's)")] = None
    """Licence to publish under, by the hub's word for it (cc-by-nc-sa-4.0). It must be given where the source's is not known, and must not
    be freer than the source's."""
    dry_run: bool = False
    """Print what would go up (files, sizes, the card), and send nothing."""


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
    """Replace an earlier result in the output folder; with --push, files of the repository that differ from those to upload."""
    debug: bool = False
    """Show the traceback of an error."""
    upload: Annotated[PushOptions, tyro.conf.arg(name="")] = PushOptions()
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
    if options.upload.push is not None:
        _push(options, options.repo)
        return
    if options.upload != PushOptions():
        raise OptionError("--message, --private, --license and --dry-run are about an upload; they go with --push OWNER/NAME")
    from und3rstand_jax.checkpoint.format import is_checkpoint

    if is_checkpoint(options.repo):
        raise OptionError(f"{options.repo} is converted already; use it as --checkpoint, or export it with --to-torch DIR")
    show(_convert(options, options.repo, options.hub))


def _convert(options: Options, repo: str, access: HubAccess) -> Path | str:
    """The folder that was written, or with --inspect the plan."""
    from und3rstand_jax.convert.parts import describe
    from und3rstand_jax.convert.planning import open_plan

    out = options.out or default_out(repo)
    with open_plan(repo, options.backbone, access, options.probes, key=options.key) as plan:
        if options.inspect:
            return describe(plan)
        from und3rstand_jax.convert.writing import convert, is_conversion_of, verify

        # The same command again, after an upload that failed.
        if options.upload.push is None or options.overwrite or not is_conversion_of(plan, out):
            convert(plan, out, options.overwrite, check=functools.partial(verify, plan) if options.verify else None)
    return out


def _push(options: Options, repo: str) -> None:
    from und3rstand_jax.checkpoint.format import is_checkpoint
    from und3rstand_jax.convert.push import describe, push_to_hub

    upload, access = options.upload, options.hub
    assert upload.push is not None
    if access.token is not None:
        raise OptionError("--push takes no --token, which others could read: log in (hf auth login), set HF_TOKEN or give --token-file")
    if options.inspect or access.offline:
        raise OptionError("--push uploads, and goes neither with --inspect nor with --offline; --dry-run shows what would go up")
    folder = Path(repo)
    if not is_checkpoint(folder):
        if access.revision is not None and not folder.exists():
            raise OptionError(f"--revision could be of {repo} or of {upload.push}; convert with --revision first, then --push the folder")
        folder = Path(_convert(options, repo, dataclasses.replace(access, revision=None)))
    elif options != Options(repo=repo, overwrite=options.overwrite, debug=options.debug, upload=upload, hub=access):
        raise OptionError(
            f"{repo} is converted already; with --push it takes --revision, --token-file, --overwrite and what is about uploads"
        )
    pushed = push_to_hub(
        folder,
        upload.push,
        revision=access.revision,
        message=upload.message,
        private=upload.private,
        license=upload.license,
        token=access.secret,
        overwrite=options.overwrite,
        dry_run=upload.dry_run,
    )
    show(describe(pushed) if pushed.url is None else pushed.url)


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
