"""Options in a file: YAML, of which JSON is a part, one option a line by its name.

From `python -m train`'s command line and config file to options.
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from und3rstand_jax.support.errors import UserError
from und3rstand_jax.support.files import replace_text
from und3rstand_jax.train.options import NOT_PART_OF_A_RUN, RunOptions, TrainOptions

# Which of several processes this is, is no matter of a file that all of them may read.
_NOT_IN_A_FILE = tuple(name for name in NOT_PART_OF_A_RUN if name != "out")


def option_values(options: RunOptions) -> dict[str, Any]:
    """All options that a file may hold, as plain values."""
    values = {field.name: getattr(options, field.name) for field in dataclasses.fields(options) if field.name not in _NOT_IN_A_FILE}
    return {name: _plain(value) for name, value in values.items()}


def write_config(file: Path, values: Mapping[str, Any]) -> None:
    """Writes options in the order in which --help lists them."""
    replace_text(file, yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True))


def read_config(file: Path, kind: type[RunOptions] = TrainOptions) -> dict[str, Any]:
    """The options a file holds, each of the type that the option has in `kind`.

    Raises:
        UserError: the file is missing or no YAML, or holds an unknown option or a value of another type. All are named.
    """
    try:
        content = yaml.safe_load(file.read_text())
    except FileNotFoundError:
        raise UserError(f"there is no config file {file}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is neither YAML nor JSON: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} must hold options and their values, such as `steps: 1000`; found {type(content).__name__}")
    return typed_options(content, str(file), kind)


def typed_options(content: Mapping[Any, Any], name: str, kind: type[RunOptions] = TrainOptions) -> dict[str, Any]:
    """Plain values, as a file called `name` holds them, each as the type that the option has.

    Raises:
        UserError: see `read_config`.
    """
    hints = typing.get_type_hints(kind)
    known = {field.name: hints[field.name] for field in dataclasses.fields(kind) if field.name not in _NOT_IN_A_FILE}
    complaints, values = [], {}
    for key, value in content.items():
        option = str(key).replace("-", "_")
        if option not in known:
            near = difflib.get_close_matches(option, known, n=1)
            complaints.append(f"there is no option {key!r}{f'; did you mean {near[0]}?' if near else ''}")
            continue
        try:
            values[option] = _typed(value, known[option])
        except (TypeError, ValueError):
            complaints.append(f"{key} is {value!r}, which is not {_type_name(known[option])}")
    if complaints:
        raise UserError(f"{name}: {'; '.join(complaints)}")
    return values


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _typed(value: Any, kind: Any) -> Any:
    """The value as `kind` has it.

    Raises:
        TypeError, ValueError: it is none.
    """
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return None if value is None else _typed(value, next(arg for arg in args if arg is not type(None)))
    if origin is typing.Literal:
        if value not in args:
            raise ValueError
        return value
    if origin is tuple:
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, list):
            raise TypeError
        return tuple(_typed(item, args[0]) for item in items)
    if kind is Path:
        return Path(_typed(value, str))
    # YAML reads 1e-4, which lacks a point, as text.
    if kind is float and isinstance(value, int | str) and not isinstance(value, bool):
        return float(value)
    if type(value) is not kind:
        raise TypeError
    return value


def _type_name(kind: Any) -> str:
    if typing.get_origin(kind) is typing.Literal:
        return f"one of {', '.join(map(str, typing.get_args(kind)))}"
    return str(getattr(kind, "__name__", kind))
