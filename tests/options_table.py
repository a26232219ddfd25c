"""The tables of all options of training, from their definitions: `python -m tests.options_table` writes docs/training_options.md."""

import ast
import dataclasses
import inspect
import sys
from pathlib import Path
from typing import Any, get_args, get_type_hints

import tyro

from und3rstand_jax.commands.evaluate import EvaluateOptions
from und3rstand_jax.commands.inspect import InspectOptions
from und3rstand_jax.commands.plan import PlanOptions
from und3rstand_jax.commands.two_views import TwoViewOptions
from und3rstand_jax.train.options import BackboneOptions, TrainOptions

DOCUMENT = Path(__file__).parent.parent / "docs" / "training_options.md"

_COMMANDS: dict[str, tuple[Any, str]] = {
    "python -m train": (TrainOptions, "A config file (`--config`, YAML or JSON) holds these by the same names, with `_` or `-`."),
    "python -m train backbone": (BackboneOptions, "A config file holds these as well."),
    "python -m train two-views": (TwoViewOptions, ""),
    "python -m train evaluate": (EvaluateOptions, ""),
    "python -m train inspect": (InspectOptions, ""),
    "python -m train plan": (PlanOptions, "And all options of `python -m train`."),
}


def table() -> str:
    """The document."""
    head = "# Options of `python -m train` and the commands beside it\n\nMade by `python -m tests.options_table` from their definitions.\n"
    return head + "".join(_section(command, *described) for command, described in _COMMANDS.items())


def _section(command: str, options: Any, note: str) -> str:
    defaults = {field.name: field.default for field in dataclasses.fields(options)}
    rows = [f"| `{_called(options, name)}` | {_told(defaults[name])} | {text} |" for name, text in _descriptions(options).items()]
    lines = [f"\n## `{command}`\n", *([f"{note}\n"] if note else []), "| option | default | what it does |", "|---|---|---|", *rows]
    return "\n".join(lines) + "\n"


def _descriptions(options: Any) -> dict[str, str]:
    """Name -> the text under each field, which Python itself does not keep."""
    described: dict[str, str] = {}
    # What is a command's own before what it shares with others.
    for kind in (base for base in options.__mro__ if dataclasses.is_dataclass(base)):
        tree = ast.parse(inspect.getsource(sys.modules[kind.__module__]))
        (definition,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == kind.__name__)
        for field, text in zip(definition.body, definition.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                assert isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
                described.setdefault(field.target.id, str(text.value.value).replace("|", "\\|"))
    return described


def _called(options: Any, name: str) -> str:
    """As it is written on the command line: --name, or just its value where only its place tells what it is."""
    (_, positional) = get_args(tyro.conf.Positional[str])
    is_positional = positional in getattr(get_type_hints(options, include_extras=True)[name], "__metadata__", ())
    return name.upper() if is_positional else f"--{name.replace('_', '-')}"


def _told(value: object) -> str:
    if value is dataclasses.MISSING:
        return "required"
    return "–" if value is None or value == () else f"`{value}`"


if __name__ == "__main__":
    DOCUMENT.write_text(table())
    print(DOCUMENT)
