"""The command line: `python -m convert --repo SOURCE --out DIR`."""

import dataclasses
import functools
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from und3rstand_jax.commands.command_line import run_command, run_process
from und3rstand_jax.commands.front import Program
from und3rstand_jax.commands.streams import show, show_json
from und3rstand_jax.convert.options import HubAccess, ProbeOptions
from und3rstand_jax.support.errors import CheckpointError, OptionError
from und3rstand_jax.support.option_kinds import Flag
from und3rstand_jax.support.progress import timed
from und3rstand_jax.support.text import printable

_TALK = ("quiet", "json", "debug")
"""Options that can be combined with all others."""


@dataclasses.dataclass(frozen=True)
class PushOptions:
    """What is uploaded to the Hugging Face hub. The token is the hub client's own: HF_TOKEN, else its login (hf auth login)."""

    push: Annotated[str | None, tyro.conf.arg(metavar="OWNER/NAME", help_behavior_hint="")] = None
    """Upload the converted checkpoint --repo, or what --repo is converted to, to this repository of the hub: in PyTorch's layout and in
    JAX's, with a model card, in one commit. --revision is then its branch. Other files in the repository stay."""
    message: Annotated[str | None, tyro.conf.arg(metavar="TEXT", help_behavior_hint="(default: what is uploaded)")] = None
    """Message of the commit."""
    private: Flag = False
    """Make the repository private. One that exists must be private already."""
    license: Annotated[str | None, tyro.conf.arg(metavar="ID", help_behavior_hint="(default: the source's)")] = None
    """Licence to publish under, as the hub names it (cc-by-nc-sa-4.0). It must be given where the source's is not known, and must not
    be freer than the source's."""
    dry_run: Flag = False
    """Print what would go up (files, sizes, the card), and send nothing."""


@dataclasses.dataclass(frozen=True)
class Options:
    """Converts PyTorch checkpoints of DUSt3R, MASt3R, VGGT and probes to Flax parameter trees, and back.

    Also: --version, and --completion bash|zsh|fish, which prints a script of completions for that shell.
    """

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
    """Which weights to take if --repo holds several: an entry of a .pth file (model_ema, ema.module), or the beginning of the tensors'
    names (dust3r). --inspect lists what is left out."""
    inspect: Flag = False
    """Print what would be converted and how each decision was made. Writes nothing."""
    verify: Flag = False
    """After writing, read the result back and compare every tensor with the source, bit for bit."""
    to_torch: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")] = None
    """Export the converted checkpoint --repo to this folder, as model.safetensors and config.json."""
    check: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")] = None
    """Verify the converted checkpoint DIR against its digests, and do nothing else. Exit status 2 if anything is damaged or missing."""
    float16: Flag = False
    """With --to-torch: round the exported tensors to float16, which halves their size and leaves three significant digits."""
    overwrite: Flag = False
    """Replace an earlier result in the output folder; with --push, files of the repository that differ from those to upload."""
    quiet: Flag = False
    """Print results only: no messages and no progress bars. Warnings and errors stay on stderr."""
    json: Flag = False
    """Print one JSON document on stdout in place of text: with --inspect the whole plan, with --push what went up, else the folders written
    or the check's result."""
    debug: Flag = False
    """Show the traceback of an error."""
    upload: Annotated[PushOptions, tyro.conf.arg(name="")] = PushOptions()
    hub: Annotated[HubAccess, tyro.conf.arg(name="")] = HubAccess()
    probes: Annotated[ProbeOptions, tyro.conf.arg(name="")] = ProbeOptions()


