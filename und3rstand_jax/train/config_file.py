"""Options in a file: YAML (of which JSON is a subset), one option per line under its name."""

import dataclasses
import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from und3rstand_jax.support.documents import parse_yaml, read_text
from und3rstand_jax.support.errors import OptionError
from und3rstand_jax.support.files import replace_text
from und3rstand_jax.train.options import NOT_PART_OF_A_RUN, RunOptions, TrainOptions

_LARGEST = 2**16  # bytes of a file; one with every option and its longest list is far smaller

# All processes of a run may read the same file, so it cannot say which of them this is.
_NOT_IN_A_FILE = tuple(name for name in NOT_PART_OF_A_RUN if name != "out")


def option_values(options: RunOptions) -> dict[str, object]:
    """All options that a file may contain, as plain values, in the order of --help."""
    return {
        field.name: list(value) if isinstance(value, tuple) else str(value) if isinstance(value, Path) else value
        for field in dataclasses.fields(options)
        if field.name not in _NOT_IN_A_FILE
        for value in [getattr(options, field.name)]
    }


def _name_now(option: str, value: object) -> str:
    """An option's current name; in a run of an earlier version it may have had another."""
    return "mlps" if option == "views" and value in ("shared", "separate") else option


def write_config(file: Path, values: Mapping[str, object]) -> None:
    """Writes options as YAML."""
    replace_text(file, yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True))


def read_config(file: Path, kind: type[RunOptions] = TrainOptions) -> dict[str, Any]:
    """Reads the options in a file, and converts each to its type in `kind`.

    Raises:
        OptionError: the file is missing or not YAML, or contains unknown options or values of the wrong type; the message names them all.
    """
    if not file.exists():
        raise OptionError(f"config file {file} does not exist")
    content = parse_yaml(read_text(file, OptionError, largest=_LARGEST), str(file), OptionError)
    if not isinstance(content, dict):
        raise OptionError(f"{file} must contain options and their values, such as `steps: 1000`; found {type(content).__name__}")
    return typed_options(content, str(file), kind)


def typed_options(content: Mapping[object, object], name: str, kind: type[RunOptions] = TrainOptions) -> dict[str, Any]:
    """Checks plain values read from the file `name`, and converts each to the type of its option.

    Raises:
        OptionError: an option is unknown or of the wrong type; the message names them all.
    """
    from pydantic import TypeAdapter, ValidationError

    defaults = {field.name: field.default for field in dataclasses.fields(kind) if field.name not in _NOT_IN_A_FILE}
    given: dict[str, object] = {}
    faults = []
    for key, value in content.items():
        option = _name_now(str(key).replace("-", "_"), value)
        if option not in defaults:
            near = difflib.get_close_matches(option, defaults, n=1)
            faults.append(f"there is no option {key!r}{f'; did you mean {near[0]}?' if near else ''}")
        else:
            # An option that may be repeated may also have a single value.
            given[option] = [value] if isinstance(value, str) and isinstance(defaults[option], tuple) else value
    try:
        # Strict, and as JSON: lists become tuples and text paths, but 1 is not true and "5" is not a number.
        options = TypeAdapter(kind).validate_json(json.dumps(given, default=str), strict=True)
    except ValidationError as error:
        wrong = {str(fault["loc"][0]): fault["msg"] for fault in error.errors()}
        faults += [f"{option} is {given[option]!r}: {message[:1].lower()}{message[1:]}" for option, message in wrong.items()]
    if faults:
        raise OptionError(f"{name}: {'; '.join(faults)}")
    return {option: getattr(options, option) for option in given}
