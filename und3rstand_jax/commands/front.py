"""What a program handles before it reads its options: its version, shell completion, and the overview. JAX is not imported."""

import dataclasses
import difflib
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from und3rstand_jax.commands.command_line import EXIT_FAILED, any_of, parse_command, read_options
from und3rstand_jax.commands.completion import SHELLS, completion_script
from und3rstand_jax.commands.streams import show
from und3rstand_jax.support.errors import UserError
from und3rstand_jax.support.text import printable
from und3rstand_jax.support.versions import own_version

OVERVIEW = """\
und3rstand_jax {version}: look inside DUSt3R, MASt3R and VGGT, layer by layer, in JAX.

Pointmaps of every layer, and what each layer knows:
  run     pointmaps of every layer of some photos, as files; "run" may be left out
          python -m und3rstand_jax a.jpg b.jpg --out result
  report  one interactive page on all layers, of photos or of a rendered scene
          python -m und3rstand_jax report --scene 1 --out report
  match   correspondences between two photos, by a MASt3R's descriptors
          python -m und3rstand_jax match a.jpg b.jpg --checkpoint mast3r --out matches

What the layers and heads are for:
  edit    pointmaps with parts of the model knocked out or changed, beside the unedited ones
          python -m und3rstand_jax edit --scene 1 --knock-out decoder.4.cross_attn.heads:0@2 --out edited
  sweep   what the model loses without each of its heads and sublayers
          python -m und3rstand_jax sweep --pairs 16 --out sweep
  study   eight experiments with controls, each with tables and figures
          python -m und3rstand_jax study layers --pairs 16 --out study

Checkpoints and training:
  python -m convert               convert, verify, inspect and export checkpoints
  python -m train                 train a probe on every chosen layer of a frozen model
  python -m train backbone        train a DUSt3R, MASt3R or VGGT
  python -m train pose            train probes for cameras on the camera token of a VGGT
  python -m train plan            memory and time of a run, before it is run
  python -m train evaluate        errors of any probes, layer by layer
  python -m train two-views       whether a model uses its other views
  python -m train inspect         check a data set
  python -m train learning-curve  plot the learning curve of one or more runs

Without --checkpoint, run, report, edit, sweep and study take the pocket model of a clone; match needs a MASt3R.
Each command has its own --help; --version and --completion bash|zsh|fish work with all three programs.
"""


@dataclasses.dataclass(frozen=True)
class Program:
    """A program with its commands.

    Attributes:
        module: the module that `python -m` runs.
        script: its installed name.
        commands: name -> options; see `parse_command`. The name "" stands for the options of a program without commands.
        default: the command that may be omitted; "" if there are none.
    """

    module: str
    script: str
    commands: Mapping[str, Any]
    default: str = ""

    @property
    def prog(self) -> str:
        """How the program is called, for usage and errors."""
        return f"python -m {self.module}"

    def options(self, argv: Sequence[str]) -> Any:
        """The options given on a command line.

        Raises:
            SystemExit: help, the version or completion was requested and printed (status 0), or the line cannot be parsed (status 2).
        """
        words = list(argv)
        match words:
            case ["--version"]:
                show(f"und3rstand_jax {own_version()}")
                raise SystemExit(0)
            case ["--completion", *rest]:
                self._completion(rest)
            case [word] if word.startswith("--completion="):
                self._completion([word.partition("=")[2]])
        if not self.default:
            return read_options(self.commands[""], self.prog, words)
        self._check_name(words)
        return parse_command(words, self.commands, self.default, self.prog)

    def _completion(self, shells: Sequence[str]) -> None:
        if len(shells) != 1 or shells[0] not in SHELLS:
            found = " ".join(map(printable, shells)) or "nothing"
            _fail(f"--completion takes one shell: {', '.join(SHELLS)}; found {found}")
        kind = any_of(self.commands) if self.default else self.commands[""]
        try:
            script = completion_script(kind, shells[0], self.module, self.script, self.default)
        except UserError as error:
            _fail(str(error))
        sys.stdout.write(script)
        raise SystemExit(0)

    def _check_name(self, words: Sequence[str]) -> None:
        """Refuses a first word that is no command but could only be one: a photo's name has a suffix or a folder, or exists."""
        name = words[0] if words else ""
        if not re.fullmatch(r"[A-Za-z][\w-]*", name) or name in self.commands or Path(name).exists():
            return
        near = difflib.get_close_matches(name.lower().replace("_", "-"), self.commands, n=1)
        meant = f"did you mean {near[0]}? " if near else ""
        _fail(f"{name} is neither a command nor a file; {meant}The commands are {', '.join(self.commands)}; see {self.prog} --help")


def overview() -> str:
    """The package's programs and commands, with an example of each."""
    return OVERVIEW.format(version=own_version()).rstrip()


def _fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(EXIT_FAILED)
