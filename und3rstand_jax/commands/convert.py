"""The command line: `python -m convert --repo SOURCE --out DIR`."""

import dataclasses
import functools
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from und3rstand_jax.commands.command_line import end_process, run_command
from und3rstand_jax.support.errors import UserError

if TYPE_CHECKING:
    from und3rstand_jax.convert.findings import ProbeOptions
    from und3rstand_jax.convert.planning import HubAccess
    from und3rstand_jax.model.config import Mode

Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]


@dataclasses.dataclass(frozen=True)
class HubArgs:
    """How the hub is reached, as huggingface_hub has it (its environment variables hold too)."""

    revision: str | None = None
    """Branch, tag or commit of --repo."""
    token: str | None = None
    """Access token; the client's own login by default."""
    hub_cache: str | None = None
    """Folder for downloaded files; the client's own by default."""
    offline: Flag = False
    """Use only what is already in that folder."""


@dataclasses.dataclass(frozen=True)
class ProbeArgs:
    """What shapes cannot tell of probes. Each has a documented default and is printed and recorded."""

    probe_layers: str | None = None
    """Layer id of every MLP of the checkpoint, comma-separated, in the checkpoint's order; patterns are taken."""
    mapping: Path | None = None
    """JSON file that says which tensors probe which layer (format: `und3rstand_jax.convert.probes.mapping_file`)."""
    activation: str | None = None
    """Between linear layers: gelu, gelu_tanh, relu, silu, tanh, leaky_relu or identity."""
    norm: str | None = None
    """layernorm or rmsnorm."""
    norm_epsilon: float | None = None
    """Epsilon of the norms."""
    residual: bool | None = None
    """Whether hidden layers of equal width have a skip around them."""
    output_layout: str | None = None
    """channels_first (channel, row, column: DUSt3R's linear head) or channels_last."""
    depth_mode: str | None = None
    """Output activation of points: exp, square or linear."""
    conf_mode: str | None = None
    """Output activation of confidences and its bounds: exp,1,inf."""


@dataclasses.dataclass(frozen=True)
class Args:
    """Converts PyTorch checkpoints of DUSt3R and of its probes into Flax parameter trees, and back."""

    repo: str
    """Source: a hub id (owner/name), a folder (config.json + *.safetensors), or a .safetensors, .pth or .bin file.
    With --to-torch: a converted checkpoint."""
    out: Path | None = None
    """Folder to write; by default ./NAME-jax, after the source."""
    backbone: str | None = None
    """Backbone of a probe checkpoint (hub id, folder, file or converted checkpoint).
    By default the same files, else the base model that its config or model card names."""
    inspect: Flag = False
    """Print what would be converted, and how everything was decided; write nothing."""
    verify: Flag = False
    """Read back what was written and compare every tensor with the source, bit for bit."""
    to_torch: Path | None = None
    """Export the converted checkpoint --repo to this folder: model.safetensors and config.json."""
    float16: Flag = False
    """Store the export's tensors as float16: half the size, three digits of every value."""
    overwrite: Flag = False
    """Replace an earlier result."""
    debug: Flag = False
    """Show the traceback of an error."""
    hub: Annotated[HubArgs, tyro.conf.arg(name="")] = HubArgs()
    probes: Annotated[ProbeArgs, tyro.conf.arg(name="")] = ProbeArgs()


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit status: 0, or 2 with one line on stderr."""
    args = tyro.cli(Args, prog="python -m convert", args=argv)
    return run_command(lambda: _run(args), args.debug)


def _run(args: Args) -> None:
    if args.to_torch is not None:
        _export(args, args.to_torch)
        return
    if args.float16:
        raise UserError("--float16 says how an export is stored; it goes with --to-torch")
    from und3rstand_jax.checkpoint.format import is_checkpoint
    from und3rstand_jax.convert.inspection import describe
    from und3rstand_jax.convert.planning import planned

    if is_checkpoint(args.repo):
        raise UserError(f"{args.repo} is converted already; use it as --checkpoint, or export it with --to-torch DIR")
    out = args.out or default_out(args.repo)
    with planned(args.repo, args.backbone, _access(args.hub), _options(args.probes)) as plan:
        if args.inspect:
            print(describe(plan))
            return
        from und3rstand_jax.convert.verify import verify
        from und3rstand_jax.convert.writing import convert

        check = functools.partial(verify, plan, show_progress=True) if args.verify else None
        convert(plan, out, args.overwrite, show_progress=True, check=check)
    print(out)


def _export(args: Args, out: Path) -> None:
    kept = Args(repo=args.repo, to_torch=args.to_torch, float16=args.float16, overwrite=args.overwrite, debug=args.debug)
    if args != kept:
        raise UserError(
            "--to-torch exports a converted checkpoint: beside it only --repo, --float16, --overwrite and --debug have a meaning"
        )
    from und3rstand_jax.convert.export import export_checkpoint

    for folder in export_checkpoint(Path(args.repo), out, args.overwrite, args.float16):
        print(folder)


def default_out(repo: str) -> Path:
    """`./NAME-jax` for a source whose last component is NAME."""
    name = Path(repo).expanduser().resolve().name if Path(repo).expanduser().exists() else repo.rsplit("/", 1)[-1]
    for suffix in (".safetensors", ".pth", ".pt", ".bin"):
        name = name.removesuffix(suffix)
    return Path(f"{name}-jax")


def _access(hub: HubArgs) -> "HubAccess":
    from und3rstand_jax.convert.planning import HubAccess

    return HubAccess(hub.revision, hub.token, hub.hub_cache, hub.offline)


def _options(probes: ProbeArgs) -> "ProbeOptions":
    from und3rstand_jax.convert.findings import ProbeOptions

    return ProbeOptions(
        probe_layers=_layers(probes.probe_layers),
        mapping=_read_mapping(probes.mapping) if probes.mapping else None,
        activation=probes.activation,
        norm=probes.norm,
        norm_epsilon=probes.norm_epsilon,
        residual=probes.residual,
        output_layout=probes.output_layout,
        depth_mode=_mode(probes.depth_mode, ("-inf", "inf"), "--depth-mode"),
        conf_mode=_mode(probes.conf_mode, ("1", "inf"), "--conf-mode"),
    )


def _layers(text: str | None) -> tuple[str, ...]:
    layers = tuple(part.strip() for part in (text or "").split(",") if part.strip())
    if text is not None and not layers:
        raise UserError(f"--probe-layers {text!r} names no layer; give ids such as decoder.0.mlp, or leave it out")
    return layers


def _read_mapping(file: Path) -> dict:
    try:
        content = json.loads(file.read_text())
    except (ValueError, RecursionError) as error:
        raise UserError(f"--mapping {file} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"--mapping {file} must hold a JSON object; found {type(content).__name__}")
    return content


def _mode(text: str | None, bounds: tuple[str, str], option: str) -> "Mode | None":
    """`exp` or `exp,1,inf` as an output activation."""
    if text is None:
        return None
    name, *given = text.split(",")
    low, high = given or bounds if len(given) in (0, 2) else ("", "")
    try:
        mode = (name, float(low), float(high))
        if math.isnan(mode[1]) or math.isnan(mode[2]):
            raise ValueError("NaN bounds nothing")
        return mode
    except ValueError:
        raise UserError(f"{option} {text!r} is not NAME or NAME,LOW,HIGH (for example exp,1,inf)") from None


def program() -> None:
    """`main` as a process of its own."""
    end_process(main())


if __name__ == "__main__":
    program()
