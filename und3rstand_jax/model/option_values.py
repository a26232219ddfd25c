"""Reads the options of a model's PyTorch class into the fields of a config: the code that all families share.

An option that is not implemented is refused by name, never ignored.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any

from und3rstand_jax.support.errors import ConfigError
from und3rstand_jax.support.text import listed

Fields = dict[str, Any]
"""Field of a config -> its value."""

Parser = Callable[[str, Any], Fields]
"""Takes an option's name and value; raises a ValueError that says what is wrong with the value."""


def read_options(options: Mapping[str, Any], parsers: Mapping[str, Parser], ignored: Collection[str]) -> Fields:
    """The config fields that the options state.

    Raises:
        ConfigError: an option is unknown, or has a value that is not supported. All are listed.
    """
    fields: Fields = {}
    complaints = []
    for option, value in options.items():
        if option in parsers:
            try:
                fields |= parsers[option](option, value)
            except ValueError as error:
                complaints.append(str(error))
        elif option not in ignored:
            complaints.append(f"option {option!r} (= {value!r}) is not known to this implementation")
    if complaints:
        raise ConfigError("backbone config: " + listed(complaints, "; ", 20, 400))
    return fields


def only(*values: Any) -> Parser:
    """The parser of an option with one supported value, or several that make no difference to the model: it gives no field."""

    def parse(option: str, value: Any) -> Fields:
        if not any(value == known and type(value) is type(known) for known in values):
            one_of = "one of " if len(values) > 1 else ""
            raise ValueError(f"{option} {value!r} is not supported; expected {one_of}{', '.join(map(str, values))}")
        return {}

    return parse


def count(option: str, value: Any) -> Fields:
    """The parser of a size."""
    if not is_count(value):
        raise ValueError(f"{option} must be a positive integer; found {value!r}")
    return {option: int(value)}


def image_size(option: str, value: Any) -> Fields:
    """The parser of one side, or of (height, width)."""
    size = (value, value) if is_count(value) else value
    if not (isinstance(size, tuple | list) and len(size) == 2 and all(is_count(side) for side in size)):
        raise ValueError(f"img_size must be one or two positive integers; found {value!r}")
    return {option: tuple(size)}


def is_count(value: Any) -> bool:
    """Whether a value is a whole number above 0, which JSON may write as 4.0."""
    is_whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    return is_whole and not isinstance(value, bool) and value > 0