PROGRAM = Program("convert", "und3rstand-convert", {"": Options})


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit status: 0, or 2 with one line on stderr."""
    words = sys.argv[1:] if argv is None else argv
    options = PROGRAM.options(words)
    return run_command(lambda: _run(options), options.debug, options.quiet)


def _run(options: Options) -> None:
    if options.check is not None:
        if options != Options(**{field: getattr(options, field) for field in ("check", *_TALK)}):
            raise OptionError("--check reads a converted checkpoint and does nothing else; give it alone")
        _check(options.check, options.json)
        return
    if options.repo is None:
        raise OptionError("nothing to do: --repo SOURCE converts or exports, --check DIR checks a converted checkpoint")
    if options.to_torch is not None:
        meant = ("repo", "to_torch", "float16", "overwrite", *_TALK)
        if options != Options(**{field: getattr(options, field) for field in meant}):
            raise OptionError("--to-torch exports a converted checkpoint: it goes with --repo, --float16, --overwrite and --debug only")
        from und3rstand_jax.convert.export import export_checkpoint

        _show_written(export_checkpoint(Path(options.repo), options.to_torch, options.overwrite, options.float16), options.json)
        return
    if options.float16:
        raise OptionError("--float16 says how an export is stored; it goes with --to-torch")
    if options.upload.push is not None:
        _push(options, options.repo)
        return
    if options.upload != PushOptions():
        raise OptionError("--message, --private, --license and --dry-run configure an upload; they go with --push OWNER/NAME")
    from und3rstand_jax.checkpoint.format import is_checkpoint

    if is_checkpoint(options.repo):
        raise OptionError(f"{options.repo} is converted already; use it as --checkpoint, or export it with --to-torch DIR")
    out = _convert(options, options.repo, options.hub)
    if out is not None:
        _show_written([out], options.json)


def _convert(options: Options, repo: str, access: HubAccess) -> Path | None:
    """The folder that was written; with --inspect, the plan is shown and None returned."""
    from und3rstand_jax.convert.parts import describe, plan_json
    from und3rstand_jax.convert.planning import open_plan

    out = options.out or default_out(repo)
    with open_plan(repo, options.backbone, access, options.probes, key=options.key) as plan:
        if options.inspect:
            if options.json:
                show_json(plan_json(plan))
            else:
                show(describe(plan))
            return None
        from und3rstand_jax.convert.writing import convert, is_conversion_of, verify

        # The result exists if the same command is given again after a failed upload.
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
            raise OptionError(f"--revision could refer to {repo} or {upload.push}; convert with --revision first, then --push the folder")
        converted = _convert(options, repo, dataclasses.replace(access, revision=None))
        assert converted is not None, "--inspect was refused"
        folder = converted
    elif options != Options(**{field: getattr(options, field) for field in ("repo", "overwrite", "upload", "hub", *_TALK)}):
        raise OptionError(f"{repo} is converted already; with --push it takes --revision, --token-file, --overwrite and upload options")
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
    if options.json:
        show_json(dataclasses.asdict(pushed))
    else:
        show(describe(pushed) if pushed.url is None else pushed.url)


def _show_written(folders: Sequence[Path], as_json: bool) -> None:
    if as_json:
        show_json({"written": list(map(str, folders))})
        return
    for folder in folders:
        show(folder)


def _check(folder: Path, as_json: bool) -> None:
    from und3rstand_jax.checkpoint.check import check_checkpoint

    with timed("checking %s", folder):
        whole, faults = check_checkpoint(folder)
    if as_json:
        show_json({"checkpoint": str(folder), "whole": whole, "faults": faults})
    else:
        show("\n".join(map(printable, whole)))
    if faults:
        raise CheckpointError(f"{folder} is damaged or incomplete: {faults[0]}", *faults[1:])


def default_out(repo: str) -> Path:
    """`./NAME-jax` for a source whose last component is NAME."""
    from und3rstand_jax.convert.sources.layout import TENSOR_SUFFIXES

    name = Path(repo).resolve().name if Path(repo).exists() else repo.rsplit("/", 1)[-1]
    for suffix in TENSOR_SUFFIXES:
        name = name.removesuffix(suffix)
    return Path(f"{name}-jax")


def program() -> None:
    """Runs `main` as the whole process."""
    # Reading and writing arrays needs no device, and must not fail because JAX_PLATFORMS names one that this machine lacks.
    os.environ["JAX_PLATFORMS"] = "cpu"
    run_process(main)
