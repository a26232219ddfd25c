"""`python -m und3rstand_jax`: the command line of `und3rstand_jax.report.pointmap_files`, and `report` beside it."""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro

from und3rstand_jax.commands.command_line import end_process, run_command


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Runs DUSt3R and its layer probes on two photos of one scene.

    Writes into one folder the pointmap and confidence of every probed layer and of
    the model's own head: as arrays (.npz), as a coloured point cloud (.ply) and
    together in a contact sheet (contact_sheet.png). All pointmaps, of both photos,
    are in the camera frame of the first photo: x right, y down, z forward.
    At 512×512 a layer takes about 16 MB.

    `python -m und3rstand_jax report` makes a page to look at and figures: see its own --help.
    """

    image1: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="IMG1")]]
    """First photo, in any format Pillow opens; its camera is the frame of all results."""
    image2: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="IMG2")]]
    """Second photo of the same scene."""
    checkpoint: Annotated[str, tyro.conf.arg(metavar="DIR")]
    """A converted checkpoint (`python -m convert`); a hub id or a PyTorch folder or file is converted on first use."""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """Folder to write; it appears complete or not at all."""
    layers: Annotated[str | None, tyro.conf.arg(metavar="PATTERNS")] = None
    """Which probed layers, as comma-separated ids or shell-style patterns: 'decoder.*.mlp,decoder.0.*'. By default all."""
    preprocessing: Literal["probe", "dust3r"] = "probe"
    """probe: central square, as the probes' own example does. dust3r: keeps the photo's shape, as DUSt3R's loader does."""
    size: Annotated[int, tyro.conf.arg(metavar="PIXELS")] = 512
    """Side length photos are brought to: the short side for probe, the long side for dust3r (at 224 the short one)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What the trunk computes in; heads and probes give float32 always."""
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Replace the results of an earlier run in --out."""
    debug: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Show the traceback of an error."""


def main(argv: list[str] | None = None) -> int:
    """Parses the command line, runs it and returns the exit status: 0, or 2 after one line about what was wrong."""
    argv = sys.argv[1:] if argv is None else argv
    # Told apart by hand: the plain run has no name of its own, so that its photos come first. A photo of that name is ./report.
    if argv and argv[0] == "report":
        from und3rstand_jax.commands.report import main as report

        return report(argv[1:])
    arguments = tyro.cli(Arguments, prog="python -m und3rstand_jax", args=argv)
    return run_command(lambda: _run(arguments), arguments.debug)


def _run(arguments: Arguments) -> None:
    # Imported here because it brings in JAX and more, which --help does not need.
    from und3rstand_jax.report.pointmap_files import Request, run

    run(
        Request(
            photos=(arguments.image1, arguments.image2),
            checkpoint=arguments.checkpoint,
            out=arguments.out,
            layers=arguments.layers,
            preprocessing=arguments.preprocessing,
            size=arguments.size,
            dtype=arguments.dtype,
            overwrite=arguments.overwrite,
        )
    )


def program() -> None:
    """`main` as a process of its own."""
    end_process(main())


if __name__ == "__main__":
    program()
