"""From a command line, and the config file it names, to the options of a run."""

import argparse
import dataclasses
from pathlib import Path
from typing import TypeVar

import tyro

from und3rstand_jax.commands.command_line import run_command
from und3rstand_jax.train.options import RunOptions
from und3rstand_jax.train.run.config_file import read_config

_REPEATABLE = ("data", "val_data", "resolution")

Options = TypeVar("Options", bound=RunOptions)


def parse(argv: list[str], kind: type[Options], prog: str) -> Options | int:
    """The options; what the command line says goes before what the file of `--config` says. An exit status if the file is no good."""
    found: list[Options] = []
    status = run_command(lambda: found.append(_defaults(argv, kind)), debug="--debug" in argv)
    if status:
        return status
    return tyro.cli(kind, prog=prog, args=argv, default=found[0])


def _defaults(argv: list[str], kind: type[Options]) -> Options:
    """The options' defaults, with what a config file says in place of defaults."""
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--config", type=Path)
    for name in _REPEATABLE:
        finder.add_argument(f"--{name.replace('_', '-')}", f"--{name}", dest=name, action="append")
    given = finder.parse_known_args(argv)[0]
    values = {} if given.config is None else read_config(given.config, kind)
    # What the command line repeats would be added to a default, where it is to take its place.
    kept = {name: value for name, value in values.items() if name not in _REPEATABLE or getattr(given, name) is None}
    return dataclasses.replace(kind(), **kept)
